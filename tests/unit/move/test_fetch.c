/* SPDX-License-Identifier: Apache-2.0
 *
 * A real fetch, over real TLS on loopback: from a real lender and a real sharer; and from such that lie. What
 * each lie does to the disk (nothing), and to the rest of the fetch (nothing), is looked at.
 */
#include "lend_test.h"

#include "move/fetch.h"

#include <poll.h>
#include <stdatomic.h>
#include <xxhash.h>

#define MAX_LINKS 16

/* --- whoever lies --------------------------------------------------------------------------------------- */

struct actor;

/* One way to misbehave. A member that is NULL: there it is honest. */
struct lie {
    const char *name;
    /* Instead of the answer to the first request; of a sharer, to each. */
    void (*answer)(struct actor *actor, struct link *link, const struct wire_fetch *asked);
    /* Behind the answer to the second hello. */
    void (*greeting)(struct actor *actor, struct link *link);
    /* Of a sharer, instead of the lineage of its disk. */
    void (*lineage)(struct link *link, struct lineage *lineage);
    json_int_t disks; /* that it says it has; 0 = 1 */
    const char *why;  /* part of what the fetch says then; NULL: that it is harmless */
};

struct actor {
    const struct tls_identity *identity;
    struct disk *disk;
    const struct lie *lie;
    atomic_bool shares, told, vanishes;
    atomic_bool *waits_for; /* before it answers a request; may be NULL */
    pthread_mutex_t lock;   /* of what waits */
    struct waiting {
        struct link *link;
        struct wire_fetch asked;
    } waiting[64];
    size_t waiting_count;
    struct link *links[MAX_LINKS];
    unsigned link_count;
};

static void send_run(struct link *link, struct wire_run run, const uint8_t *data, size_t size)
{
    uint8_t head[WIRE_RUN_SIZE];
    if (!run.checksum && !(run.flags & WIRE_RUN_ZERO))
        run.checksum = XXH3_64bits(data, size);
    wire_run_encode(&run, head);
    link_send(link, FRAME_RUN, head, sizeof head, data, size, NULL);
}

static void send_fetched(struct link *link, const struct wire_fetch *asked)
{
    uint8_t bytes[WIRE_FETCH_SIZE];
    wire_fetch_encode(asked, bytes);
    link_send(link, FRAME_FETCHED, bytes, sizeof bytes, NULL, 0, NULL);
}

static void answer_honestly(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    uint64_t end = asked->block + asked->count;
    struct disk_run run;
    for (uint64_t at = asked->block;
         at < end && disk_next_run(actor->disk, at, asked->above, UINT32_MAX, 1, &run) && run.block < end;
         at = run.block + 1) {
        uint8_t data[DISK_BLOCK];
        size_t size = lent_length(run.block, 1);
        disk_read(actor->disk, data, size, run.block * DISK_BLOCK);
        send_run(
            link,
            (struct wire_run){.generation = MIN(run.generation, asked->upto), .block = run.block, .count = 1},
            data, size);
    }
    send_fetched(link, asked);
}

/* Does what was asked have to wait? Then it does. */
static bool keep_waiting(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    pthread_mutex_lock(&actor->lock);
    bool wait = actor->waits_for && (!*actor->waits_for || actor->waiting_count > 0) &&
                actor->waiting_count < ARRAY_SIZE(actor->waiting);
    if (wait)
        actor->waiting[actor->waiting_count++] = (struct waiting){link, *asked};
    pthread_mutex_unlock(&actor->lock);
    return wait;
}

static void answer_what_waits(struct actor *actor)
{
    pthread_mutex_lock(&actor->lock);
    for (size_t i = 0; actor->waits_for && *actor->waits_for && i < actor->waiting_count; i++)
        answer_honestly(actor, actor->waiting[i].link, &actor->waiting[i].asked);
    if (actor->waits_for && *actor->waits_for)
        actor->waiting_count = 0;
    pthread_mutex_unlock(&actor->lock);
}

static void on_fetch(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    bool first = !atomic_exchange(&actor->told, true);
    if (actor->lie && actor->lie->answer && (first || actor->shares))
        actor->lie->answer(actor, link, asked);
    else if ((!actor->lie || !actor->lie->why) && !keep_waiting(actor, link, asked))
        answer_honestly(actor, link, asked);
}

