/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/args.h"

#include "base/macro.h"
#include "cli/verbs.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define PARSE(ret, err, ...) parse((const char *[]){"orai", __VA_ARGS__, NULL}, ret, err)

static int parse(const char *const *words, struct args *ret, struct err *err)
{
    int count = 0;
    while (words[count])
        count++;
    return args_parse(count, (char **)words, ret, err); /* argv's type; nothing is written to it */
}

static void assert_refused(int r, const struct err *err, const char *text)
{
    assert_int_equal(r, -EINVAL);
    assert_non_null(strstr(err->text, text));
    assert_non_null(strstr(err->hint, "orai help"));
}

static void options_may_stand_anywhere(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_int_equal(
        PARSE(&args, &err, "--format", "json", "move", "web1", "--dry-run", "b", "--timeout=10m"), 0);
    assert_ptr_equal(args.verb, &verb_move);
    assert_int_equal(args.format, FORMAT_JSON);
    assert_true(args_flag(&args, "dry-run"));
    assert_false(args_flag(&args, "detach"));
    assert_int_equal(args_number(&args, "timeout", 0), 600000);
    assert_string_equal(args_operand(&args, "NAME"), "web1");
    assert_string_equal(args_operand(&args, "HOST"), "b");
}

static void numbers_that_are_not_given_are_the_default(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "move", "web1", "b"), 0);
    assert_int_equal(args_number(&args, "max-blackout", 300), 300);
    assert_null(args_text(&args, "on-timeout"));
}

static void bandwidth_is_read_as_bits_and_given_as_bytes(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "move", "web1", "b", "--bandwidth", "500M"), 0);
    assert_int_equal(args_number(&args, "bandwidth", 0), 62500000);
}

static void words_after_two_dashes_are_operands(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "info", "--", "--odd"), 0);
    assert_string_equal(args_operand(&args, "NAME"), "--odd");
}

static void short_options_work(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "rm", "-y", "web1"), 0);
    assert_true(args_flag(&args, "yes"));
}

static void an_option_for_many_things_keeps_all_values_in_order(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "create", "x", "--disk", "1M", "--bridge", "br0", "--disk=2M",
                           "--cpus", "1", "--cpus", "2", "--disk", "3M"),
                     0);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(args_nth(&args, "disk", i)->number, (i + 1) << 20);
    assert_null(args_nth(&args, "disk", 3));
    assert_string_equal(args_nth(&args, "bridge", 0)->text, "br0");
    assert_null(args_nth(&args, "bridge", 1));
    assert_null(args_nth(&args, "mac", 0));
    assert_int_equal(args_number(&args, "cpus", 1), 2); /* of any other option the last one counts */
}

static void a_disk_is_a_size_or_a_device(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "create", "x", "--disk", "1G", "--disk", "/dev/vg0/x"), 0);
    assert_int_equal(args_nth(&args, "disk", 0)->number, 1 << 30);
    assert_string_equal(args_nth(&args, "disk", 1)->text, "/dev/vg0/x");
    assert_refused(PARSE(&args, &err, "create", "x", "--disk", "vg0/x"), &err, "--disk");
}

static void too_many_values_are_refused(void **state)
{
    const char *words[3 + ARGS_MAX_FURTHER + 3] = {"orai", "create", "x"};
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    for (size_t i = 0; i < ARGS_MAX_FURTHER + 1; i++)
        words[3 + i] = "--disk=1M";
    assert_int_equal(parse(words, &args, &err), 0);
    words[3 + ARGS_MAX_FURTHER + 1] = "--disk=1M";
    assert_refused(parse(words, &args, &err), &err, "too often");
}

static void a_group_needs_its_second_word(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_refused(PARSE(&args, &err, "peer"), &err, "needs a command after it");
    assert_string_equal(err.hint, "orai help peer");
    assert_refused(PARSE(&args, &err, "peer", "explode"), &err, "unknown command \"peer explode\"");
}

static void unknown_words_are_refused(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_refused(PARSE(&args, &err, "mvoe"), &err, "unknown command");
    assert_refused(PARSE(&args, &err, "list", "--frist"), &err, "unknown option --frist");
    assert_refused(PARSE(&args, &err, "list", "-z"), &err, "unknown option -z");
    assert_refused(PARSE(&args, &err, "list", "extra"), &err, "one word too many");
    assert_refused(parse((const char *[]){"orai", NULL}, &args, &err), &err, "no command");
}

