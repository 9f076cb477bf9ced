/* SPDX-License-Identifier: Apache-2.0 */
#include "move/arrival.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"

#include <errno.h>
#include <string.h>

#define GREET_NS (10 * NSEC_PER_SEC)

void arrival_enter(struct arrival *arrival, const char *stage)
{
    (void)stage; /* people see the source's progress, which names the stage */
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
}

/* The source should not wait for its own timeouts. */
void arrival_failed(struct arrival *arrival, const struct err *err)
{
    struct err why = *err;
    err_where(&why, arrival->host->name, NULL);
    if (arrival->dry_run || arrival->session.peer_failed || !arrival->session.control)
        return;
    _cleanup_json_ json_t *json = err_to_json(&why);
    if (link_send_json(arrival->session.control, FRAME_ERROR, json, NULL) == 0)
        link_drain(arrival->session.control, clock_now() + NSEC_PER_SEC, NULL);
}

bool arrival_may_roll_back(const struct arrival *arrival)
{
    return !arrival->taken;
}

/* --- links ------------------------------------------------------------------------------------------------
 */

static int say_hello(struct arrival *arrival, struct link *link, struct err *err)
{
    _cleanup_json_ json_t *hello = json_pack("{s:i, s:s, s:s}", "protocol", MOVE_PROTOCOL_VERSION, "host",
                                             arrival->host->name, "version", ORAI_VERSION);
    return link_send_json(link, FRAME_HELLO, hello, err);
}

/* Moves the link out of the unassigned ones. With the lock held. */
static void assign(struct arrival *arrival, struct link *link, struct link **slot)
{
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i] == link)
            arrival->unassigned[i] = NULL;
    *slot = link;
}

/* With the lock held. 1: the walker will answer. */
static int place(struct arrival *arrival, struct link *link, const char *role, uint64_t index,
                 const struct id *move, struct err *err)
{
    struct session *session = &arrival->session;
    bool same = id_equal(move, &arrival->move);
    if (strcmp(role, "control") == 0 && !session->control && !arrival->resumed && !arrival->ready) {
        arrival->move = *move;
        assign(arrival, link, &session->control);
        return 0;
    }
    if (strcmp(role, "data") == 0 && same && index == session->data_count && index < MOVE_MAX_CONNECTIONS) {
        assign(arrival, link, &session->data[index]);
        session->data_count++;
        return 0;
    }
    if (strcmp(role, "again") == 0 && same && arrival->ready && !arrival->next_control) {
        assign(arrival, link, &arrival->next_control);
        return 1;
    }
    return err_set(err, EBUSY, "a connection for another move, or out of turn");
}

static int on_hello(struct arrival *arrival, struct link *link, const struct frame *frame,
                    const uint8_t *payload, struct err *err)
{
    _cleanup_json_ json_t *hello = NULL;
    const char *role;
    uint64_t protocol;
    struct id move;
    int r = json_parse((const char *)payload, frame->length, "the source's hello", &hello, err);
    if (r < 0 || (r = json_get_string(hello, "role", "hello", &role, err)) < 0 ||
        (r = json_get_u64(hello, "protocol", "hello", &protocol, err)) < 0 ||
        (r = json_get_id(hello, "move", "hello", &move, err)) < 0)
        return r;
    link_set_epoch(link, frame->epoch);
    if (protocol != MOVE_PROTOCOL_VERSION) {
        err_set(err, ENOTSUP,
                "this host speaks version %d of the move protocol, the source version %llu (Orai %s)",
                MOVE_PROTOCOL_VERSION, (unsigned long long)protocol, json_str(hello, "version", "?"));
        err_where(err, arrival->host->name, "prepare");
        err_hint(err, "upgrade Orai on the older host");
        _cleanup_json_ json_t *json = err_to_json(err);
        link_send_json(link, FRAME_ERROR, json, NULL);
        link_drain(link, clock_now(), NULL);
        return 0; /* the source closes */
    }
    pthread_mutex_lock(&arrival->lock);
    if (!arrival->source_name[0])
        snprintf(arrival->source_name, sizeof arrival->source_name, "%s", json_str(hello, "host", "?"));
    r = place(arrival, link, role, json_u64(hello, "index", 0), &move, err);
    pthread_mutex_unlock(&arrival->lock);
    if (r == 1) {
        session_lost(&arrival->session,
                     &(struct err){.code = ECONNRESET, .text = "the source has connected anew"});
        return 0;
    }
    if (r < 0)
        return r;
    r = say_hello(arrival, link, err);
    session_wake(&arrival->session);
    return r;
}

