/* SPDX-License-Identifier: Apache-2.0 */
#include "host/http_exchange.h"

#include "base/json.h"
#include "base/macro.h"
#include "base/tls_pin.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define WRITE_MAX (16U << 10)
#define STREAM_BATCH (64U << 10) /* bytes of events rendered at a time */

static const char *read_method(struct lws *wsi)
{
    static const struct {
        enum lws_token_indexes token;
        const char *name;
    } methods[] = {{WSI_TOKEN_GET_URI, "GET"},
                   {WSI_TOKEN_POST_URI, "POST"},
                   {WSI_TOKEN_PUT_URI, "PUT"},
                   {WSI_TOKEN_DELETE_URI, "DELETE"}};
    for (size_t i = 0; i < ARRAY_SIZE(methods); i++)
        if (lws_hdr_total_length(wsi, methods[i].token) > 0)
            return methods[i].name;
    return "?";
}

static int read_query(struct lws *wsi, json_t **ret, struct err *err)
{
    _cleanup_json_ json_t *query = json_object();
    char part[512];
    for (int i = 0; lws_hdr_fragment_length(wsi, WSI_TOKEN_HTTP_URI_ARGS, i) > 0; i++) {
        if (lws_hdr_copy_fragment(wsi, part, sizeof part, WSI_TOKEN_HTTP_URI_ARGS, i) < 0)
            return err_set(err, EINVAL, "a query parameter is too long");
        char *value = strchr(part, '=');
        if (value)
            *value++ = '\0';
        if (json_object_set_new(query, part, json_string(value ? value : "")) < 0)
            return err_set(err, EINVAL, "a query parameter is not UTF-8 text");
    }
    *ret = TAKE_PTR(query);
    return 0;
}

/* Numeric, without the prefix of an IPv4 address on an IPv6 socket. */
static void read_address(const struct sockaddr_storage *from, char *ret, size_t size)
{
    const struct sockaddr_in *v4 = (const void *)from;
    const struct sockaddr_in6 *v6 = (const void *)from;
    const void *mapped = v6->sin6_addr.s6_addr + 12;
    if (from->ss_family == AF_INET)
        inet_ntop(AF_INET, &v4->sin_addr, ret, (socklen_t)size);
    else if (from->ss_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr))
        inet_ntop(AF_INET, mapped, ret, (socklen_t)size);
    else if (from->ss_family == AF_INET6)
        inet_ntop(AF_INET6, &v6->sin6_addr, ret, (socklen_t)size);
}

/* By the socket itself: libwebsockets may move a connection between vhosts because of its Host header. */
static int read_caller(struct lws *wsi, struct host *host, struct request *request, struct err *err)
{
    struct sockaddr_storage from = {0};
    struct ucred credentials;
    socklen_t size = sizeof from;
    int fd = (int)lws_get_socket_fd(wsi);
    if (getsockname(fd, (struct sockaddr *)&from, &size) < 0)
        return err_sys(err, errno, "cannot tell who asks");
    if (from.ss_family == AF_UNIX) {
        size = sizeof credentials;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
            return err_sys(err, errno, "cannot tell who asks");
        request->caller = CALLER_LOCAL;
        request->credentials = (struct credentials){credentials.pid, credentials.uid, credentials.gid};
        return 0;
    }
    size = sizeof from;
    if (getpeername(fd, (struct sockaddr *)&from, &size) == 0)
        read_address(&from, request->address, sizeof request->address);
    SSL *ssl = lws_get_ssl(wsi);
    request->caller = CALLER_STRANGER;
    if (!ssl || tls_peer_fingerprint(ssl, &request->key) < 0)
        return err_set(err, EACCES, "a host must prove its key");
    int r = peer_find_key(host->registry, &request->key, &request->peer, err);
    if (r == -ENOENT)
        return 0;
    if (r == 0)
        request->caller = CALLER_PEER;
    return r;
}

