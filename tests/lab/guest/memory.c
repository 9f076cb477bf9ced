/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include "pace.h"
#include "pattern.h"
#include "serial.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    PAGE = 4096,
    PAGE_WORDS = PAGE / 8,
    PAGES_PER_MIB = (1 << 20) / PAGE,
    TICKS_PER_SECOND = 100,
    CHECKS_PER_TICK = 16, /* 64 MiB in 10 s, for a few per cent of one slow CPU */
};

struct memory {
    /* Of the thread alone. */
    uint64_t *words;
    uint32_t *versions;
    uint64_t pages;
    uint64_t next_check;
    uint64_t rewrites;

    _Atomic uint64_t dirty_mib;
    _Atomic uint64_t errors, checks;
};

static uint64_t *page_words(const struct memory *memory, uint64_t page)
{
    return memory->words + page * PAGE_WORDS;
}

static uint64_t page_seed(const struct memory *memory, uint64_t page)
{
    return page << 32 | memory->versions[page];
}

static void page_rewrite(struct memory *memory, uint64_t page)
{
    memory->versions[page]++;
    pattern_fill(page_words(memory, page), PAGE_WORDS, page_seed(memory, page));
}

static void page_check(struct memory *memory, uint64_t page)
{
    atomic_fetch_add(&memory->checks, 1);
    if (pattern_matches(page_words(memory, page), PAGE_WORDS, page_seed(memory, page)))
        return;
    atomic_fetch_add(&memory->errors, 1);
    serial_say("pulse: memory error in page %" PRIu64 ", version %" PRIu32, page, memory->versions[page]);
    page_rewrite(memory, page);
}

static void check_some(struct memory *memory)
{
    for (int i = 0; i < CHECKS_PER_TICK; i++) {
        page_check(memory, memory->next_check);
        memory->next_check = (memory->next_check + 1) % memory->pages;
    }
}

/* Scattered, and checked first: otherwise rewriting would hide damage. */
static void rewrite_some(struct memory *memory, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        uint64_t page = pattern_mix(memory->rewrites++) % memory->pages;
        page_check(memory, page);
        page_rewrite(memory, page);
    }
}

static void *memory_thread(void *arg)
{
    struct memory *memory = arg;
    struct pace pace = {0};
    uint64_t due = 0; /* in pages per TICKS_PER_SECOND, so that low rates do not round down to none */
    for (;;) {
        pace_wait(&pace, SECOND / TICKS_PER_SECOND);
        due += atomic_load(&memory->dirty_mib) * PAGES_PER_MIB;
        rewrite_some(memory, due / TICKS_PER_SECOND);
        due %= TICKS_PER_SECOND;
        check_some(memory);
    }
    return NULL;
}

static void *allocate(uint64_t size)
{
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return data != MAP_FAILED ? data : NULL;
}

struct memory *memory_start(uint64_t size_mib, uint64_t dirty_mib)
{
    struct memory *memory = calloc(1, sizeof(*memory));
    uint64_t pages = size_mib * PAGES_PER_MIB;
    if (memory == NULL || (memory->words = allocate(pages * PAGE)) == NULL ||
        (memory->versions = allocate(pages * sizeof(uint32_t))) == NULL)
        return NULL; /* half-built: pulse goes on without it until the guest ends */

    memory->pages = pages;
    memory->dirty_mib = dirty_mib;
    for (uint64_t page = 0; page < pages; page++)
        page_rewrite(memory, page);
    pthread_t thread;
    return pthread_create(&thread, NULL, memory_thread, memory) == 0 ? memory : NULL;
}

void memory_set_dirty(struct memory *memory, uint64_t mib_per_second)
{
    atomic_store(&memory->dirty_mib, mib_per_second);
}

struct memory_status memory_status(const struct memory *memory)
{
    if (memory == NULL)
        return (struct memory_status){0};
    return (struct memory_status){.errors = memory->errors, .checks = memory->checks};
}
