/* SPDX-License-Identifier: Apache-2.0
 *
 * id: 128-bit random numbers (VMs, disks, generations, moves) and SHA-256 hashes (hosts, images), and their
 * lower-case hex text.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct id {
    uint8_t bytes[16];
};

#define ID_TEXT_SIZE 33   /* with the terminating NUL */
#define HASH_SIZE 32      /* SHA-256 */
#define HASH_TEXT_SIZE 65 /* with the terminating NUL */

/* From the kernel's random source; never fails. */
struct id id_random(void);
bool id_equal(const struct id *a, const struct id *b);
bool id_is_zero(const struct id *id);
/* Writes ID_TEXT_SIZE bytes to `text`, returns it. */
const char *id_format(const struct id *id, char text[ID_TEXT_SIZE]);
/* Accepts exactly 32 hex digits; dashes as in UUIDs are skipped. 0 or -EINVAL. */
int id_parse(const char *text, struct id *ret);

/* `text` needs 2 * size + 1 bytes. */
const char *hex_format(const void *bytes, size_t size, char *text);
/* Exactly 2 * size digits. 0 or -EINVAL. */
int hex_parse(const char *text, void *ret, size_t size);
