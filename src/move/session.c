/* SPDX-License-Identifier: Apache-2.0 */
#include "move/session.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* What a byte of a frame is on the wire: TLS records, and per 1448 of them the headers of TCP, IPv4 and
 * Ethernet. The user's limit is about the wire. */
#define WIRE_OVERHEAD 1.05
#define LAST_WORDS_NS (300 * NSEC_PER_MSEC) /* from a broken connection to the error frame on another */
#define MAIL_PATIENCE_NS (5 * NSEC_PER_SEC) /* less than the peer's, which hears no ping meanwhile */

int session_init(struct session *session, uint64_t bandwidth, struct err *err)
{
    *session = (struct session){0};
    session->last = &session->first;
    session->max_mail = SESSION_MAX_MAIL;
    pthread_mutex_init(&session->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&session->changed, &attr);
    pthread_condattr_destroy(&attr);
    session->budget = budget_new((uint64_t)((double)bandwidth / WIRE_OVERHEAD));
    return session->budget ? 0 : err_set(err, ENOMEM, "out of memory");
}

void session_hurry(void)
{
    setpriority(PRIO_PROCESS, (id_t)gettid(), -10); /* without the right to do so it is only slower */
}

void session_rest(void)
{
    setpriority(PRIO_PROCESS, (id_t)gettid(), 0);
}

static struct mail *take_first(struct session *session)
{
    struct mail *mail = session->first;
    if (mail) {
        session->first = mail->next;
        if (!session->first)
            session->last = &session->first;
        pthread_cond_broadcast(&session->changed); /* there is room */
    }
    return mail;
}

void session_stop(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    session->stopping = true;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    link_stop(session->control);
    session_stop_data(session);
}

bool session_set_control(struct session *session, struct link *link)
{
    pthread_mutex_lock(&session->lock);
    bool first = !session->control;
    if (first)
        session->control = link;
    pthread_mutex_unlock(&session->lock);
    return first;
}

void session_add_data(struct session *session, struct link *link)
{
    pthread_mutex_lock(&session->lock);
    session->data[session->data_count++] = link;
    pthread_mutex_unlock(&session->lock);
}

int session_data_index(struct session *session, const struct link *link)
{
    int index = -1;
    pthread_mutex_lock(&session->lock);
    for (unsigned i = 0; i < session->data_count; i++)
        if (session->data[i] == link)
            index = (int)i;
    pthread_mutex_unlock(&session->lock);
    return index;
}

bool session_has(struct session *session, const struct link *link)
{
    pthread_mutex_lock(&session->lock);
    bool control = session->control == link;
    pthread_mutex_unlock(&session->lock);
    return control || session_data_index(session, link) >= 0;
}

void session_stop_data(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    for (unsigned i = 0; i < session->data_count; i++)
        link_stop(session->data[i]);
    pthread_mutex_unlock(&session->lock);
}

/* The control link goes last: what a data link's thread meets it reports there. */
void session_reset(struct session *session)
{
    /* Stream and links call into each other: all links are stopped, then the stream lets go of them, then
     * they end, and what they used is freed last. */
    session_stop(session);
    stream_interrupt(session->stream);
    struct link *data[MOVE_MAX_CONNECTIONS];
    pthread_mutex_lock(&session->lock);
    unsigned count = session->data_count;
    for (unsigned i = 0; i < count; i++)
        data[i] = TAKE_PTR(session->data[i]);
    session->data_count = 0;
    pthread_mutex_unlock(&session->lock);
    for (unsigned i = 0; i < count; i++)
        link_free(data[i]);
    link_free(session->control);
    stream_detach(session->stream);
    if (!stream_is_lasting(session->stream))
        stream_free(TAKE_PTR(session->stream));
    pthread_mutex_lock(&session->lock);
    session->control = NULL;
    for (struct mail *mail; (mail = take_first(session));)
        free(mail);
    session->lost = ERR_NONE;
    session->peer_failed = session->stopping = false;
    pthread_mutex_unlock(&session->lock);
}

void session_done(struct session *session)
{
    session_reset(session);
    stream_free(session->stream);
    budget_free(session->budget);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->lock);
}

static bool wait_until(struct session *session, int64_t deadline)
{
    struct timespec until = {.tv_sec = deadline / NSEC_PER_SEC, .tv_nsec = deadline % NSEC_PER_SEC};
    return pthread_cond_timedwait(&session->changed, &session->lock, &until) == 0;
}

static bool is_full(const struct session *session)
{
    size_t count = 0, bytes = 0;
    for (const struct mail *mail = session->first; mail; mail = mail->next) {
        count++;
        bytes += mail->frame.length;
    }
    return count >= session->max_mail || bytes >= SESSION_MAX_MAIL_BYTES;
}

int session_post(struct session *session, struct link *link, const struct frame *frame,
                 const uint8_t *payload, struct err *err)
{
    struct mail *mail = malloc(sizeof *mail + frame->length + 1);
    if (!mail)
        return err_set(err, ENOMEM, "out of memory");
    *mail = (struct mail){.link = link, .frame = *frame};
    memcpy(mail->payload, payload, frame->length);
    mail->payload[frame->length] = '\0';

    pthread_mutex_lock(&session->lock);
    int64_t patience = clock_now() + MAIL_PATIENCE_NS;
    while (is_full(session) && clock_now() < patience)
        wait_until(session, patience);
    bool full = is_full(session);
    if (!full) {
        *session->last = mail;
        session->last = &mail->next;
        pthread_cond_broadcast(&session->changed);
    }
    pthread_mutex_unlock(&session->lock);
    if (!full)
        return 0;
    free(mail);
    return err_set(err, EMSGSIZE, "the peer sends messages faster than the protocol allows");
}

