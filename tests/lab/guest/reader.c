/* SPDX-License-Identifier: Apache-2.0 */
#include "reader.h"

#include "pace.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { WORKING_SET = 8 }; /* one MiB in so many is read at all */
enum { BLOCK = 4096, MIB = 1 << 20, SLOTS = 6000, SLOT_MS = 100 };

struct reader {
    int fd;
    uint64_t mib, state;
    double *reach;   /* reach[i]: how many of all reads go to the i + 1 most popular MiB, 0 to 1 */
    uint64_t *place; /* which MiB those are */
    void *buffer;
    int64_t began;
    _Atomic uint32_t counts[SLOTS], errors;
};

static uint64_t next_random(struct reader *reader)
{
    return pattern_mix(++reader->state);
}

static uint64_t popular_mib(struct reader *reader)
{
    double wanted = (double)(next_random(reader) >> 11) / (double)(UINT64_C(1) << 53);
    uint64_t low = 0, high = reader->mib - 1;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (reader->reach[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return reader->place[low];
}

static void *reader_thread(void *arg)
{
    struct reader *reader = arg;
    for (;;) {
        uint64_t offset = popular_mib(reader) * MIB + next_random(reader) % (MIB / BLOCK) * BLOCK;
        if (pread(reader->fd, reader->buffer, BLOCK, (off_t)offset) != BLOCK)
            reader->errors++;
        int64_t slot = (pace_now() - reader->began) / ((int64_t)SLOT_MS * MS);
        if (slot >= SLOTS)
            return NULL;
        reader->counts[slot]++;
    }
}

/* Zipf's law with exponent 1, over a shuffled disk. */
static int make_law(struct reader *reader)
{
    double sum = 0;
    reader->reach = calloc(reader->mib, sizeof(*reader->reach));
    reader->place = calloc(reader->mib, sizeof(*reader->place));
    if (reader->reach == NULL || reader->place == NULL)
        return -ENOMEM;
    for (uint64_t i = 0; i < reader->mib; i++) {
        sum += i < reader->mib / WORKING_SET ? 1 / (double)(i + 1) : 0;
        reader->reach[i] = sum;
        reader->place[i] = i;
    }
    for (uint64_t i = reader->mib - 1; i > 0; i--) {
        uint64_t other = next_random(reader) % (i + 1), mine = reader->place[i];
        reader->place[i] = reader->place[other];
        reader->place[other] = mine;
    }
    for (uint64_t i = 0; i < reader->mib; i++)
        reader->reach[i] /= sum;
    return 0;
}

static void reader_free(struct reader *reader)
{
    if (reader->fd >= 0)
        close(reader->fd);
    free(reader->reach);
    free(reader->place);
    free(reader->buffer);
    free(reader);
}

int reader_start(struct reader **ret_reader, const char *path, uint64_t mib, uint64_t seed)
{
    pthread_t thread;
    struct reader *reader = calloc(1, sizeof(*reader));
    if (reader == NULL)
        return -ENOMEM;
    reader->mib = mib;
    reader->state = seed;
    reader->fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    int r = reader->fd < 0 ? -errno : 0;
    if (r == 0)
        r = mib > 0 ? make_law(reader) : -EINVAL;
    if (r == 0)
        r = -posix_memalign(&reader->buffer, BLOCK, BLOCK);
    reader->began = pace_now();
    if (r == 0)
        r = -pthread_create(&thread, NULL, reader_thread, reader);
    if (r < 0) {
        reader_free(reader);
        return r;
    }
    pthread_detach(thread);
    *ret_reader = reader;
    return 0;
}

void reader_print(const struct reader *reader, FILE *out)
{
    int64_t now = pace_now(), slots = reader ? (now - reader->began) / ((int64_t)SLOT_MS * MS) : 0;
    fprintf(out, "{\"uptime_ms\":%" PRId64 ",\"slot_ms\":%d,\"errors\":%u,\"reads\":[", now / MS, SLOT_MS,
            reader ? reader->errors : 0);
    for (int64_t i = 0; i < slots && i < SLOTS; i++)
        fprintf(out, "%s%u", i > 0 ? "," : "", reader->counts[i]);
    fprintf(out, "]}\n");
}
