/* SPDX-License-Identifier: Apache-2.0
 *
 * openapi: the text of openapi.json, built into the program.
 */
#pragma once

#include <stddef.h>

extern const char openapi_text[];
extern const size_t openapi_size; /* without the NUL */
