/* SPDX-License-Identifier: Apache-2.0
 *
 * qmp: theory of operation
 *
 * A caller gives its command a number, puts itself into the list of waiting callers, sends one line and
 * sleeps on the condition. The reader thread takes every line that QEMU writes: an answer wakes the caller
 * whose number it carries, an event goes to the owner's callback. QEMU answers commands in order, so several
 * threads may wait at once.
 *
 * The bytes are not trusted: a line that is too long, is no JSON object, or an end of the stream makes the
 * connection dead for good; every waiting caller gets -ECONNRESET and every later one -ENOTCONN, and the
 * owner hears the end once (event NULL). An answer that nobody waits for (its caller timed out) is dropped.
 *
 * One mutex guards all fields below it. It is held while a command is sent, but that send never blocks: a
 * QEMU that does not read its socket makes the caller fail. A second one, never held together with it, says
 * whom events go to.
 */
#include "vmm/qmp.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "net/thread.h"
#include "vmm/qmp_lines.h"
#include "vmm/unix_socket.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct call {
    struct call *next;
    json_int_t id;
    json_t *answer; /* the whole message; NULL while waiting */
};

struct qmp {
    int socket;
    pthread_t reader;
    bool reading; /* the thread was started */
    bool torn;    /* the first line may be the end of one, whose beginning somebody else has read */

    pthread_mutex_t listener; /* the three below; held while the callback runs */
    qmp_event_fn *on_event;
    void *arg;
    bool ended; /* the callback was told of the end, or would have been */

    pthread_mutex_t mutex;
    pthread_cond_t changed; /* an answer has come, or the connection is dead */
    struct call *calls;
    json_int_t last_id;
    bool dead;
    bool freeing; /* the owner closes: its callback is not told */
};

/* Hands the message itself on: no reference is shared between threads. false when nobody waits for it. */
static bool answer_call(struct qmp *qmp, json_t *message)
{
    json_t *id = json_object_get(message, "id");
    bool taken = false;
    pthread_mutex_lock(&qmp->mutex);
    for (struct call *call = qmp->calls; call && json_is_integer(id) && !taken; call = call->next) {
        if (call->id == json_integer_value(id) && !call->answer) {
            call->answer = message;
            taken = true;
            pthread_cond_broadcast(&qmp->changed);
        }
    }
    pthread_mutex_unlock(&qmp->mutex);
    return taken;
}

static void tell(struct qmp *qmp, const char *event, const json_t *data)
{
    pthread_mutex_lock(&qmp->listener);
    qmp->ended = !event;
    if (qmp->on_event)
        qmp->on_event(qmp->arg, event, data);
    pthread_mutex_unlock(&qmp->listener);
}

void qmp_redirect(struct qmp *qmp, qmp_event_fn *on_event, void *arg)
{
    pthread_mutex_lock(&qmp->listener);
    qmp->on_event = on_event;
    qmp->arg = arg;
    if (qmp->ended && on_event)
        on_event(arg, NULL, NULL);
    pthread_mutex_unlock(&qmp->listener);
}

/* One line from QEMU. Anything that is not QMP ends the connection. */
static int take_line(struct qmp *qmp, const char *line, size_t size)
{
    struct err err = ERR_NONE;
    _cleanup_json_ json_t *message = NULL;
    int r = json_parse(line, size, "QEMU's message", &message, &err);
    bool torn = qmp->torn;
    qmp->torn = false;
    if (torn && (r < 0 || !json_is_object(message)))
        return 0;
    if (r < 0 || !json_is_object(message)) {
        log_warning("QMP: not a message: %s", r < 0 ? err.text : "no object");
        return -EPROTO;
    }
    const char *event = json_string_value(json_object_get(message, "event"));
    if (event) {
        tell(qmp, event, json_object_get(message, "data"));
    } else if (answer_call(qmp, message)) {
        TAKE_PTR(message);
    }
    return 0;
}

/* Reads what is there and takes its lines. 0, or why the connection is dead. */
static int read_some(struct qmp *qmp, struct qmp_lines *lines)
{
    size_t space, size;
    int error = 0;
    char *at = qmp_lines_space(lines, &space, &error);
    if (!at)
        return error;
    ssize_t n = recv(qmp->socket, at, space, 0);
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    if (n == 0)
        return -EPIPE;
    qmp_lines_added(lines, (size_t)n);
    for (const char *line; (line = qmp_lines_next(lines, &size));) {
        int r = take_line(qmp, line, size);
        if (r < 0)
            return r;
    }
    return 0;
}

