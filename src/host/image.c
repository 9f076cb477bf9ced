/* SPDX-License-Identifier: Apache-2.0 */
#include "host/image.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/image_copy.h"
#include "host/peer.h"
#include "host/program.h"
#include "host/vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define INFO_SEC 60
#define CONVERT_SEC 21600 /* six hours */
#define QEMU_IMG_MEMORY (2 * GiB)
#define SECTOR 512U

struct adding {
    struct host *host;
    struct id operation;
    char name[PEER_NAME_SIZE];
    int fd;
    char dir[PATH_MAX];   /* STATE/images/tmp/ID */
    char image[PATH_MAX]; /* its image.raw */
    uint64_t size;        /* virtual, bytes */
    const char *phase;
    int64_t told; /* when progress was told last */
};

static int images_path(const struct host *host, const char *below, char ret[PATH_MAX], struct err *err)
{
    if (snprintf(ret, PATH_MAX, "%s/images/%s", host->options.state_dir, below) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s", host->options.state_dir);
    return 0;
}

int image_path(const struct host *host, const char *hash, char ret[PATH_MAX], struct err *err)
{
    char below[HASH_TEXT_SIZE + 16];
    snprintf(below, sizeof below, "%.64s/image.raw", hash);
    return images_path(host, below, ret, err);
}

int image_find(struct host *host, const char *name_or_hash, json_t **ret, struct err *err)
{
    int r = registry_get(host->registry, REGISTRY_IMAGES, "name", name_or_hash, ret, err);
    if (r == -ENOENT)
        r = registry_get(host->registry, REGISTRY_IMAGES, "hash", name_or_hash, ret, err);
    if (r != -ENOENT)
        return r;
    err_set(err, ENOENT, "there is no image \"%.100s\" on this host", name_or_hash);
    return err_hint(err, "orai image list shows them, orai image add NAME FILE adds one");
}

/* --- adding: qemu-img ----------------------------------------------------------------------------------- */

static void tell(struct adding *adding, uint64_t done)
{
    if (clock_now() - adding->told < NSEC_PER_SEC / 4)
        return;
    adding->told = clock_now();
    operation_progress(adding->host->operations, &adding->operation,
                       json_pack("{s:s, s:I, s:I}", "phase", adding->phase, "done_bytes", (json_int_t)done,
                                 "total_bytes", (json_int_t)adding->size));
}

static void tell_pass(void *arg, uint64_t done)
{
    tell(arg, done);
}

static void tell_conversion(void *arg)
{
    struct adding *adding = arg;
    struct stat st;
    tell(adding, stat(adding->image, &st) == 0 ? (uint64_t)st.st_blocks * 512 : 0);
}

/* Only what stands by itself: an image that names other files could name any file of this host. */
static int check_info(const json_t *info, struct err *err)
{
    const json_t *specific = json_object_get(json_object_get(info, "format-specific"), "data");
    const char *format = json_str(info, "format", "unknown");
    if (strcmp(format, "raw") != 0 && strcmp(format, "qcow2") != 0) {
        err_set(err, EINVAL, "the file is a %s image; raw and qcow2 are taken", format);
        return err_hint(err, "convert it first: qemu-img convert -O qcow2 FILE NEW");
    }
    if (json_object_get(info, "backing-filename") || json_object_get(specific, "data-file")) {
        err_set(err, EINVAL, "the image needs another file (%s)",
                json_str(info, "backing-filename", json_str(specific, "data-file", "?")));
        return err_hint(err, "make it whole first: qemu-img convert -O qcow2 FILE NEW");
    }
    if (json_bool(info, "encrypted", false))
        return err_set(err, EINVAL, "the image is encrypted");
    return 0;
}

static int inspect(struct adding *adding, bool *ret_raw, struct err *err)
{
    static const char *const argv[] = {"qemu-img", "info", "-U", "--output=json", "/proc/self/fd/3", NULL};
    struct program program = {.argv = argv,
                              .pass_fd = adding->fd,
                              .deadline = clock_now() + INFO_SEC * NSEC_PER_SEC,
                              .max_memory = QEMU_IMG_MEMORY,
                              .cancel = &adding->host->stopping};
    _cleanup_free_ char *text = NULL;
    _cleanup_json_ json_t *info = NULL;
    int r = program_run(&program, &text, err);
    if (r == 0)
        r = json_parse(text, strlen(text), "qemu-img's answer", &info, err);
    if (r == 0)
        r = check_info(info, err);
    if (r < 0)
        return r;
    *ret_raw = strcmp(json_str(info, "format", ""), "raw") == 0;
    off_t end = lseek(adding->fd, 0, SEEK_END); /* qemu-img rounds a raw file's size */
    adding->size = *ret_raw && end >= 0 ? (uint64_t)end : json_u64(info, "virtual-size", 0);
    adding->size = (adding->size + SECTOR - 1) / SECTOR * SECTOR;
    return adding->size ? 0 : err_set(err, EINVAL, "the image is empty");
}

static int convert(struct adding *adding, struct err *err)
{
    const char *const argv[] = {"qemu-img", "convert", "-U", "-f", "qcow2",           "-O",
                                "raw",      "-S",      "4k", "--", "/proc/self/fd/3", adding->image,
                                NULL};
    struct program program = {.argv = argv,
                              .pass_fd = adding->fd,
                              .deadline = clock_now() + CONVERT_SEC * NSEC_PER_SEC,
                              .max_memory = QEMU_IMG_MEMORY,
                              .cancel = &adding->host->stopping,
                              .tick = tell_conversion,
                              .arg = adding};
    adding->phase = "converting";
    return program_run(&program, NULL, err);
}

/* --- adding: the bytes ---------------------------------------------------------------------------------- */

static int copy_raw(struct adding *adding, uint8_t hash[HASH_SIZE], struct err *err)
{
    _cleanup_close_ int to = open(adding->image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_sys(err, errno, "cannot create %s", adding->image);
    adding->phase = "copying";
    struct image_pass pass = {adding->fd, to, adding->size, &adding->host->stopping, tell_pass, adding};
    int r = image_pass(&pass, hash, err);
    return r == 0 && fsync(to) < 0 ? err_sys(err, errno, "cannot make the image durable") : r;
}

static int hash_converted(struct adding *adding, uint8_t hash[HASH_SIZE], struct err *err)
{
    _cleanup_close_ int fd = open(adding->image, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t)adding->size) < 0)
        return err_sys(err, errno, "cannot read %s", adding->image);
    adding->phase = "hashing";
    struct image_pass pass = {fd, -1, adding->size, &adding->host->stopping, tell_pass, adding};
    int r = image_pass(&pass, hash, err);
    return r == 0 && fsync(fd) < 0 ? err_sys(err, errno, "cannot make the image durable") : r;
}

