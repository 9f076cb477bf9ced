/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/table.h"

#include "base/macro.h"
#include "cli/text.h"

#include <string.h>

#define GAP 2
#define NARROWEST 8 /* a column is not cut below this */

struct table {
    const struct column *columns;
    size_t column_count, row_count;
    char **cells; /* row by row; row 0 is the heading */
    size_t *widths;
};

static void table_done(struct table *table)
{
    for (size_t i = 0; table->cells && i < table->column_count * table->row_count; i++)
        free(table->cells[i]);
    free(table->cells);
    free(table->widths);
}

static void *allocate(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size);
    if (!p)
        abort();
    return p;
}

static char **cell(const struct table *table, size_t row, size_t column)
{
    return &table->cells[row * table->column_count + column];
}

static void table_fill(struct table *table, const struct column *columns, const json_t *rows)
{
    table->columns = columns;
    while (columns[table->column_count].key)
        table->column_count++;
    table->row_count = 1 + json_array_size(rows);
    table->cells = allocate(table->row_count * table->column_count, sizeof *table->cells);
    table->widths = allocate(table->column_count, sizeof *table->widths);
    for (size_t row = 0; row < table->row_count; row++)
        for (size_t i = 0; i < table->column_count; i++) {
            char *text = row == 0 ? text_visible(columns[i].title)
                                  : format_cell(json_array_get(rows, row - 1), &columns[i], FORMAT_TABLE);
            *cell(table, row, i) = text;
            table->widths[i] = MAX(table->widths[i], text_width(text));
        }
}

/* Takes columns from the widest text until the table fits, or nothing more can be cut. */
static void table_fit(struct table *table, unsigned terminal)
{
    for (;;) {
        size_t total = GAP * (table->column_count - 1), widest = table->column_count;
        for (size_t i = 0; i < table->column_count; i++) {
            total += table->widths[i];
            bool may_cut = table->columns[i].kind == COLUMN_TEXT || table->columns[i].kind == COLUMN_LIST;
            if (may_cut && (widest == table->column_count || table->widths[i] > table->widths[widest]))
                widest = i;
        }
        if (total <= terminal || widest == table->column_count || table->widths[widest] <= NARROWEST)
            return;
        table->widths[widest] =
            MAX(table->widths[widest] - MIN(total - terminal, table->widths[widest] - NARROWEST),
                (size_t)NARROWEST);
    }
}

static bool to_the_right(enum column_kind kind)
{
    return kind == COLUMN_COUNT || kind == COLUMN_BYTES || kind == COLUMN_RATE || kind == COLUMN_MSEC ||
           kind == COLUMN_SECONDS;
}

static void put_cell(FILE *out, char *text, size_t width, bool right, bool last)
{
    text_cut(text, width);
    int padding = (int)(width - MIN(width, text_width(text)));
    if (right)
        fprintf(out, "%*s%s", padding, "", text);
    else
        fprintf(out, "%s%*s", text, last ? 0 : padding, "");
}

static void put_row(FILE *out, struct table *table, size_t row)
{
    for (size_t i = 0; i < table->column_count; i++) {
        bool last = i + 1 == table->column_count;
        put_cell(out, *cell(table, row, i), table->widths[i], to_the_right(table->columns[i].kind), last);
        if (!last)
            fprintf(out, "%*s", GAP, "");
    }
}

void table_list(FILE *out, const struct style *style, const struct view *view, const json_t *rows)
{
    if (json_array_size(rows) == 0) {
        fprintf(out, "%s\n", view->empty);
        return;
    }
    _cleanup_(table_done) struct table table = {0};
    table_fill(&table, view->columns, rows);
    if (style->width)
        table_fit(&table, style->width);
    for (size_t row = 0; row < table.row_count; row++) {
        fputs(style->colour && row == 0 ? "\033[1m" : "", out);
        put_row(out, &table, row);
        fputs(style->colour && row == 0 ? "\033[0m\n" : "\n", out);
    }
}

static void put_members(FILE *out, const struct view *view, const json_t *object)
{
    size_t width = 0;
    for (const struct column *c = view->columns; c->key; c++)
        width = MAX(width, text_width(c->title));
    for (const struct column *c = view->columns; c->key; c++) {
        _cleanup_free_ char *text = format_cell(object, c, FORMAT_TABLE);
        fprintf(out, "%s:%*s%s\n", c->title, (int)(width - text_width(c->title)) + 1, "", text);
    }
}

static void put_sections(FILE *out, const struct style *style, const struct view *view, const json_t *object)
{
    for (const struct section *s = view->sections; s && s->key; s++) {
        const json_t *part = format_member(object, s->key);
        if (json_array_size(part) == 0 && json_object_size(part) == 0)
            continue;
        fprintf(out, "\n%s%s%s\n", style->colour ? "\033[1m" : "", s->title, style->colour ? "\033[0m" : "");
        if (json_is_object(part))
            put_members(out, s->view, part);
        else
            table_list(out, style, s->view, part);
    }
}

void table_object(FILE *out, const struct style *style, const struct view *view, const json_t *object)
{
    put_members(out, view, object);
    put_sections(out, style, view, object);
}

void table_stream(FILE *out, const struct view *view, const json_t *row)
{
    for (const struct column *c = view->columns; c->key; c++) {
        _cleanup_free_ char *text = row ? format_cell(row, c, FORMAT_TABLE) : text_visible(c->title);
        bool last = !c[1].key;
        int padding = (int)(c->width - MIN((size_t)c->width, text_width(text)));
        fprintf(out, "%s%*s", text, last ? 0 : padding + GAP, "");
    }
    fputc('\n', out);
}
