/* SPDX-License-Identifier: Apache-2.0
 *
 * QEMU's migration stream to the encoder, in pieces; the packets to the decoder. Beside memory errors: what
 * comes out is what went in, whatever it is. The corpus is recorded from QEMU 7.2 and 10.0, with most pages
 * cut out.
 */
#include "base/macro.h"
#include "memory/codec.h"

#include <stdlib.h>
#include <string.h>

#define PAGES UINT64_C(64)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The checkpoint: pages that begin with their number's lowest byte, the rest is zero. */
static int read_page(void *arg, uint64_t page, uint8_t ret[KNOWN_PAGE], struct err *err)
{
    if (page >= PAGES)
        abort();
    memset(ret, 0, KNOWN_PAGE);
    ret[0] = (uint8_t)page;
    return 0;
}

static struct known *make_known(void)
{
    struct known *known;
    if (known_new(PAGES, 7, &known, NULL) < 0)
        abort();
    for (uint8_t i = 1; i < PAGES; i++) {
        uint8_t page[KNOWN_PAGE], message[8 + KNOWN_HASH] = {i};
        read_page(NULL, i, page, NULL);
        known_hash(7, page, message + 8);
        if (known_add(known, message, sizeof message, NULL) < 0)
            abort();
    }
    return known;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct known *known;
    struct encoder *encoder;
    struct decoder *decoder;
    size_t piece = 1 + size / 200 + (size ? data[size - 1] * (size_t)67 : 0), at = 0, back = 0;
    if (!known)
        known = make_known();
    if (encoder_new(known, &encoder, NULL) < 0 || decoder_new(read_page, NULL, &decoder, NULL) < 0)
        abort();
    for (bool more = true; more;) {
        size_t some = MIN(piece, size - at), packet_size, length = 0;
        const uint8_t *bytes = NULL;
        more = at < size;
        const uint8_t *packet = more ? encoder_take(encoder, data + at, some, at & 1, &packet_size)
                                     : encoder_end(encoder, &packet_size);
        at += some;
        if (packet_size && decoder_take(decoder, packet, packet_size, &bytes, &length, NULL) < 0)
            abort();
        if (length > at - back || (length && memcmp(bytes, data + back, length) != 0))
            abort();
        back += length;
    }
    if (back != size)
        abort();
    encoder_free(encoder);
    decoder_free(decoder);
    return 0;
}
