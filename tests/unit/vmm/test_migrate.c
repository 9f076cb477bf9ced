/* SPDX-License-Identifier: Apache-2.0
 *
 * Two real QEMUs and a byte pump between them: what a move relies on in each state of QEMU's migration.
 */
#include "lab.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct pair {
    struct lab labs[2];
    struct qemu *source, *destination;
    struct pump *pump;
};

static struct qemu *start(struct lab *lab, bool incoming)
{
    struct qemu *qemu = NULL;
    struct err err = ERR_NONE;
    if (qemu_start(&lab->env, &lab->config, incoming, NULL, NULL, NULL, &qemu, &err) < 0)
        fail_msg("%s", err.text);
    return qemu;
}

/* The source's guest runs, the destination waits. */
static int setup(void **state)
{
    lab_need_qemu();
    struct pair *pair = calloc(1, sizeof *pair);
    lab_open(&pair->labs[0]);
    lab_open(&pair->labs[1]);
    pair->labs[1].config = pair->labs[0].config;
    pair->source = start(&pair->labs[0], false);
    pair->destination = start(&pair->labs[1], true);
    assert_int_equal(qemu_cont(pair->source, NULL), 0);
    assert_int_equal(qemu_migrate_incoming(pair->destination, NULL), 0);
    pair->pump = pump_start(&pair->labs[0], &pair->labs[1]);
    *state = pair;
    return 0;
}

static int teardown(void **state)
{
    struct pair *pair = *state;
    if (!pair)
        return 0;
    assert_int_equal(qemu_kill(pair->source, 2000, NULL), 0);
    assert_int_equal(qemu_kill(pair->destination, 2000, NULL), 0);
    qemu_free(pair->source);
    qemu_free(pair->destination);
    pump_stop(pair->pump);
    lab_close(&pair->labs[0]);
    lab_close(&pair->labs[1]);
    free(pair);
    return 0;
}

static void migrate(struct pair *pair, uint64_t bandwidth)
{
    struct err err = ERR_NONE;
    if (qemu_migrate_start(pair->source, bandwidth, 300, false, &err) < 0)
        fail_msg("%s", err.text);
}

static void the_guest_runs_on_the_other_side(void **state)
{
    struct pair *pair = *state;
    struct qemu_migration migration;
    char status[32];
    migrate(pair, 0);
    lab_wait_migration(pair->source, "pre-switchover");
    assert_int_equal(qemu_migrate_query(pair->source, &migration, NULL), 0);
    assert_true(migration.ram_total >= 128 * MiB);
    assert_true(migration.ram_transferred > 0);
    assert_true(migration.iterations >= 1);

    assert_int_equal(qemu_migrate_continue(pair->source, NULL), 0);
    lab_wait_migration(pair->source, "completed");
    lab_wait_migration(pair->destination, "completed");
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "postmigrate");
    lab_wait_status(pair->destination, "paused"); /* until it is told: -S */
    assert_int_equal(qemu_cont(pair->destination, NULL), 0);
    lab_wait_status(pair->destination, "running");
}

static void held_guest_goes_on_after_a_cancel(void **state)
{
    struct pair *pair = *state;
    char status[32];
    migrate(pair, 0);
    lab_wait_migration(pair->source, "pre-switchover");
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_not_equal(status, "running");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_cont(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "running");
}

static void cancel_while_memory_is_sent(void **state)
{
    struct pair *pair = *state;
    char status[32];
    migrate(pair, 4096);
    lab_wait_migration(pair->source, "active");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "running");
}

static void cancel_while_nobody_reads_the_stream(void **state)
{
    struct pair *pair = *state;
    char status[32];
    /* The destination is frozen, so the pump and then the source block. */
    kill(qemu_pid(pair->destination), SIGSTOP);
    migrate(pair, 0);
    lab_wait_migration(pair->source, "active");
    clock_sleep(200 * NSEC_PER_MSEC);
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "running");
}

