/* SPDX-License-Identifier: Apache-2.0
 *
 * err: what went wrong, in words that a person can act on.
 *
 * Every function that can fail returns 0 or a negative errno and fills a `struct err` that the caller
 * owns. Libraries never print; the program prints the error once, at its outermost place.
 * `text` says what and why, `hint` the next command to give, `host` and `stage` where it happened.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

struct err {
    int code;       /* positive errno; 0 = no error */
    char text[512]; /* one line, no full stop */
    char hint[256]; /* the next thing to do, or "" */
    char stage[32]; /* stage of a move, or "" */
    char host[64];  /* host name where it happened, or "" */
};

#define ERR_NONE ((struct err){0})

/* Each returns -errnum, so that `return err_set(...)` is the whole failure path. `err` may be NULL. */
int err_set(struct err *err, int errnum, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Like err_set, with ": " and the system's text for errnum at the end. errnum may be negative. */
int err_sys(struct err *err, int errnum, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Puts "context: " before the text that is there; returns -err->code. */
int err_context(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Sets the hint; returns -err->code. */
int err_hint(struct err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Names host and stage where they are still empty; returns -err->code. */
int err_where(struct err *err, const char *host, const char *stage);

/* clang's analyzer sees one file at a time: without this it follows paths on which a failure returns 0. */
#ifdef __clang_analyzer__
static inline int err_negative(int r)
{
    if (r >= 0)
        __builtin_unreachable();
    return r;
}
#ifndef ERR_DEFINES_THEM
#define err_set(...) err_negative(err_set(__VA_ARGS__))
#define err_sys(...) err_negative(err_sys(__VA_ARGS__))
#endif
#endif

/* {"code": "ENOSPC", "text": ..., "hint": ..., "stage": ..., "host": ...}; empty members are left out. */
json_t *err_to_json(const struct err *err);
/* Takes what err_to_json made, from a peer perhaps: anything odd becomes EPROTO. Returns -ret->code. */
int err_from_json(const json_t *json, struct err *ret);