static void send_lineage(struct link *link, uint16_t disk, const struct lineage *lineage)
{
    uint8_t head[WIRE_CLAIM_SIZE];
    _cleanup_free_ void *bytes = NULL;
    size_t size;
    if (lineage_encode(lineage, &bytes, &size) < 0)
        return;
    wire_claim_encode(&(struct wire_claim){.disk = disk}, head);
    link_send(link, FRAME_LINEAGE, head, sizeof head, bytes, size, NULL);
}

static void on_hello(struct actor *actor, struct link *link, const uint8_t *payload, size_t size)
{
    const struct lie *lie = actor->lie;
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    _cleanup_json_ json_t *hello = NULL;
    _cleanup_json_ json_t *answer = json_pack("{s:i, s:I}", "protocol", MOVE_PROTOCOL_VERSION, "disks",
                                              lie && lie->disks ? lie->disks : (json_int_t)1);
    link_send_json(link, FRAME_HELLO, answer, NULL);
    if (json_parse((const char *)payload, size, "hello", &hello, NULL) < 0)
        return;
    if (lie && lie->greeting && json_u64(hello, "index", 0) > 0)
        lie->greeting(actor, link);
    if (!actor->shares || json_u64(hello, "index", 0) > 0 || disk_lineage(actor->disk, &lineage, NULL) < 0)
        return;
    if (lie && lie->lineage)
        lie->lineage(link, lineage);
    else
        send_lineage(link, 0, lineage);
    if (lie && !lie->answer)
        actor->told = true;
}

static void on_newer(struct actor *actor, struct link *link, const uint8_t *payload, size_t size)
{
    uint8_t head[WIRE_NEWER_SIZE];
    struct wire_newer newer;
    _cleanup_free_ uint8_t *bits = NULL;
    const uint8_t *none;
    if (wire_newer_decode(payload, size, &newer, &none, &size, NULL) < 0 ||
        split_newer(actor->disk, newer.above, &bits, &size, NULL) < 0)
        return;
    wire_newer_encode(&newer, head);
    link_send(link, FRAME_NEWER, head, sizeof head, bits, size, NULL);
}

static int on_frame(void *arg, struct link *link, const struct frame *frame, const uint8_t *payload,
                    struct err *err)
{
    struct actor *actor = arg;
    struct wire_fetch asked;
    if (frame->type == FRAME_HELLO)
        on_hello(actor, link, payload, frame->length);
    else if (frame->type == FRAME_NEWER)
        on_newer(actor, link, payload, frame->length);
    else if (frame->type == FRAME_RELEASE)
        link_send(link, FRAME_RELEASED, NULL, 0, NULL, 0, NULL);
    else if (frame->type == FRAME_FETCH && wire_fetch_decode(payload, frame->length, &asked, NULL) == 0)
        on_fetch(actor, link, &asked);
    return 0;
}

static void on_closed(void *arg, struct link *link, const struct err *err)
{
}

/* The door's thread. */
static void actor_connection(struct actor *actor, int socket)
{
    const struct link_options options = {.vm = vm, .epoch = LENT_EPOCH, .stall_ms = MOVE_STALL_MS};
    const struct link_handler handler = {.frame = on_frame, .closed = on_closed, .arg = actor};
    struct tls *tls;
    if (actor->link_count == MAX_LINKS)
        close(socket);
    else if (tls_accept(actor->identity, socket, tls_identity_fingerprint(host_a),
                        clock_now() + 5 * NSEC_PER_SEC, &tls, NULL) == 0 &&
             link_start(tls, &options, &handler, &actor->links[actor->link_count], NULL) == 0)
        actor->link_count++;
}

static void actor_end(struct actor *actor)
{
    for (unsigned i = 0; i < actor->link_count; i++)
        link_free(actor->links[i]);
    actor->link_count = 0;
}

/* --- a host's one port ---------------------------------------------------------------------------------- */

struct door {
    pthread_t thread;
    int listener;
    uint16_t port;
    atomic_bool held, closing; /* held: nobody is let in */
    struct actor *actor;       /* has what comes before it has told its lie, and a sharer all */
    struct lender *lender;     /* the rest */
};

