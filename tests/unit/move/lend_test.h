/* SPDX-License-Identifier: Apache-2.0
 *
 * What the tests of fetch and lender share: three hosts with copies of one disk. b lends the newest, which is
 * frozen; c has a replica of an earlier generation; a runs the VM on a copy that is older still, and split.
 *
 *   extent   0     1             2                    3                 4 (one short block)
 *   a        '0'   missing       missing              missing           missing
 *   c        '0'   '1' '0'       '1' '0'              '1' '0'           '0'        each 7th block is older
 *   b        '0'   as c but one  '2' half, then as c  a hole, then as c '2'
 */
#pragma once

#include "../disk/split_test.h"
#include "base/endian.h"
#include "base/json.h"
#include "move/lender.h"
#include "move/session.h"
#include "move_test.h"

#define LENT_SIZE (4 * MiB + 512)
#define LENT_BLOCKS (LENT_SIZE / DISK_BLOCK + 1)
#define LENT_EPOCH 7U
#define LAST_BLOCK (LENT_BLOCKS - 1)

static struct disk *lent, *shared;
static uint32_t base_generation, shared_generation, handover;
static struct move_host borrowing = {.name = "a"}, lending = {.name = "b"}, sharing = {.name = "c"};

static inline size_t lent_length(uint64_t block, uint64_t count)
{
    return MIN((block + count) * DISK_BLOCK, LENT_SIZE) - block * DISK_BLOCK;
}

static inline void write_blocks(struct disk *disk, uint64_t block, uint64_t count, char version)
{
    for (uint64_t i = block; i < block + count; i++) {
        uint8_t data[DISK_BLOCK];
        memset(data, version, sizeof data);
        put_le64(data, i);
        assert_int_equal(disk_write(disk, data, lent_length(i, 1), i * DISK_BLOCK, false), 0);
    }
}

static inline void copy_file(const char *from, const char *to, const char *suffix)
{
    char path[192];
    struct stat st;
    snprintf(path, sizeof path, "%s%s", from, suffix);
    int in = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "%s%s", to, suffix);
    int out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_true(in >= 0 && out >= 0 && fstat(in, &st) == 0);
    for (off_t left = st.st_size; left > 0;) {
        ssize_t n = copy_file_range(in, NULL, out, NULL, (size_t)left, 0);
        assert_true(n > 0);
        left -= n;
    }
    close(in);
    close(out);
}

/* Of a disk that is closed. */
static inline void copy_disk(const char *from, const char *to)
{
    static const char *const suffixes[] = {"", ".map", ".lineage", ".intent"};
    for (size_t i = 0; i < ARRAY_SIZE(suffixes); i++)
        copy_file(from, to, suffixes[i]);
}

static inline void write_newest(void)
{
    struct id id = id_random();
    write_blocks(lent, EXTENT + 5, 1, '2');
    write_blocks(lent, 2 * EXTENT, EXTENT / 2, '2');
    assert_int_equal(disk_trim(lent, EXTENT / 2 * DISK_BLOCK, 3 * EXTENT * DISK_BLOCK, false), 0);
    write_blocks(lent, LAST_BLOCK, 1, '2');
    assert_ok(disk_advance(lent, &id, LINEAGE_HANDOVER, "b", &handover, &err));
    disk_freeze(lent);
    set_claim(lent, LINEAGE_REPLICA, handover);
}

static inline int make_copies(void **state)
{
    if (make_hosts(state) < 0)
        return -1;
    borrowing.identity = host_a;
    lending.identity = host_b;
    sharing.identity = host_c;
    lent = new_disk(in_folder("lent"), LENT_SIZE);
    write_blocks(lent, 0, LENT_BLOCKS, '0');
    base_generation = seal(lent);
    close_disk(lent);
    copy_disk(in_folder("lent"), in_folder("base"));
    lent = open_disk(in_folder("lent"), 0);
    for (uint64_t block = EXTENT; block < 4 * EXTENT; block++)
        if (block % 7)
            write_blocks(lent, block, 1, '1');
    shared_generation = seal(lent);
    close_disk(lent);
    copy_disk(in_folder("lent"), in_folder("shared"));
    lent = open_disk(in_folder("lent"), 0);
    write_newest();
    shared = open_disk(in_folder("shared"), DISK_FROZEN);
    set_claim(shared, LINEAGE_REPLICA, shared_generation);
    return 0;
}

static inline int drop_copies(void **state)
{
    close_disk(lent);
    close_disk(shared);
    return drop_hosts(state);
}

/* The borrower's. */
static inline struct disk *split_copy(const char *path)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    _cleanup_free_ uint8_t *bits = NULL;
    const struct lineage_base base = {.base = base_generation};
    size_t size;
    uint64_t blocks;
    copy_disk(in_folder("base"), path);
    struct disk *disk = open_disk(path, DISK_FROZEN);
    set_claim(disk, LINEAGE_PARTIAL, base_generation);
    assert_ok(disk_lineage(lent, &lineage, &err));
    lineage->claim = LINEAGE_PARTIAL;
    lineage->complete = base_generation;
    assert_ok(split_picture(lent, &base, handover, &bits, &size, &blocks, &err));
    assert_ok(disk_expect(disk, lineage, bits, size, &err));
    become_split(disk);
    return disk;
}

static inline struct lender *new_lender(bool shares)
{
    struct lender_options options = {.host = shares ? &sharing : &lending,
                                     .vm = vm,
                                     .epoch = LENT_EPOCH,
                                     .borrower = *tls_identity_fingerprint(host_a),
                                     .disks = {shares ? shared : lent},
                                     .disk_count = 1,
                                     .shares = shares};
    struct lender *lender = NULL;
    assert_ok(lender_new(&options, &lender, &err));
    return lender;
}

static inline int listen_on_loopback(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 16), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
    *ret_port = ntohs(address.sin_port);
    return listener;
}
