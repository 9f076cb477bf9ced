/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/args.h"

#include "base/macro.h"
#include "base/size.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const struct arg_def global_options[] = {
    {.name = "socket",
     .kind = ARG_FILE,
     .value = "PATH",
     .help = "oraid's socket (default: $ORAI_SOCKET, or /run/orai/api.sock)"},
    {.name = "help", .kind = ARG_FLAG, .help = "Show how the command is used", .letter = 'h'},
    {.name = "version", .kind = ARG_FLAG, .help = "Show the version of orai"},
    {.name = "format",
     .kind = ARG_CHOICE,
     .value = FORMAT_NAMES,
     .help = "How results are printed (default: table)"},
    {0},
};

static bool same(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

const struct verb *verb_find(const char *group, const char *name)
{
    for (const struct verb *const *v = verbs; *v; v++)
        if (same((*v)->group, group) && same((*v)->name, name))
            return *v;
    return NULL;
}

bool verb_group_exists(const char *group)
{
    for (const struct verb *const *v = verbs; *v; v++)
        if ((*v)->group && same((*v)->group, group))
            return true;
    return false;
}

bool verb_takes(const struct verb *verb, const struct arg_def *global)
{
    if (verb && strcmp(global->name, "format") == 0)
        return verb->flags & VERB_FORMATS;
    return !verb || !verb->run_raw || strcmp(global->name, "socket") != 0;
}

static const struct arg_def *option_named(const struct arg_def *table, const char *name, size_t length)
{
    for (; table->name; table++)
        if (strlen(table->name) == length && strncmp(table->name, name, length) == 0)
            return table;
    return NULL;
}

static const struct arg_def *option_lettered(const struct arg_def *table, char letter)
{
    for (; table->name; table++)
        if (table->letter && table->letter == letter)
            return table;
    return NULL;
}

const struct arg_def *verb_option(const struct verb *verb, const char *name, size_t length)
{
    const struct arg_def *own = verb ? option_named(verb->options, name, length) : NULL;
    return own ? own : option_named(global_options, name, length);
}

static void point_to_help(const struct args *args, struct err *err)
{
    const struct verb *verb = args->verb;
    if (verb)
        err_hint(err, "orai help %s%s%s", verb->group ? verb->group : "", verb->group ? " " : "", verb->name);
    else
        err_hint(err, "orai help%s%s", args->group ? " " : "", args->group ? args->group : "");
}

static bool is_choice(const char *choices, const char *text)
{
    size_t length = strlen(text);
    for (const char *p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (length > 0 && strncmp(p, text, length) == 0 && (p[length] == '|' || p[length] == '\0'))
            return true;
    return false;
}

static int parse_count(const char *text, uint64_t *ret, struct err *err)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || number == 0)
        return err_set(err, EINVAL, "\"%s\" is not a whole number, 1 or more", text);
    *ret = number;
    return 0;
}

static int parse_value(const struct arg_def *option, const char *text, struct arg_value *ret, struct err *err)
{
    int r = 0;
    assert(text); /* only flags have none */
    ret->text = text;
    if (option->kind == ARG_COUNT)
        r = parse_count(text, &ret->number, err);
    else if (option->kind == ARG_SIZE || (option->kind == ARG_DISK && text[0] != '/'))
        r = size_parse(text, &ret->number, err);
    else if (option->kind == ARG_RATE)
        r = rate_parse(text, &ret->number, err);
    else if (option->kind == ARG_DURATION)
        r = duration_parse(text, &ret->number, err);
    else if (option->kind == ARG_CHOICE && !is_choice(option->value, text))
        r = err_set(err, EINVAL, "\"%s\" is not one of %s", text, option->value);
    return r < 0 ? err_context(err, "--%s", option->name) : 0;
}

static int take_global(struct args *args, const struct arg_def *option, const char *text, struct err *err)
{
    struct arg_value value = {0};
    int r = option->kind == ARG_FLAG ? 0 : parse_value(option, text, &value, err);
    if (r < 0)
        return r;
    if (strcmp(option->name, "help") == 0)
        args->help = true;
    else if (strcmp(option->name, "version") == 0)
        args->version = true;
    else if (strcmp(option->name, "socket") == 0)
        args->socket = text;
    else
        return format_parse(text, &args->format);
    return 0;
}

static int take_further(struct args *args, const struct arg_def *option, const char *text, struct err *err)
{
    if (args->further_count == ARRAY_SIZE(args->further))
        return err_set(err, EINVAL, "--%s is given too often", option->name);
    struct arg_further *further = &args->further[args->further_count++];
    further->option = option;
    return parse_value(option, text, &further->value, err);
}

static int take_option(struct args *args, const struct arg_def *option, const char *text, struct err *err)
{
    if (option_named(global_options, option->name, strlen(option->name)) == option)
        return take_global(args, option, text, err);
    struct arg_value *value = &args->options[option - args->verb->options];
    if (option->kind == ARG_FLAG) {
        value->text = "";
        return 0;
    }
    return option->many && value->text ? take_further(args, option, text, err)
                                       : parse_value(option, text, value, err);
}