static int make(struct adding *adding, uint8_t hash[HASH_SIZE], struct err *err)
{
    bool raw;
    if (mkdir(adding->dir, 0700) < 0)
        return err_sys(err, errno, "cannot make the folder %s", adding->dir);
    int r = inspect(adding, &raw, err);
    if (r == 0)
        r = raw ? copy_raw(adding, hash, err) : convert(adding, err);
    return r == 0 && !raw ? hash_converted(adding, hash, err) : r;
}

static int describe(const struct adding *adding, const char *hash, json_t **ret, struct err *err)
{
    char path[PATH_MAX], final[PATH_MAX], now[TIME_TEXT];
    struct stat st;
    if (stat(adding->image, &st) < 0)
        return err_sys(err, errno, "cannot read %s", adding->image);
    int r = image_path(adding->host, hash, final, err);
    if (r < 0 || snprintf(path, sizeof path, "%s/info.json", adding->dir) >= (int)sizeof path)
        return r < 0 ? r : err_set(err, ENAMETOOLONG, "path too long: %s", adding->dir);
    _cleanup_json_ json_t *info =
        json_pack("{s:s, s:s, s:I, s:I, s:s, s:s}", "hash", hash, "name", adding->name, "size",
                  (json_int_t)st.st_blocks * 512, "virtual_size", (json_int_t)adding->size, "path", final,
                  "added", time_text(now));
    r = json_write_file(path, info, 0600, err);
    if (r == 0)
        *ret = TAKE_PTR(info);
    return r;
}

