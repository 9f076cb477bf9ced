/* SPDX-License-Identifier: Apache-2.0
 *
 * probe: what the installed QEMU and this host can do. Asks QEMU itself (`-version`, `-machine help`); the
 * only text that is relied on is the first word of each line of the machine list.
 */
#include "base/clock.h"
#include "vmm/qemu_internal.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define OUTPUT_MAX (256U << 10)
#define PROBE_SECONDS 20

/* --- KVM ------------------------------------------------------------------------------------------------ */

static bool cpu_has_virtualisation(void)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    _cleanup_free_ char *line = NULL;
    size_t size = 0;
    bool found = false;
    while (file && !found && getline(&line, &size, file) >= 0)
        found = strncmp(line, "flags", 5) == 0 && (strstr(line, " vmx") || strstr(line, " svm"));
    if (file)
        fclose(file);
    return found;
}

bool kvm_usable(char why[128])
{
    _cleanup_close_ int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        snprintf(why, 128, "cannot open /dev/kvm: %m");
        return false;
    }
    /* A /dev/kvm without them is an emulation in software, in which stock kernels hang. */
    if (!cpu_has_virtualisation()) {
        snprintf(why, 128, "/proc/cpuinfo shows neither vmx nor svm");
        return false;
    }
    why[0] = '\0';
    return true;
}

/* --- asking QEMU ---------------------------------------------------------------------------------------- */

static int read_output(int fd, char *text, size_t size, int64_t deadline)
{
    size_t used = 0;
    while (used < size - 1) {
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n = poll(&p, 1, clock_poll_ms(deadline));
        if (n == 0)
            return -ETIMEDOUT;
        ssize_t got = n < 0 ? -1 : read(fd, text + used, size - 1 - used);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            break;
        used += (size_t)got;
    }
    text[used] = '\0';
    return 0;
}

/* Runs `binary argument [value]`, returns its standard output (malloc'ed). */
static int ask(const char *binary, const char *argument, const char *value, char **ret, struct err *err)
{
    int ends[2];
    pid_t pid;
    posix_spawn_file_actions_t actions;
    char *argv[] = {(char *)binary, (char *)argument, (char *)value, NULL};
    _cleanup_free_ char *text = malloc(OUTPUT_MAX);
    if (!text)
        return err_set(err, ENOMEM, "out of memory asking %s", binary);
    if (pipe2(ends, O_CLOEXEC) < 0)
        return err_sys(err, errno, "cannot ask %s", binary);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    int r = posix_spawnp(&pid, binary, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (r) {
        close(ends[0]);
        r = err_sys(err, r, "cannot run %s", binary);
        if (r == -ENOENT)
            err_hint(err, "install it: apt-get install qemu-system-x86");
        return r;
    }
    int status = 0;
    r = read_output(ends[0], text, OUTPUT_MAX, clock_now() + PROBE_SECONDS * NSEC_PER_SEC);
    close(ends[0]);
    if (r < 0)
        kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (r < 0)
        return err_sys(err, r, "%s %s gives no answer", binary, argument);
    if (status != 0)
        return err_set(err, EIO, "%s %s failed", binary, argument);
    *ret = TAKE_PTR(text);
    return 0;
}

/* --- its answers ---------------------------------------------------------------------------------------- */

struct machine_name {
    char name[64];
    unsigned major, minor;
};

/* "pc-q35-7.2" and "pc-i440fx-10.0+deb13"-like names; aliases have no version and are no use for pinning. */
static bool parse_machine(const char *word, struct machine_name *ret)
{
    static const char *const families[] = {"pc-q35-", "pc-i440fx-"};
    for (size_t i = 0; i < ARRAY_SIZE(families); i++) {
        size_t n = strlen(families[i]);
        if (strncmp(word, families[i], n) != 0 || strlen(word) >= sizeof ret->name)
            continue;
        char *end;
        ret->major = (unsigned)strtoul(word + n, &end, 10);
        if (end == word + n || *end != '.' || !isdigit((unsigned char)end[1]))
            continue;
        ret->minor = (unsigned)strtoul(end + 1, NULL, 10);
        memcpy(ret->name, word, strlen(word) + 1);
        return true;
    }
    return false;
}

/* Newest first; of one version q35 before i440fx. */
static int compare_machines(const void *a, const void *b)
{
    const struct machine_name *x = a, *y = b;
    if (x->major != y->major)
        return x->major < y->major ? 1 : -1;
    if (x->minor != y->minor)
        return x->minor < y->minor ? 1 : -1;
    return strcmp(y->name, x->name);
}

static json_t *list_machines(char *text)
{
    struct machine_name found[256];
    size_t count = 0;
    for (char *line, *next = text; (line = strsep(&next, "\n"));) {
        char *word = strsep(&line, " \t");
        if (count < ARRAY_SIZE(found) && parse_machine(word, &found[count]))
            count++;
    }
    qsort(found, count, sizeof *found, compare_machines);
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_string(found[i].name));
    return list;
}

/* "QEMU emulator version 7.2.22 (Debian ...)" */
static void parse_version(const char *text, char ret[32])
{
    static const char before[] = "version ";
    const char *at = strstr(text, before);
    at = at ? at + strlen(before) : "unknown";
    snprintf(ret, 32, "%.*s", (int)MIN(strcspn(at, " \n("), 31U), at);
}

int qemu_probe(const char *binary, struct qemu_host *ret, struct err *err)
{
    _cleanup_free_ char *version = NULL, *machines = NULL;
    int r = ask(binary, "-version", NULL, &version, err);
    if (r == 0)
        r = ask(binary, "-machine", "help", &machines, err);
    if (r < 0)
        return r;
    struct qemu_host host = {.machines = list_machines(machines)};
    if (json_array_size(host.machines) == 0) {
        qemu_host_done(&host);
        return err_set(err, ENOTSUP, "%s has no versioned PC machine type", binary);
    }
    parse_version(version, host.version);
    host.kvm = kvm_usable(host.kvm_why);
    *ret = host;
    return 0;
}

void qemu_host_done(struct qemu_host *host)
{
    json_decref(host->machines);
    *host = (struct qemu_host){0};
}
