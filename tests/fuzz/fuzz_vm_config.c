/* SPDX-License-Identifier: Apache-2.0
 *
 * vm.json and a guest's addresses as a peer sends them: what is accepted can be written and is read back the
 * same.
 */
#include "base/json.h"
#include "base/macro.h"
#include "net/address.h"
#include "vmm/config.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_config(const json_t *json)
{
    static struct vm_config config, back;
    memset(&config, 0, sizeof config);
    memset(&back, 0, sizeof back);
    if (vm_config_from_json(json, "the peer's vm.json", &config, NULL) < 0)
        return;
    for (size_t i = 0; i < config.disk_count; i++)
        assert(config.disks[i].file[0] != '.' && !strchr(config.disks[i].file, '/'));
    assert(!strpbrk(config.machine, ", ") && !strchr(config.name, ',') && !strchr(config.kernel, '/'));
    _cleanup_json_ json_t *written = vm_config_to_json(&config);
    assert(written && vm_config_from_json(written, "vm.json", &back, NULL) == 0);
    assert(back.memory == config.memory && back.disk_count == config.disk_count &&
           back.nic_count == config.nic_count);
    assert(strcmp(back.append, config.append) == 0);
}

static void check_addresses(const json_t *json)
{
    uint8_t mac[MAC_SIZE];
    struct addresses addresses, back;
    if (addresses_from_json(json, mac, &addresses, NULL) < 0)
        return;
    _cleanup_json_ json_t *written = addresses_to_json(json_str(json, "mac", ""), &addresses);
    assert(addresses_from_json(written, mac, &back, NULL) == 0);
    assert(back.count == addresses.count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_json_ json_t *json = NULL;
    if (json_parse((const char *)data, size, "input", &json, NULL) < 0)
        return 0;
    check_config(json);
    check_addresses(json);
    return 0;
}