static int publish(struct adding *adding, const char *hash, json_t **ret, struct err *err)
{
    char final[PATH_MAX];
    _cleanup_json_ json_t *same = NULL;
    _cleanup_json_ json_t *info = NULL;
    struct err unused;
    if (image_find(adding->host, hash, &same, &unused) == 0)
        return err_set(err, EEXIST, "this image is here already, under the name \"%s\"",
                       json_str(same, "name", "?"));
    int r = describe(adding, hash, &info, err);
    if (r == 0)
        r = images_path(adding->host, hash, final, err);
    if (r == 0 && rename(adding->dir, final) < 0)
        r = err_sys(err, errno, "cannot rename %s to %s", adding->dir, final);
    if (r == 0)
        r = file_sync_parent(final, err);
    if (r < 0)
        return r;
    r = registry_insert(adding->host->registry, REGISTRY_IMAGES, info, err);
    if (r < 0) {
        if (r == -EEXIST)
            err_set(err, EEXIST, "there is an image \"%s\" already", adding->name);
        file_remove_tree(final, &unused);
        return r;
    }
    *ret = TAKE_PTR(info);
    return 0;
}

static void add_work(void *arg)
{
    struct adding *adding = arg;
    struct host *host = adding->host;
    struct err err = ERR_NONE, unused;
    uint8_t hash[HASH_SIZE];
    char text[HASH_TEXT_SIZE];
    json_t *image = NULL;
    int r = make(adding, hash, &err);
    if (r == 0)
        r = publish(adding, hex_format(hash, sizeof hash, text), &image, &err);
    if (r < 0) {
        file_remove_tree(adding->dir, &unused);
        err_where(&err, host->options.name, NULL);
    } else {
        event_add(host->events, "image.added", NULL,
                  json_pack("{s:s, s:s}", "name", adding->name, "hash", text));
    }
    operation_end(host->operations, &adding->operation, image, r < 0 ? &err : NULL);
    close(adding->fd);
    free(adding);
}

static int begin(struct adding *adding, struct err *err)
{
    char id[ID_TEXT_SIZE], below[ID_TEXT_SIZE + 8];
    snprintf(below, sizeof below, "tmp/%s", id_format(&adding->operation, id));
    int r = images_path(adding->host, below, adding->dir, err);
    if (r == 0 && snprintf(adding->image, PATH_MAX, "%s/image.raw", adding->dir) >= PATH_MAX)
        r = err_set(err, ENAMETOOLONG, "path too long: %s", adding->dir);
    if (r == 0)
        r = operation_begin(adding->host->operations, &adding->operation, "image-add", adding->name, err);
    if (r < 0)
        return r;
    r = pool_run(adding->host->jobs, add_work, adding, err);
    if (r < 0)
        operation_end(adding->host->operations, &adding->operation, NULL, err);
    return r;
}

int image_add(struct host *host, const char *name, int fd, struct id *ret_operation, struct err *err)
{
    _cleanup_json_ json_t *same = NULL;
    _cleanup_close_ int owned = fd;
    struct err unused;
    if (registry_get(host->registry, REGISTRY_IMAGES, "name", name, &same, &unused) == 0) {
        err_set(err, EEXIST, "there is an image \"%s\" already", name);
        return err_hint(err, "choose another name, or: orai image remove %s", name);
    }
    struct adding *adding = calloc(1, sizeof *adding);
    if (!adding)
        return err_set(err, ENOMEM, "out of memory");
    adding->host = host;
    adding->operation = *ret_operation = id_random();
    adding->fd = owned;
    adding->phase = "reading";
    snprintf(adding->name, sizeof adding->name, "%s", name);
    int r = begin(adding, err);
    if (r < 0)
        free(adding);
    else
        TAKE_FD(owned);
    return r;
}

/* --- removing ------------------------------------------------------------------------------------------- */

static int check_unused(struct host *host, const char *hash, const char *name, struct err *err)
{
    _cleanup_free_ char(*names)[VM_NAME_SIZE] = NULL;
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    size_t count = 0;
    struct err unused;
    int r = config ? vm_names(host->vms, &names, &count, err) : err_set(err, ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < count; i++) {
        char dir[PATH_MAX];
        vm_dir(host, names[i], dir);
        if (vm_config_load(dir, config, &unused) < 0)
            continue;
        for (size_t d = 0; r == 0 && d < config->disk_count; d++)
            if (strcmp(config->disks[d].image, hash) == 0)
                r = err_set(err, EBUSY,
                            "the VM \"%s\" was made from the image \"%s\": without it the first move of that "
                            "VM to a host that has the image sends everything",
                            names[i], name);
    }
    if (r == -EBUSY)
        err_hint(err, "orai image remove %s --force", name);
    return r;
}

