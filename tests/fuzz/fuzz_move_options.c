/* SPDX-License-Identifier: Apache-2.0
 *
 * The options of a move, as they come through the API: what is accepted is within the bounds that the move's
 * arithmetic relies on.
 */
#include "base/json.h"
#include "base/macro.h"
#include "move/move.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_json_ json_t *json = NULL;
    struct move_options options;
    if (json_parse((const char *)data, size, "request", &json, NULL) < 0 ||
        move_options_from_json(json, &options, NULL) < 0)
        return 0;
    check(options.connections >= 1 && options.connections <= 8);
    check(options.timeout_ms <= INT64_MAX / 1000000 && options.max_blackout_ms <= INT64_MAX / 1000000);
    check(options.peer.port != 0);
    check(memchr(options.peer.name, 0, sizeof options.peer.name) != NULL);
    check(memchr(options.peer.address, 0, sizeof options.peer.address) != NULL);
    return 0;
}
