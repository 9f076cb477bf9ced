/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/progress.h"

#include "base/clock.h"
#include "base/macro.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define MOVE(phase, sent, converging)                                                              \
    "{\"vm\":\"web1\",\"from\":\"a\",\"to\":\"b\",\"phase\":\"" phase                              \
    "\",\"state\":\"running\",\"disk\":{\"total_bytes\":"                                          \
    "4194304,\"sent_bytes\":" sent                                                                 \
    ",\"round\":2,\"full_bytes\":4294967296},\"memory\":{\"total_bytes\":1048576,"                 \
    "\"sent_bytes\":0,\"iteration\":1},\"rate\":125000000,\"dirty_rate\":1250000,\"eta_ms\":2500," \
    "\"converging\":" converging ",\"elapsed_ms\":12340,\"blackout_ms\":140,\"predicted\":null}"

static void assert_text(const char *json, const char *phase, const char *expected)
{
    _cleanup_json_ json_t *move = json_loads(json, 0, NULL);
    assert_non_null(move);
    _cleanup_free_ char *text = progress_text(move, phase);
    assert_string_equal(text, expected);
}

static void a_phase_shows_bytes_rates_and_time_left(void **state)
{
    (void)state;
    assert_text(MOVE("disk", "2097152", "true"), NULL,
                "disk        round 2  2 MiB of 4 MiB  50 %  1.0 Gbit/s  dirty 10 Mbit/s  3 s left");
}

static void what_does_not_converge_is_said_in_plain_words(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_loads(MOVE("disk", "0", "false"), 0, NULL);
    _cleanup_free_ char *text = progress_text(move, NULL);
    assert_non_null(strstr(text, "not converging"));
    assert_null(strstr(text, "left"));
}

static void the_switchover_counts_disk_and_memory(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_loads(MOVE("switchover", "2097152", "true"), 0, NULL);
    _cleanup_free_ char *text = progress_text(move, NULL);
    assert_non_null(strstr(text, "switchover  2 MiB of 5 MiB  40 %"));
}

static void a_phase_that_is_over_has_no_time_left(void **state)
{
    (void)state;
    assert_text(MOVE("memory", "4194304", "true"), "disk", "disk        round 2  4 MiB of 4 MiB  100 %");
}

static void a_move_that_is_over_has_no_time_left(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_loads(MOVE("switchover", "4194304", "true"), 0, NULL);
    json_object_set_new(move, "state", json_string("moved"));
    _cleanup_free_ char *text = progress_text(move, NULL);
    assert_string_equal(text, "switchover  4 MiB of 5 MiB  80 %");
}

static void an_empty_status_does_not_break_it(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_object();
    _cleanup_free_ char *text = progress_text(move, NULL), *result = progress_result(move);
    _cleanup_json_ json_t *json = progress_result_json(move);
    assert_non_null(strstr(text, "disk"));
    assert_non_null(strstr(result, "moved from ? to ?"));
    assert_true(json_is_null(json_object_get(json, "blackout_ms")));
}

static void names_from_a_peer_cannot_steer_the_terminal(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_pack("{s:s, s:s}", "phase", "\033[2J", "vm", "\033]0;x\007");
    _cleanup_free_ char *text = progress_text(move, NULL), *result = progress_result(move);
    assert_null(strchr(text, '\033'));
    assert_null(strchr(result, '\033'));
}

static void the_result_puts_prediction_beside_outcome(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_loads(MOVE("switchover", "4194304", "true"), 0, NULL);
    json_object_set_new(move, "predicted",
                        json_pack("{s:f, s:i, s:i, s:i}", "seconds", 11.9, "blackout_ms", 150, "disk_bytes",
                                  4194304, "memory_bytes", 1048576));
    _cleanup_free_ char *text = progress_result(move);
    assert_string_equal(
        text, "web1 moved from a to b in 12.3 s (predicted 11.9 s), blackout 140 ms (predicted 150 ms), "
              "disk 4 MiB (predicted 4 MiB), memory 0 B (predicted 1 MiB); "
              "a full copy of the disk: 4 GiB");
}

static void the_json_result_is_flat(void **state)
{
    (void)state;
    _cleanup_json_ json_t *move = json_loads(MOVE("switchover", "4194304", "true"), 0, NULL);
    _cleanup_json_ json_t *result = progress_result_json(move);
    assert_int_equal(json_integer_value(json_object_get(result, "disk_bytes")), 4194304);
    assert_int_equal(json_integer_value(json_object_get(result, "full_disk_bytes")), INT64_C(4294967296));
    assert_int_equal(json_integer_value(json_object_get(result, "blackout_ms")), 140);
    assert_true(json_real_value(json_object_get(result, "seconds")) == 12.34);
    assert_true(json_is_null(json_object_get(result, "predicted_seconds")));
}

/* Shows a move at each of some times; returns what was printed. */
struct shown {
    const char *json;
    int64_t at_ms;
};

