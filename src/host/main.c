/* SPDX-License-Identifier: Apache-2.0
 *
 * oraid: the daemon of one host. It serves the API to people (unix socket) and to other hosts (mutual TLS),
 * keeps the registry, and starts an orai-vm for each VM. The VMs do not depend on it: it may be stopped,
 * killed or upgraded at any moment and finds everything again when it comes back.
 *
 * Threads: this one runs the HTTP event loop (http.c); the door accepts connections (door.c); the keeper
 * watches every orai-vm (vm_keeper.c); two pools run API handlers and long jobs while there are any. Locks,
 * outermost first: claims of VMs, vms->lock, operations->lock, events->lock, the registry's.
 *
 * Exit status: 0 stopped in order, 1 an error at start (standard error says which), 2 wrong usage.
 */
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"
#include "base/pid.h"
#include "host/api.h"
#include "host/client.h"
#include "host/door.h"
#include "host/facts.h"
#include "host/http.h"
#include "host/image.h"
#include "host/notify.h"
#include "host/options.h"
#include "host/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>

#define REQUEST_THREADS 16 /* handlers may wait long for a guest to stop */
#define JOB_THREADS 8
#define VERIFY_THREADS 1 /* disks are read one after the other */
#define MAX_WAITING 256
#define STOP_MSEC 5000

/* The HTTP side is made last and ends first; until then there is nobody to wake. */
static _Atomic(struct http *) http_to_wake;

static void wake(void *arg)
{
    struct http *http = http_to_wake;
    (void)arg;
    if (http)
        http_wake(http);
}

static int path_in(const char *dir, const char *name, char ret[PATH_MAX], struct err *err)
{
    return snprintf(ret, PATH_MAX, "%s/%s", dir, name) < PATH_MAX
               ? 0
               : err_set(err, ENAMETOOLONG, "path too long: %s", dir);
}

/* QEMU's user passes through them to its sockets and kernel; it may not list them. */
static int make_folder(const char *dir, const char *name, struct err *err)
{
    char path[PATH_MAX];
    int r = path_in(dir, name, path, err);
    if (r == 0)
        r = file_mkdirs(path, 0711, err);
    if (r == 0 && chmod(path, 0711) < 0)
        r = err_sys(err, errno, "cannot set the mode of %s", path);
    return r;
}

static int make_folders(const struct host_options *options, struct err *err)
{
    int r = make_folder(options->state_dir, "", err);
    if (r == 0)
        r = make_folder(options->state_dir, "vms", err);
    if (r == 0)
        r = make_folder(options->run_dir, "", err);
    return r == 0 ? make_folder(options->run_dir, "vms", err) : r;
}

/* Two oraid on one state directory would each resume the other's VMs. Held until this process ends, however
 * it does. */
static int lock_state(const struct host_options *options, struct err *err)
{
    char path[PATH_MAX];
    int r = path_in(options->state_dir, "oraid.lock", path, err);
    if (r < 0)
        return r;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "cannot open %s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return fd;
    r = errno == EWOULDBLOCK ? err_set(err, EBUSY, "another oraid runs with %s", options->state_dir)
                             : err_sys(err, errno, "cannot lock %s", path);
    close(fd);
    return r;
}

static int open_state(struct host *host, struct err *err)
{
    const struct host_options *o = &host->options;
    char path[PATH_MAX];
    int r = path_in(o->state_dir, "registry.db", path, err);
    if (r == 0)
        r = tls_identity_open(o->state_dir, o->name, &host->identity, err);
    if (r == 0)
        r = registry_open_sqlite(path, &host->registry, err);
    if (r == 0)
        r = events_new(host->registry, wake, NULL, &host->events, err);
    if (r == 0)
        r = operations_new(host->registry, host->events, wake, NULL, &host->operations, err);
    if (r == 0)
        r = images_open(host, err);
    if (r == 0)
        r = vms_new(host, &host->vms, err);
    if (r == 0)
        hex_format(tls_identity_fingerprint(host->identity)->bytes, HASH_SIZE, host->fingerprint);
    return r;
}

