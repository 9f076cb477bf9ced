/* SPDX-License-Identifier: Apache-2.0
 *
 * The keeper: one thread that watches every orai-vm over its control socket, passes on what it hears
 * (vm_news.c), and runs `orai-vm resume` for one that ended without saying so, or whose epoch record says
 * that something is unfinished (committed, arriving).
 *
 * A VM whose orai-vm fails again and again is given up after 5 times: its state is then "failed" until
 * someone starts or recovers it. While a VM is claimed (being started, removed, ...) the keeper leaves its
 * fate to the claimant.
 *
 * The thread sleeps in poll(2) unless something is due; with all VMs watched or idle it does not wake by
 * itself.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/msg.h"
#include "host/vm_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#define MAX_FAILURES 5
#define QUICK_NSEC (10 * NSEC_PER_SEC) /* an orai-vm that lived longer did not fail quickly */
#define CONNECT_MSEC 200
#define SYNC_MSEC 1000
#define PACKETS_AT_ONCE 64 /* from one VM, before the others have their turn */

/* --- the life of an orai-vm ----------------------------------------------------------------------------- */

static void give_up(struct vms *vms, struct vm *vm, const char *why)
{
    pthread_mutex_lock(&vms->lock);
    vm->failed = true;
    snprintf(vm->sorrow, sizeof vm->sorrow, "%s", why);
    pthread_mutex_unlock(&vms->lock);
    vm->watch = WATCH_IDLE;
    vm->boot = false;
    log_error("%s: %s", vm->name, why);
    event_add(vms->host->events, "vm.failed", vm->name, json_pack("{s:s}", "reason", why));
}

static bool claimed(struct vms *vms, const struct vm *vm)
{
    pthread_mutex_lock(&vms->lock);
    bool is = vms_find_claim(vms, vm->name) != NULL;
    pthread_mutex_unlock(&vms->lock);
    return is;
}

/* Leaves vm->boot set only when it is to be started, not resumed. */
static bool should_resume(struct vms *vms, struct vm *vm, const struct epoch_record *record)
{
    _cleanup_close_ int pidfd = -1;
    bool boot = vm->boot;
    vm->boot = false;
    switch (record->role) {
    case EPOCH_OWNER:
        /* A guest that has just arrived, or is being stopped, is not among the wanted ones, and still must
         * not be left alone. */
        if (vm_qemu(vms->host, vm->name, &pidfd) == 0)
            return true;
        vm->boot = boot && vm_starts_with_host(vms->host, vm->name);
        if (vm->boot)
            return true;
        if (!vm_desired(vms, vm->name))
            return false;
        if (!claimed(vms, vm))
            vms_take_crash(vms, vm);
        return false;
    case EPOCH_COMMITTED:
    case EPOCH_ARRIVING:
        return true;
    case EPOCH_REPLICA:
        return record->lent; /* only here are the blocks that its peer still lacks */
    }
    return false;
}

/* A move that ended before anything came (a dry run, say) leaves a folder with nothing in it but the record.
 */
static void drop_empty(struct vms *vms, struct vm *vm)
{
    char dir[PATH_MAX], path[PATH_MAX];
    struct err err = ERR_NONE;
    vm_dir(vms->host, vm->name, dir);
    if (snprintf(path, sizeof path, "%s/vm.json", dir) >= (int)sizeof path || access(path, F_OK) == 0 ||
        errno != ENOENT || vm_claim(vms, vm->name, "being cleaned up", &err) < 0)
        return;
    int r = vm_dir_remove(vms->host, vm->name, &err);
    if (r == 0)
        r = vm_forget(vms, vm->name, &err);
    if (r < 0)
        log_warning("%s: %s", vm->name, err.text);
    vm_release(vms, vm->name);
}

/* No orai-vm lives: does one have to? */
static void decide(struct vms *vms, struct vm *vm)
{
    struct epoch_record record = {0};
    struct err err = ERR_NONE;
    vm->watch = WATCH_IDLE;
    close_cleanup(&vm->pidfd);
    vm->pidfd = -1;
    int r = vm_record(vms->host, vm->name, &record, &err);
    if (r < 0) {
        vm->boot = false;
        if (r != -ENOENT)
            give_up(vms, vm, err.text);
        return;
    }
    vms_settle_move(vms, vm, &record);
    if (record.role == EPOCH_REPLICA)
        drop_empty(vms, vm);
    if (!should_resume(vms, vm, &record))
        return;
    if (vm->spawned && clock_now() - vm->spawned > QUICK_NSEC)
        vm->failures = 0;
    if (vm->failures >= MAX_FAILURES) {
        char why[256];
        snprintf(why, sizeof why,
                 "orai-vm ended %d times within seconds of its start: see %s/vms/%s/orai-vm.log",
                 MAX_FAILURES, vms->host->options.state_dir, vm->name);
        give_up(vms, vm, why);
        return;
    }
    vm->watch = WATCH_BACKOFF;
    vm->due = clock_now() + (vm->failures ? (NSEC_PER_SEC / 4) << (2 * (vm->failures - 1)) : 0);
}

