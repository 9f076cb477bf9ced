/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/client.h"

#include "base/json.h"
#include "base/macro.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CONNECT_SECONDS 5L
#define ANSWER_MS 120000L
#define MOST_MS (UINT64_C(1000) * 86400 * 7)

struct client {
    CURL *curl;
    char *socket;
    long patience_ms;
};

/* What has come of an answer. */
struct answer {
    CURL *curl;
    char *data;
    size_t size;
    client_line_fn *on_line; /* NULL: the answer is one document */
    void *arg;
    struct err *err;
    int result; /* of on_line or of a lack of memory; ends the transfer */
};

int client_new(const char *socket, struct client **ret, struct err *err)
{
    struct client *client = calloc(1, sizeof *client);
    if (client) {
        client->curl = curl_easy_init();
        client->socket = strdup(socket);
        client->patience_ms = ANSWER_MS;
    }
    if (!client || !client->curl || !client->socket) {
        client_free(client);
        return err_set(err, ENOMEM, "out of memory");
    }
    *ret = client;
    return 0;
}

void client_free(struct client *client)
{
    if (!client)
        return;
    curl_easy_cleanup(client->curl);
    free(client->socket);
    free(client);
}

void client_set_patience(struct client *client, uint64_t msec)
{
    client->patience_ms = (long)MIN(msec, MOST_MS);
}

static void answer_done(struct answer *answer)
{
    free(answer->data);
}

/* Server-sent events come as "data: {...}" lines between others; plain JSON lines come as they are. */
static int take_line(struct answer *answer, const char *line, size_t length)
{
    static const char prefix[] = "data:";
    if (length >= sizeof prefix - 1 && memcmp(line, prefix, sizeof prefix - 1) == 0) {
        line += sizeof prefix - 1;
        length -= sizeof prefix - 1;
    }
    while (length > 0 && *line == ' ')
        line++, length--;
    if (length == 0 || *line != '{')
        return 0;
    _cleanup_json_ json_t *object = NULL;
    int r = json_parse(line, length, "oraid's event", &object, answer->err);
    return r < 0 ? r : answer->on_line(answer->arg, object, answer->err);
}

static int take_lines(struct answer *answer)
{
    char *end, *from = answer->data;
    int r = 0;
    while (r == 0 && (end = memchr(from, '\n', answer->size - (size_t)(from - answer->data)))) {
        r = take_line(answer, from, (size_t)(end - from));
        from = end + 1;
    }
    answer->size -= (size_t)(from - answer->data);
    memmove(answer->data, from, answer->size);
    return r;
}

static size_t on_data(char *data, size_t size, size_t count, void *arg)
{
    struct answer *answer = arg;
    size_t length = size * count;
    long status = 0;
    curl_easy_getinfo(answer->curl, CURLINFO_RESPONSE_CODE, &status);
    if (answer->size + length > JSON_MAX_SIZE) {
        answer->result = err_set(answer->err, EFBIG, "oraid's answer is larger than %u bytes", JSON_MAX_SIZE);
        return 0;
    }
    char *grown = realloc(answer->data, answer->size + length + 1);
    if (!grown) {
        answer->result = err_set(answer->err, ENOMEM, "out of memory");
        return 0;
    }
    answer->data = grown;
    memcpy(grown + answer->size, data, length);
    answer->size += length;
    if (answer->on_line && status < 400)
        answer->result = take_lines(answer);
    return answer->result < 0 ? 0 : length;
}

static int not_reached(const struct client *client, struct err *err)
{
    long number = 0;
    curl_easy_getinfo(client->curl, CURLINFO_OS_ERRNO, &number);
    if (number == 0)
        number = ECONNREFUSED;
    err_sys(err, (int)number, "cannot reach oraid at %s", client->socket);
    if (number == EACCES || number == EPERM)
        return err_hint(err, "run it as root, or join the group orai: adduser $USER orai");
    return err_hint(err, "start it with: systemctl start oraid");
}

static int transport_error(const struct client *client, CURLcode code, const char *method, const char *text,
                           struct err *err)
{
    if (code == CURLE_COULDNT_CONNECT)
        return not_reached(client, err);
    err_set(err, EPIPE, "oraid at %s did not answer: %s%s", client->socket,
            *text ? text : curl_easy_strerror(code),
            strcmp(method, "GET") == 0 ? "" : "; it may have done what it was asked to");
    return err_hint(err, "systemctl status oraid");
}

/* oraid's own error as it stands in the answer, or what the status says. */
static int refusal(const struct answer *answer, long status, struct err *err)
{
    _cleanup_json_ json_t *json = NULL;
    if (answer->size > 0 && json_parse(answer->data, answer->size, "oraid's answer", &json, NULL) == 0) {
        json_t *error = json_object_get(json, "error");
        struct err told;
        if (json_is_object(error) && err_from_json(error, &told) < 0 && told.code) {
            if (err)
                *err = told;
            return -told.code;
        }
    }
    return err_set(err, EPROTO, "oraid answered with HTTP status %ld and no explanation", status);
}

static void prepare(struct client *client, const char *method, const char *url, const char *body,
                    struct answer *answer, char *text)
{
    CURL *curl = client->curl;
    curl_easy_reset(curl);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, client->socket);
    curl_easy_setopt(curl, CURLOPT_PROXY, ""); /* whatever http_proxy says */
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, text);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, CONNECT_SECONDS);
    if (!answer->on_line)
        curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, client->patience_ms);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    else if (strcmp(method, "GET") != 0)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "");
}

static int perform(struct client *client, const char *method, const char *path, const char *body,
                   struct answer *answer, long *ret_status, struct err *err)
{
    char text[CURL_ERROR_SIZE] = "";
    char url[4096];
    *ret_status = 0;
    if (snprintf(url, sizeof url, "http://oraid%s", path) >= (int)sizeof url)
        return err_set(err, ENAMETOOLONG, "a name is too long");
    prepare(client, method, url, body, answer, text);
    struct curl_slist *headers = curl_slist_append(NULL, "Content-Type: application/json");
    curl_easy_setopt(client->curl, CURLOPT_HTTPHEADER, headers);
    CURLcode code = curl_easy_perform(client->curl);
    curl_slist_free_all(headers);
    if (code != CURLE_OK && answer->result == 0)
        return transport_error(client, code, method, text, err);
    curl_easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, ret_status);
    if (answer->result < 0)
        return answer->result;
    return *ret_status >= 400 ? refusal(answer, *ret_status, err) : 0;
}

int client_call(struct client *client, const char *method, const char *path, const json_t *body,
                long *ret_status, json_t **ret, struct err *err)
{
    _cleanup_(answer_done) struct answer answer = {.curl = client->curl, .err = err};
    _cleanup_free_ char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    *ret_status = 0;
    if (body && !text)
        return err_set(err, EINVAL, "an argument is not UTF-8 text");
    int r = perform(client, method, path, text, &answer, ret_status, err);
    if (r < 0 || !ret)
        return r;
    if (answer.size == 0) {
        *ret = json_null();
        return 0;
    }
    return json_parse(answer.data, answer.size, "oraid's answer", ret, err);
}

int client_stream(struct client *client, const char *path, client_line_fn *on_line, void *arg,
                  long *ret_status, struct err *err)
{
    _cleanup_(answer_done) struct answer answer = {
        .curl = client->curl, .on_line = on_line, .arg = arg, .err = err};
    return perform(client, "GET", path, NULL, &answer, ret_status, err);
}
