/* SPDX-License-Identifier: Apache-2.0
 *
 * What a peer's or client's JSON may do: nothing but be refused; and an error made of it can be passed on as
 * JSON without control characters.
 */
#include "base/json.h"
#include "base/macro.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    _cleanup_json_ json_t *json = NULL;
    struct err err = ERR_NONE;
    if (json_parse((const char *)data, size, "input", &json, &err) == 0 && err_from_json(json, &err) >= 0)
        abort();
    _cleanup_json_ json_t *back = err_to_json(&err);
    _cleanup_free_ char *text = json_dumps(back, JSON_COMPACT);
    if (!text)
        abort();
    for (const char *c = err.text; json && *c; c++)
        if ((unsigned char)*c < 0x20)
            abort();
    return 0;
}
