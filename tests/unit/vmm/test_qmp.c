/* SPDX-License-Identifier: Apache-2.0
 *
 * The QMP client against a scripted server, honest and hostile.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../scratch.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"
#include "net/thread.h"
#include "vmm/qmp.h"
#include "vmm/qmp_lines.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

/* What the server does with a command, by its name. */
struct server {
    char dir[64], path[96];
    int listener, client;
    const char *greeting;
    pthread_t thread;
    _Atomic json_int_t held; /* id of a "hold" that was not answered yet */
};

static atomic_int events, ends;

static void on_event(void *arg, const char *event, const json_t *data)
{
    if (event)
        events++;
    else
        ends++;
}

static void say(struct server *server, const char *text)
{
    send(server->client, text, strlen(text), MSG_NOSIGNAL);
}

static void answer(struct server *server, json_int_t id, const char *value)
{
    char text[256];
    snprintf(text, sizeof text, "{\"return\": %s, \"id\": %lld}\r\n", value, (long long)id);
    say(server, text);
}

static void say_too_much(struct server *server)
{
    static char chunk[65536];
    memset(chunk, 'a', sizeof chunk);
    for (size_t i = 0; i < QMP_LINE_MAX / sizeof chunk + 2; i++)
        if (send(server->client, chunk, sizeof chunk, MSG_NOSIGNAL) < 0)
            return;
}

/* false ends the connection. */
static bool obey(struct server *server, const char *command, json_int_t id)
{
    if (strcmp(command, "refuse") == 0) {
        char text[128];
        snprintf(text, sizeof text,
                 "{\"id\": %lld, \"error\": {\"class\": \"GenericError\", \"desc\": \"no, thanks\"}}\n",
                 (long long)id);
        say(server, text);
    } else if (strcmp(command, "hold") == 0) {
        server->held = id;
    } else if (strcmp(command, "release") == 0) {
        answer(server, server->held, "\"held\"");
        answer(server, id, "\"released\"");
    } else if (strcmp(command, "garbage") == 0) {
        say(server, "\x01 not json\n");
    } else if (strcmp(command, "flood") == 0) {
        say_too_much(server);
    } else if (strcmp(command, "die") == 0) {
        return false;
    } else if (strcmp(command, "event") == 0) {
        say(server, "{\"event\": \"STOP\", \"data\": {}}\r\n\r\n{\"event\": \"RESUME\"}\n");
        answer(server, id, "{}");
    } else {
        answer(server, id, "{}");
    }
    return true;
}

static void *serve(void *arg)
{
    struct server *server = arg;
    char line[4096];
    server->client = accept(server->listener, NULL, NULL);
    FILE *file = fdopen(dup(server->client), "r");
    bool more = true;
    say(server, server->greeting);
    while (more && fgets(line, sizeof line, file)) {
        _cleanup_json_ json_t *json = json_loads(line, 0, NULL);
        more = obey(server, json_str(json, "execute", ""), (json_int_t)json_u64(json, "id", 0));
    }
    fclose(file);
    close(server->client);
    return NULL;
}

static int setup(void **state)
{
    struct server *server = calloc(1, sizeof *server);
    assert_int_equal(scratch_make(server->dir, sizeof server->dir), 0);
    snprintf(server->path, sizeof server->path, "%s/sock", server->dir);
    server->listener = unix_listen(server->path, 0, 0, NULL);
    server->greeting = GREETING;
    events = ends = 0;
    *state = server;
    return 0;
}

static int teardown(void **state)
{
    struct server *server = *state;
    pthread_join(server->thread, NULL);
    close(server->listener);
    file_remove_tree(server->dir, NULL);
    free(server);
    return 0;
}

static int try_connect(struct server *server, struct qmp **ret, struct err *err)
{
    assert_int_equal(thread_start(&server->thread, "server", serve, server), 0);
    return qmp_connect(server->path, clock_now() + 2 * NSEC_PER_SEC, on_event, NULL, ret, err);
}

