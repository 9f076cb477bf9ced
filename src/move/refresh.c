/* SPDX-License-Identifier: Apache-2.0
 *
 * refresh: the stages in their order. One thread walks them; the QMP readers of both QEMUs tell it what
 * happens.
 *
 *   check   the new program runs here and has the guest's machine type
 *   start   it is started beside the old one, and listens for the state
 *   pause   the taps' frames go to the new one, where they wait; the old one stops the guest, and holds it
 *   load    the new one loads the state; the old one gives the disks up
 *   switch  qemu.pid names the new one: who comes after a crash finds the guest there
 *   run     the guest goes on in the new one; from here on the old one may never run it again
 *   end     the old one is ended
 *
 * A crash of orai-vm: whoever comes next ends the QEMU that qemu-next.pid names and lets the guest go on in
 * the one that qemu.pid names (machine_end_leftover). Before the switch that is the old one, which still has
 * all of the guest's state; after it the new one, which has it too. So the exchange of the two names is the
 * only commit.
 *
 * Why the old QEMU may take the guest back though the new one has loaded it: RAM is written by a running
 * guest only, and QEMU's devices do not write there while they are loaded. The disks were given up without
 * closing them.
 */
#include "move/refresh.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/fault.h"
#include "move/session.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define PREPARE_NSEC (30 * NSEC_PER_SEC) /* until the old QEMU stops the guest */
#define BLACKOUT_NSEC (5 * NSEC_PER_SEC) /* until the new one has loaded it; else the old one goes on */
#define DISKS_NSEC (4 * NSEC_PER_SEC)    /* QEMU tries again 1 and 3 s after it has lost a disk */
#define RESUME_NSEC (10 * NSEC_PER_SEC)

/* What one QEMU has said. */
struct said {
    char migration[24];       /* "active", "pre-switchover", "completed"... */
    int64_t stopped, resumed; /* when; 0 = not yet */
    bool gone;
};

struct refresh {
    const struct move_host *host;
    struct machine *machine;
    char binary[PATH_MAX];
    bool running;
    pthread_t thread;
    atomic_int outcome;
    int64_t began;
    bool switched; /* qemu.pid names the new QEMU */
    bool released; /* ... and that was told to run the guest */

    pthread_mutex_t mutex; /* all below */
    pthread_cond_t changed;
    struct said old, new;
    const char *stage;
    char version[32];
    int64_t ended;
    struct err err;
};

/* --- what both QEMUs say -------------------------------------------------------------------------------- */

static void note(struct refresh *refresh, struct said *said, const char *event, const json_t *data)
{
    pthread_mutex_lock(&refresh->mutex);
    if (!event)
        said->gone = true;
    else if (strcmp(event, "STOP") == 0)
        said->stopped = clock_now();
    else if (strcmp(event, "RESUME") == 0)
        said->resumed = clock_now();
    else if (strcmp(event, "MIGRATION") == 0)
        snprintf(said->migration, sizeof said->migration, "%s", json_str(data, "status", ""));
    pthread_cond_broadcast(&refresh->changed);
    pthread_mutex_unlock(&refresh->mutex);
}

/* The guest's QEMU is the VM's as ever; only its end is not told before it is clear which one that is. */
static void pass_on(const struct refresh *refresh, const char *event, const json_t *data)
{
    if (event && refresh->host->on_qemu_event)
        refresh->host->on_qemu_event(refresh->host->arg, event, data);
}

static void from_old(void *arg, const char *event, const json_t *data)
{
    struct refresh *refresh = arg;
    note(refresh, &refresh->old, event, data);
    pass_on(refresh, event, data);
}

static void from_new(void *arg, const char *event, const json_t *data)
{
    struct refresh *refresh = arg;
    note(refresh, &refresh->new, event, data);
}

static void from_new_in_place(void *arg, const char *event, const json_t *data)
{
    from_new(arg, event, data);
    pass_on(arg, event, data);
}

/* --- waiting -------------------------------------------------------------------------------------------- */

/* Locked. Why there is nothing to wait for any more. */
static int check_both(struct refresh *refresh, struct err *err)
{
    if (refresh->new.gone) {
        err_set(err, EREMOTEIO, "the new QEMU (%s) has ended", refresh->binary);
        return err_hint(err, "see %s/qemu.log", refresh->host->env.vm_dir);
    }
    if (refresh->old.gone && !refresh->switched)
        return err_set(err, EOWNERDEAD, "the guest's QEMU has ended");
    if (strcmp(refresh->old.migration, "failed") == 0 || strcmp(refresh->new.migration, "failed") == 0) {
        err_set(err, EREMOTEIO, "the new QEMU (%s) cannot take over the guest's devices", refresh->binary);
        return err_hint(err, "see %s/qemu.log", refresh->host->env.vm_dir);
    }
    return 0;
}

