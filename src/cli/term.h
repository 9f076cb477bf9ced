/* SPDX-License-Identifier: Apache-2.0
 *
 * term: what the terminal behind a stream can do, if there is one.
 */
#pragma once

#include "cli/format.h"

/* No colour with NO_COLOR set (https://no-color.org) or on a dumb terminal; width 0 without a terminal. */
struct style term_style(FILE *out, enum format format);
