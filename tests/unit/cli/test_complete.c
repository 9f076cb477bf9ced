/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/complete.h"

#include "base/macro.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

/* Stands for oraid: says what it was asked. */
static void names(void *arg, const char *socket, const char *path, const char *list, FILE *out,
                  const char *prefix)
{
    (void)arg;
    fprintf(out, "<%s %s %s %s>\n", socket ? socket : "-", path, list, prefix);
}

#define PROPOSED(...) \
    proposed((int)ARRAY_SIZE(((const char *[]){__VA_ARGS__})), (const char *[]){__VA_ARGS__})

static char *proposed(int count, const char *const *words)
{
    char *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    complete_words(count, (char **)words, out, names, NULL);
    fclose(out);
    return text;
}

static bool has(const char *text, const char *word)
{
    char line[128], at_start[128];
    snprintf(at_start, sizeof at_start, "%s\t", word);
    snprintf(line, sizeof line, "\n%s\t", word);
    return strncmp(text, at_start, strlen(at_start)) == 0 || strstr(text, line) != NULL;
}

static void the_first_word_is_a_verb_or_a_group(void **state)
{
    (void)state;
    _cleanup_free_ char *all = PROPOSED(""), *some = PROPOSED("re");
    assert_true(has(all, "move") && has(all, "peer") && has(all, "disk"));
    assert_false(has(all, "invite"));
    assert_true(has(some, "recover") && has(some, "replica"));
    assert_false(has(some, "move"));
}

static void a_group_goes_on_with_its_verbs(void **state)
{
    (void)state;
    _cleanup_free_ char *text = PROPOSED("peer", "");
    assert_true(has(text, "invite") && has(text, "join") && has(text, "list") && has(text, "remove"));
    assert_false(has(text, "move"));
}

static void dashes_are_the_verbs_options(void **state)
{
    (void)state;
    _cleanup_free_ char *text = PROPOSED("move", "web1", "--"), *start = PROPOSED("start", "--");
    assert_true(has(text, "--dry-run") && has(text, "--bandwidth") && has(text, "--format") &&
                has(text, "--help"));
    assert_true(has(start, "--fork-old-copy"));
    assert_false(has(start, "--format"));
}

static void the_option_of_a_verb_hides_the_global_one(void **state)
{
    (void)state;
    _cleanup_free_ char *text = PROPOSED("disk", "serve", "--sock");
    assert_string_equal(text, "--socket\tUnix socket to make; needed\n");
}

static void a_choice_is_proposed_in_every_way_to_write_it(void **state)
{
    (void)state;
    _cleanup_free_ char *apart = PROPOSED("list", "--format", "j"), *one = PROPOSED("list", "--format=j"),
                        *split = PROPOSED("list", "--format", "=", "j"),
                        *open = PROPOSED("list", "--format", "=");
    assert_string_equal(apart, "json\n");
    assert_string_equal(one, "--format=json\n");
    assert_string_equal(split, "json\n");
    assert_string_equal(open, "table\njson\nyaml\ncsv\n");
}

static void operands_are_asked_of_oraid(void **state)
{
    (void)state;
    _cleanup_free_ char *vm = PROPOSED("move", "w"), *peer = PROPOSED("move", "web1", ""),
                        *image = PROPOSED("create", "x", "--image", "");
    assert_string_equal(vm, "<- /v1/vms vms w>\n");
    assert_string_equal(peer, "<- /v1/peers peers >\n");
    assert_string_equal(image, "<- /v1/images images >\n");
}

static void the_socket_on_the_line_is_the_one_that_is_asked(void **state)
{
    (void)state;
    _cleanup_free_ char *apart = PROPOSED("--socket", "/s", "info", ""),
                        *one = PROPOSED("info", "--socket=/t", "");
    assert_string_equal(apart, "</s /v1/vms vms >\n");
    assert_string_equal(one, "</t /v1/vms vms >\n");
}

static void files_are_left_to_the_shell(void **state)
{
    (void)state;
    _cleanup_free_ char *operand = PROPOSED("image", "add", "x", ""),
                        *option = PROPOSED("create", "x", "--kernel", "");
    assert_string_equal(operand, ":file\n");
    assert_string_equal(option, ":file\n");
}

static void help_completes_commands(void **state)
{
    (void)state;
    _cleanup_free_ char *first = PROPOSED("help", "mo"), *second = PROPOSED("help", "image", "a");
    assert_true(has(first, "move"));
    assert_true(has(second, "add"));
}

static void nothing_is_proposed_where_nothing_is_known(void **state)
{
    (void)state;
    _cleanup_free_ char *lost = PROPOSED("mvoe", ""), *full = PROPOSED("list", ""),
                        *text = PROPOSED("peer", "join", "");
    _cleanup_free_ char *unknown = PROPOSED("list", "--frist=");
    assert_string_equal(unknown, "");
    assert_string_equal(lost, "");
    assert_string_equal(full, "");
    assert_string_equal(text, "");
}

static void no_words_at_all_are_an_empty_first_word(void **state)
{
    (void)state;
    _cleanup_free_ char *text = proposed(0, NULL);
    assert_true(has(text, "move"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_word_is_a_verb_or_a_group),
        cmocka_unit_test(a_group_goes_on_with_its_verbs),
        cmocka_unit_test(dashes_are_the_verbs_options),
        cmocka_unit_test(the_option_of_a_verb_hides_the_global_one),
        cmocka_unit_test(a_choice_is_proposed_in_every_way_to_write_it),
        cmocka_unit_test(operands_are_asked_of_oraid),
        cmocka_unit_test(the_socket_on_the_line_is_the_one_that_is_asked),
        cmocka_unit_test(files_are_left_to_the_shell),
        cmocka_unit_test(help_completes_commands),
        cmocka_unit_test(nothing_is_proposed_where_nothing_is_known),
        cmocka_unit_test(no_words_at_all_are_an_empty_first_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
