/* SPDX-License-Identifier: Apache-2.0
 *
 * Theory of operation. libwebsockets owns the sockets and runs on the main thread only. Its two vhosts differ
 * in TLS alone; who asks is read from the socket itself (http_exchange.c). A request that has come whole goes
 * to the request pool; its handler may block. The answer is queued, and lws_cancel_service, the one call of
 * libwebsockets that other threads may make, brings the loop to look at the queue.
 *
 * What always holds: an exchange is on the list of all from its first header to its end; only its own
 * connection's callbacks touch it while it has a wsi, except in `wake_all`, which runs on the same thread.
 */
#include "host/http.h"

#include "base/clock.h"
#include "base/crowd.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/tls_pin.h"
#include "host/http_exchange.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_INCOMING 256 /* connections that wait for the main thread */
/* Of them taken at once: much fewer than there are places, so that each has some turns of the loop to ask in.
 */
#define TURN 32

static_assert(HTTP_MAX_LOCAL == HTTP_MAX_REMOTE, "one table for each");
static_assert(4 * TURN <= HTTP_MAX_LOCAL, "see there");
#define MAX_CONNECTIONS HTTP_MAX_LOCAL

/* One per connection, made by libwebsockets. */
struct session {
    struct exchange *exchange;
};

/* A connection's opaque pointer points to it. */
struct connection {
    bool taken;
    struct lws *wsi; /* NULL while libwebsockets is about to make it */
    struct crowd_member who;
};

struct incoming {
    int fd;
    struct crowd_member who;
};

struct http {
    struct host *host;
    struct lws_context *context;
    struct lws_vhost *local, *remote;
    struct exchange *all;
    atomic_bool stop;

    pthread_mutex_t lock; /* innermost */
    struct exchange *answered;
    struct incoming incoming[MAX_INCOMING];
    unsigned incoming_count;

    struct connection connections[2][MAX_CONNECTIONS]; /* local, remote */
};

/* --- exchanges ------------------------------------------------------------------------------------------ */

static struct exchange *exchange_new(struct http *http, struct lws *wsi)
{
    struct exchange *exchange = calloc(1, sizeof *exchange);
    if (!exchange)
        return NULL;
    exchange->http = http;
    exchange->wsi = wsi;
    exchange->next = http->all;
    http->all = exchange;
    return exchange;
}

static void forget(struct exchange *exchange)
{
    struct exchange **at = &exchange->http->all;
    while (*at != exchange)
        at = &(*at)->next;
    *at = exchange->next;
    exchange_free(exchange);
}

/* The connection is gone, or free for its next request. */
static void detach(struct session *session)
{
    struct exchange *exchange = session->exchange;
    session->exchange = NULL;
    if (!exchange)
        return;
    exchange->wsi = NULL;
    if (exchange->state != EXCHANGE_WORKING)
        forget(exchange);
}

static void begin_answer(struct exchange *exchange)
{
    if (exchange_render(exchange) < 0)
        exchange->close_after = true; /* out of memory: an answer without a body */
    exchange->state = exchange->answer.stream ? EXCHANGE_STREAMING : EXCHANGE_ANSWERING;
    lws_callback_on_writable(exchange->wsi);
}

static void fail(struct exchange *exchange, const struct err *err)
{
    api_fail(exchange->http->host, err, &exchange->answer);
    begin_answer(exchange);
}

/* On a pool thread. */
static void work(void *arg)
{
    struct exchange *exchange = arg;
    struct http *http = exchange->http;
    api_handle(http->host, &exchange->request, &exchange->answer);
    pthread_mutex_lock(&http->lock);
    exchange->next_answered = http->answered;
    http->answered = exchange;
    pthread_mutex_unlock(&http->lock);
    http_wake(http);
}

static void dispatch(struct exchange *exchange)
{
    struct err err = ERR_NONE;
    exchange->state = EXCHANGE_WORKING;
    lws_set_timeout(exchange->wsi, NO_PENDING_TIMEOUT, 0);
    if (pool_run(exchange->http->host->requests, work, exchange, &err) == 0)
        return;
    exchange->state = EXCHANGE_READING;
    fail(exchange, &err);
}

static void park(struct exchange *exchange)
{
    int64_t left = exchange->answer.wait_until - clock_now();
    exchange->state = EXCHANGE_PARKED;
    lws_set_timer_usecs(exchange->wsi, MAX(left / 1000, 1000));
}