static void resume(struct vms *vms, struct vm *vm)
{
    struct err err = ERR_NONE;
    if (claimed(vms, vm)) {
        vm->due = INT64_MAX; /* the release wakes us */
        return;
    }
    vm->failures++;
    vm->ended = false;
    vm->spawned = clock_now();
    struct vm_mode mode = {.name = vm->boot ? "start" : "resume"};
    if (vm_spawn(vms->host, vm->name, &mode, &vm->pidfd, &err) < 0) {
        log_error("%s", err.text);
        decide(vms, vm);
        return;
    }
    event_add(vms->host->events, vm->boot ? "vm.autostarted" : "vm.resumed", vm->name, NULL);
    vm->watch = WATCH_CONNECTING;
    vm->due = clock_now();
}

static bool alive(struct vms *vms, struct vm *vm)
{
    if (vm->pidfd < 0 && vm_process(vms->host, vm->name, &vm->pidfd) < 0)
        return false;
    struct pollfd p = {.fd = vm->pidfd, .events = POLLIN};
    return poll(&p, 1, 0) == 0;
}

static int open_watch(struct vms *vms, struct vm *vm, struct err *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *request = json_pack("{s:s}", "do", "watch");
    _cleanup_json_ json_t *status = NULL;
    vm_run_path(vms->host, vm->name, "control.sock", path);
    _cleanup_close_ int fd = msg_connect(path, CONNECT_MSEC, err);
    int r = fd < 0 ? fd : msg_send(fd, request, -1, CONNECT_MSEC, err);
    if (r == 0)
        r = vm_ask(vms->host, vm->name, json_pack("{s:s}", "do", "status"), SYNC_MSEC, &status, err);
    if (r < 0)
        return r;
    vm->fd = TAKE_FD(fd);
    vms_take_status(vms, vm, status);
    return 0;
}

static void try_watch(struct vms *vms, struct vm *vm)
{
    struct err err = ERR_NONE;
    bool lives = alive(vms, vm); /* before connecting: its last events are still read */
    if (open_watch(vms, vm, &err) == 0) {
        vm->watch = WATCH_OPEN;
        vm->ended = false;
        return;
    }
    if (!lives) {
        decide(vms, vm);
        return;
    }
    int64_t age = clock_now() - vm->spawned;
    vm->due = clock_now() + (age < QUICK_NSEC ? NSEC_PER_SEC / 20 : NSEC_PER_SEC);
}

static void read_watch(struct vms *vms, struct vm *vm)
{
    for (int i = 0; i < PACKETS_AT_ONCE; i++) {
        _cleanup_json_ json_t *event = NULL;
        struct err err = ERR_NONE;
        int r = msg_receive(vm->fd, 0, &event, NULL, &err);
        if (r == -ETIMEDOUT)
            return;
        if (r < 0) {
            close(TAKE_FD(vm->fd));
            vm->watch = WATCH_CONNECTING;
            vm->due = clock_now();
            return;
        }
        vms_take_event(vms, vm, event);
    }
}

/* Its last word was "ended": its end is only waited for. */
static void after_end(struct vms *vms, struct vm *vm)
{
    if (alive(vms, vm)) {
        vm->due = clock_now() + NSEC_PER_SEC / 20;
        if (vm->due - vm->spawned > QUICK_NSEC)
            vm->due = clock_now() + NSEC_PER_SEC;
        return;
    }
    vm->failures = 0;
    decide(vms, vm);
}

static void step(struct vms *vms, struct vm *vm)
{
    if (vm->watch == WATCH_CONNECTING && clock_now() >= vm->due)
        vm->ended ? after_end(vms, vm) : try_watch(vms, vm);
    else if (vm->watch == WATCH_BACKOFF && clock_now() >= vm->due)
        resume(vms, vm);
}

