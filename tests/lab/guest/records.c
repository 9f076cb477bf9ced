/* SPDX-License-Identifier: Apache-2.0 */
#include "records.h"

#include "pattern.h"

#include <assert.h>
#include <stddef.h>

static_assert(sizeof(struct record) == RECORD_SIZE, "a record fills its slot");

enum { FILLER_WORDS = sizeof(((struct record *)NULL)->filler) / 8 };

static const uint64_t record_magic = 0x534c55504941524f; /* "ORAIPULS" */

static uint64_t header_sum(const struct record *record)
{
    return pattern_sum(record, offsetof(struct record, sum));
}

uint64_t record_slot(uint64_t number, uint64_t slots)
{
    return pattern_mix(number) % slots;
}

void record_make(struct record *record, uint64_t number, uint64_t slot, uint64_t boot)
{
    record->magic = record_magic;
    record->number = number;
    record->slot = slot;
    record->boot = boot;
    record->sum = header_sum(record);
    pattern_fill(record->filler, FILLER_WORDS, number);
}

bool record_valid(const struct record *record)
{
    return record->magic == record_magic && record->sum == header_sum(record) &&
           pattern_matches(record->filler, FILLER_WORDS, record->number);
}