static void unpark(struct exchange *exchange)
{
    lws_set_timer_usecs(exchange->wsi, LWS_SET_TIMER_USEC_CANCEL);
    dispatch(exchange);
}

/* --- what other threads brought ------------------------------------------------------------------------- */

static void take_answers(struct http *http)
{
    pthread_mutex_lock(&http->lock);
    struct exchange *answered = http->answered;
    http->answered = NULL;
    pthread_mutex_unlock(&http->lock);
    while (answered) {
        struct exchange *exchange = answered;
        answered = exchange->next_answered;
        exchange->state = EXCHANGE_READING;
        if (!exchange->wsi)
            forget(exchange);
        else if (exchange->answer.wait)
            park(exchange);
        else
            begin_answer(exchange);
    }
}

/* Nobody works for it: it has not asked yet, or not to the end. */
static bool is_idle(const struct connection *connection)
{
    const struct session *session = connection->wsi ? lws_wsi_user(connection->wsi) : NULL;
    const struct exchange *exchange = session ? session->exchange : NULL;
    return connection->wsi && (!exchange || exchange->state == EXCHANGE_READING);
}

static struct connection *free_place(struct connection *connections)
{
    for (size_t i = 0; i < MAX_CONNECTIONS; i++)
        if (!connections[i].taken)
            return &connections[i];
    return NULL;
}

static struct connection *make_room(struct connection *connections, const struct crowd_member *newcomer)
{
    const struct crowd_member *members[MAX_CONNECTIONS];
    for (size_t i = 0; i < MAX_CONNECTIONS; i++)
        members[i] = is_idle(&connections[i]) ? &connections[i].who : NULL;
    int victim = crowd_victim(members, MAX_CONNECTIONS, newcomer);
    if (victim < 0)
        return NULL;
    /* Its WSI_DESTROY frees the place. The first try may only begin an orderly end, which would wait for the
     * other side. */
    struct connection *connection = &connections[victim];
    for (int tries = 0; tries < 2 && connection->taken; tries++)
        lws_set_timeout(connection->wsi, PENDING_TIMEOUT_USER_REASON_BASE, LWS_TO_KILL_SYNC);
    return connection->taken ? NULL : connection;
}

static void adopt(struct http *http, int fd, const struct crowd_member *who)
{
    static struct log_limit limit;
    int domain = AF_INET;
    socklen_t size = sizeof domain;
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
    int kind = domain == AF_UNIX ? 0 : 1;
    struct connection *connection = free_place(http->connections[kind]);
    if (!connection)
        connection = make_room(http->connections[kind], who);
    if (!connection) {
        log_limited(&limit, LOG_LEVEL_WARNING, "too many %s requests at once: a connection is closed",
                    kind ? "remote" : "local");
        close(fd);
        return;
    }
    *connection = (struct connection){.taken = true, .who = *who};
    lws_adopt_desc_t info = {
        .vh = kind ? http->remote : http->local,
        .type = LWS_ADOPT_SOCKET | LWS_ADOPT_HTTP | LWS_ADOPT_ALLOW_SSL,
        .fd.sockfd = fd,
        .opaque = connection,
    };
    struct lws *wsi = lws_adopt_descriptor_vhost_via_info(&info);
    if (wsi && connection->taken)
        connection->wsi = wsi;
    else /* on failure lws closes the socket, but does not always say goodbye to it */
        connection->taken = false;
}

static void take_connections(struct http *http)
{
    struct incoming incoming[TURN];
    pthread_mutex_lock(&http->lock);
    unsigned count = MIN(http->incoming_count, TURN), left = http->incoming_count -= count;
    memcpy(incoming, http->incoming, count * sizeof *incoming);
    memmove(http->incoming, http->incoming + count, left * sizeof *incoming);
    pthread_mutex_unlock(&http->lock);
    if (left)
        http_wake(http);
    for (unsigned i = 0; i < count; i++)
        adopt(http, incoming[i].fd, &incoming[i].who);
}

static void wake_all(struct http *http)
{
    for (struct exchange *next, *e = http->all; e; e = next) {
        next = e->next;
        if (e->state == EXCHANGE_STREAMING)
            lws_callback_on_writable(e->wsi);
        else if (e->state == EXCHANGE_PARKED &&
                 operation_changed(http->host->operations, &e->answer.wait_operation, e->answer.wait_since))
            unpark(e);
    }
}

