/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets of QEMU's stream as a hostile source might send them: u16 length before each. Beside memory errors:
 * what is named of the checkpoint may be anything, what comes out never has more bytes than a packet may
 * have.
 */
#include "base/endian.h"
#include "base/macro.h"
#include "memory/codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_page(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err)
{
    memset(ret, (int)page, KNOWN_PAGE);
    return page < 64 ? 0 : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct decoder *decoder;
    uint8_t sum = 0;
    if (decoder_new(read_page, NULL, &decoder, NULL) < 0)
        abort();
    while (size >= 2) {
        const uint8_t *bytes;
        size_t length = MIN((size_t)get_le16(data), size - 2), count;
        if (decoder_take(decoder, data + 2, length, &bytes, &count, NULL) == 0) {
            if (count > CODEC_MAX_STREAM)
                abort();
            for (size_t i = 0; i < count; i++)
                sum ^= bytes[i];
        }
        data += 2 + length;
        size -= 2 + length;
    }
    decoder_free(decoder);
    (void)sum;
    return 0;
}
