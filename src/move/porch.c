/* SPDX-License-Identifier: Apache-2.0 */
#include "move/porch.h"

#include "base/clock.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>

void porch_init(struct porch *porch, unsigned places, int64_t patience, porch_done_fn *done)
{
    *porch = (struct porch){.places = places, .patience = patience, .done = done};
    pthread_mutex_init(&porch->lock, NULL);
    pthread_cond_init(&porch->left, NULL);
}

static void turn_away(struct porch *porch, const struct porch_knock *knock, int code, const char *why)
{
    struct err err = ERR_NONE;
    err_set(&err, code, "%s", why);
    close(knock->socket);
    porch->done(knock->arg, NULL, &err);
}

/* --- a place's thread ----------------------------------------------------------------------------------- */

static void greet_one(struct porch_place *place)
{
    struct porch *porch = place->porch;
    const struct porch_knock knock = place->now;
    struct err err = ERR_NONE;
    struct tls *tls = NULL;
    int r = tls_accept_either(knock.identity, knock.socket, &knock.expected, &knock.other,
                              clock_now() + porch->patience, &tls, &err);
    pthread_mutex_lock(&porch->lock);
    int end = TAKE_FD(place->end);
    pthread_mutex_unlock(&porch->lock);
    close(end);
    porch->done(knock.arg, r == 0 ? tls : NULL, &err);
}

/* With the lock held. */
static void begin(struct porch_place *place, const struct porch_knock *knock, struct crowd_member who,
                  int end)
{
    place->now = *knock;
    place->who = who;
    place->end = end;
}

/* With the lock held. */
static void leave(struct porch_place *place)
{
    place->taken = false;
    place->porch->threads--;
    pthread_cond_broadcast(&place->porch->left); /* the porch may be gone as soon as the lock is */
}

/* Whoever waits for this place comes next; without a second descriptor it cannot. */
static bool take_next(struct porch_place *place)
{
    struct porch *porch = place->porch;
    for (;;) {
        pthread_mutex_lock(&porch->lock);
        struct porch_knock next = place->next;
        place->next.socket = -1;
        int end = next.socket < 0 || porch->closing ? -1 : fcntl(next.socket, F_DUPFD_CLOEXEC, 0);
        if (end >= 0)
            begin(place, &next, place->next_who, end);
        else if (next.socket < 0)
            leave(place);
        pthread_mutex_unlock(&porch->lock);
        if (end >= 0 || next.socket < 0)
            return end >= 0;
        turn_away(porch, &next, ECONNABORTED, "no more connections are taken");
    }
}

static void *greet(void *arg)
{
    struct porch_place *place = arg;
    do {
        greet_one(place);
        tls_leave_thread();
    } while (take_next(place));
    return NULL;
}

/* --- coming --------------------------------------------------------------------------------------------- */

/* With the lock held. */
static bool start(struct porch *porch, struct porch_place *place, const struct porch_knock *knock,
                  struct crowd_member who)
{
    pthread_t thread;
    int end = fcntl(knock->socket, F_DUPFD_CLOEXEC, 0);
    if (end < 0)
        return false;
    place->porch = porch;
    place->next.socket = -1;
    begin(place, knock, who, end);
    if (pthread_create(&thread, NULL, greet, place) != 0) {
        close(TAKE_FD(place->end));
        return false;
    }
    pthread_detach(thread);
    place->taken = true;
    porch->threads++;
    return true;
}

/* With the lock held: all places are taken. The newcomer will have the place of one that is still in its
 * handshake, or that waits itself; `ret_gone` gets that (socket -1: nobody has to go at once). */
static bool replace(struct porch *porch, const struct porch_knock *knock, struct crowd_member who,
                    struct porch_knock *ret_gone)
{
    const struct crowd_member *members[PORCH_MAX];
    for (unsigned i = 0; i < porch->places; i++) {
        const struct porch_place *place = &porch->place[i];
        members[i] = place->next.socket >= 0 ? &place->next_who : place->end >= 0 ? &place->who : NULL;
    }
    int victim = crowd_victim(members, porch->places, &who);
    if (victim < 0)
        return false;
    struct porch_place *place = &porch->place[victim];
    *ret_gone = place->next;
    if (place->next.socket < 0)
        shutdown(place->end, SHUT_RDWR);
    place->next = *knock;
    place->next_who = who;
    return true;
}

void porch_knock(struct porch *porch, const struct porch_knock *knock)
{
    struct crowd_member who = crowd_member(knock->socket);
    struct porch_knock gone = {.socket = -1};
    struct porch_place *free_place = NULL;
    pthread_mutex_lock(&porch->lock);
    for (unsigned i = 0; i < porch->places && !free_place; i++)
        if (!porch->place[i].taken)
            free_place = &porch->place[i];
    bool in = !porch->closing &&
              (free_place ? start(porch, free_place, knock, who) : replace(porch, knock, who, &gone));
    pthread_mutex_unlock(&porch->lock);
    if (!in)
        gone = *knock;
    if (gone.socket >= 0)
        turn_away(porch, &gone, EBUSY, "too many connections at once");
}

/* --- the end -------------------------------------------------------------------------------------------- */

void porch_close(struct porch *porch)
{
    pthread_mutex_lock(&porch->lock);
    porch->closing = true;
    for (unsigned i = 0; i < porch->places; i++)
        if (porch->place[i].taken && porch->place[i].end >= 0)
            shutdown(porch->place[i].end, SHUT_RDWR);
    while (porch->threads)
        pthread_cond_wait(&porch->left, &porch->lock);
    pthread_mutex_unlock(&porch->lock);
}

void porch_free(struct porch *porch)
{
    pthread_cond_destroy(&porch->left);
    pthread_mutex_destroy(&porch->lock);
}
