/* SPDX-License-Identifier: Apache-2.0
 *
 * qemu_early: which pages of the guest's RAM are needed first where its memory follows it; each that is not
 * there costs at least a round trip.
 *
 *   While QEMU loads the devices it looks at the rings of virtio queues ("split virtqueues" in the virtio
 *   specification). Since version 7.2 it tells where they are (qapi/virtio.json).
 *   Before a CPU's next instruction is over it has looked at its code and its stack; for an interrupt at its
 *   descriptor tables and its task state; and for each of these at up to five levels of page tables (Intel
 *   SDM, volume 3, 4.5). As long as the guest stands still they can be followed from its registers.
 *
 * This is only a help: commands that begin with "x-" and text made for people may change from version to
 * version, and what is not understood is left out. What the guest made of its tables is not trusted: only
 * pages of its RAM are looked at and named.
 */
#include "base/endian.h"
#include "base/file.h"
#include "base/json.h"
#include "vmm/qemu_internal.h"

#include <stdlib.h>
#include <string.h>

#define PAGE UINT64_C(4096)
#define MAX_QUEUES 64 /* all devices together: each takes QEMU a moment to tell of */
#define MAX_RING 32768U
#define OPTION_ROMS 0xc0000 /* the local APIC's vapic_post_load looks there */

#define FRAME_MASK UINT64_C(0x000ffffffffff000)
#define ENTRY_PRESENT 1U
#define ENTRY_LARGE 0x80U
#define EFER_LONG_MODE 0x400U
#define CR4_FIVE_LEVELS 0x1000U
#define TASK_STACK 4 /* where the task state says which stack the kernel is entered with */

/* Where QEMU's RAM goes on above 4 GiB; what is below that starts at 0 (pc_q35_init, pc_init1). */
static uint64_t low_memory(const struct vm_config *config)
{
    bool q35 = strstr(config->machine, "q35") != NULL;
    uint64_t most = q35 ? 0xb0000000 : 0xe0000000;
    return config->memory < most ? config->memory : q35 ? 0x80000000 : 0xc0000000;
}

/* false: no RAM is there. */
static bool ram_offset(const struct vm_config *config, uint64_t address, uint64_t *ret)
{
    uint64_t low = low_memory(config), offset = address;
    if (address >= 4 * GiB)
        offset = address - 4 * GiB + low;
    else if (address >= low)
        return false;
    *ret = offset;
    return offset < config->memory;
}

static void add(const struct vm_config *config, struct qemu_pages *pages, uint64_t address)
{
    uint64_t offset;
    if (!ram_offset(config, address & ~(PAGE - 1), &offset) || pages->count == ARRAY_SIZE(pages->offsets))
        return;
    for (size_t i = 0; i < pages->count; i++)
        if (pages->offsets[i] == offset)
            return;
    pages->offsets[pages->count++] = offset;
}

/* --- devices -------------------------------------------------------------------------------------------- */

static void add_ring(const struct vm_config *config, struct qemu_pages *pages, uint64_t address,
                     uint64_t size)
{
    for (uint64_t at = address & ~(PAGE - 1); address && at < address + size; at += PAGE)
        add(config, pages, at);
}

void qemu_early_queue(const struct vm_config *config, const json_t *queue, struct qemu_pages *pages)
{
    uint64_t count = json_u64(queue, "vring-num", 0);
    if (json_u64(queue, "vring-desc", 0) == 0 || count == 0 || count > MAX_RING)
        return; /* the guest does not use it */
    /* Each of them with its flags, index and event word. */
    add_ring(config, pages, json_u64(queue, "vring-avail", 0), 2 * count + 6);
    add_ring(config, pages, json_u64(queue, "vring-used", 0), 8 * count + 6);
    add_ring(config, pages, json_u64(queue, "vring-desc", 0), 16 * count);
}

static json_t *ask(struct qemu *qemu, const char *command, json_t *arguments)
{
    json_t *answer = NULL;
    return qmp_execute(qemu->qmp, command, arguments, QEMU_COMMAND_MSEC, &answer, NULL) == 0 ? answer : NULL;
}

