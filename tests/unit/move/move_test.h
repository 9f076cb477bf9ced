/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of src/move share: hosts with identities of their own, and links between two of them over
 * real TLS on loopback.
 */
#pragma once

#include "../folder_test.h"
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

static struct tls_identity *host_a, *host_b, *host_c;
static const struct id vm = {{0xab, 1, 2, 3}};

static inline int make_host(const char *name, struct tls_identity **ret)
{
    const char *dir = in_folder(name);
    int r = file_mkdirs(dir, 0755, NULL);
    return r < 0 ? r : tls_identity_open(dir, name, ret, NULL);
}

static inline int make_hosts(void **state)
{
    return make_folder(state) < 0 || make_host("a", &host_a) < 0 || make_host("b", &host_b) < 0 ||
                   make_host("c", &host_c) < 0
               ? -1
               : 0;
}

static inline int drop_hosts(void **state)
{
    tls_identity_free(host_a);
    tls_identity_free(host_b);
    tls_identity_free(host_c);
    return drop_folder(state);
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