void session_lost(struct session *session, const struct err *err)
{
    pthread_mutex_lock(&session->lock);
    if (!session->lost.code) {
        session->lost = *err;
        session->lost_at = clock_now();
        if (!err->code)
            err_set(&session->lost, ECONNRESET, "the peer closed the connection");
    }
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

void session_wake(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    session->woken = true;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
}

bool session_cancel(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    bool in_time = !session->decided;
    session->cancelled = in_time;
    pthread_cond_broadcast(&session->changed);
    pthread_mutex_unlock(&session->lock);
    return in_time;
}

void session_uncancel(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    session->cancelled = false;
    session->decided = true;
    pthread_mutex_unlock(&session->lock);
}

/* With the lock held: the first mail is the peer's error. */
static void hear_error(struct session *session)
{
    struct mail *mail = take_first(session);
    _cleanup_json_ json_t *json = NULL;
    if (json_parse((char *)mail->payload, mail->frame.length, "the peer's error", &json, &session->lost) == 0)
        err_from_json(json, &session->lost);
    if (session->lost.code == 0 || session->lost.code == EAGAIN)
        session->lost.code = EPROTO; /* no error, or "nothing yet", would be misunderstood here */
    session->peer_failed = true;
    free(mail);
}

/* With the lock held. An error that the peer sent explains more than the broken link after it: mail goes
 * first, and what may still come on another connection has a moment to do so. */
static int check_locked(struct session *session, struct err *err)
{
    while (session->lost.code && !session->first && !session->cancelled && !session->peer_failed &&
           clock_now() < session->lost_at + LAST_WORDS_NS)
        wait_until(session, session->lost_at + LAST_WORDS_NS);
    if (session->cancelled)
        return err_set(err, ECANCELED, "cancelled");
    if (session->first && session->first->frame.type == FRAME_ERROR)
        hear_error(session);
    if (session->lost.code && !session->first) {
        if (err)
            *err = session->lost;
        return -session->lost.code;
    }
    return 0;
}

int session_next(struct session *session, int64_t deadline, struct mail **ret, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    int r;
    while ((r = check_locked(session, err)) == 0 && !session->first)
        if (!wait_until(session, deadline)) {
            r = session->first ? 0 : -EAGAIN;
            break;
        }
    if (r == 0)
        *ret = take_first(session);
    pthread_mutex_unlock(&session->lock);
    return r;
}

int session_wait(struct session *session, enum frame_type type, int64_t deadline, struct mail **ret,
                 struct err *err)
{
    struct mail *mail;
    int r = session_next(session, deadline, &mail, err);
    if (r == -EAGAIN)
        return err_set(err, ETIMEDOUT, "the peer did not answer in time (waiting for \"%s\")",
                       frame_type_name(type));
    if (r != 0)
        return r;
    if (mail->frame.type != type) {
        r = err_set(err, EPROTO, "the peer sent \"%s\" where \"%s\" was due",
                    frame_type_name(mail->frame.type), frame_type_name(type));
        free(mail);
        return r;
    }
    *ret = mail;
    return 0;
}

int session_wait_json(struct session *session, enum frame_type type, int64_t deadline, json_t **ret,
                      struct err *err)
{
    struct mail *mail;
    int r = session_wait(session, type, deadline, &mail, err);
    if (r != 0)
        return r;
    r = json_parse((char *)mail->payload, mail->frame.length, frame_type_name(type), ret, err);
    free(mail);
    return r;
}

int session_check(struct session *session, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    int r = check_locked(session, err);
    pthread_mutex_unlock(&session->lock);
    return r;
}

bool session_is_well(struct session *session)
{
    pthread_mutex_lock(&session->lock);
    bool well = session->lost.code == 0;
    pthread_mutex_unlock(&session->lock);
    return well;
}

void session_explain(struct session *session, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    bool broken = session->lost.code != 0;
    while (session->first ||
           (broken && !session->peer_failed && clock_now() < session->lost_at + LAST_WORDS_NS)) {
        if (!session->first)
            wait_until(session, session->lost_at + LAST_WORDS_NS);
        else if (session->first->frame.type == FRAME_ERROR)
            hear_error(session);
        else
            free(take_first(session));
    }
    if (session->peer_failed)
        *err = session->lost;
    pthread_mutex_unlock(&session->lock);
}

int session_decide(struct session *session, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    int r = check_locked(session, err);
    session->decided = session->decided || r == 0;
    pthread_mutex_unlock(&session->lock);
    return r;
}

int session_doze(struct session *session, int64_t deadline, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    if (!session->lost.code && !session->stopping)
        wait_until(session, deadline);
    int r = session->stopping    ? err_set(err, ECANCELED, "the session ends")
            : session->lost.code ? err_set(err, ECONNRESET, "another connection broke")
                                 : 0;
    pthread_mutex_unlock(&session->lock);
    return r;
}

int session_nap(struct session *session, int64_t deadline, struct err *err)
{
    pthread_mutex_lock(&session->lock);
    int r = check_locked(session, err);
    if (r == 0) {
        if (!session->woken)
            wait_until(session, deadline);
        session->woken = false;
        r = check_locked(session, err);
    }
    pthread_mutex_unlock(&session->lock);
    return r;
}
