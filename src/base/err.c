/* SPDX-License-Identifier: Apache-2.0 */
#define ERR_DEFINES_THEM
#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The arguments may point into *err itself. */
__attribute__((format(printf, 3, 0))) static void vset(struct err *err, int code, const char *format,
                                                       va_list args)
{
    struct err new = {.code = code};
    vsnprintf(new.text, sizeof new.text, format, args);
    *err = new;
}

int err_set(struct err *err, int errnum, const char *format, ...)
{
    errnum = abs(errnum);
    if (err) {
        va_list args;
        va_start(args, format);
        vset(err, errnum, format, args);
        va_end(args);
    }
    return -errnum;
}

int err_sys(struct err *err, int errnum, const char *format, ...)
{
    errnum = abs(errnum);
    if (err) {
        va_list args;
        va_start(args, format);
        vset(err, errnum, format, args);
        va_end(args);
        size_t used = strlen(err->text);
        const char *words =
            strerrordesc_np(errnum); /* unlike strerror: any thread, and the same in each locale */
        snprintf(err->text + used, sizeof err->text - used, ": %s", words ? words : "unknown error");
    }
    return -errnum;
}

int err_context(struct err *err, const char *format, ...)
{
    if (!err)
        return -EIO;
    char old[sizeof err->text];
    memcpy(old, err->text, sizeof old);

    va_list args;
    va_start(args, format);
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    size_t used = strlen(err->text);
    snprintf(err->text + used, sizeof err->text - used, ": %s", old);
    return -err->code;
}

int err_hint(struct err *err, const char *format, ...)
{
    if (!err)
        return -EIO;
    char hint[sizeof err->hint] = ""; /* the arguments may point into *err */
    va_list args;
    va_start(args, format);
    vsnprintf(hint, sizeof hint, format, args);
    va_end(args);
    memcpy(err->hint, hint, sizeof hint);
    return -err->code;
}

int err_where(struct err *err, const char *host, const char *stage)
{
    if (!err)
        return -EIO;
    if (host && !err->host[0])
        snprintf(err->host, sizeof err->host, "%s", host);
    if (stage && !err->stage[0])
        snprintf(err->stage, sizeof err->stage, "%s", stage);
    return -err->code;
}

/* The codes that cross a process border, by name: numbers differ between systems. */
static const struct {
    int code;
    const char *name;
} codes[] = {
    {EPERM, "EPERM"},
    {ENOENT, "ENOENT"},
    {EINTR, "EINTR"},
    {EIO, "EIO"},
    {EAGAIN, "EAGAIN"},
    {ENOMEM, "ENOMEM"},
    {EACCES, "EACCES"},
    {EBUSY, "EBUSY"},
    {EEXIST, "EEXIST"},
    {ENODEV, "ENODEV"},
    {EINVAL, "EINVAL"},
    {EFBIG, "EFBIG"},
    {ENOSPC, "ENOSPC"},
    {EROFS, "EROFS"},
    {EPIPE, "EPIPE"},
    {ERANGE, "ERANGE"},
    {EPROTO, "EPROTO"},
    {EBADMSG, "EBADMSG"},
    {EOVERFLOW, "EOVERFLOW"},
    {EMSGSIZE, "EMSGSIZE"},
    {ENOTSUP, "ENOTSUP"},
    {ECONNRESET, "ECONNRESET"},
    {ETIMEDOUT, "ETIMEDOUT"},
    {ECONNREFUSED, "ECONNREFUSED"},
    {EHOSTUNREACH, "EHOSTUNREACH"},
    {EALREADY, "EALREADY"},
    {ESTALE, "ESTALE"},
    {EDQUOT, "EDQUOT"},
    {ECANCELED, "ECANCELED"},
    {EOWNERDEAD, "EOWNERDEAD"},
    {ENOTCONN, "ENOTCONN"},
    {EADDRINUSE, "EADDRINUSE"},
    {ESRCH, "ESRCH"},
    {ENOTDIR, "ENOTDIR"},
    {EISDIR, "EISDIR"},
    {EMFILE, "EMFILE"},
    {ENFILE, "ENFILE"},
    {ENOTEMPTY, "ENOTEMPTY"},
    {ENAMETOOLONG, "ENAMETOOLONG"},
    {ENETUNREACH, "ENETUNREACH"},
    {EXDEV, "EXDEV"},
    {EADDRNOTAVAIL, "EADDRNOTAVAIL"},
    {ENOEXEC, "ENOEXEC"},
    {ETXTBSY, "ETXTBSY"},
};

static const char *code_name(int code)
{
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].code == code)
            return codes[i].name;
    return "EIO";
}

static int code_number(const char *name)
{
    for (size_t i = 0; name && i < sizeof codes / sizeof *codes; i++)
        if (strcmp(codes[i].name, name) == 0)
            return codes[i].code;
    return EPROTO;
}

/* A text may hold a file's name in another encoding, or be cut inside a character: JSON cannot, and an error
 * must get through. `value` has at most sizeof err->text bytes. */
static json_t *text_to_json(const char *value)
{
    json_t *json = json_string(value);
    if (json)
        return json;
    char ascii[sizeof((struct err *)0)->text];
    snprintf(ascii, sizeof ascii, "%s", value);
    for (char *c = ascii; *c; c++)
        if (*c & 0x80)
            *c = '?';
    return json_string(ascii);
}

static void add(json_t *object, const char *key, const char *value)
{
    if (value[0])
        json_object_set_new(object, key, text_to_json(value));
}

json_t *err_to_json(const struct err *err)
{
    json_t *object = json_object();
    add(object, "code", code_name(err->code));
    add(object, "text", err->text);
    add(object, "hint", err->hint);
    add(object, "stage", err->stage);
    add(object, "host", err->host);
    return object;
}

/* Control characters, also the ones above 0x7f (in UTF-8 0xc2 and a byte below 0xa0), would let a peer write
 * escape sequences to a terminal or lines to a log. */
static void take(const json_t *object, const char *key, char *ret, size_t size)
{
    const char *value = json_string_value(json_object_get(object, key));
    snprintf(ret, size, "%s", value ? value : "");
    for (unsigned char *c = (unsigned char *)ret; *c; c++) {
        if (*c < 0x20 || *c == 0x7f)
            *c = ' ';
        else if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0)
            c[1] = 0xa0; /* no-break space */
    }
}

int err_from_json(const json_t *json, struct err *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->code = code_number(json_string_value(json_object_get(json, "code")));
    take(json, "text", ret->text, sizeof ret->text);
    take(json, "hint", ret->hint, sizeof ret->hint);
    take(json, "stage", ret->stage, sizeof ret->stage);
    take(json, "host", ret->host, sizeof ret->host);
    if (!ret->text[0])
        snprintf(ret->text, sizeof ret->text, "an error without a text");
    return -ret->code;
}
