/* SPDX-License-Identifier: Apache-2.0 */
#include "host/client.h"

#include "base/json.h"
#include "base/macro.h"
#include "base/tls_pin.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ANSWER_MAX (4U << 20)

struct transfer {
    CURL *easy;
    struct client_call *call;
    char *body, *answer;
    size_t answer_size;
    struct curl_slist *headers;
    char pin[64], error[CURL_ERROR_SIZE];
};

int client_open(void)
{
    return curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? 0 : -ENOMEM;
}

static size_t take(char *data, size_t unit, size_t count, void *arg)
{
    struct transfer *transfer = arg;
    size_t size = unit * count;
    if (size > ANSWER_MAX - transfer->answer_size)
        return 0; /* ends the transfer with CURLE_WRITE_ERROR */
    char *answer = realloc(transfer->answer, transfer->answer_size + size + 1);
    if (!answer)
        return 0;
    memcpy(answer + transfer->answer_size, data, size);
    transfer->answer = answer;
    transfer->answer_size += size;
    return size;
}

static CURLcode prepare_tls(CURL *easy, void *context, void *arg)
{
    (void)easy, (void)arg;
    tls_pin_context(context);
    return CURLE_OK;
}

static void set_tls(struct transfer *transfer, const struct host *host)
{
    unsigned char base64[48];
    const struct peer *peer = transfer->call->peer;
    EVP_EncodeBlock(base64, peer->fingerprint.bytes, HASH_SIZE);
    snprintf(transfer->pin, sizeof transfer->pin, "sha256//%s", base64);
    CURL *easy = transfer->easy;
    curl_easy_setopt(easy, CURLOPT_SSLCERT, tls_identity_cert_path(host->identity));
    curl_easy_setopt(easy, CURLOPT_SSLKEY, tls_identity_key_path(host->identity));
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L); /* the key is the name */
    curl_easy_setopt(easy, CURLOPT_CAINFO, NULL);
    curl_easy_setopt(easy, CURLOPT_CAPATH, NULL);
    curl_easy_setopt(easy, CURLOPT_SSL_CTX_FUNCTION, prepare_tls);
    curl_easy_setopt(easy, CURLOPT_PINNEDPUBLICKEY, transfer->pin);
    curl_easy_setopt(easy, CURLOPT_SSL_SESSIONID_CACHE, 0L);
}

static void set_url(struct transfer *transfer)
{
    const struct client_call *call = transfer->call;
    char url[1024];
    bool v6 = strchr(call->peer->address, ':') != NULL;
    snprintf(url, sizeof url, "https://%s%s%s:%u%s", v6 ? "[" : "", call->peer->address, v6 ? "]" : "",
             call->peer->port, call->path);
    curl_easy_setopt(transfer->easy, CURLOPT_URL, url);
}

static int begin(struct transfer *transfer, const struct host *host)
{
    struct client_call *call = transfer->call;
    CURL *easy = transfer->easy = curl_easy_init();
    if (!easy)
        return err_set(&call->err, ENOMEM, "out of memory");
    set_url(transfer);
    set_tls(transfer, host);
    curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "https");
    curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(easy, CURLOPT_PROXY, "");
    curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)call->msec);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, call->method);
    if (!call->body)
        return 0;
    transfer->body = json_dumps(call->body, JSON_COMPACT);
    transfer->headers = curl_slist_append(NULL, "Content-Type: application/json");
    if (!transfer->body || !transfer->headers)
        return err_set(&call->err, ENOMEM, "out of memory");
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer->headers);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, transfer->body);
    return 0;
}