/* Answers the source's measurement of the link: bytes, then a last frame with a byte in front that says so.
 */
static int on_probe(struct link *link, const struct frame *frame, const uint8_t *payload, struct err *err)
{
    return frame->length && payload[0] ? link_send(link, FRAME_PROBED, NULL, 0, NULL, 0, err) : 0;
}

static int on_mark(struct arrival *arrival, struct link *link, const struct frame *frame,
                   const uint8_t *payload, struct err *err)
{
    struct wire_mark mark;
    int r = wire_mark_decode(payload, frame->length, &mark, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&arrival->lock);
    for (unsigned i = 0; i < arrival->session.data_count; i++)
        if (arrival->session.data[i] == link)
            arrival->marks[i] = mark.sequence;
    pthread_mutex_unlock(&arrival->lock);
    session_wake(&arrival->session);
    return 0;
}

static void on_progress(struct arrival *arrival, const struct frame *frame, const uint8_t *payload)
{
    json_t *json;
    if (json_parse((const char *)payload, frame->length, "progress", &json, NULL) < 0)
        return; /* it is for show only */
    pthread_mutex_lock(&arrival->lock);
    json_decref(arrival->shown);
    arrival->shown = json;
    pthread_mutex_unlock(&arrival->lock);
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
}

static bool assigned(struct arrival *arrival, const struct link *link)
{
    pthread_mutex_lock(&arrival->lock);
    bool found = true;
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS; i++)
        if (arrival->unassigned[i] == link)
            found = false;
    pthread_mutex_unlock(&arrival->lock);
    return found;
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct arrival *arrival = arg;
    if (!assigned(arrival, link))
        return frame->type == FRAME_HELLO ? on_hello(arrival, link, frame, payload, err)
                                          : err_set(err, EPROTO, "the first frame is not a hello");
    switch (frame->type) {
    case FRAME_RUN:
        return arrival_run(arrival, payload, frame->length, err);
    case FRAME_MARK:
        return on_mark(arrival, link, frame, payload, err);
    case FRAME_STREAM:
        if (!arrival->receiving)
            return err_set(err, EPROTO, "memory came before QEMU was ready for it");
        return relay_write(arrival->session.relay, payload, frame->length, err);
    case FRAME_PROBE:
        return on_probe(link, frame, payload, err);
    case FRAME_PROGRESS:
        on_progress(arrival, frame, payload);
        return 0;
    default:
        return session_post(&arrival->session, link, frame, payload, err);
    }
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
    struct arrival *arrival = arg;
    if (err->code)
        log_info("connection from %s: %s", arrival->source_name, err->text);
    pthread_mutex_lock(&arrival->lock);
    bool in_use = link == arrival->session.control;
    for (unsigned i = 0; i < arrival->session.data_count; i++)
        in_use = in_use || link == arrival->session.data[i];
    pthread_mutex_unlock(&arrival->lock);
    if (in_use)
        session_lost(&arrival->session, err);
}

struct greeting {
    struct arrival *arrival;
    int socket;
};

static void keep_link(struct arrival *arrival, struct tls *tls)
{
    struct err err = ERR_NONE;
    struct link_options options = {.vm = arrival->config.id, .heartbeat = true, .stall_ms = MOVE_STALL_MS};
    struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = arrival};
    pthread_mutex_lock(&arrival->lock);
    struct link **slot = NULL;
    for (size_t i = 0; i < ARRIVAL_MAX_LINKS && !slot; i++)
        if (!arrival->unassigned[i])
            slot = &arrival->unassigned[i];
    if (!slot)
        tls_close(tls);
    else if (link_start(tls, &options, &handler, slot, &err) < 0)
        log_warning("%s", err.text);
    pthread_mutex_unlock(&arrival->lock);
}

