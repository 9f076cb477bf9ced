/* SPDX-License-Identifier: Apache-2.0
 *
 * table: the format for people (format.h): columns lined up, numbers to the right, the widest text column cut
 * when the terminal is too narrow.
 */
#pragma once

#include "cli/format.h"

void table_list(FILE *out, const struct style *style, const struct view *view, const json_t *rows);
void table_object(FILE *out, const struct style *style, const struct view *view, const json_t *object);
/* The heading when `row` is NULL. */
void table_stream(FILE *out, const struct view *view, const json_t *row);
