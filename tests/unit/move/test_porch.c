/* SPDX-License-Identifier: Apache-2.0
 *
 * Who comes in while others hold the places: real TCP and TLS on loopback. Strangers knock from 127.0.0.2,
 * honest hosts from 127.0.0.1.
 */
#include "move_test.h"

#include "move/porch.h"

#include <poll.h>
#include <stdatomic.h>

#define PLACES 4
#define PATIENCE_MSEC 60000 /* no test waits for it, but the one that does */

static struct porch porch;
static atomic_uint came, refused;
static atomic_bool hold; /* what was let in keeps its place */
static int listener = -1;
static uint16_t port;

static void done(void *arg, struct tls *tls, const struct err *why)
{
    assert_ptr_equal(arg, &porch);
    if (!tls) {
        assert_true(why->code != 0 && why->text[0]);
        refused++;
        return;
    }
    came++;
    while (hold)
        clock_sleep(NSEC_PER_MSEC);
    tls_close(tls);
}

static void open_porch(int msec)
{
    porch_init(&porch, PLACES, msec * NSEC_PER_MSEC, done);
}

static int setup(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    came = refused = 0;
    hold = false;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 100) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        return -1;
    port = ntohs(address.sin_port);
    open_porch(PATIENCE_MSEC);
    return 0;
}

static int teardown(void **state)
{
    hold = false;
    porch_close(&porch);
    porch_free(&porch);
    return close(listener);
}

/* The porch gets the other end. Whoever connects is the only one at this time. */
static void let_knock(void)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    const struct fingerprint *a = tls_identity_fingerprint(host_a);
    porch_knock(&porch, &(struct porch_knock){
                            .socket = fd, .identity = host_b, .expected = *a, .other = *a, .arg = &porch});
}

static int stranger(const char *source)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, own = {.sin_family = AF_INET};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    inet_pton(AF_INET, source, &own.sin_addr);
    assert_int_equal(bind(fd, (struct sockaddr *)&own, sizeof own), 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    let_knock();
    return fd;
}

struct visitor {
    pthread_t thread;
    const struct tls_identity *identity;
    struct tls *tls;
    int64_t took;
};

static void *visit(void *arg)
{
    struct visitor *visitor = arg;
    int64_t began = clock_now();
    if (tls_connect(visitor->identity, "127.0.0.1", port, "vm.orai", tls_identity_fingerprint(host_b),
                    began + 5 * NSEC_PER_SEC, &visitor->tls, NULL) < 0)
        visitor->tls = NULL;
    visitor->took = clock_now() - began;
    return NULL;
}

static struct visitor begin_visit(const struct tls_identity *identity)
{
    return (struct visitor){.identity = identity};
}

static void knock_as(struct visitor *visitor)
{
    assert_int_equal(pthread_create(&visitor->thread, NULL, visit, visitor), 0);
    let_knock();
}

static bool end_visit(struct visitor *visitor)
{
    pthread_join(visitor->thread, NULL);
    bool in = visitor->tls;
    tls_close(visitor->tls);
    return in;
}

static bool closed_within(int fd, int msec)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    char byte;
    return poll(&p, 1, msec) == 1 && recv(fd, &byte, 1, 0) <= 0;
}

static void test_the_right_key_comes_in(void **state)
{
    struct visitor visitor = begin_visit(host_a);
    knock_as(&visitor);
    assert_true(eventually(came == 1));
    assert_true(end_visit(&visitor));
    assert_int_equal(refused, 0);
}

static void test_another_key_does_not(void **state)
{
    struct visitor visitor = begin_visit(host_b);
    knock_as(&visitor);
    assert_true(eventually(refused == 1));
    end_visit(&visitor);
    assert_int_equal(came, 0);
}

static void test_a_silent_one_is_closed_after_its_time(void **state)
{
    porch_close(&porch);
    porch_free(&porch);
    open_porch(300);
    int fd = stranger("127.0.0.2");
    assert_false(closed_within(fd, 200));
    assert_true(closed_within(fd, 5000));
    assert_true(eventually(refused == 1));
    close(fd);
}

static void test_a_crowd_of_silent_ones_keeps_nobody_out(void **state)
{
    int fds[100];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = stranger("127.0.0.2");
    assert_true(porch.threads <= PLACES);
    struct visitor visitor = begin_visit(host_a);
    knock_as(&visitor);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        close(fds[i]);
        fds[i] = stranger("127.0.0.2"); /* nor those that come later */
    }
    assert_true(eventually(came == 1));
    assert_true(end_visit(&visitor));
    assert_true(visitor.took < 5 * NSEC_PER_SEC);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    assert_true(eventually(refused == 2 * ARRAY_SIZE(fds)));
}

static void test_a_slow_one_is_not_pushed_out_by_a_crowd_from_elsewhere(void **state)
{
    int fds[10 * PLACES], slow = stranger("127.0.0.1");
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = stranger("127.0.0.2");
    assert_true(closed_within(fds[0], 2000));
    assert_false(closed_within(slow, 300));
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    close(slow);
}

/* A place is one thread, whoever waits for it: memory does not grow with the crowd. */
static void test_who_was_let_in_keeps_its_place(void **state)
{
    struct visitor visitors[PLACES];
    hold = true;
    for (size_t i = 0; i < PLACES; i++) {
        visitors[i] = begin_visit(host_a);
        knock_as(&visitors[i]);
    }
    assert_true(eventually(came == PLACES));
    int fd = stranger("127.0.0.2");
    assert_true(closed_within(fd, 2000)); /* there is nobody to take a place from */
    assert_int_equal(refused, 1);
    hold = false;
    for (size_t i = 0; i < PLACES; i++)
        assert_true(end_visit(&visitors[i]));
    close(fd);
}

static void test_closing_does_not_wait_for_silent_ones(void **state)
{
    int fds[3 * PLACES];
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = stranger("127.0.0.2");
    int64_t began = clock_now();
    porch_close(&porch);
    assert_true(clock_now() - began < 2 * NSEC_PER_SEC);
    assert_int_equal(refused, ARRAY_SIZE(fds)); /* each heard of once */
    int late = stranger("127.0.0.2");
    assert_true(closed_within(late, 1000));
    assert_int_equal(refused, ARRAY_SIZE(fds) + 1);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        close(fds[i]);
    close(late);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_the_right_key_comes_in),
        TEST(test_another_key_does_not),
        TEST(test_a_silent_one_is_closed_after_its_time),
        TEST(test_a_crowd_of_silent_ones_keeps_nobody_out),
        TEST(test_a_slow_one_is_not_pushed_out_by_a_crowd_from_elsewhere),
        TEST(test_who_was_let_in_keeps_its_place),
        TEST(test_closing_does_not_wait_for_silent_ones),
    };
    return cmocka_run_group_tests_name("porch", tests, make_hosts, drop_hosts);
}
