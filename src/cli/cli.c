/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include "base/json.h"
#include "base/macro.h"
#include "cli/client.h"
#include "cli/term.h"
#include "cli/text.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int cli_usage(struct cli *cli, struct err *err, const char *format, ...)
{
    char text[sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    cli->exit = CLI_USAGE;
    err_set(err, EINVAL, "%s", text);
    const struct verb *verb = cli->args.verb;
    return err_hint(err, "orai help %s%s%s", verb->group ? verb->group : "", verb->group ? " " : "",
                    verb->name);
}

char *cli_path(const char *format, const char *text)
{
    char *escaped = curl_easy_escape(NULL, text, 0), *path = NULL;
    const char *place = strstr(format, "%s");
    /* "." and ".." are names that a path would lose */
    bool dots = strcmp(text, ".") == 0 || strcmp(text, "..") == 0;
    if (!escaped || !place ||
        asprintf(&path, "%.*s%s%s", (int)(place - format), format,
                 !dots     ? escaped
                 : text[1] ? "%2E%2E"
                           : "%2E",
                 place + 2) < 0)
        abort();
    curl_free(escaped);
    return path;
}

static enum cli_exit exit_for_status(long status)
{
    switch (status) {
    case 0:
        return CLI_UNREACHABLE;
    case 400:
    case 422:
        return CLI_USAGE;
    case 404:
        return CLI_NOT_FOUND;
    case 401:
    case 403:
    case 409:
    case 410:
    case 412:
    case 429:
        return CLI_REFUSED;
    default:
        return CLI_FAILED;
    }
}

int cli_connect(struct cli *cli, struct err *err)
{
    if (cli->client)
        return 0;
    const char *path = cli->args.socket ? cli->args.socket : getenv("ORAI_SOCKET");
    return client_new(path && *path ? path : CLIENT_DEFAULT_SOCKET, &cli->client, err);
}

int cli_call(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **ret,
             struct err *err)
{
    long status;
    int r = cli_connect(cli, err);
    if (r < 0)
        return r;
    r = client_call(cli->client, method, path, body, &status, ret, err);
    if (r < 0)
        cli->exit = exit_for_status(status);
    return r;
}

int cli_stream(struct cli *cli, const char *path, int (*on_line)(void *, const json_t *, struct err *),
               void *arg, struct err *err)
{
    long status;
    int r = cli_connect(cli, err);
    if (r < 0)
        return r;
    r = client_stream(cli->client, path, on_line, arg, &status, err);
    if (r < 0)
        cli->exit = exit_for_status(status);
    return r;
}

static int written(int r, struct err *err)
{
    return r < 0 ? err_sys(err, r, "cannot write the result") : 0;
}

int cli_print_list(const struct cli *cli, const struct view *view, const json_t *rows, struct err *err)
{
    struct style style = term_style(stdout, cli->args.format);
    return written(format_list(stdout, &style, view, rows), err);
}

int cli_print_object(const struct cli *cli, const struct view *view, const json_t *object, struct err *err)
{
    struct style style = term_style(stdout, cli->args.format);
    return written(format_object(stdout, &style, view, object), err);
}

void cli_say(const struct cli *cli, const char *format, ...)
{
    if (cli->args.format != FORMAT_TABLE)
        return;
    _cleanup_free_ char *text = NULL;
    va_list args;
    va_start(args, format);
    if (vasprintf(&text, format, args) < 0)
        abort();
    va_end(args);
    _cleanup_free_ char *visible = text_visible(text); /* names may be a peer's choice */
    puts(visible);
}

int cli_absolute(const char *file, char **ret, struct err *err)
{
    char *path = realpath(file, NULL);
    if (!path)
        return err_sys(err, errno, "cannot find %s", file);
    *ret = path;
    return 0;
}

static int set_text(json_t *body, const char *key, const char *text, struct err *err)
{
    if (json_object_set_new(body, key, json_string(text)) < 0)
        return err_set(err, EINVAL, "%s is not UTF-8 text", key);
    return 0;
}

static int set_file(json_t *body, const char *key, const char *file, struct err *err)
{
    _cleanup_free_ char *path = NULL;
    int r = cli_absolute(file, &path, err);
    return r < 0 ? r : set_text(body, key, path, err);
}

int cli_set(const struct cli *cli, json_t *body, const char *key, const char *option, struct err *err)
{
    const struct args *args = &cli->args;
    const char *text = args_text(args, option);
    if (!text)
        return 0;
    switch (verb_option(args->verb, option, strlen(option))->kind) {
    case ARG_FLAG:
        return json_object_set_new(body, key, json_true());
    case ARG_COUNT:
    case ARG_SIZE:
    case ARG_RATE:
    case ARG_DURATION:
        return json_object_set_new(body, key, json_integer((json_int_t)args_number(args, option, 0)));
    case ARG_FILE:
        return set_file(body, key, text, err);
    case ARG_TEXT:
    case ARG_DISK:
    case ARG_CHOICE:
    case ARG_VM:
    case ARG_PEER:
    case ARG_IMAGE:
    case ARG_VERB:
        break;
    }
    return set_text(body, key, text, err);
}

int cli_set_operand(const struct cli *cli, json_t *body, const char *key, const char *operand,
                    struct err *err)
{
    return set_text(body, key, args_operand(&cli->args, operand), err);
}

int cli_confirm(struct cli *cli, bool must, struct err *err, const char *format, ...)
{
    if (args_flag(&cli->args, "yes"))
        return 0;
    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
        return must ? cli_usage(cli, err, "this needs a terminal to ask, or --yes") : 0;
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputs(" [y/N] ", stderr);
    char answer[16] = "";
    if (fgets(answer, sizeof answer, stdin) && (strcmp(answer, "y\n") == 0 || strcmp(answer, "yes\n") == 0))
        return 0;
    return err_set(err, ECANCELED, "nothing was done");
}