static char *show_all(unsigned width, const struct shown *moves, size_t count)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct progress progress = {.out = out, .style = {.width = width}};
    for (size_t i = 0; i < count; i++) {
        _cleanup_json_ json_t *move = json_loads(moves[i].json, 0, NULL);
        progress_show(&progress, move, (moves[i].at_ms + 5000) * NSEC_PER_MSEC);
    }
    progress_end(&progress);
    fclose(out);
    return text;
}

static size_t count_of(const char *text, const char *what)
{
    size_t count = 0;
    for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
        count++;
    return count;
}

static void without_a_terminal_there_is_one_line_per_second(void **state)
{
    const struct shown moves[] = {{MOVE("disk", "0", "true"), 0},
                                  {MOVE("disk", "1", "true"), 200},
                                  {MOVE("disk", "2", "true"), 900},
                                  {MOVE("disk", "3", "true"), 1100},
                                  {MOVE("disk", "4", "true"), 1900}};
    (void)state;
    _cleanup_free_ char *text = show_all(0, moves, ARRAY_SIZE(moves));
    assert_int_equal(count_of(text, "\n"), 2);
    assert_int_equal(count_of(text, "\r"), 0);
    assert_int_equal(count_of(text, "\033"), 0);
    assert_non_null(strstr(text, "3 B of"));
}

static void without_a_terminal_a_new_phase_is_shown_at_once(void **state)
{
    const struct shown moves[] = {{MOVE("disk", "0", "true"), 0},
                                  {MOVE("memory", "1", "true"), 100},
                                  {MOVE("switchover", "1", "true"), 200}};
    (void)state;
    _cleanup_free_ char *text = show_all(0, moves, ARRAY_SIZE(moves));
    assert_int_equal(count_of(text, "\n"), 3);
}

static void a_terminal_gets_one_rewritten_line_per_phase(void **state)
{
    const struct shown moves[] = {{MOVE("disk", "0", "true"), 0},
                                  {MOVE("disk", "1", "true"), 200},
                                  {MOVE("memory", "4194304", "true"), 300},
                                  {MOVE("switchover", "4194304", "true"), 400}};
    (void)state;
    _cleanup_free_ char *text = show_all(120, moves, ARRAY_SIZE(moves));
    assert_int_equal(count_of(text, "\n"), 3);
    /* the disk's line was left as what it came to */
    assert_non_null(strstr(text, "4 MiB of 4 MiB  100 %\033[K\n"));
}

static void a_line_never_wraps(void **state)
{
    const struct shown moves[] = {{MOVE("disk", "0", "true"), 0}};
    (void)state;
    _cleanup_free_ char *text = show_all(20, moves, 1);
    assert_string_equal(text, "\rdisk        round …\033[K\n");
}

static void what_stands_in_the_way_is_said_once(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct progress progress = {.out = out, .style = {.width = 120}};
    _cleanup_json_ json_t *move = json_loads(MOVE("memory", "0", "false"), 0, NULL);
    for (int64_t i = 0; i < 6; i++) {
        if (i == 2)
            json_object_set_new(move, "obstacle", json_string("it \033writes too fast"));
        progress_show(&progress, move, i * 200 * NSEC_PER_MSEC);
    }
    json_object_set_new(move, "obstacle", json_null());
    progress_show_obstacle(&progress, move);
    progress_end(&progress);
    fclose(out);
    assert_int_equal(count_of(text, "writes too fast\n"), 1);
    assert_int_equal(count_of(text, "\033writes"), 0);
    assert_int_equal(count_of(text, "\n"), 3);
    free(text);
}

static void nothing_known_shows_nothing(void **state)
{
    const struct shown moves[] = {{"{}", 0}};
    (void)state;
    _cleanup_free_ char *text = show_all(80, moves, 1);
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_phase_shows_bytes_rates_and_time_left),
        cmocka_unit_test(what_does_not_converge_is_said_in_plain_words),
        cmocka_unit_test(the_switchover_counts_disk_and_memory),
        cmocka_unit_test(a_phase_that_is_over_has_no_time_left),
        cmocka_unit_test(a_move_that_is_over_has_no_time_left),
        cmocka_unit_test(an_empty_status_does_not_break_it),
        cmocka_unit_test(names_from_a_peer_cannot_steer_the_terminal),
        cmocka_unit_test(the_result_puts_prediction_beside_outcome),
        cmocka_unit_test(the_json_result_is_flat),
        cmocka_unit_test(without_a_terminal_there_is_one_line_per_second),
        cmocka_unit_test(without_a_terminal_a_new_phase_is_shown_at_once),
        cmocka_unit_test(a_terminal_gets_one_rewritten_line_per_phase),
        cmocka_unit_test(a_line_never_wraps),
        cmocka_unit_test(what_stands_in_the_way_is_said_once),
        cmocka_unit_test(nothing_known_shows_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
