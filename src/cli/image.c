/* SPDX-License-Identifier: Apache-2.0
 *
 * image: base images that disks are made from. Two hosts with the same image already share a replica.
 */
#include "cli/cli.h"
#include "cli/operation.h"
#include "cli/verbs.h"

#include "base/json.h"
#include "base/macro.h"

#include <errno.h>

static const struct view view_image = {
    .columns = (const struct column[]){{"name", "Name"},
                                       {"hash", "SHA-256"},
                                       {"virtual_size", "Disk size", COLUMN_BYTES},
                                       {"size", "Takes", COLUMN_BYTES},
                                       {"path", "File"},
                                       {"added", "Added", COLUMN_TIME},
                                       {0}},
};

static int run_add(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *body = json_object(), *image = NULL;
    _cleanup_free_ char *path = NULL;
    int r = cli_absolute(args_operand(&cli->args, "FILE"), &path, err);
    if (r == 0)
        r = cli_set_operand(cli, body, "name", "NAME", err);
    if (r < 0)
        return r;
    if (json_object_set_new(body, "path", json_string(path)) < 0)
        return err_set(err, EINVAL, "the file's path is not UTF-8 text");
    operation_on_interrupt("\norai: the image is still being added; see: orai image list\n");
    r = operation_run(cli, "/v1/images", body, &image, err);
    return r < 0 ? r : cli_print_object(cli, &view_image, image, err);
}

const struct verb verb_image_add = {
    .group = "image",
    .name = "add",
    .summary = "Add a base image from a raw or qcow2 file",
    .flags = VERB_FORMATS,
    .operands = {{.name = "NAME", .kind = ARG_TEXT, .help = "What the image is to be called"},
                 {.name = "FILE", .kind = ARG_FILE, .help = "A raw or qcow2 file; it is copied"}},
    .run = run_add,
};

static const struct view view_images = {
    .columns = (const struct column[]){{"name", "NAME"},
                                       {"virtual_size", "DISK SIZE", COLUMN_BYTES},
                                       {"size", "TAKES", COLUMN_BYTES},
                                       {"added", "ADDED", COLUMN_TIME},
                                       {"hash", "SHA-256"},
                                       {0}},
    .empty = "No images yet; add one with: orai image add NAME FILE",
};

static int run_list(struct cli *cli, struct err *err)
{
    _cleanup_json_ json_t *answer = NULL;
    int r = cli_call(cli, "GET", "/v1/images", NULL, &answer, err);
    return r < 0 ? r : cli_print_list(cli, &view_images, json_object_get(answer, "images"), err);
}

const struct verb verb_image_list = {
    .group = "image",
    .name = "list",
    .summary = "List the base images of this host",
    .flags = VERB_FORMATS,
    .run = run_list,
};

static int run_rm(struct cli *cli, struct err *err)
{
    const char *name = args_operand(&cli->args, "IMAGE");
    _cleanup_free_ char *path =
        cli_path(args_flag(&cli->args, "force") ? "/v1/images/%s?force=true" : "/v1/images/%s", name);
    int r = cli_call(cli, "DELETE", path, NULL, NULL, err);
    if (r == 0)
        cli_say(cli, "Image %s deleted", name);
    return r;
}

const struct verb verb_image_rm = {
    .group = "image",
    .name = "rm",
    .summary = "Delete a base image",
    .operands = {{.name = "IMAGE", .kind = ARG_IMAGE, .help = "Its name or SHA-256"}},
    .options = {{.name = "force",
                 .kind = ARG_FLAG,
                 .help = "Also when VMs were made from it: their next move may send more"}},
    .run = run_rm,
};