static struct qmp *connect_to(void **state)
{
    struct qmp *qmp = NULL;
    assert_int_equal(try_connect(*state, &qmp, NULL), 0);
    return qmp;
}

static int execute(struct qmp *qmp, const char *command, int msec)
{
    return qmp_execute(qmp, command, NULL, msec, NULL, NULL);
}

static void wait_for(atomic_int *counter, int wanted)
{
    for (int i = 0; i < 1000 && *counter != wanted; i++)
        clock_sleep(2 * NSEC_PER_MSEC);
    assert_int_equal(*counter, wanted);
}

static void executes_and_hears_events(void **state)
{
    struct qmp *qmp = connect_to(state);
    assert_int_equal(execute(qmp, "something", 2000), 0);
    assert_int_equal(execute(qmp, "event", 2000), 0);
    wait_for(&events, 2);
    qmp_free(qmp);
    assert_int_equal(ends, 0); /* we closed it ourselves */
}

static void count_other(void *arg, const char *event, const json_t *data)
{
    atomic_fetch_add((atomic_int *)arg, event ? 1 : 100);
}

static void events_go_where_they_are_redirected_and_the_end_is_told_late(void **state)
{
    atomic_int other = 0;
    struct qmp *qmp = connect_to(state);
    assert_int_equal(execute(qmp, "event", 2000), 0);
    wait_for(&events, 2);
    qmp_redirect(qmp, count_other, &other);
    assert_int_equal(execute(qmp, "event", 2000), 0);
    wait_for(&other, 2);
    assert_int_equal(events, 2);

    qmp_redirect(qmp, NULL, NULL);
    execute(qmp, "die", 2000);
    clock_sleep(50 * NSEC_PER_MSEC);
    assert_int_equal(ends, 0);
    qmp_redirect(qmp, count_other, &other);
    wait_for(&other, 102);
    qmp_free(qmp);
}

static void a_refusal_carries_its_text(void **state)
{
    struct err err = ERR_NONE;
    struct qmp *qmp = connect_to(state);
    assert_int_equal(qmp_execute(qmp, "refuse", json_object(), 2000, NULL, &err), -EREMOTEIO);
    assert_non_null(strstr(err.text, "refuse"));
    assert_non_null(strstr(err.text, "no, thanks"));
    assert_int_equal(execute(qmp, "something", 2000), 0);
    qmp_free(qmp);
}

static void a_late_answer_is_dropped(void **state)
{
    struct qmp *qmp = connect_to(state);
    _cleanup_json_ json_t *value = NULL;
    assert_int_equal(execute(qmp, "hold", 50), -ETIMEDOUT);
    assert_int_equal(qmp_execute(qmp, "release", NULL, 2000, &value, NULL), 0);
    assert_string_equal(json_string_value(value), "released");
    qmp_free(qmp);
}

struct holder {
    struct qmp *qmp;
    json_t *value;
};

static void *hold(void *arg)
{
    struct holder *holder = arg;
    qmp_execute(holder->qmp, "hold", NULL, 5000, &holder->value, NULL);
    return NULL;
}

static void each_caller_gets_its_own_answer(void **state)
{
    struct server *server = *state;
    struct holder holder = {.qmp = connect_to(state)};
    pthread_t thread;
    _cleanup_json_ json_t *value = NULL;
    assert_int_equal(thread_start(&thread, "holder", hold, &holder), 0);
    while (!server->held)
        clock_sleep(NSEC_PER_MSEC);
    assert_int_equal(qmp_execute(holder.qmp, "release", NULL, 2000, &value, NULL), 0);
    pthread_join(thread, NULL);
    assert_string_equal(json_string_value(value), "released");
    assert_string_equal(json_string_value(holder.value), "held");
    assert_true(server->held > 0);
    json_decref(holder.value);
    qmp_free(holder.qmp);
}