static void a_missing_operand_is_named(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_refused(PARSE(&args, &err, "move", "web1"), &err, "HOST is missing");
    assert_string_equal(err.hint, "orai help move");
}

static void help_needs_no_operands(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "move", "--help"), 0);
    assert_true(args.help);
    assert_int_equal(PARSE(&args, NULL, "-h"), 0);
    assert_null(args.verb);
}

static void values_are_checked_and_the_option_is_named(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_refused(PARSE(&args, &err, "create", "x", "--memory", "lots"), &err, "--memory");
    assert_refused(PARSE(&args, &err, "create", "x", "--cpus", "0"), &err, "--cpus");
    assert_refused(PARSE(&args, &err, "create", "x", "--cpus", "-1"), &err, "--cpus");
    assert_refused(PARSE(&args, &err, "create", "x", "--cpus", "99999999999999999999"), &err, "--cpus");
    assert_refused(PARSE(&args, &err, "create", "x", "--accel", "kv"), &err, "auto|kvm|tcg");
    assert_refused(PARSE(&args, &err, "create", "x", "--ram", "hug"), &err, "shared|private|huge");
    assert_refused(PARSE(&args, &err, "create", "x", "--disk", "1G", "--disk", "?"), &err, "--disk");
    assert_refused(PARSE(&args, &err, "list", "--format", ""), &err, "--format");
    assert_refused(PARSE(&args, &err, "move", "a", "b", "--timeout"), &err, "needs a value");
    assert_refused(PARSE(&args, &err, "move", "a", "b", "--detach=yes"), &err, "takes no value");
}

static void format_is_refused_where_nothing_is_listed(void **state)
{
    struct args args;
    struct err err = ERR_NONE;
    (void)state;
    assert_refused(PARSE(&args, &err, "start", "web1", "--format", "json"), &err, "--format");
}

static void a_failed_parse_leaves_the_result_untouched(void **state)
{
    struct args args = {.format = FORMAT_CSV};
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "list", "extra"), -EINVAL);
    assert_int_equal(args.format, FORMAT_CSV);
}

static void raw_verbs_know_where_their_words_stand(void **state)
{
    struct args args;
    (void)state;
    assert_int_equal(PARSE(&args, NULL, "disk", "serve", "f", "--socket", "s"), 0);
    assert_int_equal(args.group_index, 1);
    assert_int_equal(args.verb_index, 2);
    assert_null(args.socket); /* the verb's own --socket, not oraid's */
}

/* The table itself. */
static void every_verb_has_a_summary_and_one_way_to_run(void **state)
{
    (void)state;
    for (const struct verb *const *v = verbs; *v; v++) {
        assert_non_null((*v)->summary);
        assert_true(!(*v)->run != !(*v)->run_raw);
        assert_ptr_equal(verb_find((*v)->group, (*v)->name), *v);
    }
}

static void every_option_says_what_it_is(void **state)
{
    (void)state;
    for (const struct verb *const *v = verbs; *v; v++)
        for (const struct arg_def *o = (*v)->options; o->name; o++) {
            assert_non_null(o->help);
            assert_true((o->kind == ARG_FLAG) == (o->value == NULL));
            assert_ptr_equal(verb_option(*v, o->name, strlen(o->name)), o);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_may_stand_anywhere),
        cmocka_unit_test(numbers_that_are_not_given_are_the_default),
        cmocka_unit_test(bandwidth_is_read_as_bits_and_given_as_bytes),
        cmocka_unit_test(words_after_two_dashes_are_operands),
        cmocka_unit_test(short_options_work),
        cmocka_unit_test(an_option_for_many_things_keeps_all_values_in_order),
        cmocka_unit_test(a_disk_is_a_size_or_a_device),
        cmocka_unit_test(too_many_values_are_refused),
        cmocka_unit_test(a_group_needs_its_second_word),
        cmocka_unit_test(unknown_words_are_refused),
        cmocka_unit_test(a_missing_operand_is_named),
        cmocka_unit_test(help_needs_no_operands),
        cmocka_unit_test(values_are_checked_and_the_option_is_named),
        cmocka_unit_test(format_is_refused_where_nothing_is_listed),
        cmocka_unit_test(a_failed_parse_leaves_the_result_untouched),
        cmocka_unit_test(raw_verbs_know_where_their_words_stand),
        cmocka_unit_test(every_verb_has_a_summary_and_one_way_to_run),
        cmocka_unit_test(every_option_says_what_it_is),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
