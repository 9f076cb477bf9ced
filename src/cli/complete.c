/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/complete.h"

#include "base/json.h"
#include "base/macro.h"
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/text.h"

#include <string.h>

#define PATIENCE_MS 2000 /* nobody waits longer for a tab */

/* What the words before the cursor have come to. */
struct line {
    const char *group;
    const struct verb *verb;
    size_t operand_count;
    const char *operand;           /* the last one */
    const struct arg_def *pending; /* the option whose value comes next */
    const char *socket;
    bool options_end, lost; /* lost: a word that is no verb */
};

struct output {
    FILE *out;
    const char *prefix; /* what has been typed of the word */
    const char *before; /* what stands before it in the same word: "--format=" */
    complete_names_fn *names;
    void *arg;
};

static void propose(const struct output *output, const char *word, size_t length, const char *description)
{
    if (length >= strlen(output->prefix) && strncmp(word, output->prefix, strlen(output->prefix)) == 0)
        fprintf(output->out, "%s%.*s%s%s\n", output->before, (int)length, word, description ? "\t" : "",
                description ? description : "");
}

static void take_option(struct line *line, const char *word)
{
    const char *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word - 2) : strlen(word + 2);
    const struct arg_def *option = verb_option(line->verb, word + 2, length);
    if (!option || option->kind == ARG_FLAG)
        return;
    if (equals && strcmp(option->name, "socket") == 0)
        line->socket = equals + 1;
    else if (!equals)
        line->pending = option;
}

static void take_value(struct line *line, const char *word)
{
    if (strcmp(word, "=") == 0)
        return; /* bash makes three words of --format=json */
    if (strcmp(line->pending->name, "socket") == 0)
        line->socket = word;
    line->pending = NULL;
}

static void take_verb(struct line *line, const char *word)
{
    line->verb = verb_find(line->group, word);
    if (line->verb)
        return;
    line->lost = line->group || !verb_group_exists(word);
    line->group = word;
}

static void take_word(struct line *line, const char *word)
{
    if (line->pending) {
        take_value(line, word);
    } else if (!line->options_end && strcmp(word, "--") == 0) {
        line->options_end = true;
    } else if (!line->options_end && word[0] == '-') {
        if (word[1] == '-') /* the letters are all flags */
            take_option(line, word);
    } else if (line->verb) {
        line->operand_count++;
        line->operand = word;
    } else {
        take_verb(line, word);
    }
}

static void propose_verbs(const struct output *output, const char *group)
{
    const char *last = "";
    for (const struct verb *const *v = verbs; *v; v++) {
        if (group && (!(*v)->group || strcmp((*v)->group, group) != 0))
            continue;
        if (group || !(*v)->group)
            propose(output, (*v)->name, strlen((*v)->name), (*v)->summary);
        else if (strcmp((*v)->group, last) != 0)
            propose(output, (*v)->group, strlen((*v)->group), "Several commands");
        last = (*v)->group ? (*v)->group : "";
    }
}

static void propose_choices(const struct output *output, const char *choices)
{
    for (const char *p = choices; p;) {
        size_t length = strcspn(p, "|");
        propose(output, p, length, NULL);
        p = p[length] ? p + length + 1 : NULL;
    }
}

/* Of one table, those that the other one does not hide by the same name. */
static void propose_options(const struct output *output, const struct verb *verb, const struct arg_def *table)
{
    for (const struct arg_def *o = table; o->name; o++) {
        char word[64];
        int length = snprintf(word, sizeof word, "--%s", o->name);
        bool taken = table != global_options || verb_takes(verb, o);
        if (taken && verb_option(verb, o->name, strlen(o->name)) == o)
            propose(output, word, (size_t)length, o->help);
    }
}

static void propose_names(const struct output *output, const struct line *line, const char *path,
                          const char *list)
{
    output->names(output->arg, line->socket, path, list, output->out, output->prefix);
}

