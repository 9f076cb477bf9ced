/* SPDX-License-Identifier: Apache-2.0
 *
 * cli: what every verb of `orai` has at hand. A verb is one `const struct verb` (args.h): its names, its
 * options and the function that runs it, which reads its arguments, calls the API and prints through the
 * formatter.
 *
 * `orai` is one thread, holds no state and never decides anything: it shows what oraid says. Errors are
 * printed once, by main, as "orai: ..." on standard error.
 */
#pragma once

#include "base/err.h"
#include "cli/args.h"
#include "cli/format.h"

#include <jansson.h>
#include <stdbool.h>

/* The exit codes, as orai(1) documents them. */
enum cli_exit {
    CLI_OK = 0,
    CLI_FAILED = 1,
    CLI_USAGE = 2,       /* the command line, or what it asked for, makes no sense */
    CLI_UNREACHABLE = 3, /* oraid does not answer */
    CLI_REFUSED = 4,     /* not in this state: name taken, already running, a move under way, not allowed */
    CLI_NOT_FOUND = 5,   /* no such VM, image, host or operation */
    CLI_STAYED = 6,      /* the move did not happen; the guest is as it was */
    CLI_INTERRUPTED = 130,
};

struct cli {
    struct args args;
    struct client *client;
    enum cli_exit exit; /* what main exits with when a verb fails; CLI_OK: nobody has said, so CLI_FAILED */
};

/* Marks the failure as one of usage and points to the verb's help; returns -EINVAL. */
int cli_usage(struct cli *cli, struct err *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Makes cli->client unless there is one; done by cli_call and cli_stream too. */
int cli_connect(struct cli *cli, struct err *err);
/* One request to oraid (client.h); a refusal becomes `err` and cli->exit. `body` and `ret` may be NULL. */
int cli_call(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **ret,
             struct err *err);
/* GET of an answer that does not end (client_stream). */
int cli_stream(struct cli *cli, const char *path, int (*on_line)(void *, const json_t *, struct err *),
               void *arg, struct err *err);
/* "/v1/vms/%s/start" with the text percent-encoded, so that an odd name can neither leave its place in the
 * path nor forge a query. Returns a malloc'ed string; aborts when out of memory. */
char *cli_path(const char *format, const char *text);

/* Sets body[key] to what `option` was given, if it was: text, true, or a number in the API's units. A file
 * must be there and becomes an absolute path, for oraid has another working directory. */
int cli_set(const struct cli *cli, json_t *body, const char *key, const char *option, struct err *err);
/* The same for an operand that is a plain text. */
int cli_set_operand(const struct cli *cli, json_t *body, const char *key, const char *operand,
                    struct err *err);
/* realpath(3), malloc'ed. */
int cli_absolute(const char *file, char **ret, struct err *err);

/* Prints a list, or one object, in the format that the command line asks for, on standard output. */
int cli_print_list(const struct cli *cli, const struct view *view, const json_t *rows, struct err *err);
int cli_print_object(const struct cli *cli, const struct view *view, const json_t *object, struct err *err);
/* A sentence for people on standard output; silent unless the format is `table`. */
void cli_say(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Asks a yes-or-no question on the terminal, unless --yes was given. -ECANCELED on "no". Without a terminal
 * it is -EINVAL when `must`, else the command is taken at its word. */
int cli_confirm(struct cli *cli, bool must, struct err *err, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* `orai disk serve|info ...`: works on files, without oraid. argv[0] is the verb after "disk". Prints
 * its own errors; returns an enum cli_exit. */
int cli_disk(int argc, char **argv);
/* `orai disk verify FILE`, in the same way: prints what it finds; -EUCLEAN when that is something bad. */
int cli_verify_file(const char *file, struct err *err);
