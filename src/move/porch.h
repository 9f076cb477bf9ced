/* SPDX-License-Identifier: Apache-2.0
 *
 * porch: the TLS handshakes of connections that oraid handed over. Anyone who knows a VM's id may knock, so
 * there are few places and a deadline; when all are taken a newcomer takes the place of another that has
 * proved nothing yet (base/crowd.h). One short-lived thread per place in use.
 */
#pragma once

#include "base/crowd.h"
#include "base/err.h"
#include "base/tls.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PORCH_MAX 16

struct porch_knock {
    int socket;
    const struct tls_identity *identity;
    struct fingerprint expected, other; /* either; the same twice for one */
    void *arg;
};

/* Once for each knock, without locks: the session, which is the callee's, or NULL and why. May take its time,
 * which is the place's, and is not interrupted then. */
typedef void porch_done_fn(void *arg, struct tls *tls, const struct err *err);

struct porch {
    unsigned places; /* at most PORCH_MAX */
    int64_t patience;
    porch_done_fn *done;

    pthread_mutex_t lock; /* innermost; guards what follows */
    pthread_cond_t left;
    bool closing;
    unsigned threads;
    struct porch_place {
        struct porch *porch;
        bool taken; /* a thread is there */
        int end;    /* a second descriptor, to end the handshake by; -1: there is none under way */
        struct porch_knock now;
        struct porch_knock next; /* comes when `now` is through; socket -1: nobody */
        struct crowd_member who, next_who;
    } place[PORCH_MAX];
};

/* For a porch that is never closed. */
#define PORCH_STATIC(count, nsec, function)                                                           \
    {                                                                                                 \
        .places = (count), .patience = (nsec), .done = (function), .lock = PTHREAD_MUTEX_INITIALIZER, \
        .left = PTHREAD_COND_INITIALIZER                                                              \
    }
void porch_init(struct porch *porch, unsigned places, int64_t patience, porch_done_fn *done);
/* Owns knock->socket from here on. Does not wait. */
void porch_knock(struct porch *porch, const struct porch_knock *knock);
/* Nobody comes in from here on; ends all handshakes, waits for the threads. Again is fine. */
void porch_close(struct porch *porch);
void porch_free(struct porch *porch); /* closed before */