static void *keep_door(void *arg)
{
    struct door *door = arg;
    while (!door->closing) {
        struct pollfd ready = {.fd = door->listener, .events = POLLIN};
        struct actor *actor = door->actor;
        bool acts = actor && (!door->lender || !actor->told);
        if (actor)
            answer_what_waits(actor);
        if (actor && atomic_exchange(&actor->vanishes, false))
            actor_end(actor);
        if (door->held && (!acts || !door->lender))
            clock_sleep(NSEC_PER_MSEC);
        else if (poll(&ready, 1, 5) > 0) {
            int fd = accept4(door->listener, NULL, NULL, SOCK_CLOEXEC);
            if (acts)
                actor_connection(actor, fd);
            else
                lender_connection(door->lender, fd);
        }
    }
    return NULL;
}

static void open_door(struct door *door, struct actor *actor, struct lender *lender, bool held)
{
    if (actor)
        pthread_mutex_init(&actor->lock, NULL);
    door->actor = actor;
    door->lender = lender;
    door->held = held;
    door->listener = listen_on_loopback(&door->port);
    assert_int_equal(pthread_create(&door->thread, NULL, keep_door, door), 0);
}

static void close_door(struct door *door)
{
    if (!door->thread)
        return;
    door->closing = true;
    pthread_join(door->thread, NULL);
    close(door->listener);
    if (door->actor)
        actor_end(door->actor);
}

/* --- one borrower, and whom it asks --------------------------------------------------------------------- */

struct play {
    char path[128];
    struct disk *disk;
    uint64_t missing;
    uint8_t before[LENT_SIZE]; /* the image, whatever is missing of it */
    struct actor first, second;
    struct door lends, shares;
    struct lender *lender, *sharer;
    struct fetch *fetch;
};

static void read_image(struct disk *disk, uint8_t *ret)
{
    assert_int_equal(pread(disk_fd(disk), ret, LENT_SIZE, 0), LENT_SIZE);
}

static struct play *new_play(void)
{
    static unsigned number;
    struct play *play = calloc(1, sizeof *play);
    snprintf(play->path, sizeof play->path, "%s/play%u", folder, number++);
    play->disk = split_copy(play->path);
    play->missing = disk_missing(play->disk);
    read_image(play->disk, play->before);
    play->lender = new_lender(false);
    lender_open(play->lender);
    return play;
}

static struct move_peer peer(const char *name, const struct tls_identity *identity, const struct door *door)
{
    struct move_peer peer = {
        .address = "127.0.0.1", .port = door->port, .fingerprint = *tls_identity_fingerprint(identity)};
    snprintf(peer.name, sizeof peer.name, "%s", name);
    return peer;
}

/* The guest still runs elsewhere. */
static void connect_fetch(struct play *play)
{
    struct fetch_options options = {.host = &borrowing,
                                    .vm = vm,
                                    .name = "web",
                                    .epoch = LENT_EPOCH,
                                    .lender = peer("b", host_b, &play->lends),
                                    .disks = {play->disk},
                                    .disk_count = 1};
    assert_ok(fetch_new(&options, &play->fetch, &err));
}

static void begin_fetch(struct play *play)
{
    connect_fetch(play);
    assert_ok(fetch_open(play->fetch, &err));
}

static void begin_sharing(struct play *play)
{
    struct move_peer from = peer("c", host_c, &play->shares);
    assert_ok(fetch_share(play->fetch, &from, &err));
}

static void end_play(struct play *play)
{
    fetch_free(play->fetch);
    play->first.told = play->second.told = true; /* nobody waits for anything */
    close_door(&play->lends);
    close_door(&play->shares);
    lender_free(play->lender);
    lender_free(play->sharer);
    close_disk(play->disk);
    assert_ok(disk_remove(play->path, &err));
    free(play);
}

/* Is `part` in what the status of the lender (or of the sharer) says? An empty one: does it say nothing? */
static bool says(const struct play *play, bool of_sharer, const char *part)
{
    _cleanup_json_ json_t *status = fetch_status(play->fetch);
    const json_t *of = of_sharer ? json_array_get(json_object_get(status, "shares"), 0) : status;
    const json_t *error = json_object_get(of, "error");
    return error ? part[0] && strstr(json_str(error, "text", ""), part) != NULL : !part[0];
}

static uint64_t fetched_of_sharer(const struct play *play)
{
    _cleanup_json_ json_t *status = fetch_status(play->fetch);
    return json_u64(json_array_get(json_object_get(status, "shares"), 0), "fetched_bytes", 0);
}

