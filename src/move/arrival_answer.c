/* SPDX-License-Identifier: Apache-2.0
 *
 * The answer to a source that asks about a commit after the arrival is over: it did not hear "running", or it
 * committed while we had durably refused. And to a borrower (fetch.h) that did not hear that we lend nothing
 * any more. The epoch record knows both.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/link.h"
#include "move/move.h"
#include "move/porch.h"
#include "move/session.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define MAX_CONVERSATIONS 4 /* anyone who knows a VM's id may knock */
#define ANSWER_NS (20 * NSEC_PER_SEC)

struct answer {
    const struct move_host *host;
    struct id vm;
    struct epoch_record record;
};

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    (void)link;
    session_lost(arg, err);
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    if (frame->type == FRAME_WORKSET) /* too late: whoever would keep it has ended */
        return 0;
    return session_post(arg, link, frame, payload, err);
}

/* Refused is refused for ever; an epoch that is ours, or that went on from here, had been taken. About
 * anything else nothing durable is known, and then nothing may be said. */
static int verdict(const struct answer *answer, uint64_t epoch, enum frame_type *ret, struct err *err)
{
    const struct epoch_record *record = &answer->record;
    if (epoch == record->refused)
        *ret = FRAME_REFUSED;
    else if (epoch <= record->epoch && record->role != EPOCH_ARRIVING)
        *ret = FRAME_RUNNING;
    else
        return err_set(err, ENOENT, "nothing is known here about epoch %llu", (unsigned long long)epoch);
    return 0;
}

static int answer_commit(struct answer *answer, struct session *session, const struct mail *mail,
                         const json_t *hello, struct err *err)
{
    _cleanup_json_ json_t *commit = NULL;
    uint64_t epoch;
    enum frame_type type = FRAME_REFUSED;
    int r = json_parse((const char *)mail->payload, mail->frame.length, "commit", &commit, err);
    if (r < 0 || (r = json_get_u64(commit, "epoch", "commit", &epoch, err)) < 0 ||
        (r = verdict(answer, epoch, &type, err)) < 0)
        return r;
    log_info("the source asks about epoch %llu: %s", (unsigned long long)epoch, frame_type_name(type));
    return link_send_json(session->control, type, hello, err);
}

static int answer_release(struct answer *answer, struct session *session, const struct mail *mail,
                          struct err *err)
{
    if (answer->record.lent || mail->frame.epoch > answer->record.epoch)
        return err_set(err, ESTALE, "what was lent in epoch %llu is not known to be over here",
                       (unsigned long long)mail->frame.epoch);
    return link_send(session->control, FRAME_RELEASED, NULL, 0, NULL, 0, err);
}

static int converse(struct answer *answer, struct session *session, struct err *err)
{
    _cleanup_json_ json_t *hello = NULL;
    struct mail *mail;
    int64_t deadline = clock_now() + ANSWER_NS;
    int r = session_wait(session, FRAME_HELLO, deadline, &mail, err);
    if (r < 0)
        return r;
    link_set_epoch(session->control, mail->frame.epoch);
    free(mail);
    hello = json_pack("{s:i, s:s, s:s}", "protocol", MOVE_PROTOCOL_VERSION, "host", answer->host->name,
                      "version", ORAI_VERSION);
    if ((r = link_send_json(session->control, FRAME_HELLO, hello, err)) < 0 ||
        (r = session_next(session, deadline, &mail, err)) < 0)
        return r;
    enum frame_type type = mail->frame.type;
    if (type == FRAME_COMMIT)
        r = answer_commit(answer, session, mail, hello, err);
    else if (type == FRAME_RELEASE)
        r = answer_release(answer, session, mail, err);
    else
        r = err_set(err, EPROTO, "the peer sent \"%s\" where \"commit\" was due", frame_type_name(type));
    free(mail);
    if (r < 0 || (r = link_drain(session->control, deadline, err)) < 0)
        return r;
    if (session_wait(session, FRAME_FINISH, deadline, &mail, err) == 0)
        free(mail);
    return 0;
}

/* On a thread of the porch. */
static void answer(void *arg, struct tls *tls, const struct err *why)
{
    static struct log_limit limit;
    struct answer *answer = arg;
    struct session session;
    struct err err = *why;
    int r = tls ? session_init(&session, 0, &err) : -err.code;
    if (r == 0) {
        struct link_options options = {.vm = answer->vm, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
        struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = &session};
        r = link_start(tls, &options, &handler, &session.control, &err);
        if (r == 0)
            r = converse(answer, &session, &err);
        session_done(&session);
    } else {
        tls_close(tls);
    }
    if (r < 0)
        log_limited(&limit, LOG_LEVEL_WARNING, "a late connection: %s", err.text);
    free(answer);
}

/* `peer` is the source until the VM goes on to a third host. */
static struct fingerprint source_of(const struct epoch_record *record)
{
    static const struct fingerprint none;
    return fingerprint_equal(&record->from, &none) ? record->peer.fingerprint : record->from;
}

void arrival_answer(const struct move_host *host, const struct id *vm, const struct epoch_record *record,
                    int socket)
{
    static struct porch porch = PORCH_STATIC(MAX_CONVERSATIONS, ANSWER_NS, answer);
    static const struct fingerprint none;
    bool asked =
        !fingerprint_equal(&record->from, &none) || !fingerprint_equal(&record->peer.fingerprint, &none);
    struct answer *answer = asked ? malloc(sizeof *answer) : NULL;
    if (!answer) { /* there is nobody who could have something to ask, or no memory */
        close(socket);
        return;
    }
    *answer = (struct answer){host, *vm, *record};
    porch_knock(&porch, &(struct porch_knock){.socket = socket,
                                              .identity = host->identity,
                                              .expected = source_of(record),
                                              .other = record->peer.fingerprint,
                                              .arg = answer});
}