static int read_length(struct exchange *exchange, struct err *err)
{
    char text[24] = "";
    if (lws_hdr_total_length(exchange->wsi, WSI_TOKEN_HTTP_TRANSFER_ENCODING) > 0)
        return err_set(err, EINVAL, "a request's body must come with Content-Length, not chunked");
    if (lws_hdr_total_length(exchange->wsi, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0) {
        /* Without one libwebsockets believes that a body without end follows. */
        exchange->close_after |= strcmp(exchange->request.method, "GET") != 0;
        return 0;
    }
    if (lws_hdr_copy(exchange->wsi, text, sizeof text, WSI_TOKEN_HTTP_CONTENT_LENGTH) <= 0 ||
        strspn(text, "0123456789") != strlen(text))
        return err_set(err, EINVAL, "Content-Length is not a number");
    exchange->input_expected = strtoull(text, NULL, 10);
    unsigned most = exchange->request.caller == CALLER_STRANGER ? API_MAX_STRANGE_BODY : API_MAX_BODY;
    if (exchange->input_expected > most)
        return err_set(err, EFBIG, "a request's body may have %u bytes, not %zu", most,
                       exchange->input_expected);
    return 0;
}

int exchange_read_headers(struct exchange *exchange, struct host *host, struct err *err)
{
    struct request *request = &exchange->request;
    request->method = read_method(exchange->wsi);
    int r = read_caller(exchange->wsi, host, request, err);
    if (r == 0)
        r = read_length(exchange, err);
    if (r < 0) {
        exchange->close_after = true; /* where the next request begins is not known */
        return r;
    }
    if (exchange->input_expected > 0 && !(exchange->input = malloc(exchange->input_expected)))
        return err_set(err, ENOMEM, "out of memory");
    return read_query(exchange->wsi, &request->query, err);
}

int exchange_read_body(struct exchange *exchange, struct err *err)
{
    if (exchange->input_size == 0)
        return 0;
    int r =
        json_parse(exchange->input, exchange->input_size, "the request's body", &exchange->request.body, err);
    free(TAKE_PTR(exchange->input));
    return r;
}

static int set_out(struct exchange *exchange, const void *data, size_t size)
{
    free(exchange->out);
    exchange->out_size = exchange->out_sent = 0;
    exchange->out = malloc(LWS_PRE + size + 1);
    if (!exchange->out)
        return -ENOMEM;
    memcpy(exchange->out + LWS_PRE, data, size);
    exchange->out_size = size;
    return 0;
}

/* Appends `line` and a newline as one chunk (RFC 9112, 7.1). */
static int add_chunk(struct exchange *exchange, const char *line)
{
    size_t length = strlen(line), old = exchange->out_size;
    char *out = realloc(exchange->out, LWS_PRE + old + length + 32);
    if (!out)
        return -ENOMEM;
    exchange->out = out;
    exchange->out_size +=
        (size_t)snprintf(out + LWS_PRE + old, length + 32, "%zx\r\n%s\n\r\n", length + 1, line);
    return 0;
}

static int add_end(struct exchange *exchange)
{
    static const char end[] = "0\r\n\r\n";
    char *out = realloc(exchange->out, LWS_PRE + exchange->out_size + sizeof end);
    if (!out)
        return -ENOMEM;
    exchange->out = out;
    memcpy(out + LWS_PRE + exchange->out_size, end, sizeof end - 1);
    exchange->out_size += sizeof end - 1;
    return 0;
}

int exchange_render(struct exchange *exchange)
{
    struct answer *answer = &exchange->answer;
    if (answer->text)
        return set_out(exchange, answer->text, answer->text_size);
    if (!answer->stream) {
        _cleanup_free_ char *text = json_dumps(answer->body, JSON_COMPACT);
        return text ? set_out(exchange, text, strlen(text)) : -ENOMEM;
    }
    size_t index;
    json_t *event;
    int r = set_out(exchange, "", 0);
    json_array_foreach(answer->body, index, event)
    {
        _cleanup_free_ char *line = json_dumps(event, JSON_COMPACT);
        if (r == 0)
            r = line ? add_chunk(exchange, line) : -ENOMEM;
    }
    json_decref(TAKE_PTR(answer->body));
    return r;
}

int exchange_render_events(struct exchange *exchange, struct events *events)
{
    const char *vm = exchange->answer.stream_vm[0] ? exchange->answer.stream_vm : NULL;
    int r = set_out(exchange, "", 0);
    while (r == 0 && exchange->out_size < STREAM_BATCH && !exchange->close_after) {
        _cleanup_free_ char *line = NULL;
        r = events_next(events, vm, &exchange->answer.stream_after, &line);
        if (r == -EAGAIN)
            return 0;
        exchange->close_after = r == -EOVERFLOW;
        r = line ? add_chunk(exchange, line) : -ENOMEM;
        if (r == 0 && exchange->close_after)
            r = add_end(exchange);
    }
    return r;
}

static int add_header(struct lws *wsi, const char *name, const char *value, uint8_t **at, uint8_t *end)
{
    return lws_add_http_header_by_name(wsi, (const uint8_t *)name, (const uint8_t *)value, (int)strlen(value),
                                       at, end);
}

static int write_headers(struct exchange *exchange)
{
    uint8_t buffer[LWS_PRE + 1024], *start = buffer + LWS_PRE, *at = start, *end = buffer + sizeof buffer - 1;
    struct lws *wsi = exchange->wsi;
    bool stream = exchange->answer.stream;
    if (lws_add_http_header_status(wsi, (unsigned)exchange->answer.status, &at, end) ||
        add_header(wsi, "content-type:", stream ? "application/x-ndjson" : "application/json", &at, end) ||
        add_header(wsi, "cache-control:", "no-store", &at, end))
        return -1;
    if (stream ? add_header(wsi, "transfer-encoding:", "chunked", &at, end)
               : lws_add_http_header_content_length(wsi, exchange->out_size, &at, end))
        return -1;
    if ((exchange->close_after || stream) && add_header(wsi, "connection:", "close", &at, end))
        return -1;
    if (lws_finalize_http_header(wsi, &at, end))
        return -1;
    exchange->headers_sent = true;
    int size = (int)(at - start);
    return lws_write(wsi, start, (size_t)size, LWS_WRITE_HTTP_HEADERS) < size ? -1 : 0;
}

int exchange_write(struct exchange *exchange)
{
    if (!exchange->headers_sent) {
        if (write_headers(exchange) < 0)
            return -1;
        lws_callback_on_writable(exchange->wsi);
        return 0;
    }
    size_t left = exchange->out_size - exchange->out_sent, now = MIN(left, WRITE_MAX);
    if (now == 0)
        return 1;
    uint8_t *data = (uint8_t *)exchange->out + LWS_PRE + exchange->out_sent;
    enum lws_write_protocol kind =
        now == left && !exchange->answer.stream ? LWS_WRITE_HTTP_FINAL : LWS_WRITE_HTTP;
    if (lws_write(exchange->wsi, data, now, kind) < (int)now)
        return -1;
    exchange->out_sent += now;
    if (now == left)
        return 1;
    lws_callback_on_writable(exchange->wsi);
    return 0;
}

void exchange_free(struct exchange *exchange)
{
    if (!exchange)
        return;
    request_done(&exchange->request);
    answer_done(&exchange->answer);
    free(exchange->input);
    free(exchange->out);
    free(exchange);
}
