/* SPDX-License-Identifier: Apache-2.0
 *
 * A real QEMU, firmware only: start, adoption, end, and every reason not to start that an owner may meet.
 */
#include "lab.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/pid.h"
#include "vmm/qmp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int setup(void **state)
{
    lab_need_qemu();
    struct lab *lab = calloc(1, sizeof *lab);
    lab_open(lab);
    *state = lab;
    return 0;
}

static int teardown(void **state)
{
    if (*state)
        lab_close(*state);
    free(*state);
    return 0;
}

static struct qemu *start(struct lab *lab)
{
    struct qemu *qemu = NULL;
    struct err err = ERR_NONE;
    if (qemu_start(&lab->env, &lab->config, false, NULL, NULL, NULL, &qemu, &err) < 0)
        fail_msg("%s", err.text);
    return qemu;
}

static void end(struct qemu *qemu)
{
    assert_int_equal(qemu_kill(qemu, 5000, NULL), 0);
    qemu_free(qemu);
}

static void starts_stopped_and_runs_when_told(void **state)
{
    struct qemu *qemu = start(*state);
    char status[32];
    assert_int_equal(qemu_status(qemu, status, NULL), 0);
    assert_string_equal(status, "prelaunch");
    assert_int_equal(qemu_cont(qemu, NULL), 0);
    lab_wait_status(qemu, "running");
    assert_int_equal(qemu_pause(qemu, NULL), 0);
    lab_wait_status(qemu, "paused");
    end(qemu);
}

static void says_nothing_on_standard_error(void **state)
{
    struct lab *lab = *state;
    char path[PATH_MAX];
    _cleanup_free_ void *text = NULL;
    size_t size;
    struct qemu *qemu = start(lab);
    assert_int_equal(qemu_cont(qemu, NULL), 0);
    end(qemu);
    snprintf(path, sizeof path, "%s/qemu.log", lab->vm_dir);
    assert_int_equal(file_load(path, 65536, &text, &size, NULL), 0);
    assert_string_equal(text, "");
}

/* The line "KEY\t..." of /proc/PID/status. */
static void read_proc_status(pid_t pid, const char *key, char *ret, size_t size)
{
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *file = fopen(path, "re");
    assert_non_null(file);
    ret[0] = '\0';
    while (fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0)
            snprintf(ret, size, "%s", line + strlen(key) + 1);
    fclose(file);
}

static void runs_without_privileges(void **state)
{
    char value[256];
    if (getuid() != 0)
        skip();
    struct qemu *qemu = start(*state);
    read_proc_status(qemu_pid(qemu), "Uid:", value, sizeof value);
    assert_string_equal(value, "65534\t65534\t65534\t65534\n");
    read_proc_status(qemu_pid(qemu), "CapEff:", value, sizeof value);
    assert_string_equal(value, "0000000000000000\n");
    read_proc_status(qemu_pid(qemu), "NoNewPrivs:", value, sizeof value);
    assert_string_equal(value, "1\n");
    read_proc_status(qemu_pid(qemu), "Seccomp:", value, sizeof value);
    assert_string_equal(value, "2\n");
    assert_int_equal(getsid(qemu_pid(qemu)), qemu_pid(qemu));
    end(qemu);
}

static void inherits_no_descriptor_but_its_own(void **state)
{
    char path[64], target[256];
    _cleanup_close_ int secret =
        open("/etc/hostname", O_RDONLY); /* without close-on-exec, as a library might */
    assert_true(secret >= 0);
    struct qemu *qemu = start(*state);
    snprintf(path, sizeof path, "/proc/%d/fd", (int)qemu_pid(qemu));
    DIR *dir = opendir(path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
        target[MAX(n, 0)] = '\0';
        assert_string_not_equal(target, "/etc/hostname");
    }
    closedir(dir);
    end(qemu);
}

static void memory_is_ours_too_and_cannot_shrink(void **state)
{
    struct stat st;
    struct qemu *qemu = start(*state);
    assert_int_equal(fstat(qemu_ram_fd(qemu), &st), 0);
    assert_int_equal(st.st_size, 128 * MiB);
    assert_int_equal(ftruncate(qemu_ram_fd(qemu), 0), -1);
    assert_int_equal(errno, EPERM);
    end(qemu);
}

static void private_memory_is_qemus_alone(void **state)
{
    struct lab *lab = *state;
    struct qemu *next;
    lab->config.ram = VM_RAM_PRIVATE;
    struct qemu *qemu = start(lab);
    assert_int_equal(qemu_ram(qemu), VM_RAM_PRIVATE);
    assert_int_equal(qemu_ram_fd(qemu), -1);
    assert_int_equal(qemu_start_next(qemu, &lab->env, &lab->config, NULL, NULL, NULL, &next, NULL), -ENOTSUP);
    end(qemu);
}

