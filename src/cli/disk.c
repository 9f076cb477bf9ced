/* SPDX-License-Identifier: Apache-2.0
 *
 * disk: the verbs `orai disk serve|info`, and `verify` of a file, which work on an image and its side files
 * without oraid.
 *
 * `serve` opens the disk before it touches the socket, so that of two servers of one image the second one
 * stops at the disk's lock and leaves the first one's socket alone. SIGINT and SIGTERM stop it cleanly:
 * clients get the answers to what they had sent, then everything is made durable; a second signal kills.
 */
#include "disk/disk.h"
#include "base/clock.h"
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/size.h"
#include "cli/cli.h"
#include "cli/report.h"
#include "disk/nbd.h"
#include "disk/split.h"
#include "disk/verify.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static int report(const struct err *err)
{
    report_error(stderr, err, NULL);
    return CLI_FAILED;
}

static int usage_error(const char *verb, const char *text)
{
    fprintf(stderr, "orai: disk %s: %s; see `orai help disk %s`\n", verb, text, verb);
    return CLI_USAGE;
}

static void disk_cleanup(struct disk **disk)
{
    if (*disk)
        disk_close(*disk, NULL);
}

/* --- serve --------------------------------------------------------------------------------------------- */

struct serve {
    const char *file, *socket, *pid_file;
    unsigned open_flags;
    struct nbd_options options;
};

static int parse_connections(const char *text, unsigned *ret)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno || end == text || *end || n < 1 || n > 1024)
        return -EINVAL;
    *ret = (unsigned)n;
    return 0;
}

/* CLI_OK, or CLI_USAGE after having said why. Help is the table's business (disk_verbs.c). */
static int parse_serve(int argc, char **argv, struct serve *ret)
{
    enum { SOCKET, READ_ONLY, DIRECT, EXPORT, CONNECTIONS, PID_FILE };
    static const struct option options[] = {
        {"socket", required_argument, NULL, SOCKET},
        {"read-only", no_argument, NULL, READ_ONLY},
        {"direct", no_argument, NULL, DIRECT},
        {"export", required_argument, NULL, EXPORT},
        {"max-connections", required_argument, NULL, CONNECTIONS},
        {"pid-file", required_argument, NULL, PID_FILE},
        {0},
    };
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
        switch (c) {
        case SOCKET:
            ret->socket = optarg;
            break;
        case READ_ONLY:
            ret->options.read_only = true;
            ret->open_flags = (ret->open_flags & ~(unsigned)DISK_INIT) | DISK_READ_ONLY;
            break;
        case DIRECT:
            ret->open_flags |= DISK_DIRECT;
            ret->options.direct = true;
            break;
        case EXPORT:
            ret->options.export_name = optarg;
            break;
        case CONNECTIONS:
            if (parse_connections(optarg, &ret->options.max_connections) < 0)
                return usage_error("serve", "--max-connections takes a number from 1 to 1024");
            break;
        case PID_FILE:
            ret->pid_file = optarg;
            break;
        default:
            return usage_error("serve", c == ':' ? "an option lacks its value" : "unknown option");
        }
    }
    if (argc - optind != 1)
        return usage_error("serve", "it takes one FILE");
    if (!ret->socket)
        return usage_error("serve", "--socket PATH is missing");
    ret->file = argv[optind];
    return CLI_OK;
}

/* Is a server behind the socket file, or was it left by one that died? */
static bool is_answered(const struct sockaddr_un *address)
{
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    return fd >= 0 &&
           (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN);
}

static int remove_stale(const struct sockaddr_un *address, struct err *err)
{
    struct stat stat;
    if (lstat(address->sun_path, &stat) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "cannot look at %s", address->sun_path);
    if (!S_ISSOCK(stat.st_mode)) {
        err_set(err, EEXIST, "%s exists and is no socket", address->sun_path);
        return err_hint(err, "choose another --socket");
    }
    if (is_answered(address)) {
        err_set(err, EADDRINUSE, "another server listens on %s", address->sun_path);
        return err_hint(err, "stop it, or choose another --socket");
    }
    return unlink(address->sun_path) < 0 ? err_sys(err, errno, "cannot remove %s", address->sun_path) : 0;
}

