/* SPDX-License-Identifier: Apache-2.0 */
#include "disk/nbd_request.h"
#include "nbd_test.h"

#include <errno.h>

#define SIZE (UINT64_C(1) << 30)

static const struct nbd_session plain = {.size = SIZE};
static const struct nbd_session full = {.size = SIZE, .structured = true, .base_allocation = true};
static const struct nbd_session read_only = {.size = SIZE, .read_only = true};

static enum nbd_error check(const struct nbd_session *session, uint16_t type, uint16_t flags, uint64_t offset,
                            uint32_t length)
{
    struct nbd_request request = {.type = type, .flags = flags, .offset = offset, .length = length};
    return nbd_request_check(&request, session);
}

static void a_request_is_parsed_field_by_field(void **state)
{
    struct bytes bytes = {0};
    struct nbd_request request;
    add_request(&bytes, NBD_CMD_FLAG_FUA, NBD_CMD_WRITE, 0x1122334455667788, 0xaabbccdd, 4096);
    assert_true(nbd_request_parse(bytes.at, &request));
    assert_int_equal(request.flags, NBD_CMD_FLAG_FUA);
    assert_int_equal(request.type, NBD_CMD_WRITE);
    assert_int_equal(request.offset, 0xaabbccdd);
    assert_int_equal(request.length, 4096);

    uint8_t reply[NBD_SIMPLE_SIZE];
    nbd_put_simple(reply, &request, NBD_ENOSPC);
    assert_int_equal(get_be32(reply), NBD_SIMPLE_REPLY_MAGIC);
    assert_int_equal(get_be32(reply + 4), 28);
    assert_int_equal(get_be64(reply + 8), 0x1122334455667788);
}

static void a_wrong_magic_is_not_a_request(void **state)
{
    uint8_t bytes[NBD_REQUEST_SIZE] = {0x25, 0x60, 0x95, 0x14};
    struct nbd_request request;
    assert_false(nbd_request_parse(bytes, &request));
}

static void ranges_end_with_the_export(void **state)
{
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, SIZE - 1, 1), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, SIZE - 1, 2), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, SIZE, 0), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, UINT64_MAX, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_WRITE, 0, SIZE - 1, 2), NBD_ENOSPC);
    assert_int_equal(check(&plain, NBD_CMD_WRITE_ZEROES, 0, UINT64_MAX - 1, UINT32_MAX), NBD_ENOSPC);
    assert_int_equal(check(&plain, NBD_CMD_TRIM, 0, SIZE, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_CACHE, 0, SIZE, 1), NBD_EINVAL);
    assert_int_equal(check(&full, NBD_CMD_BLOCK_STATUS, 0, SIZE - 1, 2), NBD_EINVAL);
}

static void payloads_have_a_limit(void **state)
{
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_READ, 0, 0, NBD_PAYLOAD_MAX + 1), NBD_EOVERFLOW);
    assert_int_equal(check(&plain, NBD_CMD_WRITE, 0, 0, NBD_PAYLOAD_MAX), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_WRITE, 0, 0, NBD_PAYLOAD_MAX + 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_WRITE_ZEROES, 0, 0, SIZE), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_TRIM, 0, 0, SIZE), NBD_SUCCESS);
}

static void a_read_only_export_refuses_what_modifies(void **state)
{
    assert_int_equal(check(&read_only, NBD_CMD_WRITE, 0, 0, 1), NBD_EPERM);
    assert_int_equal(check(&read_only, NBD_CMD_WRITE, 0, SIZE, 1), NBD_EPERM);
    assert_int_equal(check(&read_only, NBD_CMD_TRIM, 0, 0, 1), NBD_EPERM);
    assert_int_equal(check(&read_only, NBD_CMD_WRITE_ZEROES, 0, 0, 1), NBD_EPERM);
    assert_int_equal(check(&read_only, NBD_CMD_READ, 0, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&read_only, NBD_CMD_FLUSH, 0, 0, 0), NBD_SUCCESS);
}

static void flags_belong_to_their_commands(void **state)
{
    for (uint16_t type = NBD_CMD_READ; type <= NBD_CMD_WRITE_ZEROES; type++)
        assert_int_equal(check(&plain, type, NBD_CMD_FLAG_FUA, 0, 0), NBD_SUCCESS);
    assert_int_equal(check(&full, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_WRITE, NBD_CMD_FLAG_NO_HOLE, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_TRIM, NBD_CMD_FLAG_FAST_ZERO, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO, 0, 1),
                     NBD_SUCCESS);
    assert_int_equal(check(&full, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&full, NBD_CMD_READ, NBD_CMD_FLAG_REQ_ONE, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&full, NBD_CMD_WRITE, 1 << 5, 0, 1), NBD_EINVAL);
}

static void block_status_must_have_been_negotiated(void **state)
{
    assert_int_equal(check(&plain, NBD_CMD_BLOCK_STATUS, 0, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&full, NBD_CMD_BLOCK_STATUS, 0, 0, 1), NBD_SUCCESS);
    assert_int_equal(check(&full, NBD_CMD_BLOCK_STATUS, 0, 0, 0), NBD_EINVAL);
}

static void unknown_commands_are_invalid(void **state)
{
    assert_int_equal(check(&full, 8, 0, 0, 0), NBD_EINVAL);
    assert_int_equal(check(&full, 0xffff, 0, 0, 0), NBD_EINVAL);
}

static void a_flush_has_no_range(void **state)
{
    assert_int_equal(check(&plain, NBD_CMD_FLUSH, 0, 0, 0), NBD_SUCCESS);
    assert_int_equal(check(&plain, NBD_CMD_FLUSH, 0, 0, 1), NBD_EINVAL);
    assert_int_equal(check(&plain, NBD_CMD_FLUSH, 0, 1, 0), NBD_EINVAL);
}

static void errors_become_those_of_the_wire(void **state)
{
    assert_int_equal(nbd_error_from(0), NBD_SUCCESS);
    assert_int_equal(nbd_error_from(-EROFS), NBD_EPERM);
    assert_int_equal(nbd_error_from(EACCES), NBD_EPERM);
    assert_int_equal(nbd_error_from(-EDQUOT), NBD_ENOSPC);
    assert_int_equal(nbd_error_from(-EFBIG), NBD_ENOSPC);
    assert_int_equal(nbd_error_from(-ENOTSUP), NBD_ENOTSUP);
    assert_int_equal(nbd_error_from(-ESHUTDOWN), NBD_ESHUTDOWN);
    assert_int_equal(nbd_error_from(-EBADF), NBD_EIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_is_parsed_field_by_field),
        cmocka_unit_test(a_wrong_magic_is_not_a_request),
        cmocka_unit_test(ranges_end_with_the_export),
        cmocka_unit_test(payloads_have_a_limit),
        cmocka_unit_test(a_read_only_export_refuses_what_modifies),
        cmocka_unit_test(flags_belong_to_their_commands),
        cmocka_unit_test(block_status_must_have_been_negotiated),
        cmocka_unit_test(unknown_commands_are_invalid),
        cmocka_unit_test(a_flush_has_no_range),
        cmocka_unit_test(errors_become_those_of_the_wire),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
