/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/requests.h"

#include "base/endian.h"
#include "base/macro.h"
#include "memory/qstream.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum back { BACK_REQ_PAGES_ID = 3, BACK_REQ_PAGES = 4, BACK_RECV_BITMAP = 5, BACK_LAST = 7 };

void requests_init(struct requests *requests, const char *block, uint64_t size)
{
    size_t length = strlen(block);
    assert(length < sizeof requests->name - 1);
    memset(requests, 0, sizeof *requests);
    requests->name[0] = (uint8_t)length;
    memcpy(requests->name + 1, block, length);
    requests->pages = size / QSTREAM_PAGE_SIZE;
}

/* The bytes that the message in front has, as far as that is known. */
static size_t needed(struct requests *requests)
{
    if (requests->size < REQUESTS_HEAD)
        return REQUESTS_HEAD;
    unsigned type = get_be16(requests->message), length = get_be16(requests->message + 2);
    requests->deaf = requests->deaf || type == 0 || type > BACK_LAST || length > REQUESTS_MOST;
    return REQUESTS_HEAD + MIN(length, REQUESTS_MOST);
}

/* A whole message. false: it asks for nothing. */
static bool read_request(struct requests *requests, struct page_request *ret)
{
    const uint8_t *data = requests->message + REQUESTS_HEAD;
    unsigned type = get_be16(requests->message), length = get_be16(requests->message + 2);
    bool named = type == BACK_REQ_PAGES_ID && length >= 13 && length == 13U + data[12];
    if (named)
        requests->ours = memcmp(data + 12, requests->name, 1U + requests->name[0]) == 0;
    else if (type == BACK_REQ_PAGES ? length != 12 : type == BACK_REQ_PAGES_ID || type == BACK_RECV_BITMAP)
        requests->deaf = true;
    if (requests->deaf || (!named && type != BACK_REQ_PAGES))
        return false;
    uint64_t page = get_be64(data) / QSTREAM_PAGE_SIZE, size = get_be32(data + 8);
    uint64_t end = page + (size + QSTREAM_PAGE_SIZE - 1) / QSTREAM_PAGE_SIZE;
    *ret = (struct page_request){
        .ours = requests->ours, .page = MIN(page, requests->pages), .end = MIN(end, requests->pages)};
    return true;
}

bool requests_next(struct requests *requests, const uint8_t **data, size_t *size, struct page_request *ret)
{
    while (!requests->deaf && *size) {
        size_t some = MIN(needed(requests) - requests->size, *size);
        memcpy(requests->message + requests->size, *data, some);
        requests->size += some;
        *data += some;
        *size -= some;
        if (requests->size < needed(requests) || requests->deaf)
            continue;
        requests->size = 0;
        if (read_request(requests, ret))
            return true;
    }
    return false;
}

size_t requests_make(uint8_t ret[REQUESTS_ROOM], const char *block, uint64_t start, uint32_t size)
{
    size_t name = strlen(block);
    assert(REQUESTS_HEAD + 13 + name < REQUESTS_ROOM);
    put_be16(ret, BACK_REQ_PAGES_ID);
    put_be16(ret + 2, (uint16_t)(13 + name));
    put_be64(ret + 4, start);
    put_be32(ret + 12, size);
    ret[16] = (uint8_t)name;
    snprintf((char *)ret + 17, REQUESTS_ROOM - 17, "%s", block); /* with a 0 behind it */
    return REQUESTS_HEAD + 13 + name;
}
