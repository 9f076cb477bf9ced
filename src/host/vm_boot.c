/* SPDX-License-Identifier: Apache-2.0
 *
 * VMs that start with their host. STATE/boot.json holds the boot id of the last boot whose VMs were started;
 * while it is another than the kernel's, the keeper starts every VM that this host owns and whose config says
 * so. Only then is the new id written: an oraid that is killed in between does the rest when it comes back,
 * and what runs already is left alone.
 */
#include "base/json.h"
#include "base/macro.h"
#include "base/pid.h"
#include "host/vm_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static int record_path(const struct host *host, char ret[PATH_MAX], struct err *err)
{
    return snprintf(ret, PATH_MAX, "%s/boot.json", host->options.state_dir) < PATH_MAX
               ? 0
               : err_set(err, ENAMETOOLONG, "path too long: %s", host->options.state_dir);
}

bool vm_host_has_booted(const struct host *host)
{
    char path[PATH_MAX], boot[BOOT_ID_SIZE];
    _cleanup_json_ json_t *record = NULL;
    struct err unused;
    if (boot_id_read(boot) < 0 || record_path(host, path, &unused) < 0)
        return false;
    return json_read_file(path, &record, &unused) < 0 || strcmp(json_str(record, "boot", ""), boot) != 0;
}

int vm_note_boot(const struct host *host, struct err *err)
{
    char path[PATH_MAX], boot[BOOT_ID_SIZE];
    int r = boot_id_read(boot);
    if (r < 0)
        return err_sys(err, r, "cannot read the kernel's boot id");
    r = record_path(host, path, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *record = json_pack("{s:s}", "boot", boot);
    return json_write_file(path, record, 0600, err);
}

bool vm_starts_with_host(const struct host *host, const char *name)
{
    char dir[PATH_MAX];
    struct err unused;
    _cleanup_free_ struct vm_config *config = malloc(sizeof *config);
    vm_dir(host, name, dir);
    return config && vm_config_load(dir, config, &unused) == 0 && config->autostart;
}