static void *greet(void *arg)
{
    struct greeting *greeting = arg;
    struct arrival *arrival = greeting->arrival;
    struct err err;
    struct tls *tls;
    if (tls_accept(arrival->host->identity, greeting->socket, &arrival->source, clock_now() + GREET_NS, &tls,
                   &err) < 0)
        log_warning("a connection for this VM was turned away: %s", err.text);
    else
        keep_link(arrival, tls);
    free(greeting);
    pthread_mutex_lock(&arrival->lock);
    arrival->greeters--;
    pthread_cond_broadcast(&arrival->greeters_gone);
    pthread_mutex_unlock(&arrival->lock);
    return NULL;
}

void arrival_connection(struct arrival *arrival, int socket)
{
    struct greeting *greeting = malloc(sizeof *greeting);
    pthread_t thread;
    pthread_mutex_lock(&arrival->lock);
    bool room = greeting && arrival->greeters < ARRIVAL_MAX_LINKS && arrival->outcome == MOVE_RUNNING;
    if (room) {
        *greeting = (struct greeting){arrival, socket};
        room = pthread_create(&thread, NULL, greet, greeting) == 0;
    }
    if (room) {
        pthread_detach(thread);
        arrival->greeters++;
    } else {
        close(socket);
        free(greeting);
    }
    pthread_mutex_unlock(&arrival->lock);
}

bool arrival_take_connection(struct arrival *arrival)
{
    pthread_mutex_lock(&arrival->lock);
    struct link *link = arrival->next_control;
    arrival->next_control = NULL;
    pthread_mutex_unlock(&arrival->lock);
    if (!link)
        return false;
    session_reset(&arrival->session);
    pthread_mutex_lock(&arrival->lock);
    arrival->session.control = link;
    pthread_mutex_unlock(&arrival->lock);
    say_hello(arrival, link, NULL); /* a broken link is noticed by whoever waits on it */
    return true;
}

/* --- the thread ------------------------------------------------------------------------------------------
 */

static void close_links(struct arrival *arrival)
{
    pthread_mutex_lock(&arrival->lock);
    while (arrival->greeters)
        pthread_cond_wait(&arrival->greeters_gone, &arrival->lock);
    struct link *left[ARRIVAL_MAX_LINKS + 1];
    memcpy(left, arrival->unassigned, sizeof arrival->unassigned);
    memset(arrival->unassigned, 0, sizeof arrival->unassigned);
    left[ARRIVAL_MAX_LINKS] = arrival->next_control;
    arrival->next_control = NULL;
    pthread_mutex_unlock(&arrival->lock);
    for (size_t i = 0; i <= ARRIVAL_MAX_LINKS; i++)
        link_free(left[i]);
}

static void *arrival_thread(void *arg)
{
    struct arrival *arrival = arg;
    struct err err = ERR_NONE;
    int r =
        stages_walk_destination(arrival, arrival->resumed ? STAGE_COMMIT : STAGE_PREPARE, STAGE_FINISH, &err);
    bool here = !arrival_may_roll_back(arrival);
    if (r < 0) {
        err_where(&err, arrival->host->name, NULL);
        pthread_mutex_lock(&arrival->lock);
        arrival->why = err;
        pthread_mutex_unlock(&arrival->lock);
    }
    session_reset(&arrival->session);
    log_info("arrival of %s from %s: %s%s%s", arrival->config.name, arrival->source_name,
             here ? "the guest runs here" : "ended", r < 0 ? ": " : "", r < 0 ? err.text : "");
    atomic_store(&arrival->outcome, here ? MOVE_MOVED : MOVE_STAYED);
    if (arrival->host->on_change)
        arrival->host->on_change(arrival->host->arg);
    return NULL;
}

static struct arrival *arrival_new(const struct move_host *host, const struct fingerprint *source,
                                   struct epoch *epoch, struct err *err)
{
    struct arrival *arrival = calloc(1, sizeof *arrival);
    if (!arrival || session_init(&arrival->session, 0, err) < 0) {
        free(arrival);
        err_set(err, ENOMEM, "out of memory");
        return NULL;
    }
    arrival->host = host;
    arrival->source = *source;
    arrival->epoch = epoch;
    arrival->before = *epoch_get(epoch);
    arrival->move = arrival->before.move;
    pthread_mutex_init(&arrival->lock, NULL);
    pthread_cond_init(&arrival->greeters_gone, NULL);
    return arrival;
}

