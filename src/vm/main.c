/* SPDX-License-Identifier: Apache-2.0
 *
 * orai-vm: runs one virtual machine on this host: serves its disks, drives its QEMU, moves it away or takes
 * it in. One process per VM, started by oraid and independent of it from then on.
 *
 * The main thread is one poll loop over signals, clients, QEMU's exit and what other threads report
 * (events.c). It never waits for a peer or a client; QEMU's answers it awaits for some seconds at most.
 *
 * Being killed at any moment is safe: QEMU goes on, its disk requests wait, and `orai-vm resume` finds it by
 * its record. SIGTERM does the same on purpose. So does every error after the start that would end this
 * process.
 *
 * Exit status: 0 the VM has ended or left in order, or we were told to let go; 1 an error
 * (RUN_DIR/failure.json says which); 2 wrong usage; 3 resume found no QEMU.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/pid.h"
#include "move/fault.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/stat.h>

enum { EXIT_ENDED = 0, EXIT_ERROR = 1, EXIT_USAGE = 2, EXIT_NO_QEMU = 3 };

#define PROGRESS_NSEC (NSEC_PER_SEC / 5)
#define TRIM_NSEC (30 * NSEC_PER_SEC)
#define LOG_MAX (8 * MiB) /* console.log and qemu.log: a guest can fill them */
#define LOCK_NSEC (3 * NSEC_PER_SEC)
#define LOCK_POLL_NSEC (5 * NSEC_PER_MSEC)
#define DEFAULT_USER "orai-qemu"

/* --- setting up ----------------------------------------------------------------------------------------- */

static int run_path(const struct vm *vm, const char *name, char path[PATH_MAX], struct err *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", vm->options.run_dir, name) >= PATH_MAX)
        return err_set(err, ENAMETOOLONG, "path too long: %s/%s", vm->options.run_dir, name);
    return 0;
}

/* Held until this process ends, however it ends. The one before us may have said that it is over, and not be
 * gone yet: a start or an arrival, which someone asked for, waits `patience` for that. */
static int lock_vm(const char *vm_dir, int64_t patience, int *ret_fd, struct err *err)
{
    int64_t deadline = clock_now() + patience;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%.4000s/orai-vm.lock", vm_dir);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot open %s", path);
    int r;
    while ((r = flock(fd, LOCK_EX | LOCK_NB)) < 0 && errno == EWOULDBLOCK && clock_now() < deadline)
        clock_sleep(LOCK_POLL_NSEC);
    if (r < 0)
        return errno == EWOULDBLOCK ? err_set(err, EBUSY, "another orai-vm runs for %s", vm_dir)
                                    : err_sys(err, errno, "cannot lock %s", vm_dir);
    *ret_fd = TAKE_FD(fd);
    return 0;
}

static int find_user(const char *name, struct qemu_env *env, struct err *err)
{
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    const struct passwd *user = getpwnam(name ? name : DEFAULT_USER);
    if (!user && name) {
        int r = err_set(err, ENOENT, "there is no user \"%s\" for QEMU to run as", name);
        err_hint(err, "make it with: useradd --system --no-create-home %s", name);
        return r;
    }
    if (!user)
        log_warning("there is no user " DEFAULT_USER ": QEMU runs as our own user");
    env->uid = user ? user->pw_uid : 0;
    env->gid = user ? user->pw_gid : 0;
    return 0;
}

/* vm.json comes some time after the record of a VM's first arrival: without it the VM may only arrive, or
 * that arrival be abandoned. */
static bool may_lack_config(const struct vm *vm)
{
    const struct epoch_record *record = epoch_get(vm->epoch);
    return vm->options.mode == MODE_ARRIVE ||
           (vm->options.mode == MODE_RESUME && record->role == EPOCH_ARRIVING && !record->ready);
}

static int load_vm(struct vm *vm, struct err *err)
{
    const char *dir = vm->options.vm_dir;
    struct err missing = ERR_NONE;
    int config = vm_config_load(dir, &vm->config, &missing);
    vm->has_config = config == 0;
    vm->id = vm->has_config ? vm->config.id : vm->options.vm;
    if (vm->has_config && !id_is_zero(&vm->options.vm) && !id_equal(&vm->config.id, &vm->options.vm))
        return err_set(err, EEXIST, "%s belongs to another VM of the same name", dir);
    int r = epoch_open(dir, &vm->epoch, err);
    if (r == -ENOENT && vm->options.mode == MODE_ARRIVE && (config == 0 || config == -ENOENT))
        r = epoch_create(dir, &(struct epoch_record){.role = EPOCH_REPLICA}, &vm->epoch, err);
    if (r < 0 || config == 0 || (config == -ENOENT && may_lack_config(vm)))
        return r;
    *err = missing;
    return config;
}