static bool sharer_is_there(const struct play *play)
{
    _cleanup_json_ json_t *status = fetch_status(play->fetch);
    return json_bool(json_array_get(json_object_get(status, "shares"), 0), "connected", false);
}

/* A word with the test's own name of the case, for tables. */
static void assert_case(bool condition, const char *name, const char *what, const struct play *play)
{
    if (condition)
        return;
    _cleanup_json_ json_t *status = fetch_status(play->fetch);
    _cleanup_free_ char *text = json_dumps(status, JSON_COMPACT);
    fail_msg("%s: not so: %s; %s", name, what, text);
}

static void assert_same_as_lent(struct disk *disk)
{
    for (uint64_t block = 0; block < LENT_BLOCKS; block++) {
        uint8_t here[DISK_BLOCK], there[DISK_BLOCK];
        size_t size = lent_length(block, 1);
        assert_int_equal(disk_read(disk, here, size, block * DISK_BLOCK), 0);
        assert_int_equal(disk_read(lent, there, size, block * DISK_BLOCK), 0);
        assert_memory_equal(here, there, size);
    }
}

static void assert_whole(struct play *play)
{
    _cleanup_(lineage_cleanup) struct lineage *lineage = NULL;
    assert_false(disk_is_split(play->disk));
    assert_ok(disk_lineage(play->disk, &lineage, &err));
    assert_int_equal(lineage->claim, LINEAGE_OWNER);
    assert_same_as_lent(play->disk);
}

static void assert_untouched(const struct play *play, const char *name)
{
    static uint8_t now[LENT_SIZE];
    read_image(play->disk, now);
    assert_case(memcmp(now, play->before, LENT_SIZE) == 0, name, "the image is as it was", play);
    assert_case(disk_missing(play->disk) == play->missing, name, "what was missing is missing", play);
}

/* --- honest ones ---------------------------------------------------------------------------------------- */

static void test_all_comes_from_the_lender_and_it_is_released(void **state)
{
    struct play *play = new_play();
    uint8_t byte;
    assert_int_equal(play->missing, 3 * EXTENT + 1);
    assert_int_equal(disk_read(play->disk, &byte, 1, 3 * EXTENT * DISK_BLOCK), -EAGAIN);
    open_door(&play->lends, NULL, play->lender, false);
    begin_fetch(play);
    assert_true(eventually(lender_released(play->lender)));
    assert_int_equal(fetch_state(play->fetch), FETCH_WHOLE); /* the lender's record is not durable yet */
    assert_whole(play);
    assert_true(says(play, false, ""));
    struct lender_numbers numbers;
    lender_numbers(play->lender, &numbers);
    assert_true(numbers.bytes > 0 &&
                numbers.bytes < 3 * EXTENT * DISK_BLOCK); /* neither holes nor old ones */
    clock_sleep(50 * NSEC_PER_MSEC);
    assert_int_equal(fetch_state(play->fetch), FETCH_WHOLE);
    lender_confirm(play->lender);
    assert_true(eventually(fetch_state(play->fetch) == FETCH_RELEASED));
    end_play(play);
}

static void test_nothing_comes_before_the_lender_has_recorded_the_hand_over(void **state)
{
    struct play *play = new_play();
    lender_free(play->lender);
    play->lender = new_lender(false);
    open_door(&play->lends, NULL, play->lender, false);
    begin_fetch(play);
    struct lender_numbers numbers = {0};
    assert_true(eventually((lender_numbers(play->lender, &numbers), numbers.connections == 2)));
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_untouched(play, "before the record");
    lender_open(play->lender);
    assert_true(eventually(lender_released(play->lender)));
    assert_whole(play);
    end_play(play);
}

static void test_a_sharer_brings_what_the_lender_has_not_written_since(void **state)
{
    struct play *play = new_play();
    play->sharer = new_lender(true);
    lender_open(play->sharer);
    open_door(&play->lends, NULL, play->lender, true);
    open_door(&play->shares, NULL, play->sharer, false);
    begin_fetch(play);
    begin_sharing(play);
    assert_true(eventually(sharer_is_there(play)));
    assert_untouched(play, "without the lender's word");
    play->lends.held = false;
    assert_true(eventually(lender_released(play->lender)));
    assert_whole(play);
    struct lender_numbers lender, sharer;
    lender_numbers(play->lender, &lender);
    lender_numbers(play->sharer, &sharer);
    assert_true(lender.bytes > 0 && sharer.bytes > 0);
    assert_int_equal(fetched_of_sharer(play), sharer.bytes);
    assert_false(lender_released(play->sharer));
    lender_confirm(play->lender);
    assert_true(eventually(fetch_state(play->fetch) == FETCH_RELEASED));
    end_play(play);
}

