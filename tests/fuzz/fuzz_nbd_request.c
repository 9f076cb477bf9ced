/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_nbd_request: one request of an NBD client's transmission phase. First byte: what was negotiated.
 */
#include "base/macro.h"
#include "disk/nbd_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct nbd_request request;
    if (size < 1 + NBD_REQUEST_SIZE || !nbd_request_parse(data + 1, &request))
        return 0;
    struct nbd_session session = {
        .size = UINT64_C(1) << (data[0] >> 3),
        .read_only = data[0] & 1,
        .structured = data[0] & 2,
        .base_allocation = (data[0] & 6) == 6,
    };
    enum nbd_error error = nbd_request_check(&request, &session);
    assert(nbd_error_from((int)error) == error); /* one that may go over the wire */
    if (error || request.type == NBD_CMD_DISC)
        return 0;
    assert(request.type <= NBD_CMD_BLOCK_STATUS);
    assert(request.offset <= session.size && request.length <= session.size - request.offset);
    assert(!session.read_only || !nbd_request_modifies(&request));
    assert(request.length <= NBD_PAYLOAD_MAX ||
           (request.type != NBD_CMD_READ && request.type != NBD_CMD_WRITE));
    assert(request.type != NBD_CMD_BLOCK_STATUS || (session.base_allocation && request.length > 0));
    return 0;
}