static int set_up(struct vm *vm, struct err *err)
{
    const struct vm_options *options = &vm->options;
    char path[PATH_MAX];
    vm->host = (struct move_host){
        .name = options->host_name,
        .state_dir = options->state_dir,
        .env = {.binary = options->qemu,
                .firmware_dir = options->firmware,
                .vm_dir = options->vm_dir,
                .run_dir = options->run_dir},
        .on_change = events_move_changed,
        .on_qemu_event = events_from_qemu,
        .arg = vm,
    };
    int r = find_user(options->qemu_user, &vm->host.env, err);
    if (r == 0)
        r = load_vm(vm, err);
    if (r == 0)
        r = file_mkdirs(options->run_dir, 0711, err);
    if (r == 0 && options->faults)
        fault_enable(options->run_dir);
    if (r == 0)
        r = events_init(&vm->events, err);
    if (r == 0)
        r = run_path(vm, "orai-vm.pid", path, err);
    if (r == 0)
        r = pid_record(path, getpid(), err);
    if (r == 0)
        r = run_path(vm, "control.sock", path, err);
    if (r == 0)
        r = control_new(path, &vm->control, err);
    return r;
}

static int enter_mode(struct vm *vm, struct err *err)
{
    switch (vm->options.mode) {
    case MODE_START:
        return vm_start(vm, err);
    case MODE_ARRIVE:
        return vm_arrive(vm, err);
    case MODE_RESUME:
        return vm_resume(vm, err);
    case MODE_SHARE:
        return vm_share(vm, err);
    case MODE_KEEP_RAM:
        break;
    }
    return -EINVAL;
}

/* --- the loop ------------------------------------------------------------------------------------------- */

/* At most five progress events per second, and the last one always. */
static void tell_progress(struct vm *vm, int64_t now)
{
    if (!(vm->departure || vm->arrival) || !vm->events.move_changed || now < vm->next_progress)
        return;
    vm->events.move_changed = false;
    vm->next_progress = now + PROGRESS_NSEC;
    if (control_watched(vm->control))
        control_tell(vm->control, json_pack("{s:s, s:o}", "event", "progress", "move", vm_move_status(vm)));
}

static void check_stop(struct vm *vm, int64_t now)
{
    if (!vm->stop_deadline || now < vm->stop_deadline)
        return;
    vm->stop_deadline = 0;
    snprintf(vm->reason, sizeof vm->reason, "the guest did not react to the power button within %llu ms",
             (unsigned long long)vm->stop_msec);
    log_warning("%s", vm->reason);
    control_tell(vm->control, json_pack("{s:s, s:s, s:s}", "event", "state", "state",
                                        vm_state_name(vm->state), "reason", vm->reason));
}

/* A QEMU that lives but does not speak to us any more: who comes next connects anew. */
static void check_lost(struct vm *vm, int64_t now)
{
    if (!vm->lost_deadline || now < vm->lost_deadline)
        return;
    log_error("QEMU's control connection is lost; letting go, orai-vm resume finds it again");
    vm->let_go = true;
}

/* QEMU appends to them, so it goes on at the start of an emptied file. */
static void trim_log(const struct vm *vm, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/%s", vm->options.vm_dir, name) >= (int)sizeof path ||
        stat(path, &st) < 0 || (uint64_t)st.st_size <= LOG_MAX)
        return;
    log_warning("%s had %lld bytes and is emptied", path, (long long)st.st_size);
    if (truncate(path, 0) < 0)
        log_warning("cannot empty %s: %m", path);
}

static void check_logs(struct vm *vm, int64_t now)
{
    if (now < vm->next_trim)
        return;
    vm->next_trim = now + TRIM_NSEC;
    trim_log(vm, "console.log");
    trim_log(vm, "qemu.log");
}

static int next_timeout(const struct vm *vm)
{
    int64_t next = vm->next_trim;
    if (vm->events.move_changed && (vm->departure || vm->arrival))
        next = MIN(next, vm->next_progress);
    if (vm->stop_deadline)
        next = MIN(next, vm->stop_deadline);
    if (vm->lost_deadline)
        next = MIN(next, vm->lost_deadline);
    if (vm->fetch || vm->lender || vm->io_pause)
        next = MIN(next, clock_now() + NSEC_PER_SEC);
    return clock_poll_ms(next);
}