/* --- what is wrong about a run -------------------------------------------------------------------------- */

static uint8_t false_data[3 * DISK_BLOCK];

static struct wire_run run_for(const struct wire_fetch *asked)
{
    return (struct wire_run){.block = asked->block, .count = 1, .generation = asked->upto};
}

static void tell_unasked(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.block = 3; /* it is here */
    send_run(link, run, false_data, DISK_BLOCK);
}

/* Missing, but asked for of nobody: the last one is asked for last. */
static void tell_early(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.block = LAST_BLOCK;
    send_run(link, run, false_data, lent_length(LAST_BLOCK, 1));
}

static void tell_wider(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.block = asked->block - 1;
    run.count = 2;
    send_run(link, run, false_data, 2 * DISK_BLOCK);
}

static void tell_beyond(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.block = LENT_BLOCKS;
    send_run(link, run, false_data, DISK_BLOCK);
}

static void tell_endless(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.count = UINT32_MAX;
    run.flags = WIRE_RUN_ZERO;
    send_run(link, run, NULL, 0);
}

static void tell_too_new(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.generation++;
    send_run(link, run, false_data, DISK_BLOCK);
}

static void tell_too_old(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.generation = asked->above;
    send_run(link, run, false_data, DISK_BLOCK);
}

static void tell_damaged(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.checksum = 1;
    send_run(link, run, false_data, DISK_BLOCK);
}

static void tell_short(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.count = 2;
    send_run(link, run, false_data, DISK_BLOCK + 512); /* only the disk's last block may be short */
}

static void tell_long(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    send_run(link, run_for(asked), false_data, DISK_BLOCK + 1);
}

static void tell_other_disk(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.disk = 1;
    send_run(link, run, false_data, DISK_BLOCK);
}

static void tell_far_disk(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_run run = run_for(asked);
    run.disk = UINT16_MAX;
    send_run(link, run, false_data, DISK_BLOCK);
}

/* --- what is wrong about other frames ------------------------------------------------------------------- */

static void tell_other_serial(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_fetch other = *asked;
    other.serial += 1000;
    send_fetched(link, &other);
}

static void tell_other_range(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    struct wire_fetch other = *asked;
    other.count++;
    send_fetched(link, &other);
}

static void tell_cut_answer(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    uint8_t bytes[WIRE_FETCH_SIZE];
    wire_fetch_encode(asked, bytes);
    link_send(link, FRAME_FETCHED, bytes, sizeof bytes - 1, NULL, 0, NULL);
}

static void send_hot(struct link *link, uint16_t disk, const void *extents, size_t size)
{
    uint8_t head[WIRE_CLAIM_SIZE];
    wire_claim_encode(&(struct wire_claim){.disk = disk}, head);
    link_send(link, FRAME_HOT, head, sizeof head, extents, size, NULL);
}

static void tell_hot_beyond(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    uint8_t extent[4];
    put_le32(extent, 5);
    send_hot(link, 0, extent, sizeof extent);
}

static void tell_odd_heat(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    send_hot(link, 0, (const uint8_t[7]){0}, 7);
}

static void tell_too_much_heat(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    static const uint8_t extents[4 * 100000];
    send_hot(link, 0, extents, sizeof extents);
}

static void send_newer(struct link *link, uint16_t disk, uint32_t above, size_t size)
{
    static const uint8_t none[4096];
    uint8_t head[WIRE_NEWER_SIZE];
    wire_newer_encode(&(struct wire_newer){.disk = disk, .above = above}, head);
    link_send(link, FRAME_NEWER, head, sizeof head, none, size, NULL);
}

static void tell_newer_of_wrong_size(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    send_newer(link, 0, shared_generation, split_newer_size(LENT_BLOCKS) - 1);
}

static void tell_newer_of_other_disk(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    send_newer(link, 7, shared_generation, split_newer_size(LENT_BLOCKS));
}