static void the_end_of_qemu_fails_waiting_and_later_callers(void **state)
{
    struct qmp *qmp = connect_to(state);
    assert_int_equal(execute(qmp, "die", 2000), -ECONNRESET);
    assert_int_equal(execute(qmp, "something", 2000), -ENOTCONN);
    wait_for(&ends, 1);
    qmp_free(qmp);
    assert_int_equal(ends, 1);
}

static void garbage_ends_the_connection(void **state)
{
    struct qmp *qmp = connect_to(state);
    assert_int_equal(execute(qmp, "garbage", 2000), -ECONNRESET);
    wait_for(&ends, 1);
    qmp_free(qmp);
}

static void an_endless_line_ends_the_connection(void **state)
{
    struct qmp *qmp = connect_to(state);
    assert_int_equal(execute(qmp, "flood", 10000), -ECONNRESET);
    wait_for(&ends, 1);
    qmp_free(qmp);
}

static void who_is_not_qemu_is_refused(void **state)
{
    struct server *server = *state;
    struct qmp *qmp = NULL;
    server->greeting = "{\"hello\": 1}\n";
    assert_int_equal(try_connect(server, &qmp, NULL), -EPROTO);
    assert_null(qmp);
}

static void a_silent_server_is_given_up_at_the_deadline(void **state)
{
    struct server *server = *state;
    struct qmp *qmp = NULL;
    server->greeting = "";
    int64_t before = clock_now();
    assert_int_equal(try_connect(server, &qmp, NULL), -ETIMEDOUT);
    assert_true(clock_now() - before < 4 * NSEC_PER_SEC);
}

/* --- qmp_lines ------------------------------------------------------------------------------------------ */

static void feed(struct qmp_lines *lines, const char *text)
{
    int error = 0;
    for (size_t left = strlen(text); left;) {
        size_t space;
        char *at = qmp_lines_space(lines, &space, &error);
        assert_non_null(at);
        size_t n = MIN(space, left);
        memcpy(at, text, n);
        qmp_lines_added(lines, n);
        text += n;
        left -= n;
    }
}

static void assert_next(struct qmp_lines *lines, const char *wanted)
{
    size_t size;
    const char *line = qmp_lines_next(lines, &size);
    if (!wanted) {
        assert_null(line);
        return;
    }
    assert_non_null(line);
    assert_int_equal(size, strlen(wanted));
    assert_memory_equal(line, wanted, size);
}

static void lines_come_whole_however_they_were_cut(void **state)
{
    struct qmp_lines lines = {0};
    feed(&lines, "on");
    assert_next(&lines, NULL);
    feed(&lines, "e\r");
    assert_next(&lines, NULL);
    feed(&lines, "\n\r\n\ntwo\nthr");
    assert_next(&lines, "one");
    assert_next(&lines, "two");
    assert_next(&lines, NULL);
    feed(&lines, "ee\n");
    assert_next(&lines, "three");
    assert_next(&lines, NULL);
    qmp_lines_done(&lines);
}

static void a_line_may_not_grow_for_ever(void **state)
{
    struct qmp_lines lines = {0};
    size_t space, total = 0;
    int error = 0;
    char *at;
    while ((at = qmp_lines_space(&lines, &space, &error))) {
        memset(at, 'x', space);
        qmp_lines_added(&lines, space);
        total += space;
        assert_true(total <= 2 * (size_t)QMP_LINE_MAX);
    }
    assert_int_equal(error, -EMSGSIZE);
    qmp_lines_done(&lines);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(executes_and_hears_events),
        TEST(events_go_where_they_are_redirected_and_the_end_is_told_late),
        TEST(a_refusal_carries_its_text),
        TEST(a_late_answer_is_dropped),
        TEST(each_caller_gets_its_own_answer),
        TEST(the_end_of_qemu_fails_waiting_and_later_callers),
        TEST(garbage_ends_the_connection),
        TEST(an_endless_line_ends_the_connection),
        TEST(who_is_not_qemu_is_refused),
        TEST(a_silent_server_is_given_up_at_the_deadline),
        cmocka_unit_test(lines_come_whole_however_they_were_cut),
        cmocka_unit_test(a_line_may_not_grow_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
