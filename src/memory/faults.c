/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/faults.h"

#include "base/clock.h"
#include "base/macro.h"

/* The class of 2^n + m/4 * 2^n microseconds is 4n + m. */
static unsigned class_of(uint64_t usec)
{
    if (usec < 4)
        return (unsigned)usec;
    unsigned octave = 63U - (unsigned)__builtin_clzll(usec);
    return MIN(4 * octave + (unsigned)(usec >> (octave - 2) & 3), FAULTS_CLASSES - 1);
}

/* The middle of a class. */
static uint64_t usec_of(unsigned class)
{
    if (class < 8)
        return MIN(class, 3U);
    uint64_t quarter = UINT64_C(1) << (class / 4 - 2);
    return (4 + class % 4) * quarter + quarter / 2;
}

void faults_asked(struct faults *faults, uint64_t page, int64_t now)
{
    for (size_t i = 0; i < faults->pending_count; i++)
        if (faults->pending[i].page == page)
            return;
    if (faults->pending_count == FAULTS_PENDING)
        return;
    size_t i = faults->pending_count++;
    faults->pending[i].page = page;
    faults->pending[i].at = now;
}

void faults_came(struct faults *faults, uint64_t page, int64_t now)
{
    for (size_t i = 0; i < faults->pending_count; i++) {
        if (faults->pending[i].page != page)
            continue;
        uint64_t usec = (uint64_t)(MAX(now - faults->pending[i].at, INT64_C(0)) / 1000);
        faults->classes[class_of(usec)]++;
        faults->count++;
        faults->pending[i] = faults->pending[--faults->pending_count];
        return;
    }
}

uint64_t faults_took(const struct faults *faults, double part)
{
    double left = (double)faults->count * part;
    for (unsigned class = 0; class < FAULTS_CLASSES; class ++) {
        if (faults->classes[class] == 0)
            continue;
        left -= (double)faults->classes[class];
        if (left <= 0)
            return usec_of(class);
    }
    return 0;
}