static void tell_newer_unasked(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    send_newer(link, 0, shared_generation, split_newer_size(LENT_BLOCKS));
    answer_honestly(actor, link, asked);
}

static void tell_error(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    _cleanup_json_ json_t *error = json_pack("{s:s, s:s}", "code", "EIO", "text", "my disk is on fire");
    link_send_json(link, FRAME_ERROR, error, NULL);
}

static void tell_out_of_place(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    link_send(link, FRAME_LOADED, NULL, 0, NULL, 0, NULL);
}

static void tell_all_then_vanish(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    tell_out_of_place(actor, link, asked);
    actor->vanishes = true;
}

static void vanish(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    actor->vanishes = true;
}

static void say_nothing(struct actor *actor, struct link *link, const struct wire_fetch *asked)
{
    /* its pings say that it lives */
}

/* --- a lender that lies --------------------------------------------------------------------------------- */

static const struct lie lies_of_a_lender[] = {
    {.name = "a block that is here", .answer = tell_unasked, .why = "not asked for"},
    {.name = "a block before it was asked for", .answer = tell_early, .why = "not asked for"},
    {.name = "more than was asked for", .answer = tell_wider, .why = "not asked for"},
    {.name = "beyond the end", .answer = tell_beyond, .why = "beyond the end"},
    {.name = "endless zeroes", .answer = tell_endless, .why = "beyond the end"},
    {.name = "newer than the hand-over", .answer = tell_too_new, .why = "not asked for"},
    {.name = "older than asked for", .answer = tell_too_old, .why = "not asked for"},
    {.name = "a wrong checksum", .answer = tell_damaged, .why = "wrong checksum"},
    {.name = "too little data", .answer = tell_short, .why = "came with 4608 bytes"},
    {.name = "too much data", .answer = tell_long, .why = "4097 bytes of data"},
    {.name = "a disk that there is not", .answer = tell_other_disk, .why = "lacks none"},
    {.name = "a disk that there cannot be", .answer = tell_far_disk, .why = "lacks none"},
    {.name = "an answer to nothing", .answer = tell_other_serial, .why = "was not asked"},
    {.name = "an answer to more", .answer = tell_other_range, .why = "was not asked"},
    {.name = "an answer cut short", .answer = tell_cut_answer, .why = "31 bytes"},
    {.name = "heat beyond the end", .answer = tell_hot_beyond, .why = "beyond the end"},
    {.name = "odd heat", .answer = tell_odd_heat, .why = "7 bytes"},
    {.name = "too much heat", .answer = tell_too_much_heat, .why = "400000 bytes"},
    {.name = "news of a wrong size", .answer = tell_newer_of_wrong_size, .why = "what is new on disk 0"},
    {.name = "news of no disk", .answer = tell_newer_of_other_disk, .why = "what is new on disk 7"},
    {.name = "news that nobody asked for", .answer = tell_newer_unasked},
    {.name = "an error", .answer = tell_error, .why = "my disk is on fire"},
    {.name = "a frame out of place", .answer = tell_out_of_place, .why = "sent \"loaded\""},
    {.name = "closing", .answer = vanish, .why = "closed"},
};

static void test_a_lender_that_lies_changes_nothing_and_an_honest_one_ends_it(void **state)
{
    struct play *plays[ARRAY_SIZE(lies_of_a_lender)];
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        struct play *play = plays[i] = new_play();
        play->first = (struct actor){.identity = host_b, .disk = lent, .lie = &lies_of_a_lender[i]};
        lender_confirm(play->lender);
        open_door(&play->lends, &play->first, play->lender, true);
        begin_fetch(play);
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        const struct lie *lie = &lies_of_a_lender[i];
        assert_case(!lie->why || eventually(says(plays[i], false, lie->why)), lie->name, "it says why",
                    plays[i]);
        if (lie->why)
            assert_untouched(plays[i], lie->name);
        assert_case(!lie->why || !fetch_connected(plays[i]->fetch), lie->name, "not connected", plays[i]);
        plays[i]->lends.held = false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        assert_case(eventually(fetch_state(plays[i]->fetch) == FETCH_RELEASED), lies_of_a_lender[i].name,
                    "it ends well", plays[i]);
        assert_whole(plays[i]);
        assert_true(says(plays[i], false, ""));
        end_play(plays[i]);
    }
}