static bool is_held(const struct refresh *refresh)
{
    return strcmp(refresh->old.migration, "pre-switchover") == 0;
}

static bool is_loaded(const struct refresh *refresh)
{
    return strcmp(refresh->old.migration, "completed") == 0 &&
           strcmp(refresh->new.migration, "completed") == 0;
}

static bool is_resumed(const struct refresh *refresh)
{
    return refresh->new.resumed != 0;
}

/* Until when; the guest stands still since the old QEMU stopped it. Locked. */
static int64_t deadline(const struct refresh *refresh, int64_t began, int64_t patience)
{
    return refresh->old.stopped && !refresh->released ? refresh->old.stopped + BLACKOUT_NSEC
                                                      : began + patience;
}

static int await(struct refresh *refresh, bool (*reached)(const struct refresh *refresh), int64_t patience,
                 const char *what, struct err *err)
{
    int64_t began = clock_now();
    int r = 0;
    pthread_mutex_lock(&refresh->mutex);
    while (r == 0 && !reached(refresh)) {
        int64_t end = deadline(refresh, began, patience);
        struct timespec until = {.tv_sec = end / NSEC_PER_SEC, .tv_nsec = end % NSEC_PER_SEC};
        r = check_both(refresh, err);
        if (r == 0 && clock_now() >= end)
            r = err_set(err, ETIMEDOUT, "%s in time", what);
        if (r == 0)
            pthread_cond_timedwait(&refresh->changed, &refresh->mutex, &until);
    }
    pthread_mutex_unlock(&refresh->mutex);
    return r;
}

/* --- the stages ----------------------------------------------------------------------------------------- */

static int check_machine(const struct qemu_host *qemu, const char *binary, const char *machine,
                         struct err *err)
{
    size_t i;
    json_t *name;
    json_array_foreach(qemu->machines, i, name) if (strcmp(json_string_value(name), machine) == 0) return 0;
    err_set(err, ENOTSUP, "QEMU %s (%s) has no machine type %s, which the guest was started with",
            qemu->version, binary, machine);
    return err_hint(err, "a newer machine type comes with a new start only");
}

static bool disks_are_connected(const struct machine *machine)
{
    struct nbd_statistics statistics;
    for (size_t i = 0; i < machine_disk_count(machine); i++) {
        machine_disk_statistics(machine, i, &statistics);
        if (statistics.connections == 0)
            return false;
    }
    return true;
}

/* QEMU comes back to the disks of a new orai-vm a second after it has found none. Requests that wait for that
 * would make the blackout as long; a disk that nobody uses is not come back to, and need not be. */
static void await_disks(const struct machine *machine)
{
    int64_t end = clock_now() + DISKS_NSEC;
    while (!disks_are_connected(machine) && clock_now() < end)
        clock_sleep(10 * NSEC_PER_MSEC);
}

static int check(struct refresh *refresh, struct err *err)
{
    struct qemu_host qemu;
    await_disks(refresh->machine);
    int r = qemu_probe(refresh->binary, &qemu, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&refresh->mutex);
    snprintf(refresh->version, sizeof refresh->version, "%s", qemu.version);
    pthread_mutex_unlock(&refresh->mutex);
    r = check_machine(&qemu, refresh->binary, machine_config(refresh->machine)->machine, err);
    qemu_host_done(&qemu);
    return r;
}

static int start(struct refresh *refresh, struct err *err)
{
    int r = machine_next_start(refresh->machine, refresh->binary, from_new, refresh, err);
    if (r == 0)
        r = qemu_migrate_incoming(machine_next(refresh->machine), err);
    if (r == 0)
        qemu_hurry(machine_next(refresh->machine), true);
    return r;
}

static int pause_guest(struct refresh *refresh, struct err *err)
{
    struct qemu *old = machine_qemu(refresh->machine);
    session_hurry(); /* not before: the new QEMU would have inherited it, with the guest's CPUs */
    int r = machine_next_use_taps(refresh->machine, true, err);
    if (r == 0)
        r = qemu_migrate_to_next(old, err);
    if (r < 0)
        return r;
    qemu_hurry(old, true);
    return await(refresh, is_held, PREPARE_NSEC, "the old QEMU did not hold the guest", err);
}