static int open_threads(struct host *host, struct err *err)
{
    host->qemu = qemu_facts_new(host->options.qemu, host->options.state_dir);
    if (!host->qemu || client_open() < 0)
        return err_set(err, ENOMEM, "out of memory");
    int r = pool_new("request", REQUEST_THREADS, MAX_WAITING, &host->requests, err);
    if (r == 0)
        r = pool_new("job", JOB_THREADS, MAX_WAITING, &host->jobs, err);
    return r == 0 ? pool_new("verify", VERIFY_THREADS, MAX_WAITING, &host->verifies, err) : r;
}

static int write_pid(const struct host *host, struct err *err)
{
    char path[PATH_MAX];
    int r = path_in(host->options.run_dir, "oraid.pid", path, err);
    return r == 0 ? pid_record(path, getpid(), err) : r;
}

static void remove_pid(const struct host *host)
{
    char path[PATH_MAX];
    if (path_in(host->options.run_dir, "oraid.pid", path, NULL) == 0)
        unlink(path);
}

static void say_ready(struct host *host)
{
    log_info("%s (%s) serves %s/api.sock and port %u", host->options.name, ORAI_VERSION,
             host->options.run_dir, host->options.port);
    event_add(host->events, "host.started", NULL, json_pack("{s:s}", "version", ORAI_VERSION));
    notify("READY=1");
}

static int serve(struct host *host, struct door *door, struct http *http, struct err *err)
{
    int r = refreshes_take_over(host, err); /* before the keeper: their VMs are claimed */
    if (r == 0)
        r = vms_start(host->vms, err);
    if (r == 0)
        r = write_pid(host, err);
    if (r == 0)
        r = door_start(door, http, err);
    if (r < 0)
        return r;
    say_ready(host);
    http_run(http);
    notify("STOPPING=1");
    remove_pid(host);
    return 0;
}

/* Handlers and jobs that do not end soon are left behind, and with them all that they use: what is durable is
 * so already. */
static bool stop_pools(struct host *host)
{
    host->stopping = true;
    bool stopped = (!host->requests || pool_stop(host->requests, STOP_MSEC)) &&
                   (!host->jobs || pool_stop(host->jobs, STOP_MSEC)) &&
                   (!host->verifies || pool_stop(host->verifies, STOP_MSEC));
    if (!stopped)
        log_info("not waiting for what still runs");
    return stopped;
}

static void close_all(struct host *host, struct door *door, struct http *http)
{
    door_free(door);
    if (!stop_pools(host))
        return;
    vms_free(host->vms);
    http_to_wake = NULL;
    http_free(http);
    pool_free(host->requests);
    pool_free(host->jobs);
    pool_free(host->verifies);
    qemu_facts_free(host->qemu);
    operations_free(host->operations);
    events_free(host->events);
    registry_close(host->registry);
}

static int run(struct host *host, struct err *err)
{
    struct door *door = NULL;
    struct http *http = NULL;
    int r = make_folders(&host->options, err);
    int lock = r < 0 ? r : lock_state(&host->options, err);
    if (lock < 0)
        return lock;
    r = open_state(host, err);
    if (r == 0)
        r = open_threads(host, err);
    if (r == 0)
        r = door_new(host, &door, err);
    if (r == 0) {
        host->options.port = door_port(door);
        r = http_new(host, &http, err);
    }
    if (r == 0) {
        http_to_wake = http;
        r = serve(host, door, http, err);
    }
    close_all(host, door, http);
    return r;
}

static int complain(const struct err *err, int status)
{
    fprintf(stderr, "oraid: %s%s%s\n", err->text, err->hint[0] ? "\n       " : "", err->hint);
    return status;
}

int main(int argc, char **argv)
{
    static struct host host;
    const char *text;
    struct err err = ERR_NONE;
    sigset_t signals;
    /* NOLINTBEGIN(concurrency-mt-unsafe): there are no threads yet */
    mallopt(M_ARENA_MAX, 2); /* many threads, little memory */
    umask(0022);
    /* NOLINTEND(concurrency-mt-unsafe) */
    log_open("oraid");
    if (options_parse(argc, argv, &host.options, &text, &err) < 0)
        return complain(&err, 2);
    if (text) {
        fputs(text, stdout);
        return 0;
    }
    /* Before any thread: the door takes them from a descriptor. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    time_text(host.started);
    return run(&host, &err) < 0 ? complain(&err, 1) : 0;
}