/* --- a sharer that lies --------------------------------------------------------------------------------- */

static void say_damaged(struct link *link, struct lineage *lineage)
{
    _cleanup_free_ uint8_t *bytes = NULL;
    uint8_t head[WIRE_CLAIM_SIZE];
    size_t size;
    if (lineage_encode(lineage, (void **)&bytes, &size) < 0)
        return;
    bytes[size / 2] ^= 1;
    wire_claim_encode(&(struct wire_claim){0}, head);
    link_send(link, FRAME_LINEAGE, head, sizeof head, bytes, size, NULL);
}

static void say_other_disk(struct link *link, struct lineage *lineage)
{
    lineage->disk.bytes[0] ^= 1;
    send_lineage(link, 0, lineage);
}

static void say_other_size(struct link *link, struct lineage *lineage)
{
    lineage->size += 512;
    send_lineage(link, 0, lineage);
}

static void say_owner(struct link *link, struct lineage *lineage)
{
    lineage->claim = LINEAGE_OWNER;
    lineage->complete = 0;
    send_lineage(link, 0, lineage);
}

static void say_other_history(struct link *link, struct lineage *lineage)
{
    lineage->entries[lineage->count - 1].id.bytes[0] ^= 1;
    send_lineage(link, 0, lineage);
}

static void say_no_disk(struct link *link, struct lineage *lineage)
{
    send_lineage(link, 9, lineage);
}

static void say_it_twice(struct link *link, struct lineage *lineage)
{
    send_lineage(link, 0, lineage);
    send_lineage(link, 0, lineage);
}

#define NOTHING_IN_COMMON "no generation in common"

static const struct lie lies_of_a_sharer[] = {
    {.name = "no answer", .answer = say_nothing, .why = "answered nothing"}, /* takes longest */
    {.name = "a thousand disks", .disks = 1000, .why = "1000 disks"},
    {.name = "a damaged lineage", .lineage = say_damaged, .why = "damaged"},
    {.name = "another disk", .lineage = say_other_disk, .why = NOTHING_IN_COMMON},
    {.name = "another size", .lineage = say_other_size, .why = NOTHING_IN_COMMON},
    {.name = "no replica", .lineage = say_owner, .why = NOTHING_IN_COMMON},
    {.name = "another history", .lineage = say_other_history, .why = NOTHING_IN_COMMON},
    {.name = "a disk that there is not", .lineage = say_no_disk, .why = NOTHING_IN_COMMON},
    {.name = "a lineage too many", .lineage = say_it_twice, .why = "sent \"lineage\""},
    {.name = "what the lender alone has", .answer = tell_early, .why = "not asked for"},
    {.name = "newer than its copy", .answer = tell_too_new, .why = "not asked for"},
    {.name = "beyond the end", .answer = tell_beyond, .why = "beyond the end"},
    {.name = "a wrong checksum", .answer = tell_damaged, .why = "wrong checksum"},
    {.name = "an answer to nothing", .answer = tell_other_serial, .why = "was not asked"},
    {.name = "news", .answer = tell_newer_unasked, .why = "sent \"newer\""},
    {.name = "heat", .answer = tell_hot_beyond, .why = "sent \"hot\""},
    {.name = "an error", .answer = tell_error, .why = "my disk is on fire"},
    {.name = "closing", .answer = vanish, .why = "closed"},
    {.name = "closing behind a frame out of place", .answer = tell_all_then_vanish, .why = "sent \"loaded\""},
};

