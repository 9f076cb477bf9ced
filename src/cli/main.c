/* SPDX-License-Identifier: Apache-2.0
 *
 * orai: the command line. Reads the arguments by the verbs' table, runs the verb, tells its error. Results go
 * to standard output, everything else to standard error; a result that could not be written is a failure too.
 */
#include "cli/cli.h"
#include "cli/client.h"
#include "cli/complete.h"
#include "cli/help.h"
#include "cli/report.h"

#include "base/macro.h"

#include <curl/curl.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* The words of a verb that reads its own: all but the group's, the verb first. */
static int run_raw(const struct args *args, int argc, char **argv)
{
    char **words = calloc((size_t)argc + 1, sizeof *words);
    if (!words)
        abort();
    int count = 0;
    words[count++] = argv[args->verb_index];
    for (int i = 1; i < argc; i++)
        if (i != args->verb_index && i != args->group_index)
            words[count++] = argv[i];
    int exit_code = args->verb->run_raw(count, words);
    free(words);
    return exit_code;
}

static int flush_output(int r, struct err *err)
{
    if (fflush(stdout) == 0 || r < 0)
        return r;
    return err_sys(err, errno, "cannot write the result");
}

static enum cli_exit run_verb(struct cli *cli)
{
    struct err err = ERR_NONE;
    int r = flush_output(cli->args.verb->run(cli, &err), &err);
    if (r >= 0)
        return CLI_OK;
    _cleanup_free_ char *whereabouts = report_whereabouts(cli);
    report_error(stderr, &err, whereabouts);
    return cli->exit == CLI_OK ? CLI_FAILED : cli->exit;
}

static void print_help(const struct args *args)
{
    if (args->version)
        puts("orai " ORAI_VERSION);
    else if (args->verb)
        help_verb(stdout, args->verb);
    else
        help_overview(stdout, args->group);
}

int main(int argc, char **argv)
{
    struct cli cli = {0};
    struct err err = ERR_NONE;
    if (argc > 1 && strcmp(argv[1], "__complete") == 0)
        return complete_run(argc - 2, argv + 2);
    if (args_parse(argc, argv, &cli.args, &err) < 0) {
        report_error(stderr, &err, NULL);
        return CLI_USAGE;
    }
    if (cli.args.help || cli.args.version) {
        print_help(&cli.args);
        return fflush(stdout) == 0 ? CLI_OK : CLI_FAILED;
    }
    if (cli.args.verb->run_raw)
        return run_raw(&cli.args, argc, argv);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    enum cli_exit code = run_verb(&cli);
    client_free(cli.client);
    curl_global_cleanup();
    return code;
}
