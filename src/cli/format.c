/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/format.h"

#include "base/macro.h"
#include "base/size.h"
#include "cli/table.h"
#include "cli/text.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

int format_parse(const char *name, enum format *ret)
{
    static const char *const names[] = {"table", "json", "yaml", "csv"};
    static_assert(FORMAT_CSV + 1 == ARRAY_SIZE(names), "one name per format");
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (strcmp(name, names[i]) == 0) {
            *ret = (enum format)i;
            return 0;
        }
    return -EINVAL;
}

const json_t *format_member(const json_t *row, const char *key)
{
    const char *dot;
    while ((dot = strchr(key, '.'))) {
        char part[64];
        snprintf(part, sizeof part, "%.*s", (int)(dot - key), key);
        row = json_object_get(row, part);
        key = dot + 1;
    }
    return json_object_get(row, key);
}

static char *print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static char *print(const char *format, ...)
{
    char *text;
    va_list args;
    va_start(args, format);
    int length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        abort();
    return text;
}

static char *joined(const json_t *list, const char *separator)
{
    char *text = print("%s", "");
    size_t i;
    json_t *item;
    json_array_foreach((json_t *)list, i, item)
    {
        _cleanup_free_ char *old = text;
        _cleanup_free_ char *other = json_is_string(item) ? NULL : json_dumps(item, JSON_ENCODE_ANY);
        text = print("%s%s%s", old, i ? separator : "", other ? other : json_string_value(item));
    }
    return text;
}

/* The value as data: what csv prints, and table too where no kind says it better. */
static char *raw_cell(const json_t *value)
{
    if (!value || json_is_null(value))
        return print("%s", "");
    if (json_is_string(value))
        return print("%s", json_string_value(value));
    if (json_is_boolean(value))
        return print("%s", json_is_true(value) ? "true" : "false");
    if (json_is_array(value))
        return joined(value, ";");
    char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    return text ? text : print("%s", "");
}

static char *duration_cell(double seconds)
{
    double msec = seconds * 1000;
    if (msec < 10 && msec != (int)msec)
        return print("%.1f ms", msec);
    if (seconds < 1)
        return print("%.0f ms", msec);
    if (seconds < 120)
        return print("%.1f s", seconds);
    unsigned long whole = (unsigned long)(seconds + 0.5);
    if (whole < 7200)
        return print("%lum %02lus", whole / 60, whole % 60);
    return print("%luh %02lum", whole / 3600, whole / 60 % 60);
}

static char *local_time(time_t seconds)
{
    struct tm tm;
    char text[64];
    if (!localtime_r(&seconds, &tm) || strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &tm) == 0)
        return NULL;
    return print("%s", text);
}

static char *time_cell(const char *text)
{
    struct tm tm = {0};
    const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
    char *local = rest && (*rest == '.' || *rest == 'Z') ? local_time(timegm(&tm)) : NULL;
    return local ? local : print("%s", text);
}

/* "state=running why=killed": the members of a small object on one line. */
static char *pairs(const json_t *object)
{
    char *text = print("%s", "");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)object, key, value)
    {
        if (json_is_null(value))
            continue;
        _cleanup_free_ char *old = text;
        _cleanup_free_ char *cell = raw_cell(value);
        text = print("%s%s%s=%s", old, *old ? " " : "", key, cell);
    }
    return text;
}

static char *number_cell(const json_t *value, enum column_kind kind)
{
    char text[SIZE_TEXT], *local;
    double number = json_number_value(value);
    switch (kind) {
    case COLUMN_BYTES:
        return print("%s", size_format(number < 0 ? 0 : (uint64_t)number, text));
    case COLUMN_RATE:
        return print("%s", rate_format(number, text));
    case COLUMN_MSEC:
        return duration_cell(number / 1000);
    case COLUMN_SECONDS:
        return duration_cell(number);
    case COLUMN_TIME:
        local = local_time((time_t)(json_integer_value(value) / 1000));
        return local ? local : raw_cell(value);
    case COLUMN_TEXT:
    case COLUMN_COUNT:
    case COLUMN_BOOL:
    case COLUMN_LIST:
        break;
    }
    return raw_cell(value);
}

