/* SPDX-License-Identifier: Apache-2.0 */
#include "unit.h"

#include "base/log.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

/* What `run` writes to standard error. */
static char output[65536];

static void capture(void (*run)(void))
{
    int p[2];
    assert_int_equal(pipe(p), 0);
    int saved = dup(STDERR_FILENO);
    dup2(p[1], STDERR_FILENO);
    run();
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(p[1]);
    size_t used = 0;
    ssize_t n;
    while ((n = read(p[0], output + used, sizeof output - 1 - used)) > 0)
        used += (size_t)n;
    output[used] = '\0';
    close(p[0]);
}

static void one(void)
{
    log_open("test");
    log_info("hello %d", 7);
}

static void a_line_has_program_level_and_text(void **state)
{
    unsetenv("JOURNAL_STREAM");
    capture(one);
    assert_non_null(strstr(output, " test["));
    assert_non_null(strstr(output, "] info: hello 7\n"));
}

/* As systemd does it: the variable names the file that is standard error. */
static void one_to_the_journal(void)
{
    char name[48];
    struct stat st;
    assert_int_equal(fstat(STDERR_FILENO, &st), 0);
    snprintf(name, sizeof name, "%llu:%llu", (unsigned long long)st.st_dev, (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", name, 1);
    one();
}

static void under_systemd_a_line_begins_with_its_priority(void **state)
{
    capture(one_to_the_journal);
    unsetenv("JOURNAL_STREAM");
    assert_string_equal(output, "<6>hello 7\n");
}

static void a_log_file_below_a_unit_is_not_the_journal(void **state)
{
    setenv("JOURNAL_STREAM", "1:2", 1);
    capture(one);
    unsetenv("JOURNAL_STREAM");
    assert_non_null(strstr(output, "] info: hello 7\n"));
}

static void debug_line(void)
{
    log_debug("details");
}

static void debug_is_silent_by_default(void **state)
{
    capture(debug_line);
    assert_string_equal(output, "");
}

static void forged(void)
{
    log_open("test");
    log_warning("peer says: %s", "x\n2024 oraid[1] error: forged\x1b[2J");
}

static void a_foreign_text_cannot_begin_a_line_of_its_own(void **state)
{
    capture(forged);
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
    assert_null(strchr(output, '\x1b'));
}

static void huge(void)
{
    static char text[5000];
    memset(text, 'x', sizeof text - 1);
    log_error("%s", text);
}

static void a_huge_text_is_cut_and_still_ends_in_a_newline(void **state)
{
    capture(huge);
    assert_true(strlen(output) < 2100);
    assert_int_equal(output[strlen(output) - 1], '\n');
}

static void *chatter(void *text)
{
    for (int i = 0; i < 50; i++)
        log_info("%s", (const char *)text);
    return NULL;
}

static void two_threads(void)
{
    pthread_t a, b;
    pthread_create(&a, NULL, chatter, (void *)"aaaaaaaa");
    pthread_create(&b, NULL, chatter, (void *)"bbbbbbbb");
    pthread_join(a, NULL);
    pthread_join(b, NULL);
}

static void lines_of_two_threads_do_not_mix(void **state)
{
    int lines = 0;
    capture(two_threads);
    for (char *line = strtok(output, "\n"); line; line = strtok(NULL, "\n"), lines++)
        assert_true(!strchr(strstr(line, "info: ") + 6, 'a') != !strchr(strstr(line, "info: ") + 6, 'b'));
    assert_int_equal(lines, 100);
}

static struct log_limit limit;

static void many_of_a_kind(void)
{
    for (int i = 0; i < 1000; i++)
        log_limited(&limit, LOG_LEVEL_WARNING, "knock %d", i);
}

static unsigned count_lines(void)
{
    unsigned lines = 0;
    for (const char *at = output; (at = strchr(at, '\n')); at++)
        lines++;
    return lines;
}

static void what_strangers_cause_is_said_a_few_times(void **state)
{
    limit = (struct log_limit){0};
    capture(many_of_a_kind);
    assert_int_equal(count_lines(), LOG_BURST);
    assert_non_null(strstr(output, "knock 0\n"));
    assert_null(strstr(output, "left out"));
    limit.began -= 61 * 1000000000LL; /* a minute later */
    capture(many_of_a_kind);
    assert_int_equal(count_lines(), LOG_BURST + 1);
    assert_non_null(strstr(output, "warning: 990 lines like the next one were left out\n"));
}

static void closed(void)
{
    close(STDERR_FILENO);
    errno = ENOSPC;
    log_error("into the void");
    assert_int_equal(errno, ENOSPC);
}

static void logging_leaves_errno_alone_even_when_it_fails(void **state)
{
    capture(closed);
}

int main(void)
{
    unsetenv("ORAI_LOG");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_program_level_and_text),
        cmocka_unit_test(under_systemd_a_line_begins_with_its_priority),
        cmocka_unit_test(a_log_file_below_a_unit_is_not_the_journal),
        cmocka_unit_test(debug_is_silent_by_default),
        cmocka_unit_test(a_foreign_text_cannot_begin_a_line_of_its_own),
        cmocka_unit_test(a_huge_text_is_cut_and_still_ends_in_a_newline),
        cmocka_unit_test(what_strangers_cause_is_said_a_few_times),
        cmocka_unit_test(lines_of_two_threads_do_not_mix),
        cmocka_unit_test(logging_leaves_errno_alone_even_when_it_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