int image_remove(struct host *host, const char *name_or_hash, bool force, struct err *err)
{
    _cleanup_json_ json_t *image = NULL;
    char from[PATH_MAX], to[PATH_MAX], below[HASH_TEXT_SIZE + 16];
    int r = image_find(host, name_or_hash, &image, err);
    if (r < 0)
        return r;
    const char *hash = json_str(image, "hash", ""), *name = json_str(image, "name", "");
    if (!force && (r = check_unused(host, hash, name, err)) < 0)
        return r;
    snprintf(below, sizeof below, "tmp/old-%.64s", hash);
    if ((r = images_path(host, hash, from, err)) < 0 || (r = images_path(host, below, to, err)) < 0)
        return r;
    r = registry_remove(host->registry, REGISTRY_IMAGES, hash, err);
    if (r < 0)
        return r;
    if (rename(from, to) < 0 && errno != ENOENT)
        return err_sys(err, errno, "cannot remove %s", from);
    event_add(host->events, "image.removed", NULL, json_pack("{s:s, s:s}", "name", name, "hash", hash));
    return file_remove_tree(to, err);
}

/* --- at start ------------------------------------------------------------------------------------------- */

static int add_row(struct host *host, const char *hash, struct err *err)
{
    char path[PATH_MAX], below[HASH_TEXT_SIZE + 16];
    _cleanup_json_ json_t *info = NULL;
    snprintf(below, sizeof below, "%.64s/info.json", hash);
    int r = images_path(host, below, path, err);
    if (r == 0)
        r = json_read_file(path, &info, err);
    if (r == 0 && strcmp(json_str(info, "hash", ""), hash) != 0)
        r = err_set(err, EBADMSG, "%s names another hash", path);
    if (r == 0)
        r = registry_insert(host->registry, REGISTRY_IMAGES, info, err);
    if (r == -EEXIST) { /* the name was given anew meanwhile: the hash is a name too */
        json_object_set_new(info, "name", json_stringn(hash, 16));
        r = registry_insert(host->registry, REGISTRY_IMAGES, info, err);
    }
    return r;
}

static int scan(struct host *host, struct err *err)
{
    char path[PATH_MAX];
    uint8_t hash[HASH_SIZE];
    int r = images_path(host, "", path, err);
    DIR *dir = r == 0 ? opendir(path) : NULL;
    if (!dir)
        return r < 0 ? r : err_sys(err, errno, "cannot read %s", path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        _cleanup_json_ json_t *row = NULL;
        struct err why = ERR_NONE;
        if (hex_parse(entry->d_name, hash, sizeof hash) < 0)
            continue;
        if (registry_get(host->registry, REGISTRY_IMAGES, NULL, entry->d_name, &row, &why) == -ENOENT &&
            add_row(host, entry->d_name, &why) < 0)
            log_warning("the image %s is left out: %s", entry->d_name, why.text);
    }
    closedir(dir);
    return 0;
}

static int drop_rows(struct host *host, struct err *err)
{
    _cleanup_json_ json_t *rows = NULL;
    size_t index;
    json_t *row;
    int r = registry_list(host->registry, REGISTRY_IMAGES, &rows, err);
    json_array_foreach(rows, index, row)
    {
        char path[PATH_MAX];
        const char *hash = json_str(row, "hash", "");
        if (r == 0)
            r = image_path(host, hash, path, err);
        if (r < 0 || access(path, F_OK) == 0 || errno != ENOENT)
            continue;
        log_warning("the image \"%s\" is gone from %s", json_str(row, "name", ""), path);
        r = registry_remove(host->registry, REGISTRY_IMAGES, hash, err);
    }
    return r;
}

int images_open(struct host *host, struct err *err)
{
    char path[PATH_MAX];
    int r = images_path(host, "tmp", path, err);
    if (r == 0)
        r = file_remove_tree(path, err);
    if (r == 0)
        r = file_mkdirs(path, 0700, err);
    if (r == 0)
        r = scan(host, err);
    return r < 0 ? r : drop_rows(host, err);
}
