/* SPDX-License-Identifier: Apache-2.0 */
#include "pattern.h"

#include <assert.h>

uint64_t pattern_mix(uint64_t value)
{
    value += 0x9e3779b97f4a7c15;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
    value = (value ^ value >> 27) * 0x94d049bb133111eb;
    return value ^ value >> 31;
}

uint64_t pattern_sum(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t i = 0; i < size; i++)
        sum = (sum ^ bytes[i]) * 0x100000001b3;
    return sum;
}

/* pattern_mix(i), made once: an emulated CPU verifies thousands of pages per second with it. */
static uint64_t mixed_index[PATTERN_WORDS_MAX];

__attribute__((constructor)) static void make_mixed_index(void)
{
    for (uint64_t i = 0; i < PATTERN_WORDS_MAX; i++)
        mixed_index[i] = pattern_mix(i);
}

void pattern_fill(uint64_t *words, size_t count, uint64_t seed)
{
    assert(count <= PATTERN_WORDS_MAX);
    uint64_t mixed = pattern_mix(seed);
    for (size_t i = 0; i < count; i++)
        words[i] = mixed_index[i] ^ mixed;
}

bool pattern_matches(const uint64_t *words, size_t count, uint64_t seed)
{
    assert(count <= PATTERN_WORDS_MAX);
    uint64_t mixed = pattern_mix(seed), difference = 0;
    for (size_t i = 0; i < count; i++)
        difference |= words[i] ^ mixed_index[i] ^ mixed;
    return difference == 0;
}
