/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Data that anyone can make again from one number, and that no compressor can shrink: word i of a pattern
 * with a given seed is pattern_mix(i) ^ pattern_mix(seed). Disk records, memory pages and log lines are
 * filled with it, so whoever reads them back knows each byte. check-records has the same rules in Python.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014). */
uint64_t pattern_mix(uint64_t value);

/* 64-bit FNV-1a over `size` bytes. */
uint64_t pattern_sum(const void *data, size_t size);

enum { PATTERN_WORDS_MAX = 512 };

/* `count` is at most PATTERN_WORDS_MAX. */
void pattern_fill(uint64_t *words, size_t count, uint64_t seed);
bool pattern_matches(const uint64_t *words, size_t count, uint64_t seed);