/* Returns the descriptor. */
static int listen_at(const char *path, struct err *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        err_set(err, ENAMETOOLONG, "the socket's path is longer than %zu bytes", sizeof address.sun_path - 1);
        return err_hint(err, "choose a shorter --socket");
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    int r = remove_stale(&address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(err, errno, "cannot make a socket");
    mode_t mask = umask(0177); /* no moment in which others could connect */
    r = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    umask(mask);
    if (r < 0)
        return err_sys(err, r, "cannot listen on %s", path);
    if (listen(fd, 64) < 0)
        return err_sys(err, errno, "cannot listen on %s", path);
    return TAKE_FD(fd);
}

static int write_pid(const char *path, struct err *err)
{
    char text[16];
    int size = snprintf(text, sizeof text, "%d\n", (int)getpid());
    return file_replace(path, text, (size_t)size, 0644, err);
}

static void say_statistics(const struct nbd_server *server)
{
    struct nbd_statistics statistics;
    char read[SIZE_TEXT], written[SIZE_TEXT];
    nbd_server_statistics(server, &statistics);
    fprintf(stderr,
            "orai: served %" PRIu64 " connections: %" PRIu64 " reads (%s), %" PRIu64 " writes (%s), %" PRIu64
            " flushes, %" PRIu64 " trims, %" PRIu64 " errors\n",
            statistics.connections, statistics.reads, size_format(statistics.read_bytes, read),
            statistics.writes, size_format(statistics.written_bytes, written), statistics.flushes,
            statistics.trims, statistics.errors);
}

/* With the socket there: says that it is ready, waits for a signal, stops. */
static int serve_until_signal(const struct serve *serve, struct disk *disk, int listener,
                              const sigset_t *signals, struct err *err)
{
    struct nbd_server *server;
    char size[SIZE_TEXT];
    int signal;
    int r = nbd_server_new(disk, listener, &serve->options, &server, err);
    if (r < 0)
        return r;
    if (serve->pid_file)
        r = write_pid(serve->pid_file, err);
    if (r == 0) {
        printf("orai: serving %s (%s%s) at nbd+unix:///?socket=%s\n", serve->file,
               size_format(disk_size(disk), size), serve->options.read_only ? ", read-only" : "",
               serve->socket);
        fflush(stdout);
        sigwait(signals, &signal);
        pthread_sigmask(SIG_UNBLOCK, signals, NULL); /* whoever is in a hurry may ask twice */
        say_statistics(server);
    }
    nbd_server_free(server);
    if (serve->pid_file)
        unlink(serve->pid_file);
    return r;
}

/* What is missing only the VM's own orai-vm can fetch. */
static int check_whole(const struct disk *disk, struct err *err)
{
    if (!disk_is_split(disk))
        return 0;
    err_set(err, EBUSY, "%" PRIu64 " blocks of %s are still on another host", disk_missing(disk),
            disk_path(disk));
    return err_hint(err, "start the VM that it belongs to, and serve the disk when `orai status` says that "
                         "all of it has come");
}

static int run_serve(int argc, char **argv)
{
    struct serve serve = {.open_flags = DISK_INIT};
    struct err err = ERR_NONE;
    int usage = parse_serve(argc, argv, &serve);
    if (usage != CLI_OK)
        return usage;

    sigset_t signals; /* before the first thread, which inherits the mask */
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    log_open("orai");

    _cleanup_(disk_cleanup) struct disk *disk = NULL;
    if (disk_open(serve.file, serve.open_flags, &disk, &err) < 0 || check_whole(disk, &err) < 0)
        return report(&err);
    int r = listen_at(serve.socket, &err);
    if (r < 0)
        return report(&err);
    r = serve_until_signal(&serve, disk, r, &signals, &err);
    unlink(serve.socket);
    if (r < 0)
        return report(&err);
    if (disk_close(TAKE_PTR(disk), &err) < 0)
        return report(&err);
    return CLI_OK;
}

/* --- info and verify ----------------------------------------------------------------------------------- */

static const char *const claim_names[] = {
    [LINEAGE_OWNER] = "owner", [LINEAGE_REPLICA] = "replica", [LINEAGE_PARTIAL] = "partial",
    [LINEAGE_FORK] = "fork",   [LINEAGE_SPLIT] = "split",
};
static_assert(ARRAY_SIZE(claim_names) == LINEAGE_SPLIT + 1, "each claim has a name");

static const char *const kind_names[] = {
    [LINEAGE_BASE] = "base",
    [LINEAGE_ROUND] = "round",
    [LINEAGE_HANDOVER] = "hand-over",
};
static_assert(ARRAY_SIZE(kind_names) == LINEAGE_HANDOVER + 1, "each kind has a name");

static const struct column entry_columns[] = {
    {"generation", "GENERATION", COLUMN_COUNT}, {"kind", "KIND", COLUMN_TEXT}, {"host", "HOST", COLUMN_TEXT},
    {"time_ms", "TIME", COLUMN_TIME},           {"id", "ID", COLUMN_TEXT},     {0},
};
static const struct view entry_view = {.columns = entry_columns, .empty = "none sealed yet"};
static const struct section info_sections[] = {{"lineage", "Lineage", &entry_view}, {0}};
static const struct column info_columns[] = {
    {"file", "File", COLUMN_TEXT},
    {"size", "Size", COLUMN_BYTES},
    {"allocated", "Allocated", COLUMN_BYTES},
    {"disk", "Disk", COLUMN_TEXT},
    {"claim", "This copy is", COLUMN_TEXT},
    {"generation", "Generation", COLUMN_COUNT},
    {"complete", "Complete up to", COLUMN_COUNT},
    {"written", "Ever written", COLUMN_BYTES},
    {"written_since", "Written since", COLUMN_BYTES},
    {"missing", "Still on another host", COLUMN_BYTES},
    {0},
};
static const struct view info_view = {.columns = info_columns, .sections = info_sections};

static json_t *entry_to_json(const struct lineage_entry *entry)
{
    char id[ID_TEXT_SIZE];
    return json_pack("{s:I, s:s, s:s, s:I, s:s}", "generation", (json_int_t)entry->generation, "kind",
                     kind_names[entry->kind], "host", entry->host, "time_ms", (json_int_t)entry->time_ms,
                     "id", id_format(&entry->id, id));
}

static json_int_t bytes_above(struct disk *disk, uint32_t generation)
{
    uint64_t bytes = disk_count(disk, generation, UINT32_MAX) * DISK_BLOCK;
    return (json_int_t)bytes;
}

/* "since" means since the newest entry of the lineage: what a move would have to send to a current replica.
 */
static json_t *info_to_json(struct disk *disk, const struct lineage *lineage)
{
    struct stat stat = {0};
    char id[ID_TEXT_SIZE];
    const struct lineage_entry *newest = lineage_newest(lineage);
    fstat(disk_fd(disk), &stat);
    json_int_t allocated = stat.st_blocks * INT64_C(512);
    json_t *entries = json_array();
    for (size_t i = 0; i < lineage->count; i++)
        json_array_append_new(entries, entry_to_json(&lineage->entries[i]));
    json_t *json =
        json_pack("{s:s, s:I, s:I, s:s, s:s, s:I, s:I, s:I, s:I, s:o}", "file", disk_path(disk), "size",
                  (json_int_t)disk_size(disk), "allocated", allocated, "disk", id_format(&lineage->disk, id),
                  "claim", claim_names[lineage->claim], "generation", (json_int_t)disk_generation(disk),
                  "complete", (json_int_t)lineage->complete, "written", bytes_above(disk, 0), "written_since",
                  bytes_above(disk, newest ? newest->generation : 0), "lineage", entries);
    uint64_t missing = disk_missing(disk) * DISK_BLOCK;
    if (json && disk_is_split(disk))
        json_object_set_new(json, "missing", json_integer((json_int_t)missing));
    return json;
}

static int print_info(struct disk *disk, enum format format, struct err *err)
{
    struct lineage *lineage;
    int r = disk_lineage(disk, &lineage, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *json = info_to_json(disk, lineage);
    lineage_free(lineage);
    if (!json)
        return err_set(err, ENOMEM, "out of memory");
    r = format_object(stdout, &(struct style){.format = format}, &info_view, json);
    return r < 0 ? err_sys(err, r, "cannot print") : 0;
}

/* Each finding on a line of its own; the last word is the exit code's. */
int cli_verify_file(const char *file, struct err *err)
{
    struct disk_verdict verdict;
    int r = disk_verify(file, &verdict, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < verdict.count; i++)
        printf("%s: %s\n", file, verdict.findings[i]);
    if (verdict.missing > 0)
        printf("%s is split: %" PRIu64 " blocks are still on another host and were not looked at\n", file,
               verdict.missing);
    if (verdict.count == 0)
        printf("%s is good: generation %" PRIu32 ", %" PRIu64 " blocks written, %s\n", file, verdict.current,
               verdict.written,
               verdict.clean ? "closed in order" : "not closed in order (no harm: see the crash rule)");
    else
        err_set(err, EUCLEAN, "%s did not pass: %zu findings", file, verdict.count);
    r = verdict.count > 0 ? -EUCLEAN : 0;
    disk_verdict_done(&verdict);
    return r;
}

static int print_file(const char *file, enum format format, struct err *err)
{
    _cleanup_(disk_cleanup) struct disk *disk = NULL;
    int r = disk_open(file, DISK_READ_ONLY, &disk, err);
    return r < 0 ? r : print_info(disk, format, err);
}

struct inspect {
    const char *file;
    enum format format;
};

/* As parse_serve. */
static int parse_inspect(int argc, char **argv, struct inspect *ret)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {0},
    };
    /* NOLINTNEXTLINE(concurrency-mt-unsafe): there are no threads yet */
    for (int c; (c = getopt_long(argc, argv, ":", options, NULL)) != -1;) {
        switch (c) {
        case 'f':
            if (format_parse(optarg, &ret->format) < 0)
                return usage_error(argv[0], "--format takes " FORMAT_NAMES);
            break;
        default:
            return usage_error(argv[0], c == ':' ? "an option lacks its value" : "unknown option");
        }
    }
    if (argc - optind != 1)
        return usage_error(argv[0], "it takes one FILE");
    ret->file = argv[optind];
    return CLI_OK;
}

static int run_info(int argc, char **argv)
{
    struct inspect inspect = {.format = FORMAT_TABLE};
    struct err err = ERR_NONE;
    int usage = parse_inspect(argc, argv, &inspect);
    if (usage != CLI_OK)
        return usage;
    int r = print_file(inspect.file, inspect.format, &err);
    return r < 0 ? report(&err) : CLI_OK;
}

int cli_disk(int argc, char **argv)
{
    optind = 0; /* main has used getopt before, perhaps */
    if (argc >= 1 && strcmp(argv[0], "serve") == 0)
        return run_serve(argc, argv);
    if (argc >= 1 && strcmp(argv[0], "info") == 0)
        return run_info(argc, argv);
    fputs("orai: disk takes serve, info or verify; see `orai help disk`\n", stderr);
    return CLI_USAGE;
}