static void cancel_without_a_migration_is_nothing(void **state)
{
    struct pair *pair = *state;
    char status[32];
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "running");
}

static void paused_guest_stays_paused_after_a_cancel(void **state)
{
    struct pair *pair = *state;
    char status[32];
    assert_int_equal(qemu_pause(pair->source, NULL), 0);
    migrate(pair, 4096);
    lab_wait_migration(pair->source, "active");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "paused");
}

static void completed_source_can_be_taken_back(void **state)
{
    struct pair *pair = *state;
    char status[32];
    migrate(pair, 0);
    lab_wait_migration(pair->source, "pre-switchover");
    assert_int_equal(qemu_migrate_continue(pair->source, NULL), 0);
    lab_wait_migration(pair->source, "completed");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_cont(pair->source, NULL), 0);
    assert_int_equal(qemu_status(pair->source, status, NULL), 0);
    assert_string_equal(status, "running");
}

static void dead_destination_fails_the_source_which_runs_on(void **state)
{
    struct pair *pair = *state;
    struct qemu_migration migration;
    migrate(pair, 4096);
    lab_wait_migration(pair->source, "active");
    kill(qemu_pid(pair->destination), SIGKILL);
    assert_int_equal(qemu_migrate_set(pair->source, 0, 300, NULL), 0);
    lab_wait_migration(pair->source, "failed");
    assert_int_equal(qemu_migrate_query(pair->source, &migration, NULL), 0);
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    lab_wait_status(pair->source, "running");
}

static void a_second_try_works_after_a_cancel(void **state)
{
    struct pair *pair = *state;
    migrate(pair, 4096);
    lab_wait_migration(pair->source, "active");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);

    assert_int_equal(qemu_kill(pair->destination, 2000, NULL), 0);
    qemu_free(pair->destination);
    pump_stop(pair->pump);
    pair->destination = start(&pair->labs[1], true);
    assert_int_equal(qemu_migrate_incoming(pair->destination, NULL), 0);
    pair->pump = pump_start(&pair->labs[0], &pair->labs[1]);
    the_guest_runs_on_the_other_side(state);
}

static void adopted_in_pre_switchover_and_cancelled(void **state)
{
    struct pair *pair = *state;
    struct lab *lab = &pair->labs[0];
    migrate(pair, 0);
    lab_wait_migration(pair->source, "pre-switchover");
    qemu_free(pair->source);
    assert_int_equal(qemu_adopt(&lab->env, NULL, NULL, &pair->source, NULL), 0);
    lab_wait_migration(pair->source, "pre-switchover");
    assert_int_equal(qemu_migrate_cancel(pair->source, NULL), 0);
    assert_int_equal(qemu_cont(pair->source, NULL), 0);
    lab_wait_status(pair->source, "running");
}

static void incoming_socket_is_out_of_qemus_reach(void **state)
{
    struct pair *pair = *state;
    char path[PATH_MAX];
    struct stat st;
    assert_int_equal(stat(pair->labs[1].run_dir, &st), 0);
    assert_int_equal(st.st_uid, getuid());
    assert_int_equal(st.st_mode & 0777, 0711);
    snprintf(path, sizeof path, "%s/incoming.sock", pair->labs[1].run_dir);
    assert_int_equal(lstat(path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_guest_runs_on_the_other_side),      TEST(held_guest_goes_on_after_a_cancel),
        TEST(cancel_while_memory_is_sent),           TEST(cancel_while_nobody_reads_the_stream),
        TEST(cancel_without_a_migration_is_nothing), TEST(paused_guest_stays_paused_after_a_cancel),
        TEST(completed_source_can_be_taken_back),    TEST(dead_destination_fails_the_source_which_runs_on),
        TEST(a_second_try_works_after_a_cancel),     TEST(adopted_in_pre_switchover_and_cancelled),
        TEST(incoming_socket_is_out_of_qemus_reach),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
