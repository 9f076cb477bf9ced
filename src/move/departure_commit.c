/* SPDX-License-Identifier: Apache-2.0
 *
 * The source's last stages. The commit is one durable write, "epoch e+1 is the peer's": before it everything
 * can be rolled back, after it this host never runs epoch e again. Then the destination is told, and asked
 * again over new connections until it says
 *
 *   running   it holds e+1 durably: we become a replica
 *   refused   it durably never will: the guest goes on here, as epoch e+2
 *
 * or until a human decides (orai recover --run-here). A killed orai-vm comes back here by departure_resume.
 */
#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/macro.h"
#include "move/departure.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define ASK_AGAIN_NS NSEC_PER_SEC

static int record_commit(struct departure *departure, struct err *err)
{
    const struct move_peer *peer = &departure->options.peer;
    struct epoch_record record = *epoch_get(departure->epoch);
    record.epoch = departure->next_epoch;
    record.role = EPOCH_COMMITTED;
    record.ready = false;
    record.move = departure->options.move;
    record.guest_runs = departure->guest_runs;
    record.lent = departure->split;
    record.memory_away = departure->memory_later;
    record.peer.port = peer->port;
    record.peer.fingerprint = peer->fingerprint;
    snprintf(record.peer.name, sizeof record.peer.name, "%s", peer->name);
    snprintf(record.peer.address, sizeof record.peer.address, "%s", peer->address);
    return epoch_set(departure->epoch, &record, err);
}

/* Tried until it works: as long as the record says "committed", this host may not run the guest, nor may it
 * forget it. */
static void take_back(struct departure *departure, bool by_hand)
{
    struct err err = ERR_NONE;
    struct epoch_record record = *epoch_get(departure->epoch);
    record.epoch++;
    record.role = EPOCH_OWNER;
    record.lent = record.memory_away = false;
    record.forked = by_hand; /* perhaps it runs there as well */
    for (int tries = 0; epoch_set(departure->epoch, &record, &err) < 0; tries++) {
        if (tries == 0)
            log_error("the guest waits for its epoch record: %s; trying again each second", err.text);
        clock_sleep(NSEC_PER_SEC);
    }
    departure->committed = false;
}

enum answer { ANSWER_RUNNING, ANSWER_REFUSED };

/* What is said beside it is for those who watch. */
static void hear_running(struct departure *departure, const struct mail *mail)
{
    _cleanup_json_ json_t *running = NULL;
    if (json_parse((const char *)mail->payload, mail->frame.length, "running", &running, NULL) == 0 &&
        json_is_integer(json_object_get(running, "clock_forward_ms")))
        departure->numbers.clock_forward_ms = (int64_t)json_u64(running, "clock_forward_ms", 0);
}

/* Says "commit" on the control connection that is there and waits for the answer. */
static int ask(struct departure *departure, enum answer *ret, struct err *err)
{
    char move[ID_TEXT_SIZE];
    _cleanup_json_ json_t *addresses = machine_addresses(departure->machine);
    _cleanup_json_ json_t *commit =
        json_pack("{s:I, s:s, s:b, s:O?}", "epoch", (json_int_t)departure->next_epoch, "move",
                  id_format(&departure->options.move, move), "guest_runs", departure->guest_runs, "addresses",
                  addresses);
    int r = link_send_json(departure->session.control, FRAME_COMMIT, commit, err);
    if (r < 0)
        return r;
    struct mail *mail;
    r = session_next(&departure->session, clock_now() + MOVE_ANSWER_MS * NSEC_PER_MSEC, &mail, err);
    if (r == -EAGAIN)
        return err_set(err, ETIMEDOUT, "the destination has not answered the commit");
    if (r < 0)
        return r;
    enum frame_type type = mail->frame.type;
    if (type == FRAME_RUNNING)
        hear_running(departure, mail);
    free(mail);
    if (type != FRAME_RUNNING && type != FRAME_REFUSED)
        return err_set(err, EPROTO, "the destination answered the commit with \"%s\"", frame_type_name(type));
    *ret = type == FRAME_RUNNING ? ANSWER_RUNNING : ANSWER_REFUSED;
    return 0;
}

static int ask_again(struct departure *departure, enum answer *ret, struct err *err)
{
    session_reset(&departure->session);
    int r = departure_connect(departure, true, clock_now() + 5 * NSEC_PER_SEC, err);
    return r < 0 ? r : ask(departure, ret, err);
}

int departure_ask_again(struct departure *departure, struct err *err)
{
    enum answer answer = ANSWER_RUNNING;
    int r = ask_again(departure, &answer, err);
    return r == 0 && answer != ANSWER_RUNNING
               ? err_set(err, EPROTO, "%s took the guest, and now refuses it", departure->options.peer.name)
               : r;
}

