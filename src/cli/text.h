/* SPDX-License-Identifier: Apache-2.0
 *
 * text: texts of strangers on a terminal: measured in its columns, made harmless, cut where a character ends.
 */
#pragma once

#include <stddef.h>

/* Columns that `text` takes; bytes that are not UTF-8 count as one each. */
size_t text_width(const char *text);
/* A malloc'ed copy in which what could steer a terminal or turn the reading direction (C0, DEL, C1,
 * bidirectional controls, stray bytes) is written as \xNN or \u{N}. Aborts when out of memory. */
char *text_visible(const char *text);
/* Cuts `text` in place to at most `width` columns, the last one an ellipsis when something was cut. */
void text_cut(char *text, size_t width);