static const struct arg_def *find_option(const struct args *args, const char *word, const char **ret_value)
{
    *ret_value = NULL;
    if (strncmp(word, "--", 2) == 0) {
        const char *equals = strchr(word, '=');
        *ret_value = equals ? equals + 1 : NULL;
        return verb_option(args->verb, word + 2, equals ? (size_t)(equals - word - 2) : strlen(word + 2));
    }
    if (strlen(word) != 2)
        return NULL;
    const struct arg_def *own = args->verb ? option_lettered(args->verb->options, word[1]) : NULL;
    return own ? own : option_lettered(global_options, word[1]);
}

/* An option at argv[*index]; steps over its value too. */
static int parse_option(struct args *args, char **argv, int *index, struct err *err)
{
    const char *word = argv[*index], *value;
    const struct arg_def *option = find_option(args, word, &value);
    if (!option)
        return err_set(err, EINVAL, "unknown option %s", word);
    if (option->kind == ARG_FLAG && value)
        return err_set(err, EINVAL, "--%s takes no value", option->name);
    if (option->kind != ARG_FLAG && !value && !(value = argv[++*index]))
        return err_set(err, EINVAL, "%s needs a value: %s", word, option->value);
    return take_option(args, option, value, err);
}

static int parse_word(struct args *args, const char *word, int index, struct err *err)
{
    if (args->verb) {
        size_t most = 0;
        while (args->verb->operands[most].name)
            most++;
        if (args->operand_count == most)
            return err_set(err, EINVAL, "\"%s\" is one word too many", word);
        args->operands[args->operand_count++] = word;
        return 0;
    }
    args->verb = verb_find(args->group, word);
    if (args->verb)
        args->verb_index = index, args->group = NULL;
    else if (args->group)
        return err_set(err, EINVAL, "unknown command \"%s %s\"", args->group, word);
    else if (!verb_group_exists(word))
        return err_set(err, EINVAL, "unknown command \"%s\"", word);
    else
        args->group_index = index, args->group = word;
    return 0;
}

static int check_complete(const struct args *args, bool format_given, struct err *err)
{
    if (args->help || args->version)
        return 0;
    if (!args->verb && args->group)
        return err_set(err, EINVAL, "\"%s\" needs a command after it", args->group);
    if (!args->verb)
        return err_set(err, EINVAL, "no command given");
    if (format_given && !(args->verb->flags & VERB_FORMATS))
        return err_set(err, EINVAL, "--format: this command lists nothing");
    const struct arg_def *missing = &args->verb->operands[args->operand_count];
    if (missing->name && !missing->optional)
        return err_set(err, EINVAL, "%s is missing", missing->name);
    return 0;
}

static int parse_words(int argc, char **argv, struct args *args, struct err *err)
{
    bool options_end = false, format_given = false;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        bool is_option = !options_end && word[0] == '-' && word[1];
        int r = 0;
        if (is_option && strcmp(word, "--") == 0) {
            options_end = true;
        } else if (is_option) {
            format_given = format_given || strncmp(word, "--format", 8) == 0;
            r = parse_option(args, argv, &i, err);
        } else {
            r = parse_word(args, word, i, err);
        }
        if (r < 0)
            return r;
    }
    return check_complete(args, format_given, err);
}

int args_parse(int argc, char **argv, struct args *ret, struct err *err)
{
    struct args args = {0};
    if (parse_words(argc, argv, &args, err) < 0) {
        point_to_help(&args, err);
        return -EINVAL;
    }
    *ret = args;
    return 0;
}

static const struct arg_value *value_of(const struct args *args, const char *name)
{
    const struct arg_def *option = option_named(args->verb->options, name, strlen(name));
    if (!option)
        abort(); /* a typing error in the verb's code */
    return &args->options[option - args->verb->options];
}

bool args_flag(const struct args *args, const char *option)
{
    return value_of(args, option)->text != NULL;
}

const char *args_text(const struct args *args, const char *option)
{
    return value_of(args, option)->text;
}

uint64_t args_number(const struct args *args, const char *option, uint64_t otherwise)
{
    const struct arg_value *value = value_of(args, option);
    return value->text ? value->number : otherwise;
}

const struct arg_value *args_nth(const struct args *args, const char *option, size_t index)
{
    const struct arg_value *first = value_of(args, option);
    if (index == 0)
        return first->text ? first : NULL;
    for (size_t i = 0; i < args->further_count; i++)
        if (strcmp(args->further[i].option->name, option) == 0 && --index == 0)
            return &args->further[i].value;
    return NULL;
}

const char *args_operand(const struct args *args, const char *operand)
{
    for (size_t i = 0; args->verb->operands[i].name; i++)
        if (strcmp(args->verb->operands[i].name, operand) == 0)
            return i < args->operand_count ? args->operands[i] : NULL;
    abort();
}