static void test_a_sharer_that_lies_does_not_hold_up_the_lender(void **state)
{
    struct play *plays[ARRAY_SIZE(lies_of_a_sharer)];
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        struct play *play = plays[i] = new_play();
        play->second =
            (struct actor){.identity = host_c, .disk = shared, .lie = &lies_of_a_sharer[i], .shares = true};
        play->first = (struct actor){.identity = host_b, .disk = lent, .waits_for = &play->second.told};
        open_door(&play->lends, &play->first, NULL, true);
        open_door(&play->shares, &play->second, NULL, false);
        begin_fetch(play);
        begin_sharing(play);
        assert_case(eventually(play->second.told || sharer_is_there(play)), lies_of_a_sharer[i].name,
                    "it is asked what it has", play);
        play->lends.held = false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        const struct lie *lie = &lies_of_a_sharer[i];
        assert_case(eventually(fetch_state(plays[i]->fetch) == FETCH_RELEASED), lie->name, "it ends",
                    plays[i]);
        assert_case(plays[i]->second.told, lie->name, "it was told", plays[i]);
        assert_case(eventually(says(plays[i], true, lie->why)), lie->name, "it says why", plays[i]);
        assert_case(says(plays[i], false, ""), lie->name, "the lender is well", plays[i]);
        assert_whole(plays[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++)
        end_play(plays[i]);
}

/* --- too early ------------------------------------------------------------------------------------------ */

static void send_all_too_early(struct actor *actor, struct link *link)
{
    struct wire_fetch nothing = {.block = EXTENT, .count = 1, .above = base_generation, .upto = handover};
    actor->told = true;
    if (actor->lie->answer)
        actor->lie->answer(actor, link, &nothing);
}

static const struct lie lies_too_early[] = {
    {.name = "a run", .greeting = send_all_too_early, .answer = tell_short, .why = "\"run\" before"},
    {.name = "an answer",
     .greeting = send_all_too_early,
     .answer = tell_cut_answer,
     .why = "\"fetched\" before"},
    {.name = "heat", .greeting = send_all_too_early, .answer = tell_hot_beyond, .why = "\"hot\" before"},
    {.name = "news", .greeting = send_all_too_early, .answer = tell_newer_unasked, .why = "\"newer\" before"},
};

static void test_what_comes_before_the_guest_is_ours_is_refused(void **state)
{
    struct play *plays[ARRAY_SIZE(lies_too_early)];
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        struct play *play = plays[i] = new_play();
        play->first = (struct actor){.identity = host_b, .disk = lent, .lie = &lies_too_early[i]};
        lender_confirm(play->lender);
        open_door(&play->lends, &play->first, play->lender, true);
        connect_fetch(play);
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        const struct lie *lie = &lies_too_early[i];
        assert_true(eventually(plays[i]->first.told != false));
        clock_sleep(50 * NSEC_PER_MSEC); /* until it is heard, which nobody tells yet */
        assert_ok(fetch_open(plays[i]->fetch, &err));
        assert_case(eventually(says(plays[i], false, lie->why)), lie->name, "it says why", plays[i]);
        assert_untouched(plays[i], lie->name);
        plays[i]->lends.held = false;
    }
    for (size_t i = 0; i < ARRAY_SIZE(plays); i++) {
        assert_case(eventually(fetch_state(plays[i]->fetch) == FETCH_RELEASED), lies_too_early[i].name,
                    "it ends well", plays[i]);
        assert_whole(plays[i]);
        end_play(plays[i]);
    }
}

/* --- silence -------------------------------------------------------------------------------------------- */

static void test_a_lender_that_falls_silent_is_waited_for_and_the_fetch_can_end(void **state)
{
    static const struct lie silence = {.name = "silence", .answer = say_nothing, .why = ""};
    struct play *play = new_play();
    play->first = (struct actor){.identity = host_b, .disk = lent, .lie = &silence};
    open_door(&play->lends, &play->first, play->lender, true);
    begin_fetch(play);
    assert_true(eventually(play->first.told != false));
    clock_sleep(100 * NSEC_PER_MSEC);
    assert_untouched(play, silence.name);
    int64_t began = clock_now();
    fetch_free(TAKE_PTR(play->fetch));
    assert_true(clock_now() - began < 2 * NSEC_PER_SEC);
    assert_untouched(play, silence.name);
    end_play(play);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_comes_from_the_lender_and_it_is_released),
        cmocka_unit_test(test_nothing_comes_before_the_lender_has_recorded_the_hand_over),
        cmocka_unit_test(test_a_sharer_brings_what_the_lender_has_not_written_since),
        cmocka_unit_test(test_a_lender_that_lies_changes_nothing_and_an_honest_one_ends_it),
        cmocka_unit_test(test_a_sharer_that_lies_does_not_hold_up_the_lender),
        cmocka_unit_test(test_what_comes_before_the_guest_is_ours_is_refused),
        cmocka_unit_test(test_a_lender_that_falls_silent_is_waited_for_and_the_fetch_can_end),
    };
    memset(false_data, 'x', sizeof false_data);
    return cmocka_run_group_tests_name("fetch", tests, make_copies, drop_copies);
}