static void *reader_main(void *arg)
{
    struct qmp *qmp = arg;
    struct qmp_lines lines = {0};
    int r;
    do
        r = read_some(qmp, &lines);
    while (r == 0);
    qmp_lines_done(&lines);

    pthread_mutex_lock(&qmp->mutex);
    qmp->dead = true;
    bool freeing = qmp->freeing;
    pthread_cond_broadcast(&qmp->changed);
    pthread_mutex_unlock(&qmp->mutex);
    shutdown(qmp->socket, SHUT_RDWR); /* a QEMU that spoke nonsense shall see it */
    if (!freeing)
        tell(qmp, NULL, NULL);
    return NULL;
}

/* --- connecting ----------------------------------------------------------------------------------------- */

/* QEMU speaks first; it does so once it has accepted us, which a QEMU that serves another client never does.
 */
static int take_greeting(int socket, int64_t deadline, struct err *err)
{
    char buffer[4096];
    size_t size = 0;
    while (size < sizeof buffer && !memchr(buffer, '\n', size)) {
        struct pollfd p = {.fd = socket, .events = POLLIN};
        int n = poll(&p, 1, clock_poll_ms(deadline));
        if (n == 0)
            return err_set(err, ETIMEDOUT, "QEMU does not answer on its control socket");
        /* Byte by byte up to the line's end: what follows is the reader thread's. */
        ssize_t got = n < 0 ? -1 : recv(socket, buffer + size, 1, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_sys(err, errno, "cannot read from QEMU's control socket");
        if (got == 0)
            return err_set(err, ENOTCONN, "QEMU closed its control socket before it said hello");
        size++;
    }
    _cleanup_json_ json_t *greeting = NULL;
    int r = json_parse(buffer, size, "QEMU's greeting", &greeting, err);
    if (r == 0 && !json_is_object(json_object_get(greeting, "QMP")))
        r = err_set(err, EPROTO, "what answers on the control socket is not QEMU");
    return r;
}

static struct qmp *qmp_alloc(int socket, qmp_event_fn *on_event, void *arg)
{
    struct qmp *qmp = calloc(1, sizeof *qmp);
    if (!qmp)
        return NULL;
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&qmp->listener, NULL);
    pthread_mutex_init(&qmp->mutex, NULL);
    pthread_cond_init(&qmp->changed, &attr);
    pthread_condattr_destroy(&attr);
    qmp->socket = socket;
    qmp->on_event = on_event;
    qmp->arg = arg;
    return qmp;
}

/* Owns `socket`. */
static int begin(int socket, bool torn, qmp_event_fn *on_event, void *arg, struct qmp **ret, struct err *err)
{
    struct qmp *qmp = qmp_alloc(socket, on_event, arg);
    if (!qmp) {
        close(socket);
        return err_set(err, ENOMEM, "out of memory connecting to QEMU");
    }
    qmp->torn = torn;
    qmp->last_id = clock_now(); /* of who was here before us no answer is taken for ours */
    int r = thread_start(&qmp->reader, "qmp", reader_main, qmp);
    if (r < 0) {
        qmp_free(qmp);
        return err_sys(err, r, "cannot start a thread for QEMU's answers");
    }
    qmp->reading = true;
    *ret = qmp;
    return 0;
}

/* Owns `socket`. `capabilities`: arguments, consumed. */
static int greet(int socket, json_t *capabilities, int64_t deadline, qmp_event_fn *on_event, void *arg,
                 struct qmp **ret, struct err *err)
{
    struct qmp *qmp = NULL;
    int r = take_greeting(socket, deadline, err);
    if (r < 0)
        close(socket);
    else
        r = begin(socket, false, on_event, arg, &qmp, err);
    if (r < 0) {
        json_decref(capabilities);
        return r;
    }
    r = qmp_execute(qmp, "qmp_capabilities", capabilities, clock_poll_ms(deadline), NULL, err);
    if (r < 0)
        qmp_free(qmp);
    else
        *ret = qmp;
    return r;
}

int qmp_connect(const char *path, int64_t deadline, qmp_event_fn *on_event, void *arg, struct qmp **ret,
                struct err *err)
{
    /* Its listener was there before it: nobody behind it means that it has ended. */
    int socket = unix_connect(path, 0, err);
    return socket < 0 ? socket : greet(socket, NULL, deadline, on_event, arg, ret, err);
}

int qmp_open_oob(int socket, int64_t deadline, struct qmp **ret, struct err *err)
{
    return greet(socket, json_pack("{s:[s]}", "enable", "oob"), deadline, NULL, NULL, ret, err);
}

int qmp_take_oob(int socket, struct qmp **ret, struct err *err)
{
    return begin(socket, true, NULL, NULL, ret, err);
}

