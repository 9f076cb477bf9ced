/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of src/move share: two hosts with identities of their own, and links between them over real
 * TLS on loopback.
 */
#pragma once

// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "base/clock.h"
#include "base/file.h"
#include "base/macro.h"
#include "base/tcp.h"
#include "base/tls.h"
#include "move/link.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static char folder[64];
static struct tls_identity *host_a, *host_b;
static const struct id vm = {{0xab, 1, 2, 3}};

#define assert_ok(call)                                       \
    do {                                                      \
        struct err err = ERR_NONE;                            \
        int result_ = (call);                                 \
        if (result_ != 0)                                     \
            fail_msg("%s: %d: %s", #call, result_, err.text); \
    } while (0)

static inline int make_hosts(void **state)
{
    char dir[96];
    (void)state;
    snprintf(folder, sizeof folder, "/var/tmp/orai-test-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    snprintf(dir, sizeof dir, "%s/a", folder);
    if (file_mkdirs(dir, 0755, NULL) < 0 || tls_identity_open(dir, "a", &host_a, NULL) < 0)
        return -1;
    snprintf(dir, sizeof dir, "%s/b", folder);
    return file_mkdirs(dir, 0755, NULL) < 0 || tls_identity_open(dir, "b", &host_b, NULL) < 0 ? -1 : 0;
}

static inline int drop_hosts(void **state)
{
    (void)state;
    tls_identity_free(host_a);
    tls_identity_free(host_b);
    return file_remove_tree(folder, NULL);
}

struct accepting {
    int listener;
    struct tls *tls;
};

static inline void *accept_tls(void *arg)
{
    struct accepting *a = arg;
    int fd = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC);
    if (tls_accept(host_b, fd, tls_identity_fingerprint(host_a), clock_now() + 10 * NSEC_PER_SEC, &a->tls,
                   NULL) < 0)
        a->tls = NULL;
    return NULL;
}

/* One TLS session; its two ends. */
static inline void connect_hosts(struct tls **ret_a, struct tls **ret_b)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct accepting accepting = {.listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    pthread_t thread;
    assert_int_equal(bind(accepting.listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(accepting.listener, 1), 0);
    assert_int_equal(getsockname(accepting.listener, (struct sockaddr *)&address, &size), 0);
    assert_int_equal(pthread_create(&thread, NULL, accept_tls, &accepting), 0);
    assert_ok(tls_connect(host_a, "127.0.0.1", ntohs(address.sin_port), "vm.orai",
                          tls_identity_fingerprint(host_b), clock_now() + 10 * NSEC_PER_SEC, ret_a, &err));
    pthread_join(thread, NULL);
    close(accepting.listener);
    assert_non_null(accepting.tls);
    *ret_b = accepting.tls;
}

/* True once `*what` (of other threads) is; false after ten seconds. */
#define eventually(condition)                             \
    ({                                                    \
        int64_t until_ = clock_now() + 10 * NSEC_PER_SEC; \
        while (!(condition) && clock_now() < until_)      \
            clock_sleep(NSEC_PER_MSEC);                   \
        (condition);                                      \
    })
