/* SPDX-License-Identifier: Apache-2.0
 *
 * The folders of VMs. Making and removing one is a rename, so that a kill or power cut in between leaves a VM
 * that is wholly there or not at all: ".new-NAME" is being made, ".old-NAME" is being removed; what of them
 * is found at start is removed. No name of a VM begins with a dot.
 */
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "host/vm.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define NEW_PREFIX ".new-"
#define OLD_PREFIX ".old-"

static void make_path(char ret[PATH_MAX], const char *dir, const char *prefix, const char *name)
{
    /* main has checked that the two folders leave room for every name. */
    if (snprintf(ret, PATH_MAX, "%s/vms/%s%s", dir, prefix, name) >= PATH_MAX)
        abort();
}

void vm_dir(const struct host *host, const char *name, char ret[PATH_MAX])
{
    make_path(ret, host->options.state_dir, "", name);
}

void vm_run_dir(const struct host *host, const char *name, char ret[PATH_MAX])
{
    make_path(ret, host->options.run_dir, "", name);
}

void vm_run_path(const struct host *host, const char *name, const char *file, char ret[PATH_MAX])
{
    char dir[PATH_MAX];
    vm_run_dir(host, name, dir);
    if (snprintf(ret, PATH_MAX, "%s/%s", dir, file) >= PATH_MAX)
        abort();
}

static void epoch_cleanup(struct epoch **epoch)
{
    epoch_free(*epoch);
}

int vm_record(const struct host *host, const char *name, struct epoch_record *ret, struct err *err)
{
    char dir[PATH_MAX];
    _cleanup_(epoch_cleanup) struct epoch *epoch = NULL;
    vm_dir(host, name, dir);
    int r = epoch_open(dir, &epoch, err);
    if (r == 0)
        *ret = *epoch_get(epoch);
    return r;
}

int vm_dir_begin(const struct host *host, const char *name, char ret[PATH_MAX], struct err *err)
{
    char dir[PATH_MAX];
    make_path(dir, host->options.state_dir, NEW_PREFIX, name);
    int r = file_remove_tree(dir, err);
    if (r < 0)
        return r;
    /* QEMU's user passes through to the kernel; it may list nothing. */
    if (mkdir(dir, 0711) < 0 || chmod(dir, 0711) < 0)
        return err_sys(err, errno, "cannot make the folder %s", dir);
    memcpy(ret, dir, PATH_MAX);
    return 0;
}

int vm_dir_finish(const struct host *host, const char *name, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX];
    make_path(from, host->options.state_dir, NEW_PREFIX, name);
    make_path(to, host->options.state_dir, "", name);
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) < 0)
        return err_sys(err, errno, "cannot make the VM's folder %s", to);
    return file_sync_parent(to, err);
}

int vm_dir_remove(const struct host *host, const char *name, struct err *err)
{
    char from[PATH_MAX], to[PATH_MAX], run[PATH_MAX];
    vm_dir(host, name, from);
    make_path(to, host->options.state_dir, OLD_PREFIX, name);
    vm_run_dir(host, name, run);
    int r = file_remove_tree(to, err);
    if (r < 0)
        return r;
    if (rename(from, to) < 0)
        return err_sys(err, errno, "cannot remove the VM's folder %s", from);
    r = file_sync_parent(from, err);
    if (r == 0)
        r = file_remove_tree(to, err);
    if (r == 0)
        r = file_remove_tree(run, err);
    return r;
}

void vm_dirs_clean(const struct host *host)
{
    char path[PATH_MAX];
    make_path(path, host->options.state_dir, "", "");
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        bool left = strncmp(entry->d_name, NEW_PREFIX, sizeof NEW_PREFIX - 1) == 0 ||
                    strncmp(entry->d_name, OLD_PREFIX, sizeof OLD_PREFIX - 1) == 0;
        struct err err;
        if (!left)
            continue;
        make_path(path, host->options.state_dir, "", entry->d_name);
        log_info("removing %s, which was left half-done", path);
        if (file_remove_tree(path, &err) < 0)
            log_warning("%s", err.text);
    }
    if (dir)
        closedir(dir);
}
