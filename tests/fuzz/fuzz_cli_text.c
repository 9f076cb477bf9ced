/* SPDX-License-Identifier: Apache-2.0
 *
 * Texts of strangers on the terminal: whatever comes in, nothing that steers the terminal goes out, and what
 * is cut fits.
 */
#include "cli/text.h"

#include "base/macro.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_free_ char *text = strndup((const char *)data, size);
    if (!text)
        return 0;
    _cleanup_free_ char *visible = text_visible(text);
    for (const char *p = visible; *p; p++)
        assert((uint8_t)*p >= 0x20 && *p != 0x7f);
    size_t width = size % 40;
    assert(text_width(visible) < width || (text_cut(visible, width), text_width(visible) <= width));
    text_cut(text, width);
    assert(text_width(text) <= width);
    return 0;
}