static void propose_values(const struct output *output, const struct line *line, const struct arg_def *def)
{
    switch (def->kind) {
    case ARG_CHOICE:
        propose_choices(output, def->value);
        break;
    case ARG_FILE:
    case ARG_DISK:
        fputs(":file\n", output->out);
        break;
    case ARG_VM:
        propose_names(output, line, "/v1/vms", "vms");
        break;
    case ARG_PEER:
        propose_names(output, line, "/v1/peers", "peers");
        break;
    case ARG_IMAGE:
        propose_names(output, line, "/v1/images", "images");
        break;
    case ARG_VERB:
        propose_verbs(output, line->operand_count ? line->operand : NULL);
        break;
    case ARG_FLAG:
    case ARG_TEXT:
    case ARG_COUNT:
    case ARG_SIZE:
    case ARG_RATE:
    case ARG_DURATION:
        break;
    }
}

/* "--format=js": the value of an option in one word. */
static const struct arg_def *option_in_word(const struct line *line, const char *word, char *before,
                                            size_t size, const char **ret_value)
{
    const char *equals = strncmp(word, "--", 2) == 0 ? strchr(word, '=') : NULL;
    if (!equals || (size_t)(equals - word) + 2 > size)
        return NULL;
    const struct arg_def *option = verb_option(line->verb, word + 2, (size_t)(equals - word - 2));
    if (!option)
        return NULL;
    snprintf(before, size, "%.*s", (int)(equals - word + 1), word);
    *ret_value = equals + 1;
    return option;
}

void complete_words(int count, char **words, FILE *out, complete_names_fn *names, void *arg)
{
    struct line line = {0};
    char before[64] = "";
    const char *word = count > 0 ? words[count - 1] : "";
    for (int i = 0; i + 1 < count; i++)
        take_word(&line, words[i]);
    struct output output = {.out = out, .prefix = word, .before = "", .names = names, .arg = arg};
    if (line.pending && strcmp(word, "=") == 0)
        output.prefix = "";
    const struct arg_def *option = option_in_word(&line, word, before, sizeof before, &output.prefix);
    if (option)
        output.before = before;
    if (line.lost)
        return;
    if (line.pending || option)
        propose_values(&output, &line, option ? option : line.pending);
    else if (word[0] == '-' && !line.options_end) {
        if (line.verb)
            propose_options(&output, line.verb, line.verb->options);
        propose_options(&output, line.verb, global_options);
    } else if (!line.verb)
        propose_verbs(&output, line.group);
    else if (line.operand_count < VERB_MAX_OPERANDS && line.verb->operands[line.operand_count].name)
        propose_values(&output, &line, &line.verb->operands[line.operand_count]);
}

/* Texts that could steer the terminal are not proposed: they would end up on the command line. */
static void ask_oraid(void *arg, const char *socket, const char *path, const char *list, FILE *out,
                      const char *prefix)
{
    struct cli cli = {.args.socket = socket};
    _cleanup_json_ json_t *answer = NULL;
    (void)arg;
    if (cli_connect(&cli, NULL) < 0)
        return;
    client_set_patience(cli.client, PATIENCE_MS);
    size_t i;
    json_t *row;
    if (cli_call(&cli, "GET", path, NULL, &answer, NULL) == 0)
        json_array_foreach(json_object_get(answer, list), i, row)
        {
            const char *name = json_str(row, "name", "");
            _cleanup_free_ char *visible = text_visible(name);
            if (strcmp(name, visible) == 0 && !strpbrk(name, " '\"\\$`") &&
                strncmp(name, prefix, strlen(prefix)) == 0)
                fprintf(out, "%s\t%s\n", name, json_str(row, "state", ""));
        }
    client_free(cli.client);
}

int complete_run(int count, char **words)
{
    complete_words(count, words, stdout, ask_oraid, NULL);
    return fflush(stdout) == 0 ? CLI_OK : CLI_FAILED;
}
