/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/help.h"

#include "base/macro.h"
#include "cli/cli.h"
#include "cli/verbs.h"

#include <errno.h>
#include <string.h>

static const char *space(const struct verb *verb)
{
    return verb->group ? " " : "";
}

static const char *group(const struct verb *verb)
{
    return verb->group ? verb->group : "";
}

static bool has_options(const struct verb *verb)
{
    return verb->options[0].name != NULL;
}

static void put_synopsis(FILE *out, const struct verb *verb)
{
    fprintf(out, "orai %s%s%s", group(verb), space(verb), verb->name);
    for (const struct arg_def *o = verb->operands; o->name; o++)
        fprintf(out, o->optional ? " [%s]" : " %s", o->name);
    if (has_options(verb))
        fputs(" [OPTION]...", out);
}

static void put_entry(FILE *out, const char *left, const char *text, int width)
{
    if ((int)strlen(left) > width)
        fprintf(out, "  %s\n  %*s  %s\n", left, width, "", text);
    else
        fprintf(out, "  %-*s  %s\n", width, left, text);
}

static void put_options(FILE *out, const struct arg_def *options, const struct verb *verb)
{
    for (const struct arg_def *o = options; o->name; o++) {
        bool hidden = options == global_options &&
                      (!verb_takes(verb, o) || verb_option(verb, o->name, strlen(o->name)) != o);
        char left[128];
        if (hidden)
            continue;
        snprintf(left, sizeof left, o->letter ? "-%c, --%s%s%s" : "%c   --%s%s%s",
                 o->letter ? o->letter : ' ', o->name, o->value ? " " : "", o->value ? o->value : "");
        put_entry(out, left, o->help, 28);
    }
}

void help_verb(FILE *out, const struct verb *verb)
{
    fputs("Usage: ", out);
    put_synopsis(out, verb);
    fprintf(out, "\n\n%s.\n", verb->summary);
    if (verb->operands[0].name)
        fputc('\n', out);
    for (const struct arg_def *o = verb->operands; o->name; o++)
        put_entry(out, o->name, o->help, 10);
    fputs("\nOptions:\n", out);
    put_options(out, verb->options, verb);
    put_options(out, global_options, verb);
    fprintf(out, "\nThe manual: man orai%s%s\n", verb->group || strcmp(verb->name, "help") != 0 ? "-" : "",
            verb->group                       ? verb->group
            : strcmp(verb->name, "help") != 0 ? verb->name
                                              : "");
}

void help_overview(FILE *out, const char *wanted)
{
    fprintf(out, "Usage: orai %s%sCOMMAND [ARGUMENT]...\n\n", wanted ? wanted : "", wanted ? " " : "");
    if (!wanted)
        fputs("Moves running virtual machines between hosts; coming back costs only what changed.\n\n", out);
    for (const struct verb *const *v = verbs; *v; v++) {
        char left[64];
        bool other = wanted && (!(*v)->group || strcmp((*v)->group, wanted) != 0);
        if (other)
            continue;
        snprintf(left, sizeof left, "%s%s%s", group(*v), space(*v), (*v)->name);
        put_entry(out, left, (*v)->summary, 14);
    }
    fputs("\nOptions of every command:\n", out);
    put_options(out, global_options, NULL);
    fputs("\nMore about one: orai help COMMAND, or orai COMMAND --help. The manual: man orai\n", out);
}

static int run_help(struct cli *cli, struct err *err)
{
    const char *first = args_operand(&cli->args, "COMMAND"), *second = args_operand(&cli->args, "SUBCOMMAND");
    const struct verb *verb = second ? verb_find(first, second) : first ? verb_find(NULL, first) : NULL;
    if (verb)
        help_verb(stdout, verb);
    else if (!first || (!second && verb_group_exists(first)))
        help_overview(stdout, first);
    else
        return cli_usage(cli, err, "unknown command \"%s%s%s\"", first, second ? " " : "",
                         second ? second : "");
    return 0;
}

const struct verb verb_help = {
    .name = "help",
    .summary = "Explain a command",
    .operands = {{.name = "COMMAND", .kind = ARG_VERB, .help = "The command", .optional = true},
                 {.name = "SUBCOMMAND",
                  .kind = ARG_VERB,
                  .help = "Its second word, as in `peer join`",
                  .optional = true}},
    .run = run_help,
};
