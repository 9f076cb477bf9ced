/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_nbd_handshake: the negotiation of an NBD client. The input is what the client sends; its first byte
 * says in which pieces it arrives, for the answer must not depend on that.
 */
#include "base/macro.h"
#include "disk/nbd_handshake.h"

#include <string.h>

static const struct nbd_export export = {.name = "web1", .size = 1 << 30};

struct outcome {
    enum nbd_step step;
    size_t used;
    size_t answered;
    uint64_t sum; /* of all answers */
    struct nbd_session session;
};

static void take_answer(struct outcome *outcome, const struct nbd_output *output)
{
    outcome->answered += output->size;
    for (size_t i = 0; i < output->size; i++)
        outcome->sum = outcome->sum * 31 + output->bytes[i];
}

/* Feeds the bytes, `piece` more of them at a time. */
static struct outcome talk(const uint8_t *data, size_t size, size_t piece)
{
    struct nbd_handshake handshake;
    struct nbd_output output;
    struct outcome outcome = {.step = NBD_STEP_MORE};
    uint8_t greeting[NBD_GREETING_SIZE];
    size_t arrived = 0;
    nbd_handshake_init(&handshake, &export, greeting);
    for (;;) {
        size_t used;
        outcome.step =
            nbd_handshake_step(&handshake, data + outcome.used, arrived - outcome.used, &used, &output);
        assert(used <= arrived - outcome.used);
        outcome.used += used;
        outcome.session = handshake.session;
        take_answer(&outcome, &output);
        if (outcome.step == NBD_STEP_GO || outcome.step == NBD_STEP_CLOSE)
            return outcome;
        if (outcome.step == NBD_STEP_REPLY) {
            assert(used > 0);
            continue;
        }
        assert(output.size == 0 && arrived - outcome.used < 16 + NBD_OPTION_MAX);
        if (arrived == size)
            return outcome;
        arrived += MIN(piece, size - arrived);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    struct outcome whole = talk(data + 1, size - 1, size),
                   pieces = talk(data + 1, size - 1, 1 + data[0] % 64u);
    assert(whole.step == pieces.step && whole.used == pieces.used);
    assert(whole.answered == pieces.answered && whole.sum == pieces.sum);
    assert(whole.session.structured == pieces.session.structured);
    assert(whole.session.base_allocation == pieces.session.base_allocation);
    assert(whole.session.structured || !whole.session.base_allocation);
    return 0;
}
