/* SPDX-License-Identifier: Apache-2.0
 *
 * asked: has QEMU's stream still to bring a page that somebody waits for? At the source, where memory follows
 * the guest: both directions are read along. Threads: any.
 */
#pragma once

#include "base/err.h"
#include "memory/requests.h"
#include "memory/workset.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct asked;

/* Of the RAM block `block` of `size` bytes. */
int asked_new(const char *block, uint64_t size, struct asked **ret, struct err *err);
void asked_free(struct asked *asked);
/* What goes to the source's QEMU on the return path, in order. */
void asked_hear(struct asked *asked, const void *data, size_t size);
/* A page of the stream has come whole; its block, u8 length and name. */
void asked_came(struct asked *asked, const uint8_t *block, uint64_t page);
enum asked_state {
    ASKED_EARLY,   /* no page has come yet */
    ASKED_MISSING, /* something that was asked for has still to come */
    ASKED_IDLE,    /* nothing that was has */
    ASKED_UNSURE   /* it cannot be known: a request was for another block, or makes no sense */
};

/* *ret_missing: pages that have still to come. */
enum asked_state asked_state(struct asked *asked, uint64_t *ret_missing);
/* A request for the pages before the newest request's, `most` at most, that have neither come nor been asked
 * for: they count as asked for from here on. Guests use memory downwards as well, and QEMU only goes on
 * upwards from what it is asked for. Returns its size; 0: there is none, or a request has been heard in part,
 * and nothing may be put behind that. */
size_t asked_neighbours(struct asked *asked, uint64_t most, uint8_t ret[REQUESTS_ROOM]);
/* A request for the next page of `workset`, from *index on, that has neither come nor been asked for; it
 * counts as asked for. Returns its size; 0: there is none, or `most` pages have still to come that were asked
 * for, or nothing may be put behind what has been heard. */
size_t asked_next(struct asked *asked, const struct workset *workset, size_t *index, uint64_t most,
                  uint8_t ret[REQUESTS_ROOM]);
