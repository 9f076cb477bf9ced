/* SPDX-License-Identifier: Apache-2.0
 *
 * The files that travel with a VM, a kernel and an initrd, as the destination gets them: whole, with the hash
 * that was announced, or not at all. One that is there already, with the same content, does not come.
 */
#include "base/endian.h"
#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"
#include "move/arrival.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#define MAX_FILE (512U << 20) /* bytes */

static const char *hash_text(const void *data, size_t size, char ret[HASH_TEXT_SIZE])
{
    XXH128_canonical_t digest;
    XXH128_canonicalFromHash(&digest, XXH3_128bits(data, size));
    return hex_format(digest.digest, sizeof digest.digest, ret);
}

int arrival_look_at_files(const struct arrival *arrival, const json_t *prepare,
                          struct arrival_file files[ARRIVAL_FILES], json_t *ret_wanted, struct err *err)
{
    json_t *list = NULL;
    const char *hash = NULL;
    const char *names[ARRIVAL_FILES] = {arrival->config.kernel, arrival->config.initrd};
    int r = json_get_array(prepare, "files", "prepare", &list, err);
    for (size_t i = 0; r == 0 && i < ARRIVAL_FILES; i++) {
        json_t *entry = json_array_get(list, i);
        files[i] = (struct arrival_file){.name = names[i], .fd = -1};
        if (!names[i][0])
            continue;
        r = json_get_u64(entry, "size", "file", &files[i].size, err);
        if (r == 0)
            r = json_get_string(entry, "hash", "file", &hash, err);
        if (r < 0 || files[i].size > MAX_FILE)
            return err_set(err, EPROTO, "the source announced a strange file %s", names[i]);
        snprintf(files[i].hash, sizeof files[i].hash, "%s", hash);

        char path[PATH_MAX], ours[HASH_TEXT_SIZE] = "";
        _cleanup_free_ void *data = NULL;
        size_t size;
        snprintf(path, sizeof path, "%s/%s", arrival->host->env.vm_dir, names[i]);
        if (file_load(path, MAX_FILE, &data, &size, NULL) == 0)
            hash_text(data, size, ours);
        files[i].wanted = strcmp(ours, files[i].hash) != 0;
        if (files[i].wanted)
            json_array_append_new(ret_wanted, json_integer((json_int_t)i));
    }
    return r;
}

static int open_file(const struct arrival *arrival, struct arrival_file *file, struct err *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s.new", arrival->host->env.vm_dir, file->name);
    file->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return file->fd < 0 ? err_sys(err, errno, "cannot create %s", path) : 0;
}

int arrival_take_file(struct arrival_file files[ARRIVAL_FILES], const struct mail *mail, struct err *err)
{
    if (mail->frame.length < 10 || get_le16(mail->payload) >= ARRIVAL_FILES)
        return err_set(err, EPROTO, "a piece of an unknown file");
    struct arrival_file *file = &files[get_le16(mail->payload)];
    size_t size = mail->frame.length - 10;
    if (!file->wanted || get_le64(mail->payload + 2) != file->received || size > file->size - file->received)
        return err_set(err, EPROTO, "a piece of the file \"%s\" that was not asked for", file->name);
    int r = file_write_full(file->fd, mail->payload + 10, size);
    if (r < 0)
        return err_sys(err, r, "cannot write the file \"%s\"", file->name);
    file->received += size;
    return 0;
}

static int finish_file(const struct arrival *arrival, struct arrival_file *file, struct err *err)
{
    char path[PATH_MAX], new[PATH_MAX + 8], hash[HASH_TEXT_SIZE];
    _cleanup_free_ void *data = NULL;
    size_t size;
    snprintf(path, sizeof path, "%s/%s", arrival->host->env.vm_dir, file->name);
    snprintf(new, sizeof new, "%s.new", path);
    if (fsync(file->fd) < 0)
        return err_sys(err, errno, "cannot write %s durably", new);
    int r = file_load(new, MAX_FILE, &data, &size, err);
    if (r < 0)
        return r;
    if (strcmp(hash_text(data, size, hash), file->hash) != 0)
        return err_set(err, EBADMSG, "the file \"%s\" arrived damaged", file->name);
    if (rename(new, path) < 0) /* NOLINT(readability-suspicious-call-argument): it becomes the old one */
        return err_sys(err, errno, "cannot rename %s", new);
    return file_sync_parent(path, err);
}

bool arrival_files_complete(const struct arrival_file files[ARRIVAL_FILES])
{
    return (!files[0].wanted || files[0].received == files[0].size) &&
           (!files[1].wanted || files[1].received == files[1].size);
}

int arrival_open_files(const struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES],
                       struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && i < ARRIVAL_FILES; i++)
        if (files[i].wanted)
            r = open_file(arrival, &files[i], err);
    return r;
}

int arrival_finish_files(const struct arrival *arrival, struct arrival_file files[ARRIVAL_FILES],
                         struct err *err)
{
    int r = 0;
    for (int i = 0; r == 0 && i < ARRIVAL_FILES; i++)
        if (files[i].wanted)
            r = finish_file(arrival, &files[i], err);
    return r;
}

void arrival_close_files(struct arrival_file files[ARRIVAL_FILES])
{
    for (int i = 0; i < ARRIVAL_FILES; i++)
        if (files[i].fd >= 0)
            close(files[i].fd);
}
