/* SPDX-License-Identifier: Apache-2.0
 *
 * config: a VM's config file (docs/formats.md), read and replaced through oraid, which checks it. An edited
 * text that oraid does not take is kept, so that nobody has to type it again.
 */
#include "cli/cli.h"
#include "cli/verbs.h"

#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

static const struct view view_config = {
    .columns = (const struct column[]){{"name", "Name"},
                                       {"id", "Id"},
                                       {"memory", "Memory", COLUMN_BYTES},
                                       {"cpus", "CPUs", COLUMN_COUNT},
                                       {"machine", "Machine"},
                                       {"cpu", "CPU model"},
                                       {"accel", "Accelerator"},
                                       {"ram", "Kind of memory"},
                                       {"autostart", "Starts with host", COLUMN_BOOL},
                                       {"kernel", "Kernel"},
                                       {"initrd", "Initrd"},
                                       {"append", "Command line"},
                                       {0}},
};

/* As `table` it is the file's own JSON: that is what --set takes. */
static int print_config(struct cli *cli, const json_t *config, struct err *err)
{
    if (cli->args.format == FORMAT_TABLE)
        cli->args.format = FORMAT_JSON;
    return cli_print_object(cli, &view_config, config, err);
}

static int put_config(struct cli *cli, const char *path, const char *file, struct err *err)
{
    _cleanup_json_ json_t *config = NULL;
    int r = json_read_file(file, &config, err);
    if (r == 0)
        r = cli_call(cli, "PUT", path, config, NULL, err);
    if (r == 0)
        cli_say(cli, "%s has its new config", args_operand(&cli->args, "NAME"));
    return r;
}

/* The user's own editor, as the user wrote it down: words for a shell. */
static int run_editor(const char *file, struct err *err)
{
    const char *editor = getenv("VISUAL");
    if (!editor || !*editor)
        editor = getenv("EDITOR");
    if (!editor || !*editor)
        editor = "vi";
    _cleanup_free_ char *command = NULL;
    if (asprintf(&command, "%s \"$1\"", editor) < 0)
        abort();
    pid_t child = fork();
    if (child < 0)
        return err_sys(err, errno, "cannot start %s", editor);
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", command, "sh", file, (char *)NULL);
        _exit(127);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return err_sys(err, errno, "lost sight of %s", editor);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return err_set(err, ECANCELED, "%s failed; nothing was changed", editor);
    return 0;
}

static int make_temporary(const json_t *config, char *path, size_t size, struct err *err)
{
    const char *dir = getenv("TMPDIR");
    if (snprintf(path, size, "%s/orai-config-XXXXXX.json", dir && *dir ? dir : "/tmp") >= (int)size)
        return err_set(err, ENAMETOOLONG, "TMPDIR is too long");
    _cleanup_close_ int fd = mkostemps(path, (int)strlen(".json"), O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "cannot make %s", path);
    _cleanup_free_ char *text = json_dumps(config, JSON_INDENT(2));
    if (!text)
        abort();
    int r = file_write_full(fd, text, strlen(text));
    if (r == 0)
        r = file_write_full(fd, "\n", 1);
    if (r < 0) {
        err_sys(err, r, "cannot write %s", path);
        unlink(path);
    }
    return r;
}

static int edit(struct cli *cli, const char *path, const json_t *config, struct err *err)
{
    char file[4096];
    _cleanup_json_ json_t *edited = NULL;
    int r = make_temporary(config, file, sizeof file, err);
    if (r < 0)
        return r;
    r = run_editor(file, err);
    if (r == 0)
        r = json_read_file(file, &edited, err);
    if (r == 0 && json_equal(edited, (json_t *)config)) {
        cli_say(cli, "Nothing was changed");
    } else if (r == 0) {
        r = put_config(cli, path, file, err);
    }
    if (r == 0 || r == -ECANCELED)
        unlink(file);
    else
        err_hint(err, "your text is in %s; correct it, then: orai config %s --set %s", file,
                 args_operand(&cli->args, "NAME"), file);
    return r;
}

static int run_config(struct cli *cli, struct err *err)
{
    _cleanup_free_ char *path = cli_path("/v1/vms/%s/config", args_operand(&cli->args, "NAME"));
    const char *file = args_text(&cli->args, "set");
    bool editing = args_flag(&cli->args, "edit");
    if (file && editing)
        return cli_usage(cli, err, "--edit and --set exclude each other");
    if (editing && (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO)))
        return cli_usage(cli, err, "--edit needs a terminal; --set takes a file");
    if (file)
        return put_config(cli, path, file, err);
    _cleanup_json_ json_t *config = NULL;
    int r = cli_call(cli, "GET", path, NULL, &config, err);
    if (r < 0)
        return r;
    return editing ? edit(cli, path, config, err) : print_config(cli, config, err);
}

const struct verb verb_config = {
    .name = "config",
    .summary = "Show or replace a VM's config file",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_VM, .help = "The VM"}},
    .options =
        {{.name = "edit",
          .kind = ARG_FLAG,
          .letter = 'e',
          .help = "Change it in $VISUAL or $EDITOR; the VM must be stopped"},
         {.name = "set", .kind = ARG_FILE, .value = "FILE", .help = "Replace it; the VM must be stopped"}},
    .run = run_config,
};
