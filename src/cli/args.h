/* SPDX-License-Identifier: Apache-2.0
 *
 * args: the verbs' table, and the command line read by it. The same table makes `--help`, feeds the shells'
 * completions (complete.c) and is compared with the man pages by a test, so none of them can lag behind.
 *
 * Pure: no I/O, and nothing is allocated; texts point into argv.
 */
#pragma once

#include "base/err.h"
#include "cli/format.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cli;

/* What a value is: how it is checked, and what a shell may propose for it. */
enum arg_kind {
    ARG_FLAG, /* takes no value */
    ARG_TEXT,
    ARG_FILE,
    ARG_COUNT,    /* a whole number, 1 or more */
    ARG_SIZE,     /* "8G" */
    ARG_RATE,     /* "500M" */
    ARG_DURATION, /* "300ms" */
    ARG_DISK,     /* "8G", or a block device: an absolute path */
    ARG_CHOICE,   /* one of the words in `value`, which are separated by "|" */
    ARG_VM,
    ARG_PEER,
    ARG_IMAGE,
    ARG_VERB,
};

struct arg_def {
    const char *name;  /* of an option, without the dashes; of an operand, as help writes it: "NAME" */
    const char *value; /* of an option: what its value is called, "SIZE"; of ARG_CHOICE: the words */
    const char *help;  /* one line */
    enum arg_kind kind;
    char letter;   /* of an option: its short form, or 0 */
    bool optional; /* of an operand */
    bool many;     /* of an option: each further one adds a value; without it the last one counts */
};

#define VERB_MAX_OPERANDS 3
#define VERB_MAX_OPTIONS 20
#define ARGS_MAX_FURTHER 32

enum verb_flags {
    VERB_FORMATS = 1 << 0, /* takes --format */
};

struct verb {
    const char *group; /* "peer" of `orai peer join`, or NULL */
    const char *name;
    const char *summary; /* one line, no full stop */
    unsigned flags;
    struct arg_def operands[VERB_MAX_OPERANDS + 1]; /* both end at a NULL name */
    struct arg_def options[VERB_MAX_OPTIONS + 1];
    int (*run)(struct cli *cli, struct err *err); /* 0 or -errno */
    int (*run_raw)(int argc, char **argv); /* instead: gets the words after the group, returns an exit code */
};

/* All verbs in the order of help; ends at NULL. */
extern const struct verb *const verbs[];
/* Options that verbs share (verb_takes); ends at a NULL name. */
extern const struct arg_def global_options[];

struct arg_value {
    const char *text; /* NULL when the option was not given; "" for a flag */
    uint64_t number;  /* of ARG_COUNT, ARG_SIZE and ARG_DISK (bytes), ARG_RATE (bytes per second),
                         ARG_DURATION (ms) */
};

/* The second and later values of options that may be given several times, in their order. */
struct arg_further {
    const struct arg_def *option;
    struct arg_value value;
};

struct args {
    const struct verb *verb; /* NULL when none was given */
    const char *group;       /* given without a verb after it, else NULL */
    const char *operands[VERB_MAX_OPERANDS];
    size_t operand_count;
    struct arg_value options[VERB_MAX_OPTIONS];
    struct arg_further further[ARGS_MAX_FURTHER];
    size_t further_count;
    const char *socket; /* --socket, or NULL */
    enum format format;
    bool help, version;
    int group_index, verb_index; /* where in argv these words stand; 0 = there is none */
};

/* Reads argv[1..]. Missing operands are not an error when --help is there. -EINVAL with a hint to the help.
 */
int args_parse(int argc, char **argv, struct args *ret, struct err *err);

/* The names must stand in the verb's table: asking for another one is a bug and aborts. */
bool args_flag(const struct args *args, const char *option);
const char *args_text(const struct args *args, const char *option); /* NULL when not given */
uint64_t args_number(const struct args *args, const char *option, uint64_t otherwise);
/* The value number `index` of an option that may be given several times; NULL when there are not so many. */
const struct arg_value *args_nth(const struct args *args, const char *option, size_t index);
const char *args_operand(const struct args *args, const char *operand); /* NULL when not given */

/* The verb `name` in `group` (NULL = none), or NULL. Hidden verbs are found too. */
const struct verb *verb_find(const char *group, const char *name);
bool verb_group_exists(const char *group);
/* The option "name" (no dashes) of the verb, or the global one; `verb` may be NULL. */
const struct arg_def *verb_option(const struct verb *verb, const char *name, size_t length);
/* --format only where something is listed, --socket only where oraid is asked. */
bool verb_takes(const struct verb *verb, const struct arg_def *global);
