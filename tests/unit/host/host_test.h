/* SPDX-License-Identifier: Apache-2.0
 *
 * A host of its own in a fresh folder, with registry, identity, events, operations and VMs, without threads
 * or sockets.
 */
#pragma once

// clang-format off
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
// clang-format on

#include "../scratch.h"

#include "base/file.h"
#include "base/json.h"
#include "base/macro.h"
#include "host/api.h"
#include "host/facts.h"
#include "host/image.h"
#include "host/vm.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_host {
    struct host host;
    char dir[64], run[80], registry[96];
};

static inline void ignore_wake(void *arg)
{
    (void)arg;
}

static inline void test_host_open(struct test_host *t)
{
    struct err err = ERR_NONE;
    char path[PATH_MAX];
    t->host.options = (struct host_options){.name = "a",
                                            .state_dir = t->dir,
                                            .run_dir = t->run,
                                            .listen_address = "127.0.0.1",
                                            .port = 7420,
                                            .qemu = "no-such-qemu",
                                            .qemu_user = "root",
                                            .orai_vm = "/bin/false"};
    snprintf(path, sizeof path, "%s/vms", t->dir);
    assert_int_equal(file_mkdirs(path, 0700, &err), 0);
    assert_int_equal(tls_identity_open(t->dir, "a", &t->host.identity, &err), 0);
    assert_int_equal(registry_open_sqlite(t->registry, &t->host.registry, &err), 0);
    assert_int_equal(events_new(t->host.registry, ignore_wake, NULL, &t->host.events, &err), 0);
    assert_int_equal(
        operations_new(t->host.registry, t->host.events, ignore_wake, NULL, &t->host.operations, &err), 0);
    assert_int_equal(images_open(&t->host, &err), 0);
    assert_int_equal(vms_new(&t->host, &t->host.vms, &err), 0);
    assert_int_equal(pool_new("job", 2, 16, &t->host.jobs, &err), 0);
    assert_int_equal(pool_new("verify", 1, 16, &t->host.verifies, &err), 0);
    assert_non_null(t->host.qemu = qemu_facts_new("no-such-qemu", "/nonexistent"));
}

static inline void test_host_close(struct test_host *t)
{
    assert_true(pool_stop(t->host.jobs, 10000));
    assert_true(pool_stop(t->host.verifies, 10000));
    pool_free(t->host.jobs);
    pool_free(t->host.verifies);
    vms_free(t->host.vms);
    qemu_facts_free(t->host.qemu);
    operations_free(t->host.operations);
    events_free(t->host.events);
    registry_close(t->host.registry);
    tls_identity_free(t->host.identity);
    t->host = (struct host){0};
}

/* As after a kill and a new start of oraid. */
static inline void test_host_reopen(struct test_host *t)
{
    test_host_close(t);
    test_host_open(t);
}

static inline int set_up(void **state)
{
    struct test_host *t = calloc(1, sizeof *t);
    assert_int_equal(scratch_make(t->dir, sizeof t->dir), 0);
    snprintf(t->run, sizeof t->run, "%s/run", t->dir);
    snprintf(t->registry, sizeof t->registry, "%s/registry.db", t->dir);
    test_host_open(t);
    *state = t;
    return 0;
}

static inline int tear_down(void **state)
{
    struct test_host *t = *state;
    struct err err;
    test_host_close(t);
    file_remove_tree(t->dir, &err);
    free(t);
    return 0;
}

#define HOST_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
