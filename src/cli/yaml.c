/* SPDX-License-Identifier: Apache-2.0
 *
 * YAML for both YAML 1.1 readers (PyYAML) and 1.2 ones: block style, and each text either so plain that no
 * reader takes it for a number, a boolean, a null or a date, or in double quotes with everything odd escaped.
 */
#include "cli/format.h"

#include "base/macro.h"

#include <ctype.h>
#include <math.h>
#include <string.h>
#include <strings.h>

static bool is_reserved(const char *text)
{
    static const char *const words[] = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"};
    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcasecmp(text, words[i]) == 0)
            return true;
    return false;
}

/* A letter or '_' first, then letters, digits and _ . / -: nothing of this means anything in YAML. */
static bool is_plain(const char *text)
{
    if (!isalpha((unsigned char)text[0]) && text[0] != '_')
        return false;
    for (const char *p = text; *p; p++)
        if (!isascii(*p) || (!isalnum((unsigned char)*p) && !strchr("_./-", *p)))
            return false;
    return !is_reserved(text);
}

/* C1 controls, the line separators and the byte order mark as UTF-8: not printable in YAML, so escaped.
 * Returns the bytes taken, 0 for any other character. */
static size_t put_odd_character(FILE *out, const unsigned char *p)
{
    if (p[0] == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) {
        fprintf(out, "\\x%02x", p[1]);
        return 2;
    }
    if (p[0] == 0xe2 && p[1] == 0x80 && (p[2] == 0xa8 || p[2] == 0xa9)) {
        fprintf(out, "\\u20%02x", p[2] - 0x80);
        return 3;
    }
    if (p[0] == 0xef && p[1] == 0xbb && p[2] == 0xbf) {
        fputs("\\ufeff", out);
        return 3;
    }
    if (p[0] == 0xef && p[1] == 0xbf && p[2] >= 0xbe) {
        fprintf(out, "\\uff%02x", p[2] + 0x40);
        return 3;
    }
    return 0;
}

static void put_text(FILE *out, const char *text)
{
    if (is_plain(text)) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        size_t taken = put_odd_character(out, p);
        if (taken == 0) {
            if (*p == '"' || *p == '\\')
                fprintf(out, "\\%c", *p);
            else if (*p == '\n')
                fputs("\\n", out);
            else if (*p < 0x20 || *p == 0x7f)
                fprintf(out, "\\x%02x", *p);
            else
                fputc(*p, out);
            taken = 1;
        }
        p += taken;
    }
    fputc('"', out);
}

/* YAML 1.1 wants a '.' and a signed exponent, or it takes the number for a text. */
static void put_real(FILE *out, double number)
{
    char text[40];
    snprintf(text, sizeof text, "%.15g", number);
    char *exponent = strchr(text, 'e');
    if (strchr(text, '.'))
        fputs(text, out);
    else if (exponent)
        fprintf(out, "%.*s.0%s", (int)(exponent - text), text, exponent);
    else
        fprintf(out, "%s.0", text);
}

static void put_scalar(FILE *out, const json_t *json)
{
    switch (json_typeof(json)) {
    case JSON_STRING:
        put_text(out, json_string_value(json));
        break;
    case JSON_INTEGER:
        fprintf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(json));
        break;
    case JSON_REAL:
        put_real(out, json_real_value(json));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        fputs(json_is_true(json) ? "true" : "false", out);
        break;
    case JSON_NULL:
        fputs("null", out);
        break;
    case JSON_OBJECT:
        fputs("{}", out);
        break;
    case JSON_ARRAY:
        fputs("[]", out);
        break;
    }
}

static bool is_block(const json_t *json)
{
    return json_object_size(json) > 0 || json_array_size(json) > 0;
}

/* Writes a list or object; the cursor stands at column `indent` of its first line already. The depth is
 * bounded: json_parse refuses what is nested deeper than 64 levels. */
/* NOLINTNEXTLINE(misc-no-recursion) */
static void put_block(FILE *out, const json_t *json, int indent)
{
    bool first = true;
    size_t i;
    const char *key;
    json_t *value;
    json_array_foreach((json_t *)json, i, value)
    {
        fprintf(out, "%*s- ", first ? 0 : indent, "");
        first = false;
        if (is_block(value)) {
            put_block(out, value, indent + 2);
        } else {
            put_scalar(out, value);
            fputc('\n', out);
        }
    }
    json_object_foreach((json_t *)json, key, value)
    {
        fprintf(out, "%*s", first ? 0 : indent, "");
        first = false;
        put_text(out, key);
        fputc(':', out);
        if (is_block(value)) {
            fprintf(out, "\n%*s", indent + 2, "");
            put_block(out, value, indent + 2);
        } else {
            fputc(' ', out);
            put_scalar(out, value);
            fputc('\n', out);
        }
    }
}

void format_yaml(FILE *out, const json_t *json)
{
    if (is_block(json)) {
        put_block(out, json, 0);
    } else {
        put_scalar(out, json);
        fputc('\n', out);
    }
}