/* --- libwebsockets' callbacks --------------------------------------------------------------------------- */

static int on_request(struct http *http, struct lws *wsi, struct session *session, const char *path,
                      size_t length)
{
    struct err err = ERR_NONE;
    detach(session);
    struct exchange *exchange = session->exchange = exchange_new(http, wsi);
    if (!exchange)
        return -1;
    int r = exchange_read_headers(exchange, http->host, &err);
    if (r == 0 && length >= sizeof exchange->request.path)
        r = err_set(&err, EINVAL, "the path is too long");
    if (r < 0) {
        exchange->close_after = true;
        fail(exchange, &err);
        return 0;
    }
    memcpy(exchange->request.path, path, length);
    bool post = strcmp(exchange->request.method, "POST") == 0;
    bool has_length = lws_hdr_total_length(wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) > 0;
    if (exchange->input_expected == 0 && !(post && has_length)) /* else BODY_COMPLETION follows */
        dispatch(exchange);
    return 0;
}

static int on_body(struct exchange *exchange, const void *data, size_t size)
{
    if (!exchange || exchange->state != EXCHANGE_READING ||
        size > exchange->input_expected - exchange->input_size)
        return exchange && exchange->state == EXCHANGE_ANSWERING ? 0 : -1;
    if (size)
        memcpy(exchange->input + exchange->input_size, data, size);
    exchange->input_size += size;
    return 0;
}

static int on_body_end(struct exchange *exchange)
{
    struct err err = ERR_NONE;
    if (!exchange || exchange->state != EXCHANGE_READING) /* a second request before the first was answered */
        return exchange && exchange->state == EXCHANGE_ANSWERING ? 0 : -1;
    if (exchange_read_body(exchange, &err) < 0)
        fail(exchange, &err);
    else
        dispatch(exchange);
    return 0;
}

static int on_writable(struct http *http, struct session *session)
{
    struct exchange *exchange = session->exchange;
    if (!exchange || (exchange->state != EXCHANGE_ANSWERING && exchange->state != EXCHANGE_STREAMING))
        return 0;
    int r = exchange_write(exchange);
    if (r <= 0)
        return r;
    if (exchange->state == EXCHANGE_STREAMING && !exchange->close_after) {
        if (exchange_render_events(exchange, http->host->events) < 0)
            return -1;
        if (exchange->out_size > 0)
            lws_callback_on_writable(exchange->wsi);
        return 0;
    }
    if (exchange->close_after)
        return -1;
    struct lws *wsi = exchange->wsi;
    detach(session);
    return lws_http_transaction_completed(wsi) ? -1 : 0;
}

static int callback(struct lws *wsi, enum lws_callback_reasons reason, void *user, void *in, size_t length)
{
    struct http *http = lws_context_user(lws_get_context(wsi));
    struct session *session = user;
    switch (reason) {
    case LWS_CALLBACK_OPENSSL_LOAD_EXTRA_SERVER_VERIFY_CERTS:
        tls_pin_context(user);
        return 0;
    case LWS_CALLBACK_HTTP:
        return on_request(http, wsi, session, in, length);
    case LWS_CALLBACK_HTTP_BODY:
        return on_body(session->exchange, in, length);
    case LWS_CALLBACK_HTTP_BODY_COMPLETION:
        return on_body_end(session->exchange);
    case LWS_CALLBACK_HTTP_WRITEABLE:
        return on_writable(http, session);
    case LWS_CALLBACK_TIMER:
        if (session && session->exchange && session->exchange->state == EXCHANGE_PARKED)
            unpark(session->exchange);
        return 0;
    case LWS_CALLBACK_CLOSED_HTTP:
        if (session)
            detach(session);
        return 0;
    case LWS_CALLBACK_WSI_DESTROY: {
        struct connection *connection = lws_get_opaque_user_data(wsi);
        if (connection)
            *connection = (struct connection){0};
        return 0;
    }
    case LWS_CALLBACK_EVENT_WAIT_CANCELLED:
        take_connections(http);
        take_answers(http);
        wake_all(http);
        return 0;
    default:
        return 0; /* lws_callback_http_dummy would answer requests by itself */
    }
}