static int launch(struct arrival *arrival, struct arrival **ret, struct err *err)
{
    int r = pthread_create(&arrival->thread, NULL, arrival_thread, arrival);
    if (r != 0) {
        err_sys(err, r, "cannot start the arrival's thread");
        arrival->thread = 0;
        arrival_free(arrival);
        return -r;
    }
    *ret = arrival;
    return 0;
}

int arrival_start(const struct move_host *host, const struct fingerprint *source, const struct id *vm,
                  struct epoch *epoch, struct arrival **ret, struct err *err)
{
    struct arrival *arrival = arrival_new(host, source, epoch, err);
    if (!arrival)
        return -ENOMEM;
    arrival->config.id = *vm;
    return launch(arrival, ret, err);
}

int arrival_resume(const struct move_host *host, const struct vm_config *config, struct epoch *epoch,
                   struct arrival **ret, struct err *err)
{
    const struct epoch_record *record = epoch_get(epoch);
    struct arrival *arrival = arrival_new(host, &record->peer.fingerprint, epoch, err);
    if (!arrival)
        return -ENOMEM;
    arrival->config = *config;
    arrival->resumed = arrival->ready = true;
    arrival->guest_runs = record->guest_runs;
    arrival->next_epoch = record->epoch;
    snprintf(arrival->source_name, sizeof arrival->source_name, "%s", record->peer.name);
    return launch(arrival, ret, err);
}

int arrival_cancel(struct arrival *arrival, struct err *err)
{
    if (arrival->outcome != MOVE_RUNNING)
        return err_set(err, EALREADY, "the move is over");
    pthread_mutex_lock(&arrival->lock);
    struct link *control = arrival->session.control;
    int r = control && !arrival->session.lost.code ? link_send(control, FRAME_CANCEL, NULL, 0, NULL, 0, err)
                                                   : -ENOTCONN;
    pthread_mutex_unlock(&arrival->lock);
    arrival->give_up = true;
    if (r < 0) /* nobody there to ask: give up by ourselves */
        session_cancel(&arrival->session);
    return 0;
}

int arrival_run_here(struct arrival *arrival, struct err *err)
{
    if (arrival->outcome != MOVE_RUNNING || !arrival->ready)
        return err_set(err, EINVAL, "the VM is not wholly here: it cannot be run");
    arrival->run_here = true;
    session_wake(&arrival->session);
    return 0;
}

enum move_outcome arrival_outcome(const struct arrival *arrival)
{
    return arrival->outcome;
}

json_t *arrival_status(const struct arrival *constant)
{
    struct arrival *arrival = (struct arrival *)constant;
    char move[ID_TEXT_SIZE];
    pthread_mutex_lock(&arrival->lock);
    json_t *json = arrival->shown ? json_deep_copy(arrival->shown)
                                  : json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "move",
                                              id_format(&arrival->move, move), "vm", arrival->config.name,
                                              "from", arrival->source_name, "to", arrival->host->name, "role",
                                              "destination", "stage", "prepare", "phase", "disk");
    json_object_set_new(json, "state", json_string(move_outcome_name(arrival->outcome)));
    if (arrival->why.code)
        json_object_set_new(json, "error", err_to_json(&arrival->why));
    pthread_mutex_unlock(&arrival->lock);
    return json;
}

struct machine *arrival_machine(struct arrival *arrival)
{
    return TAKE_PTR(arrival->machine);
}

void arrival_free(struct arrival *arrival)
{
    if (!arrival)
        return;
    if (arrival->thread)
        pthread_join(arrival->thread, NULL);
    close_links(arrival);
    session_done(&arrival->session);
    machine_free(arrival->machine);
    for (size_t i = 0; i < ARRIVAL_MAX_CLAIMS; i++)
        lineage_free(arrival->claims[i].lineage);
    json_decref(arrival->shown);
    pthread_cond_destroy(&arrival->greeters_gone);
    pthread_mutex_destroy(&arrival->lock);
    free(arrival);
}