/* Asks until there is an answer. -EINTR: a human decided. */
static int ask_until_answered(struct departure *departure, enum answer *ret)
{
    struct err err = ERR_NONE;
    bool told = false;
    int r = departure->session.control ? ask(departure, ret, &err) : -ENOTCONN;
    while (r < 0) {
        if (departure->run_here)
            return -EINTR;
        if (!told && err.code) {
            log_warning("committed, but no answer from %s: %s; asking again until it answers",
                        departure->options.peer.name, err.text);
            progress_note(departure->progress,
                          "the commit was made but %s has not answered (%s): the guest is paused here until "
                          "it does; to decide "
                          "by hand: orai recover %s --run-here",
                          departure->options.peer.name, err.text, machine_config(departure->machine)->name);
            departure_show(departure);
            told = true;
        }
        r = ask_again(departure, ret, &err);
        if (r < 0)
            for (int64_t until = clock_now() + ASK_AGAIN_NS; clock_now() < until && !departure->run_here;)
                clock_sleep(20 * NSEC_PER_MSEC);
    }
    return r;
}

int departure_keep(struct departure *departure, int code, const char *why, struct err *err)
{
    departure_drop_lender(departure); /* before the guest may write again */
    machine_set_network(departure->machine, true);
    take_back(departure, code == EINTR);
    if (!departure_qemu_alive(departure))
        return err_set(err, EOWNERDEAD, "%s, and the guest's QEMU has ended here", why);
    departure->frozen = true; /* also after departure_resume: thaw is what is needed */
    return err_set(err, code, "%s", why);
}

int departure_commit(struct departure *departure, struct err *err)
{
    if (!departure->resumed) {
        int r = session_decide(&departure->session, err);
        if (r == 0)
            r = record_commit(departure, err);
        if (r < 0)
            return r;
        departure->committed = true;
        if (fault_point(err, "source.commit.written") < 0)
            log_warning("%s", err->text);
    } else {
        departure->split = epoch_get(departure->epoch)->lent;
        departure->memory_later = departure->migrating = epoch_get(departure->epoch)->memory_away;
        departure->next_epoch = epoch_get(departure->epoch)->epoch;
        if (departure->split && departure_new_lender(departure, err) < 0)
            log_error("%s", err->text);
        departure->guest_runs = epoch_get(departure->epoch)->guest_runs;
        departure->committed = true;
        departure_fence_resumed(departure);
        session_uncancel(&departure->session);
    }
    if (!departure->split)
        departure_drop_lender(departure);
    else if (departure->lender)
        lender_open(departure->lender);
    enum answer answer;
    int r = ask_until_answered(departure, &answer);
    if (r == -EINTR)
        return departure_keep(departure, EINTR, "a human decided that the guest runs here", err);
    if (answer == ANSWER_REFUSED)
        return departure_keep(departure, ESTALE,
                              "the destination gave up waiting and durably refused the hand-over", err);
    if (departure->stopped_at)
        departure->numbers.blackout_ms = (clock_now() - departure->stopped_at) / NSEC_PER_MSEC;
    departure->numbers.running_ms = (clock_now() - departure->began) / NSEC_PER_MSEC;
    departure_show(departure);
    return 0;
}

static int become_replica(struct departure *departure, struct err *err)
{
    int r = machine_qemu(departure->machine) ? machine_stop(departure->machine, 0, err) : 0;
    for (size_t i = 0; r == 0 && i < departure_disks(departure); i++) {
        struct disk *disk = machine_disk(departure->machine, i);
        _cleanup_(lineage_freep) struct lineage *lineage = NULL;
        r = disk_lineage(disk, &lineage, err);
        if (r < 0)
            return r;
        lineage->complete = lineage_newest(lineage)->generation;
        /* After a power cut since the commit, what the crash rule marked may differ from what went over. */
        bool strayed = disk_count(disk, lineage->complete, UINT32_MAX) > 0;
        lineage->claim = strayed ? LINEAGE_FORK : LINEAGE_REPLICA;
        r = disk_set_lineage(disk, lineage, err);
        if (r == 0)
            disk_thaw(disk); /* a write that QEMU left behind fails now, instead of holding up the close */
    }
    if (r == 0 && !departure->lender)
        r = machine_close_disks(departure->machine, err);
    if (r < 0)
        return r;
    struct epoch_record record = *epoch_get(departure->epoch);
    record.role = EPOCH_REPLICA;
    record.memory_away = false;
    return epoch_set(departure->epoch, &record, err);
}

/* When memory followed the guest it is that of the switch. */
static void keep_ram(struct departure *departure)
{
    if ((!departure->memory_later || departure->migration == MIGRATION_COMPLETED) &&
        departure_qemu_alive(departure))
        departure->kept_ram = fcntl(qemu_ram_fd(machine_qemu(departure->machine)), F_DUPFD_CLOEXEC, 0);
}

int departure_take_ram(struct departure *departure)
{
    return TAKE_FD(departure->kept_ram);
}

/* The guest runs there. What fails here costs bytes on the way back, or is done again at the next start. */
int departure_finish(struct departure *departure, struct err *err)
{
    if (departure->memory_later && departure_follow(departure, err) < 0)
        return -err->code;
    departure_tell_workset(departure);
    if (departure->session.control &&
        link_send(departure->session.control, FRAME_FINISH, NULL, 0, NULL, 0, err) == 0)
        link_drain(departure->session.control, clock_now() + NSEC_PER_SEC, NULL);
    departure_show(departure);
    keep_ram(departure);
    return become_replica(departure, err);
}