static void what_memory_is_made_of_is_known_after_adoption(void **state)
{
    struct lab *lab = *state;
    for (enum vm_ram ram = VM_RAM_SHARED; ram <= VM_RAM_PRIVATE; ram++) {
        lab->config.ram = ram;
        struct qemu *qemu = start(lab);
        qemu_free(qemu);
        assert_int_equal(qemu_adopt(&lab->env, NULL, NULL, &qemu, NULL), 0);
        assert_int_equal(qemu_ram(qemu), ram);
        assert_int_equal(qemu_ram_fd(qemu) >= 0, ram == VM_RAM_SHARED);
        end(qemu);
    }
}

static void too_few_huge_pages_are_counted_in_the_error(void **state)
{
    struct lab *lab = *state;
    struct qemu *qemu;
    struct err err = ERR_NONE;
    lab->config.ram = VM_RAM_HUGE;
    lab->config.memory = 4096 * GiB;
    assert_int_equal(qemu_start(&lab->env, &lab->config, false, NULL, NULL, NULL, &qemu, &err), -ENOMEM);
    assert_non_null(strstr(err.text, "2097152 huge pages of 2 MiB"));
    assert_non_null(strstr(err.hint, "vm.nr_hugepages="));
}

static void adopted_after_we_let_go(void **state)
{
    struct lab *lab = *state;
    struct stat before, after;
    struct qemu *qemu = start(lab);
    pid_t pid = qemu_pid(qemu);
    assert_int_equal(qemu_cont(qemu, NULL), 0);
    assert_int_equal(fstat(qemu_ram_fd(qemu), &before), 0);
    qemu_free(qemu);

    struct err err = ERR_NONE;
    int r = qemu_adopt(&lab->env, NULL, NULL, &qemu, &err);
    if (r < 0)
        fail_msg("%s", err.text);
    assert_int_equal(qemu_pid(qemu), pid);
    lab_wait_status(qemu, "running");
    assert_int_equal(fstat(qemu_ram_fd(qemu), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    end(qemu);
}

static void nobody_to_adopt_is_ESRCH(void **state)
{
    struct lab *lab = *state;
    struct qemu *qemu;
    assert_int_equal(qemu_adopt(&lab->env, NULL, NULL, &qemu, NULL), -ESRCH);
}

static void kill_leaves_no_traces(void **state)
{
    struct lab *lab = *state;
    end(start(lab));
    DIR *dir = opendir(lab->run_dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        assert_int_equal(entry->d_name[0], '.');
    closedir(dir);
}

static void frozen_qemu_is_killed_in_bounded_time(void **state)
{
    struct qemu *qemu = start(*state);
    kill(qemu_pid(qemu), SIGSTOP);
    int64_t before = clock_now();
    assert_int_equal(qemu_kill(qemu, 300, NULL), 0);
    assert_true(clock_now() - before < 5 * NSEC_PER_SEC);
    qemu_free(qemu);
}

struct heard {
    atomic_int ends, shutdowns;
};

static void on_event(void *arg, const char *event, const json_t *data)
{
    struct heard *heard = arg;
    if (!event)
        heard->ends++;
    else if (strcmp(event, "SHUTDOWN") == 0)
        heard->shutdowns++;
}

static void death_is_seen_by_pidfd_and_by_the_end_of_events(void **state)
{
    struct lab *lab = *state;
    struct heard heard = {0};
    struct qemu *qemu;
    assert_int_equal(qemu_start(&lab->env, &lab->config, false, NULL, on_event, &heard, &qemu, NULL), 0);
    struct pollfd p = {.fd = qemu_pidfd(qemu), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    kill(qemu_pid(qemu), SIGKILL);
    assert_int_equal(poll(&p, 1, 5000), 1);
    for (int i = 0; i < 500 && !heard.ends; i++)
        clock_sleep(10 * NSEC_PER_MSEC);
    assert_int_equal(heard.ends, 1);
    assert_int_equal(heard.shutdowns, 0);
    struct err err = ERR_NONE;
    assert_int_equal(qemu_cont(qemu, &err), -ENOTCONN);
    end(qemu);
    assert_int_equal(heard.ends, 1);
}

static void refused(struct lab *lab, const char *text)
{
    struct qemu *qemu = NULL;
    struct err err = ERR_NONE;
    char path[PATH_MAX];
    pid_t pid;
    int pidfd;
    assert_true(qemu_start(&lab->env, &lab->config, false, NULL, NULL, NULL, &qemu, &err) < 0);
    assert_null(qemu);
    if (!strstr(err.text, text))
        fail_msg("\"%s\" is not in: %s", text, err.text);
    snprintf(path, sizeof path, "%s/qemu.pid", lab->run_dir);
    assert_int_equal(pid_open_record(path, &pid, &pidfd, NULL), -ESRCH);
}

static void unknown_machine_is_named_in_the_error(void **state)
{
    struct lab *lab = *state;
    strcpy(lab->config.machine, "pc-q35-1.0");
    refused(lab, "pc-q35-1.0");
}

static void unknown_cpu_is_named_in_the_error(void **state)
{
    struct lab *lab = *state;
    strcpy(lab->config.cpu, "abacus");
    refused(lab, "abacus");
}

static void missing_binary_is_named_in_the_error(void **state)
{
    struct lab *lab = *state;
    lab->env.binary = "/nonexistent/qemu";
    refused(lab, "cannot start /nonexistent/qemu");
}

static void missing_disk_server_is_named_in_the_error(void **state)
{
    struct lab *lab = *state;
    lab->config.disk_count = 1;
    strcpy(lab->config.disks[0].file, "disk0.raw");
    refused(lab, "disk0.sock");
}

static void a_kernel_that_is_not_there_is_named_in_the_error(void **state)
{
    struct lab *lab = *state;
    strcpy(lab->config.kernel, "vmlinuz");
    refused(lab, "vmlinuz");
}

static void a_kernel_that_is_a_link_is_refused(void **state)
{
    struct lab *lab = *state;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/vmlinuz", lab->vm_dir);
    assert_int_equal(symlink("/etc/shadow", path), 0);
    strcpy(lab->config.kernel, "vmlinuz");
    refused(lab, "vmlinuz");
}

static void kvm_where_it_is_not_real_is_refused_with_the_reason(void **state)
{
    struct qemu_host host;
    assert_int_equal(qemu_probe("qemu-system-x86_64", &host, NULL), 0);
    bool kvm = host.kvm;
    char why[128];
    strcpy(why, host.kvm_why);
    qemu_host_done(&host);
    if (kvm)
        skip(); /* KVM works here */
    struct lab *lab = *state;
    strcpy(lab->config.accel, "kvm");
    refused(lab, why);
}

static void probe_lists_versioned_machines_newest_first(void **state)
{
    struct qemu_host host;
    assert_int_equal(qemu_probe("qemu-system-x86_64", &host, NULL), 0);
    assert_true(host.version[0] >= '1' && host.version[0] <= '9');
    assert_true(json_array_size(host.machines) > 4);
    unsigned last_major = 1000, last_minor = 1000;
    for (size_t i = 0; i < json_array_size(host.machines); i++) {
        unsigned major, minor;
        const char *name = json_string_value(json_array_get(host.machines, i));
        assert_int_equal(sscanf(strchr(name + 3, '-'), "-%u.%u", &major, &minor), 2);
        assert_true(major < last_major || (major == last_major && minor <= last_minor));
        last_major = major;
        last_minor = minor;
    }
    qemu_host_done(&host);
}

static void probe_of_no_qemu_fails(void **state)
{
    struct qemu_host host;
    assert_int_equal(qemu_probe("/nonexistent/qemu", &host, NULL), -ENOENT);
    assert_int_equal(qemu_probe("/bin/false", &host, NULL), -EIO);
    assert_int_equal(qemu_probe("/bin/echo", &host, NULL), -ENOTSUP);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(starts_stopped_and_runs_when_told),
        TEST(says_nothing_on_standard_error),
        TEST(runs_without_privileges),
        TEST(inherits_no_descriptor_but_its_own),
        TEST(memory_is_ours_too_and_cannot_shrink),
        TEST(private_memory_is_qemus_alone),
        TEST(what_memory_is_made_of_is_known_after_adoption),
        TEST(too_few_huge_pages_are_counted_in_the_error),
        TEST(adopted_after_we_let_go),
        TEST(nobody_to_adopt_is_ESRCH),
        TEST(kill_leaves_no_traces),
        TEST(frozen_qemu_is_killed_in_bounded_time),
        TEST(death_is_seen_by_pidfd_and_by_the_end_of_events),
        TEST(unknown_machine_is_named_in_the_error),
        TEST(unknown_cpu_is_named_in_the_error),
        TEST(missing_binary_is_named_in_the_error),
        TEST(missing_disk_server_is_named_in_the_error),
        TEST(a_kernel_that_is_not_there_is_named_in_the_error),
        TEST(a_kernel_that_is_a_link_is_refused),
        TEST(kvm_where_it_is_not_real_is_refused_with_the_reason),
        TEST(probe_lists_versioned_machines_newest_first),
        TEST(probe_of_no_qemu_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
