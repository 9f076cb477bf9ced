/* SPDX-License-Identifier: Apache-2.0
 *
 * thread: starts a thread with a small stack, a name, and all signals blocked (they belong to the main loop).
 */
#pragma once

#include <pthread.h>
#include <signal.h>

#define THREAD_STACK (256U << 10)

/* 0 or -errno. `name` has at most 15 characters. */
static inline int thread_start(pthread_t *ret, const char *name, void *(*body)(void *), void *arg)
{
    sigset_t all, old;
    pthread_attr_t attr;
    int r = pthread_attr_init(&attr);
    if (r)
        return -r;
    pthread_attr_setstacksize(&attr, THREAD_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(ret, &attr, body, arg);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (r == 0)
        pthread_setname_np(*ret, name);
    return -r;
}