static void turn(struct vm *vm, int signals)
{
    enum { SIGNALS, WAKE, QEMU, CLIENTS };
    struct pollfd fds[CLIENTS + CONTROL_MAX_CLIENTS + 1];
    bool ours = vm->machine && !vm_is_moving(vm) && machine_qemu(vm->machine);
    fds[SIGNALS] = (struct pollfd){.fd = signals, .events = POLLIN};
    fds[WAKE] = (struct pollfd){.fd = vm->events.wake, .events = POLLIN};
    fds[QEMU] = (struct pollfd){.fd = ours ? qemu_pidfd(machine_qemu(vm->machine)) : -1, .events = POLLIN};
    size_t clients = control_poll_fds(vm->control, fds + CLIENTS);
    if (poll(fds, CLIENTS + clients, next_timeout(vm)) < 0)
        return;
    if (fds[SIGNALS].revents) {
        vm->let_go = true;
        return;
    }
    eventfd_t ignored;
    if (fds[WAKE].revents)
        eventfd_read(vm->events.wake, &ignored);
    int64_t now = clock_now();
    tell_progress(vm, now);
    vm_check_move(vm);
    vm_check_refresh(vm);
    vm_check_split(vm);
    vm_take_news(vm);
    vm_check_io_pause(vm, now);
    check_stop(vm, now);
    check_lost(vm, now);
    check_logs(vm, now);
    if (!vm->ended)
        control_serve(vm->control, vm, fds + CLIENTS, clients);
    if (fds[QEMU].revents && !vm->ended)
        clock_sleep(NSEC_PER_MSEC); /* exited, but the end of its events has not been read yet */
}

static int open_signals(struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    return fd < 0 ? err_sys(err, errno, "cannot wait for signals") : fd;
}

/* --- main ----------------------------------------------------------------------------------------------- */

/* oraid may not have been connected yet: it finds the error in a file. */
static void leave_failure(const struct vm *vm, const struct err *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = err_to_json(err);
    if (run_path(vm, "failure.json", path, NULL) == 0)
        json_write_file(path, json, 0600, NULL);
}

static void remove_own_files(struct vm *vm)
{
    char path[PATH_MAX];
    control_free(TAKE_PTR(vm->control));
    if (run_path(vm, "orai-vm.pid", path, NULL) == 0)
        unlink(path);
}

static int report(struct vm *vm, struct err *err, int status)
{
    err_where(err, vm->options.host_name, "");
    log_error("%s%s%s", err->text, err->hint[0] ? "; " : "", err->hint);
    return status;
}

static int run(struct vm *vm)
{
    struct err err = ERR_NONE;
    char path[PATH_MAX];
    int lock = -1;
    int signals = open_signals(&err);
    int64_t patience = vm->options.mode == MODE_RESUME ? 0 : LOCK_NSEC;
    int r = signals < 0 ? signals : lock_vm(vm->options.vm_dir, patience, &lock, &err);
    if (r < 0)
        return report(vm, &err, EXIT_ERROR); /* not ours: its files are left alone */
    if (run_path(vm, "failure.json", path, NULL) == 0)
        unlink(path);
    r = set_up(vm, &err);
    if (r == 0)
        r = enter_mode(vm, &err);
    if (r < 0) {
        int status = vm->options.mode == MODE_RESUME && r == -ESRCH ? EXIT_NO_QEMU : EXIT_ERROR;
        report(vm, &err, status);
        leave_failure(vm, &err);
        machine_free(TAKE_PTR(vm->machine));
        remove_own_files(vm);
        return status;
    }
    while (!vm->ended && !vm->let_go)
        turn(vm, signals);
    if (vm_is_moving(vm)) {
        /* As if killed: the other side and our successor know what to do. */
        log_info("told to let go of %s during a move or refresh", vm->config.name);
        _exit(EXIT_ENDED);
    }
    if (vm->hand_on && !vm->ended) {
        log_info("%s: handed on to another orai-vm", vm->config.name);
        vm_hand_on(vm);
        remove_own_files(vm);
        _exit(EXIT_ENDED);
    }
    vm_end_split(vm);
    log_info("%s: %s", vm->has_config ? vm->config.name : "the VM",
             vm->ended ? vm->ended : "let go, QEMU goes on");
    machine_free(TAKE_PTR(vm->machine));
    remove_own_files(vm);
    return vm->lost_deadline ? EXIT_ERROR : EXIT_ENDED;
}

/* The VM itself is nothing to this process: another orai-vm may have it. */
static int run_keep_ram(struct vm *vm)
{
    struct err err = ERR_NONE;
    return keep_ram(&vm->options, &err) < 0 ? report(vm, &err, EXIT_ERROR) : EXIT_ENDED;
}

int main(int argc, char **argv)
{
    static struct vm vm = {.events.wake = -1};
    const char *text;
    struct err err = ERR_NONE;
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    mallopt(M_ARENA_MAX, 2); /* many threads, little memory */
    log_open("orai-vm");
    if (options_parse(argc, argv, &vm.options, &text, &err) < 0) {
        fprintf(stderr, "orai-vm: %s\n%s", err.text, options_help);
        return EXIT_USAGE;
    }
    if (text) {
        fputs(text, stdout);
        return EXIT_ENDED;
    }
    return vm.options.mode == MODE_KEEP_RAM ? run_keep_ram(&vm) : run(&vm);
}