static char *table_cell(const json_t *value, enum column_kind kind)
{
    if (!value || json_is_null(value))
        return print("-");
    if (json_is_number(value))
        return number_cell(value, kind);
    if (json_is_boolean(value))
        return print("%s", json_is_true(value) ? "yes" : "no");
    if (json_is_array(value))
        return joined(value, ", ");
    if (json_is_object(value))
        return pairs(value);
    if (json_is_string(value) && kind == COLUMN_TIME)
        return time_cell(json_string_value(value));
    return raw_cell(value);
}

char *format_cell(const json_t *row, const struct column *column, enum format format)
{
    const json_t *value = format_member(row, column->key);
    if (format == FORMAT_CSV)
        return raw_cell(value);
    _cleanup_free_ char *text = table_cell(value, column->kind);
    return text_visible(*text ? text : "-");
}

static void put_json(FILE *out, const json_t *json)
{
    json_dumpf(json, out, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    fputc('\n', out);
}

void format_csv_field(FILE *out, const char *text)
{
    size_t length = strlen(text);
    bool plain = !strpbrk(text, "\",\r\n") && (length == 0 || (text[0] != ' ' && text[length - 1] != ' '));
    if (plain) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void put_csv_row(FILE *out, const struct column *columns, const json_t *row)
{
    for (size_t i = 0; columns[i].key; i++) {
        _cleanup_free_ char *text = row ? format_cell(row, &columns[i], FORMAT_CSV) : NULL;
        if (i > 0)
            fputc(',', out);
        format_csv_field(out, row ? text : columns[i].key);
    }
    fputc('\n', out);
}

static void put_csv(FILE *out, const struct column *columns, const json_t *rows)
{
    put_csv_row(out, columns, NULL);
    size_t i;
    json_t *row;
    json_array_foreach((json_t *)rows, i, row) put_csv_row(out, columns, row);
}

static int finish(FILE *out)
{
    if (fflush(out) != 0)
        return -errno;
    return ferror(out) ? -EIO : 0;
}

int format_list(FILE *out, const struct style *style, const struct view *view, const json_t *rows)
{
    switch (style->format) {
    case FORMAT_TABLE:
        table_list(out, style, view, rows);
        break;
    case FORMAT_JSON:
        put_json(out, rows);
        break;
    case FORMAT_YAML:
        format_yaml(out, rows);
        break;
    case FORMAT_CSV:
        put_csv(out, view->columns, rows);
        break;
    }
    return finish(out);
}

int format_object(FILE *out, const struct style *style, const struct view *view, const json_t *object)
{
    _cleanup_json_ json_t *rows = NULL;
    switch (style->format) {
    case FORMAT_TABLE:
        table_object(out, style, view, object);
        break;
    case FORMAT_JSON:
        put_json(out, object);
        break;
    case FORMAT_YAML:
        format_yaml(out, object);
        break;
    case FORMAT_CSV:
        rows = json_pack("[O]", object);
        put_csv(out, view->columns, rows);
        break;
    }
    return finish(out);
}

int format_stream(FILE *out, const struct style *style, const struct view *view, const json_t *row)
{
    switch (style->format) {
    case FORMAT_TABLE:
        table_stream(out, view, row);
        break;
    case FORMAT_JSON:
        if (row)
            json_dumpf(row, out, JSON_COMPACT);
        fputs(row ? "\n" : "", out);
        break;
    case FORMAT_YAML:
        fputs(row ? "---\n" : "", out);
        if (row)
            format_yaml(out, row);
        break;
    case FORMAT_CSV:
        put_csv_row(out, view->columns, row);
        break;
    }
    return finish(out);
}
