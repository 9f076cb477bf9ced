/* SPDX-License-Identifier: Apache-2.0
 *
 * format: the one place where results become text. A verb names its columns once (struct view); the four
 * formats come from that and from the API's JSON.
 *
 *   table  for people: amounts with units, times as local time, control characters made visible (a peer or a
 * guest chose some of these texts; none may move the cursor), cut to the terminal's width when there is one
 *   json   the API's objects as they are
 *   yaml   the same objects; every text that YAML could take for something else is quoted
 *   csv    the view's columns under their keys, raw numbers, RFC 4180's quotes, lines ending in LF
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum format { FORMAT_TABLE, FORMAT_JSON, FORMAT_YAML, FORMAT_CSV };

/* "table|json|yaml|csv", for help. */
#define FORMAT_NAMES "table|json|yaml|csv"
/* 0 or -EINVAL. */
int format_parse(const char *name, enum format *ret);

enum column_kind {
    COLUMN_TEXT,
    COLUMN_COUNT,
    COLUMN_BYTES,
    COLUMN_RATE, /* bytes per second */
    COLUMN_MSEC,
    COLUMN_SECONDS,
    COLUMN_TIME, /* RFC 3339 in UTC, or milliseconds since 1970 */
    COLUMN_BOOL, /* yes, no */
    COLUMN_LIST, /* of texts */
};

struct column {
    const char *key; /* member of the row; "move.state" goes into the object `move` */
    const char *title;
    enum column_kind kind;
    unsigned width; /* in a stream, where the rows to come are not known yet; 0 = as they come */
};

/* A list or an object inside an object, which is shown as a table of its own below it. */
struct section {
    const char *key; /* as in struct column */
    const char *title;
    const struct view *view;
};

struct view {
    const struct column *columns;   /* ends at a NULL key */
    const char *empty;              /* said instead of a table without rows */
    const struct section *sections; /* NULL, or ends at a NULL key; only for one object */
};

struct style {
    enum format format;
    unsigned width; /* columns of the terminal; 0 = none */
    bool colour;
};

/* Rows under a heading. 0, or -errno when `out` cannot be written. */
int format_list(FILE *out, const struct style *style, const struct view *view, const json_t *rows);
/* One object: a line per column, then the sections. csv: one row, without the sections. */
int format_object(FILE *out, const struct style *style, const struct view *view, const json_t *object);

/* Rows of a list that has no end: the heading (NULL row), then each row as it comes, flushed. json: one line
 * each; yaml: one document each. */
int format_stream(FILE *out, const struct style *style, const struct view *view, const json_t *row);

/* One cell as `table` and `csv` show it; malloc'ed. A missing value is "-" (table) or "" (csv). */
char *format_cell(const json_t *row, const struct column *column, enum format format);

/* The member that a dotted key names, or NULL. */
const json_t *format_member(const json_t *row, const char *key);

/* The formats' own parts. */
void format_yaml(FILE *out, const json_t *json);
void format_csv_field(FILE *out, const char *text);