/* --- the thread ----------------------------------------------------------------------------------------- */

/* Takes what others left for the keeper. Locked. */
static void take_orders(struct vm *vm)
{
    if (vm->retry) {
        vm->retry = false;
        vm->failures = 0;
        if (vm->watch == WATCH_IDLE || vm->watch == WATCH_BACKOFF) {
            vm->watch = WATCH_CONNECTING;
            vm->due = 0;
        }
    }
    if (vm->watch == WATCH_BACKOFF && vm->due == INT64_MAX)
        vm->due = 0;
    if (!vm->expected)
        return;
    vm->expected = false;
    close_cleanup(&vm->fd);
    close_cleanup(&vm->pidfd);
    vm->fd = -1;
    vm->pidfd = TAKE_FD(vm->expected_pidfd);
    vm->watch = WATCH_CONNECTING;
    vm->due = 0;
    vm->spawned = clock_now();
    vm->failures = 0;
    vm->ended = false;
}

static void free_gone(struct vms *vms)
{
    for (struct vm **at = &vms->first; *at;) {
        struct vm *vm = *at;
        if (!vm->gone) {
            at = &vm->next;
            continue;
        }
        *at = vm->next;
        close_cleanup(&vm->fd);
        close_cleanup(&vm->pidfd);
        close_cleanup(&vm->expected_pidfd);
        free(vm);
    }
}

/* The keeper's own list of VMs: others add at the head only, and only the keeper frees. */
static struct vm *first_vm(struct vms *vms, bool *ret_stop)
{
    uint64_t count;
    if (eventfd_read(vms->wake, &count) < 0 && errno != EAGAIN)
        log_error("keeper: %m");
    pthread_mutex_lock(&vms->lock);
    free_gone(vms);
    for (struct vm *vm = vms->first; vm; vm = vm->next)
        take_orders(vm);
    struct vm *first = vms->first;
    *ret_stop = vms->stop;
    pthread_mutex_unlock(&vms->lock);
    return first;
}

static size_t count_vms(const struct vm *first)
{
    size_t count = 0;
    for (; first; first = first->next)
        count++;
    return count;
}

/* Sleeps until an orai-vm says something, something is due, or someone wakes us; reads what was said. */
static void wait_and_read(struct vms *vms, struct vm *first, struct pollfd *fds)
{
    int64_t next = INT64_MAX;
    size_t count = 0;
    fds[count++] = (struct pollfd){.fd = vms->wake, .events = POLLIN};
    for (struct vm *vm = first; vm; vm = vm->next) {
        fds[count++] = (struct pollfd){.fd = vm->watch == WATCH_OPEN ? vm->fd : -1, .events = POLLIN};
        if (vm->watch == WATCH_CONNECTING || vm->watch == WATCH_BACKOFF)
            next = MIN(next, vm->due);
    }
    if (poll(fds, count, next == INT64_MAX ? -1 : clock_poll_ms(next)) <= 0)
        return;
    count = 1;
    for (struct vm *vm = first; vm; vm = vm->next)
        if (fds[count++].revents)
            read_watch(vms, vm);
}

/* Once every VM that starts with the host has come up, or will not. */
static void finish_boot(struct vms *vms, const struct vm *first)
{
    struct err err = ERR_NONE;
    for (; first; first = first->next)
        if (first->boot)
            return;
    vms->booted = false;
    if (vm_note_boot(vms->host, &err) < 0)
        log_error("%s: VMs may be started with the host once more", err.text);
}

void *vms_keep(void *arg)
{
    struct vms *vms = arg;
    bool stop;
    pthread_mutex_lock(&vms->lock);
    vms->booted = vm_host_has_booted(vms->host);
    for (struct vm *vm = vms->first; vm; vm = vm->next) {
        vm->watch = WATCH_CONNECTING; /* what runs is found, what should run is started */
        vm->boot = vms->booted;
    }
    pthread_mutex_unlock(&vms->lock);
    for (;;) {
        struct vm *first = first_vm(vms, &stop);
        if (stop)
            return NULL;
        for (struct vm *vm = first; vm; vm = vm->next)
            step(vms, vm);
        if (vms->booted)
            finish_boot(vms, first);
        _cleanup_free_ struct pollfd *fds = calloc(count_vms(first) + 1, sizeof *fds);
        if (!fds) {
            clock_sleep(NSEC_PER_SEC);
            continue;
        }
        wait_and_read(vms, first, fds);
    }
}