static int load(struct refresh *refresh, struct err *err)
{
    int r = qemu_migrate_continue(machine_qemu(refresh->machine), err);
    return r < 0 ? r
                 : await(refresh, is_loaded, BLACKOUT_NSEC, "the new QEMU did not load the guest's devices",
                         err);
}

static int switch_over(struct refresh *refresh, struct err *err)
{
    int r = machine_next_take(refresh->machine, err);
    if (r < 0)
        return r;
    refresh->switched = true;
    qmp_redirect(qemu_qmp(machine_next(refresh->machine)), NULL, NULL);
    qmp_redirect(qemu_qmp(machine_qemu(refresh->machine)), from_new_in_place, refresh);
    return 0;
}

/* Has the new QEMU surely not run the guest, given its answer to "cont"? It says RESUME before its CPUs go on
 * (vm_prepare_start in QEMU's sources), and what it said before it died has been read when the answer is
 * -ECONNRESET. */
static bool never_ran(struct refresh *refresh, int r)
{
    pthread_mutex_lock(&refresh->mutex);
    bool resumed = is_resumed(refresh);
    pthread_mutex_unlock(&refresh->mutex);
    return r == -EREMOTEIO || r == -ENOTCONN || (r == -ECONNRESET && !resumed);
}

static int run_guest(struct refresh *refresh, struct err *err)
{
    if (!refresh->running)
        return 0;
    int r = qemu_cont(machine_qemu(refresh->machine), err);
    refresh->released = !never_ran(refresh, r);
    return r < 0 ? r : await(refresh, is_resumed, RESUME_NSEC, "the new QEMU did not run the guest", err);
}

static int end_old(struct refresh *refresh, struct err *err)
{
    qemu_hurry(machine_qemu(refresh->machine), false);
    return machine_next_end(refresh->machine, err);
}

static const struct {
    const char *name;
    int (*run)(struct refresh *refresh, struct err *err);
} stages[] = {
    {"check", check},        {"start", start},   {"pause", pause_guest}, {"load", load},
    {"switch", switch_over}, {"run", run_guest}, {"end", end_old},
};

static int walk(struct refresh *refresh, struct err *err)
{
    int r = 0;
    for (size_t i = 0; r == 0 && i < ARRAY_SIZE(stages); i++) {
        pthread_mutex_lock(&refresh->mutex);
        refresh->stage = stages[i].name;
        pthread_mutex_unlock(&refresh->mutex);
        if (refresh->host->on_change)
            refresh->host->on_change(refresh->host->arg);
        r = fault_point(err, "refresh.%s.begin", stages[i].name);
        if (r == 0)
            r = stages[i].run(refresh, err);
        if (r == 0)
            r = fault_point(err, "refresh.%s.end", stages[i].name);
    }
    return r;
}

/* --- the way back --------------------------------------------------------------------------------------- */

/* First the note, then the other one's end, then the guest: see the top. */
static int roll_back(struct refresh *refresh, struct err *err)
{
    struct machine *machine = refresh->machine;
    struct err unheard = ERR_NONE;
    int r = refresh->switched ? machine_next_take(machine, err) : 0;
    if (r < 0)
        return r;
    if (refresh->switched)
        qmp_redirect(qemu_qmp(machine_qemu(machine)), from_old, refresh);
    refresh->switched = false;
    r = machine_next_use_taps(machine, false, err);
    if (machine_next_end(machine, &unheard) < 0)
        log_error(
            "%s",
            unheard.text); /* it was never told to run the guest, and its record says that it shall end */
    struct qemu *old = machine_qemu(machine);
    qemu_hurry(old, false);
    if (qemu_ended(old))
        return 0;
    int cancelled = qemu_migrate_cancel(old, err);
    if (cancelled == 0 && refresh->running)
        cancelled = qemu_cont(old, err);
    return r < 0 ? r : cancelled;
}

/* What a failure means depends on how far the guest had come. */
static enum refresh_outcome settle(struct refresh *refresh, struct err *err)
{
    struct machine *machine = refresh->machine;
    struct err more = ERR_NONE;
    bool in_new = refresh->switched && (refresh->released || !machine_next(machine));
    if (in_new && machine_next(machine) && machine_next_end(machine, &more) < 0)
        log_error("%s", more.text);
    if (!in_new && machine_next(machine) && roll_back(refresh, &more) < 0)
        log_error("the guest cannot be taken back: %s", more.text);
    if (qemu_ended(machine_qemu(machine))) {
        err_hint(err, "start it again with: orai start %s", machine_config(machine)->name);
        return REFRESH_GUEST_LOST;
    }
    if (in_new)
        log_error("%s", err->text); /* and nothing of what it was about */
    return in_new ? REFRESH_DONE : REFRESH_STAYED;
}