void qemu_early_devices(struct qemu *qemu, const struct vm_config *config, struct qemu_pages *pages)
{
    size_t i, queues = 0;
    json_t *device;
    _cleanup_json_ json_t *devices = ask(qemu, "x-query-virtio", NULL);
    add(config, pages, OPTION_ROMS);
    json_array_foreach(devices, i, device)
    {
        const char *path = json_str(device, "path", "");
        _cleanup_json_ json_t *status = ask(qemu, "x-query-virtio-status", json_pack("{s:s}", "path", path));
        uint64_t count = json_u64(status, "num-vqs", 0);
        for (uint64_t n = 0; n < count && queues < MAX_QUEUES; n++, queues++) {
            _cleanup_json_ json_t *queue = ask(qemu, "x-query-virtio-queue-status",
                                               json_pack("{s:s, s:I}", "path", path, "queue", (json_int_t)n));
            qemu_early_queue(config, queue, pages);
        }
    }
}

/* --- CPUs ----------------------------------------------------------------------------------------------- */

struct memory {
    const struct vm_config *config;
    int fd;
};

static bool read_word(const struct memory *memory, uint64_t address, uint64_t *ret)
{
    uint64_t offset;
    uint8_t bytes[8];
    if (!ram_offset(memory->config, address, &offset) ||
        file_pread_full(memory->fd, bytes, sizeof bytes, offset) < 0)
        return false;
    *ret = get_le64(bytes);
    return true;
}

/* With the tables on the way. false: nothing is mapped there. */
static bool add_mapped(const struct memory *memory, struct qemu_pages *pages, uint64_t top, int levels,
                       uint64_t address, uint64_t *ret)
{
    uint64_t table = top & FRAME_MASK, entry;
    for (int level = levels - 1; level >= 0; level--) {
        uint64_t inside = (PAGE << 9 * level) - 1; /* of what an entry of this level maps */
        add(memory->config, pages, table);
        if (!read_word(memory, table + 8 * (address >> (12 + 9 * level) & 511), &entry) ||
            !(entry & ENTRY_PRESENT))
            return false;
        table = entry & FRAME_MASK;
        if (level == 0 || entry & ENTRY_LARGE) {
            *ret = (table & ~inside) | (address & inside);
            add(memory->config, pages, *ret);
            return true;
        }
    }
    return false;
}

/* The hexadecimal number `skip` words behind `name` in the text about one CPU, or 0. */
static uint64_t number_after(const char *text, const char *end, const char *name, int skip)
{
    const char *at = strstr(text, name);
    if (!at || at >= end)
        return 0;
    for (at += strlen(name); skip > 0; skip--)
        at += strcspn(at, " \n"), at += strspn(at, " ");
    return strtoull(at, NULL, 16);
}

static void add_cpu(const struct memory *memory, const char *text, const char *end, struct qemu_pages *pages)
{
    uint64_t top = number_after(text, end, "CR3=", 0), physical, stack;
    int levels = number_after(text, end, "CR4=", 0) & CR4_FIVE_LEVELS ? 5 : 4;
    const uint64_t looked_at[] = {
        number_after(text, end, "RIP=", 0),   number_after(text, end, "RSP=", 0) - 8,
        number_after(text, end, "\nIDT=", 0), number_after(text, end, "\nGDT=", 0),
        number_after(text, end, "\nGS =", 1),
    };
    if (!(number_after(text, end, "EFER=", 0) & EFER_LONG_MODE))
        return;
    for (size_t i = 0; i < ARRAY_SIZE(looked_at); i++)
        add_mapped(memory, pages, top, levels, looked_at[i], &physical);
    if (add_mapped(memory, pages, top, levels, number_after(text, end, "\nTR =", 1), &physical) &&
        read_word(memory, physical + TASK_STACK, &stack))
        add_mapped(memory, pages, top, levels, stack - 8, &physical);
}

void qemu_early_registers(const struct vm_config *config, int ram_fd, const char *text,
                          struct qemu_pages *pages)
{
    const struct memory memory = {.config = config, .fd = ram_fd};
    for (const char *cpu = strstr(text, "CPU#"), *next; cpu; cpu = next) {
        next = strstr(cpu + 1, "CPU#");
        add_cpu(&memory, cpu, next ? next : cpu + strlen(cpu), pages);
    }
}

void qemu_early_cpus(struct qemu *qemu, const struct vm_config *config, struct qemu_pages *pages)
{
    _cleanup_json_ json_t *text =
        ask(qemu, "human-monitor-command", json_pack("{s:s}", "command-line", "info registers -a"));
    if (json_is_string(text) && qemu->ram_fd >= 0)
        qemu_early_registers(config, qemu->ram_fd, json_string_value(text), pages);
}