static int unreachable(struct transfer *transfer, CURLcode code)
{
    struct client_call *call = transfer->call;
    const char *name = call->peer->name, *address = call->peer->address;
    unsigned port = call->peer->port;
    switch (code) {
    case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
        err_set(&call->err, EACCES, "the host at %s port %u is not \"%s\": it has another key", address, port,
                name);
        return err_hint(
            &call->err,
            "check the address; if that host was set up anew: orai peer remove %s, then a new invite", name);
    case CURLE_OPERATION_TIMEDOUT:
        return err_set(&call->err, ETIMEDOUT, "\"%s\" (%s port %u) did not answer within %d s", name, address,
                       port, (call->msec + 999) / 1000);
    case CURLE_WRITE_ERROR:
        return err_set(&call->err, EPROTO, "the answer of \"%s\" is too large", name);
    default:
        err_set(&call->err, EHOSTUNREACH, "cannot reach \"%s\" at %s port %u: %s", name, address, port,
                transfer->error[0] ? transfer->error : curl_easy_strerror(code));
        return err_hint(&call->err, "is oraid running there, and TCP port %u open between the hosts?", port);
    }
}

static int take_answer(struct transfer *transfer, long status)
{
    struct client_call *call = transfer->call;
    _cleanup_json_ json_t *answer = NULL;
    int r = json_parse(transfer->answer ? transfer->answer : "", transfer->answer_size, "the answer", &answer,
                       &call->err);
    if (r < 0) {
        err_set(&call->err, EPROTO, "\"%s\" answered %ld with something that is not JSON", call->peer->name,
                status);
        return err_hint(&call->err, "is it oraid that listens at %s port %u?", call->peer->address,
                        call->peer->port);
    }
    if (status >= 200 && status < 300) {
        call->status = (int)status;
        call->answer = TAKE_PTR(answer);
        return 0;
    }
    r = err_from_json(json_object_get(answer, "error"), &call->err);
    err_where(&call->err, call->peer->name, NULL);
    return r;
}

static void finish(struct transfer *transfer, CURLcode code)
{
    struct client_call *call = transfer->call;
    long status = 0;
    curl_off_t connected = 0, looked_up = 0;
    curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    if (curl_easy_getinfo(transfer->easy, CURLINFO_CONNECT_TIME_T, &connected) == CURLE_OK && connected > 0 &&
        curl_easy_getinfo(transfer->easy, CURLINFO_NAMELOOKUP_TIME_T, &looked_up) == CURLE_OK)
        call->latency_ms = (double)(connected - looked_up) / 1000;
    call->r = code == CURLE_OK ? take_answer(transfer, status) : unreachable(transfer, code);
}

static void transfer_done(struct transfer *transfer)
{
    curl_easy_cleanup(transfer->easy);
    curl_slist_free_all(transfer->headers);
    free(transfer->body);
    free(transfer->answer);
}

static void collect(CURLM *multi)
{
    int left;
    for (CURLMsg *message; (message = curl_multi_info_read(multi, &left));) {
        struct transfer *transfer = NULL;
        if (message->msg != CURLMSG_DONE)
            continue;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&transfer);
        finish(transfer, message->data.result);
    }
}

static void run(CURLM *multi)
{
    int running = 1;
    while (running > 0 && curl_multi_perform(multi, &running) == CURLM_OK) {
        collect(multi);
        if (running > 0 && curl_multi_poll(multi, NULL, 0, 1000, NULL) != CURLM_OK)
            return;
    }
    collect(multi);
}

void client_calls(const struct host *host, struct client_call *calls, size_t count)
{
    _cleanup_free_ struct transfer *transfers = calloc(count + 1, sizeof *transfers);
    CURLM *multi = curl_multi_init();
    for (size_t i = 0; i < count; i++) {
        calls[i].answer = NULL;
        calls[i].status = 0;
        calls[i].latency_ms = -1;
        calls[i].r = err_set(&calls[i].err, ENOMEM, "out of memory");
        if (!transfers || !multi)
            continue;
        transfers[i].call = &calls[i];
        int r = begin(&transfers[i], host);
        if (r < 0)
            calls[i].r = r;
        else
            curl_multi_add_handle(multi, transfers[i].easy);
    }
    if (transfers && multi)
        run(multi);
    for (size_t i = 0; transfers && i < count; i++) {
        if (transfers[i].easy)
            curl_multi_remove_handle(multi, transfers[i].easy);
        transfer_done(&transfers[i]);
    }
    curl_multi_cleanup(multi);
}

int client_call(const struct host *host, struct client_call *call)
{
    client_calls(host, call, 1);
    return call->r;
}
