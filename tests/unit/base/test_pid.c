/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/clock.h"
#include "base/macro.h"
#include "base/pid.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* A process that sleeps until it is killed; `deaf` ones ignore SIGTERM. */
static pid_t start_sleeper(bool deaf)
{
    int p[2];
    char byte;
    assert_int_equal(pipe(p), 0);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_NAME, "a) R 1 (b)"); /* what a careless reader of /proc/PID/stat stumbles over */
        if (deaf)
            signal(SIGTERM, SIG_IGN);
        if (write(p[1], "x", 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    assert_int_equal(read(p[0], &byte, 1), 1);
    close(p[0]);
    close(p[1]);
    return child;
}

static void stop_sleeper(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void write_record(const char *text)
{
    assert_int_equal(file_replace(in_scratch("pid"), text, strlen(text), 0644, NULL), 0);
}

static void read_record(char *ret, size_t size)
{
    _cleanup_free_ void *text = NULL;
    size_t length = 0;
    assert_int_equal(file_load(in_scratch("pid"), size - 1, &text, &length, NULL), 0);
    memcpy(ret, text, length + 1);
}

static int open_record(void)
{
    pid_t pid = -7;
    int pidfd = -7;
    int r = pid_open_record(in_scratch("pid"), &pid, &pidfd, NULL);
    if (r == 0)
        close(pidfd);
    else
        assert_true(pid == -7 && pidfd == -7);
    return r;
}

static void a_recorded_process_is_found_again(void **state)
{
    pid_t child = start_sleeper(false), pid = 0;
    int pidfd = -1;
    assert_int_equal(pid_record(in_scratch("pid"), child, NULL), 0);
    assert_int_equal(pid_open_record(in_scratch("pid"), &pid, &pidfd, NULL), 0);
    assert_int_equal(pid, child);
    assert_int_equal(pid_signal_wait(pidfd, SIGTERM, 5000), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    close(pidfd);
}

static void a_process_that_exited_is_gone_reaped_or_not(void **state)
{
    pid_t child = start_sleeper(false);
    siginfo_t info;
    assert_int_equal(pid_record(in_scratch("pid"), child, NULL), 0);
    kill(child, SIGKILL);
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    assert_int_equal(open_record(), -ESRCH); /* a zombie */
    waitpid(child, NULL, 0);
    assert_int_equal(open_record(), -ESRCH);
}

static void a_reused_number_is_not_taken_for_the_process(void **state)
{
    char record[128], forged[160], boot[BOOT_ID_SIZE];
    int pid;
    unsigned long long start;
    assert_int_equal(pid_record(in_scratch("pid"), getpid(), NULL), 0);
    read_record(record, sizeof record);
    assert_int_equal(sscanf(record, "%d %llu %36s", &pid, &start, boot), 3);
    assert_int_equal(open_record(), 0);
    snprintf(forged, sizeof forged, "%d %llu %s\n", pid, start - 1, boot);
    write_record(forged);
    assert_int_equal(open_record(), -ESRCH);
}

static void a_record_of_an_earlier_boot_names_no_process(void **state)
{
    char record[128];
    assert_int_equal(pid_record(in_scratch("pid"), getpid(), NULL), 0);
    read_record(record, sizeof record);
    char *last = record + strlen(record) - 2;
    *last = *last == '0' ? '1' : '0';
    write_record(record);
    assert_int_equal(open_record(), -ESRCH);
}

static void no_record_is_esrch(void **state)
{
    assert_int_equal(open_record(), -ESRCH);
}

static void a_broken_record_is_reported_not_guessed_at(void **state)
{
    static const char *const bad[] = {"",
                                      "\n",
                                      "12\n",
                                      "12 34\n",
                                      "-1 5 01234567-89ab-cdef-0123-456789abcdef\n",
                                      "0 5 01234567-89ab-cdef-0123-456789abcdef\n",
                                      "1 5 01234567-89ab-cdef-0123-456789abcdef",
                                      "1 5 01234567-89ab-cdef-0123-456789abcdefff\n",
                                      "1 5 short\n"};
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        write_record(bad[i]);
        assert_int_equal(open_record(), -EBADMSG);
    }
}

static void recording_a_dead_process_fails(void **state)
{
    pid_t child = start_sleeper(false);
    stop_sleeper(child);
    assert_int_equal(pid_record(in_scratch("pid"), child, NULL), -ESRCH);
    assert_int_equal(access(in_scratch("pid"), F_OK), -1);
}

static void the_pidfd_polls_readable_at_exit(void **state)
{
    pid_t child = start_sleeper(false), pid = 0;
    int pidfd = -1;
    pid_record(in_scratch("pid"), child, NULL);
    assert_int_equal(pid_open_record(in_scratch("pid"), &pid, &pidfd, NULL), 0);
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    kill(child, SIGKILL);
    assert_int_equal(poll(&p, 1, 5000), 1);
    waitpid(child, NULL, 0);
    assert_int_equal(pid_signal_wait(pidfd, SIGTERM, 0), 0); /* gone already is what was asked for */
    close(pidfd);
}

static void waiting_for_a_deaf_process_ends_in_time(void **state)
{
    pid_t child = start_sleeper(true), pid = 0;
    int pidfd = -1;
    pid_record(in_scratch("pid"), child, NULL);
    assert_int_equal(pid_open_record(in_scratch("pid"), &pid, &pidfd, NULL), 0);
    int64_t start = clock_now();
    assert_int_equal(pid_signal_wait(pidfd, SIGTERM, 100), -ETIMEDOUT);
    int64_t took = clock_now() - start;
    assert_true(took >= 100 * NSEC_PER_MSEC && took < 2 * NSEC_PER_SEC);
    assert_int_equal(pid_signal_wait(pidfd, SIGKILL, 5000), 0);
    waitpid(child, NULL, 0);
    close(pidfd);
}

static void the_boot_id_has_36_characters(void **state)
{
    char boot[BOOT_ID_SIZE];
    assert_int_equal(boot_id_read(boot), 0);
    assert_int_equal(strlen(boot), 36);
    assert_int_equal(boot[8], '-');
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_scratch, remove_scratch)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_recorded_process_is_found_again),
        TEST(a_process_that_exited_is_gone_reaped_or_not),
        TEST(a_reused_number_is_not_taken_for_the_process),
        TEST(a_record_of_an_earlier_boot_names_no_process),
        TEST(no_record_is_esrch),
        TEST(a_broken_record_is_reported_not_guessed_at),
        TEST(recording_a_dead_process_fails),
        TEST(the_pidfd_polls_readable_at_exit),
        TEST(waiting_for_a_deaf_process_ends_in_time),
        TEST(the_boot_id_has_36_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