static const char *outcome_name(enum refresh_outcome outcome)
{
    static const char *const names[] = {[REFRESH_RUNNING] = "running",
                                        [REFRESH_DONE] = "done",
                                        [REFRESH_STAYED] = "stayed",
                                        [REFRESH_GUEST_LOST] = "lost"};
    static_assert(ARRAY_SIZE(names) == REFRESH_GUEST_LOST + 1, "a name for each outcome");
    return names[outcome];
}

static void *refresh_run(void *arg)
{
    struct refresh *refresh = arg;
    struct err err = ERR_NONE;
    int r = walk(refresh, &err);
    enum refresh_outcome outcome = r < 0 ? settle(refresh, &err) : REFRESH_DONE;
    struct qemu *qemu = machine_qemu(refresh->machine);
    qmp_redirect(qemu_qmp(qemu), refresh->host->on_qemu_event, refresh->host->arg);
    err_where(&err, refresh->host->name, refresh->stage);
    log_info("refresh of %s: %s%s%s", machine_config(refresh->machine)->name, outcome_name(outcome),
             r < 0 ? ": " : "", r < 0 ? err.text : "");
    pthread_mutex_lock(&refresh->mutex);
    refresh->ended = clock_now();
    if (outcome != REFRESH_DONE)
        refresh->err = err;
    pthread_mutex_unlock(&refresh->mutex);
    atomic_store(&refresh->outcome, (int)outcome);
    if (refresh->host->on_change)
        refresh->host->on_change(refresh->host->arg);
    return NULL;
}

/* --- for the main thread -------------------------------------------------------------------------------- */

static void destroy(struct refresh *refresh)
{
    pthread_cond_destroy(&refresh->changed);
    pthread_mutex_destroy(&refresh->mutex);
    free(refresh);
}

int refresh_start(const struct move_host *host, struct machine *machine, const char *binary, bool running,
                  struct refresh **ret, struct err *err)
{
    struct refresh *refresh = calloc(1, sizeof *refresh);
    pthread_condattr_t attr;
    if (!refresh)
        return err_set(err, ENOMEM, "out of memory");
    refresh->host = host;
    refresh->machine = machine;
    refresh->running = running;
    refresh->began = clock_now();
    refresh->stage = stages[0].name;
    snprintf(refresh->binary, sizeof refresh->binary, "%s", binary);
    pthread_mutex_init(&refresh->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&refresh->changed, &attr);
    pthread_condattr_destroy(&attr);
    struct qmp *qmp = qemu_qmp(machine_qemu(machine));
    qmp_redirect(qmp, from_old, refresh);
    int failed = pthread_create(&refresh->thread, NULL, refresh_run, refresh);
    if (failed) {
        qmp_redirect(qmp, host->on_qemu_event, host->arg);
        destroy(refresh);
        return err_sys(err, failed, "cannot start the refresh's thread");
    }
    *ret = refresh;
    return 0;
}

enum refresh_outcome refresh_outcome(const struct refresh *refresh)
{
    return (enum refresh_outcome)atomic_load(&refresh->outcome);
}

/* From the first stop to the going on, wherever that was; NULL while it is not known, or the guest never
 * stopped. */
static json_t *blackout(const struct refresh *refresh)
{
    int64_t resumed = refresh->new.resumed ? refresh->new.resumed : refresh->old.resumed;
    if (!refresh->old.stopped || resumed < refresh->old.stopped)
        return json_null();
    return json_real((double)(resumed - refresh->old.stopped) / NSEC_PER_MSEC);
}

json_t *refresh_status(struct refresh *refresh)
{
    pthread_mutex_lock(&refresh->mutex);
    enum refresh_outcome outcome = refresh_outcome(refresh);
    int64_t until = refresh->ended ? refresh->ended : clock_now();
    json_t *json =
        json_pack("{s:s, s:s, s:s, s:s, s:o, s:f, s:o}", "state", outcome_name(outcome), "stage",
                  refresh->stage, "program", refresh->binary, "qemu", refresh->version, "blackout_ms",
                  blackout(refresh), "seconds", (double)(until - refresh->began) / NSEC_PER_SEC, "error",
                  refresh->err.code ? err_to_json(&refresh->err) : json_null());
    pthread_mutex_unlock(&refresh->mutex);
    return json;
}

void refresh_free(struct refresh *refresh)
{
    if (!refresh)
        return;
    pthread_join(refresh->thread, NULL);
    destroy(refresh);
}
