/* SPDX-License-Identifier: Apache-2.0
 *
 * faults: how long the pages that QEMU asked for took to come. Times go into classes, four to each doubling,
 * so what is said of them is right to a tenth. Pure; times are clock_now()'s.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define FAULTS_PENDING 64U /* what is asked for beyond that is not counted */
#define FAULTS_CLASSES 160U

struct faults {
    struct {
        uint64_t page;
        int64_t at;
    } pending[FAULTS_PENDING];
    size_t pending_count;
    uint64_t count; /* that came */
    uint32_t classes[FAULTS_CLASSES];
};

void faults_asked(struct faults *faults, uint64_t page, int64_t now);
/* Also of pages that nobody asked for. */
void faults_came(struct faults *faults, uint64_t page, int64_t now);
/* Microseconds that `part` of them, 0 to 1, took at most; 0: none came. */
uint64_t faults_took(const struct faults *faults, double part);