void qmp_free(struct qmp *qmp)
{
    if (!qmp)
        return;
    pthread_mutex_lock(&qmp->mutex);
    qmp->freeing = true;
    pthread_mutex_unlock(&qmp->mutex);
    shutdown(qmp->socket, SHUT_RDWR);
    if (qmp->reading)
        pthread_join(qmp->reader, NULL);
    assert(!qmp->calls);
    close(qmp->socket);
    pthread_cond_destroy(&qmp->changed);
    pthread_mutex_destroy(&qmp->mutex);
    pthread_mutex_destroy(&qmp->listener);
    free(qmp);
}

/* --- commands ------------------------------------------------------------------------------------------- */

/* Called with the mutex held. A line that goes out only in part would garble all later ones: then the end. */
static int send_line(struct qmp *qmp, const char *line, size_t size, const char *command, struct err *err)
{
    ssize_t n = send(qmp->socket, line, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == (ssize_t)size)
        return 0;
    if (n > 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
        shutdown(qmp->socket, SHUT_RDWR);
        qmp->dead = true;
        return err_set(err, ENOTCONN, "QEMU is gone (command %s)", command);
    }
    return err_set(err, ETIMEDOUT, "QEMU does not read its control socket (command %s)", command);
}

/* Waits with the mutex held for the answer to `call`. */
static int wait_answer(struct qmp *qmp, struct call *call, int msec, const char *command, struct err *err)
{
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    struct timespec until = {.tv_sec = deadline / NSEC_PER_SEC, .tv_nsec = deadline % NSEC_PER_SEC};
    while (!call->answer) {
        if (qmp->dead)
            return err_set(err, ECONNRESET, "QEMU is gone (command %s)", command);
        if (pthread_cond_timedwait(&qmp->changed, &qmp->mutex, &until) == ETIMEDOUT && !call->answer)
            return err_set(err, ETIMEDOUT, "QEMU did not answer to %s within %d ms", command, msec);
    }
    return 0;
}

static int exchange(struct qmp *qmp, struct call *call, const char *line, size_t size, int msec,
                    const char *command, struct err *err)
{
    int r = qmp->dead ? err_set(err, ENOTCONN, "QEMU is gone (command %s)", command) : 0;
    if (r == 0)
        r = send_line(qmp, line, size, command, err);
    if (r < 0)
        return r;
    call->next = qmp->calls;
    qmp->calls = call;
    r = wait_answer(qmp, call, msec, command, err);
    struct call **at = &qmp->calls;
    while (*at != call)
        at = &(*at)->next;
    *at = call->next;
    return r;
}

static int take_answer(const json_t *answer, const char *command, json_t **ret_value, struct err *err)
{
    const json_t *error = json_object_get(answer, "error");
    json_t *value = json_object_get(answer, "return");
    if (error || !value)
        return err_set(err, EREMOTEIO, "QEMU refused %s: %s", command,
                       json_str(error, "desc", "no reason given"));
    if (ret_value)
        *ret_value = json_incref(value);
    return 0;
}

static int execute(struct qmp *qmp, const char *how, const char *command, json_t *arguments, int msec,
                   json_t **ret_value, struct err *err)
{
    struct call call = {0};
    if (!qmp) {
        json_decref(arguments);
        return err_set(err, ENOTCONN, "there is no connection to QEMU (command %s)", command);
    }
    pthread_mutex_lock(&qmp->mutex);
    call.id = ++qmp->last_id;
    pthread_mutex_unlock(&qmp->mutex);

    _cleanup_json_ json_t *message =
        json_pack("{s:s, s:I, s:o*}", how, command, "id", call.id, "arguments", arguments);
    _cleanup_free_ char *line = message ? json_dumps(message, JSON_COMPACT) : NULL;
    if (!line)
        return err_set(err, ENOMEM, "out of memory for QEMU's command %s", command);
    size_t size = strlen(line);
    line[size++] = '\n'; /* takes the place of the NUL */

    pthread_mutex_lock(&qmp->mutex);
    int r = exchange(qmp, &call, line, size, msec, command, err);
    pthread_mutex_unlock(&qmp->mutex);
    if (r == 0)
        r = take_answer(call.answer, command, ret_value, err);
    json_decref(call.answer);
    return r;
}

int qmp_execute(struct qmp *qmp, const char *command, json_t *arguments, int msec, json_t **ret_value,
                struct err *err)
{
    return execute(qmp, "execute", command, arguments, msec, ret_value, err);
}

int qmp_execute_oob(struct qmp *qmp, const char *command, json_t *arguments, int msec, struct err *err)
{
    return execute(qmp, "exec-oob", command, arguments, msec, NULL, err);
}