static const struct lws_protocols protocols[] = {
    {.name = "http", .callback = callback, .per_session_data_size = sizeof(struct session)},
    {0},
};

static void lws_log(int level, const char *line)
{
    static struct log_limit limit;
    size_t length = strcspn(line, "\n");
    if (level & LLL_ERR)
        log_limited(&limit, LOG_LEVEL_WARNING, "libwebsockets: %.*s", (int)length, line);
    else
        log_debug("libwebsockets: %.*s", (int)length, line);
}

static struct lws_vhost *make_vhost(struct http *http, bool remote)
{
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN_SERVER,
        .protocols = protocols,
        .vhost_name = remote ? "remote" : "local",
        .keepalive_timeout = 30,
        .timeout_secs = 15,
        .alpn = "http/1.1",
    };
    if (remote) {
        info.options = LWS_SERVER_OPTION_CREATE_VHOST_SSL_CTX | /* GLOBAL_INIT has this bit too */
                       LWS_SERVER_OPTION_REQUIRE_VALID_OPENSSL_CLIENT_CERT;
        info.ssl_cert_filepath = tls_identity_cert_path(http->host->identity);
        info.ssl_private_key_filepath = tls_identity_key_path(http->host->identity);
    }
    return lws_create_vhost(http->context, &info);
}

int http_new(struct host *host, struct http **ret, struct err *err)
{
    struct http *http = calloc(1, sizeof *http);
    if (!http)
        return err_set(err, ENOMEM, "out of memory");
    http->host = host;
    pthread_mutex_init(&http->lock, NULL);
    lws_set_log_level(LLL_ERR | LLL_WARN, lws_log);
    struct lws_context_creation_info info = {
        .port = CONTEXT_PORT_NO_LISTEN,
        .options = LWS_SERVER_OPTION_EXPLICIT_VHOSTS | LWS_SERVER_OPTION_DO_SSL_GLOBAL_INIT,
        .user = http,
        .gid = -1,
        .uid = -1,
        .fd_limit_per_thread = HTTP_MAX_LOCAL + HTTP_MAX_REMOTE + 16,
        .max_http_header_data = 8192,
        /* One each: who holds one back by not asking to the end would else keep others waiting. */
        .max_http_header_pool = HTTP_MAX_LOCAL + HTTP_MAX_REMOTE,
        .timeout_secs = 15,
    };
    http->context = lws_create_context(&info);
    if (!http->context || !(http->local = make_vhost(http, false)) ||
        !(http->remote = make_vhost(http, true))) {
        http_free(http);
        return err_set(err, EIO, "cannot set up libwebsockets (ORAI_LOG=debug says more)");
    }
    *ret = http;
    return 0;
}

void http_free(struct http *http)
{
    if (!http)
        return;
    if (http->context)
        lws_context_destroy(http->context);
    while (http->all)
        forget(http->all);
    for (unsigned i = 0; i < http->incoming_count; i++)
        close(http->incoming[i].fd);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

void http_run(struct http *http)
{
    while (!http->stop && lws_service(http->context, 0) >= 0)
        ;
}

void http_stop(struct http *http)
{
    http->stop = true;
    lws_cancel_service(http->context);
}

void http_wake(struct http *http)
{
    lws_cancel_service(http->context);
}

bool http_has_room(struct http *http)
{
    pthread_mutex_lock(&http->lock);
    bool room = http->incoming_count < MAX_INCOMING / 2; /* the rest is for those who cannot wait */
    pthread_mutex_unlock(&http->lock);
    return room;
}

void http_adopt(struct http *http, int socket)
{
    const struct incoming newcomer = {.fd = socket, .who = crowd_member(socket)};
    const struct crowd_member *members[MAX_INCOMING];
    pthread_mutex_lock(&http->lock);
    unsigned place = http->incoming_count;
    if (place == MAX_INCOMING) {
        for (unsigned i = 0; i < MAX_INCOMING; i++)
            members[i] = &http->incoming[i].who;
        place = (unsigned)crowd_victim(members, MAX_INCOMING, &newcomer.who);
        close(http->incoming[place].fd);
    } else {
        http->incoming_count++;
    }
    http->incoming[place] = newcomer;
    pthread_mutex_unlock(&http->lock);
    http_wake(http);
}
