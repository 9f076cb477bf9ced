/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include "beacon.h"
#include "checksum.h"
#include "disk.h"
#include "memory.h"
#include "pace.h"
#include "reader.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct client {
    struct pulse *pulse;
    FILE *in, *out;
    bool power_off; /* once the answer is sent */
};

static void answer_status(struct client *client)
{
    const struct pulse *pulse = client->pulse;
    struct disk_status disks[PULSE_DISKS];
    struct memory_status memory = memory_status(pulse->memory);
    uint64_t errors = 0;
    for (size_t i = 0; i < PULSE_DISKS; i++) {
        disks[i] = disk_status(pulse->disks[i]);
        errors += disks[i].errors;
    }
    fprintf(client->out,
            "{\"boot\":\"%016" PRIx64 "\",\"uptime_ms\":%" PRId64 ",\"written\":%" PRIu64
            ",\"durable\":%" PRIu64 ",\"second\":{\"written\":%" PRIu64 ",\"durable\":%" PRIu64
            "},\"disk_errors\":%" PRIu64 ",\"mem_errors\":%" PRIu64 ",\"mem_checks\":%" PRIu64
            ",\"udp_sent\":%" PRIu64 "}\n",
            pulse->boot, pace_now() / MS, disks[0].written, disks[0].durable, disks[1].written,
            disks[1].durable, errors, memory.errors, memory.checks, beacon_sent(pulse->beacon));
}

static void answer_result(struct client *client, int result)
{
    if (result < 0)
        fprintf(client->out, "error: %s\n", strerror(-result));
    else
        answer_status(client);
}

static int run_status(struct client *client, const char *args)
{
    (void)client, (void)args;
    return 0;
}

/* What a command does with one disk. */
typedef int on_disk_fn(struct disk *disk, const char *args);

/* The disks one after the other, until one fails. */
static int on_disks(const struct client *client, on_disk_fn *act, const char *args)
{
    struct disk *const *disks = client->pulse->disks;
    int r = disks[0] != NULL ? 0 : -ENODEV;
    for (size_t i = 0; r == 0 && i < PULSE_DISKS && disks[i] != NULL; i++)
        r = act(disks[i], args);
    return r;
}

static int sync_one(struct disk *disk, const char *args)
{
    (void)args;
    return disk_sync(disk);
}

static int run_sync(struct client *client, const char *args)
{
    return on_disks(client, sync_one, args);
}

static int write_one(struct disk *disk, const char *args)
{
    int r = disk_write(disk, strtoull(args, NULL, 10));
    return r < 0 ? r : disk_sync(disk);
}

static int run_write(struct client *client, const char *args)
{
    return on_disks(client, write_one, args);
}

static int rate_one(struct disk *disk, const char *args)
{
    disk_set_rate(disk, strtoull(args, NULL, 10));
    return 0;
}

static int run_rate(struct client *client, const char *args)
{
    return on_disks(client, rate_one, args);
}

static int run_dirty(struct client *client, const char *args)
{
    struct memory *memory = client->pulse->memory;
    if (memory == NULL)
        return -ENODEV;
    memory_set_dirty(memory, strtoull(args, NULL, 10));
    return 0;
}

static int trim_one(struct disk *disk, const char *args)
{
    uint64_t offset, length;
    if (sscanf(args, "%" SCNu64 " %" SCNu64, &offset, &length) != 2)
        return -EINVAL;
    return disk_trim(disk, offset, length);
}

static int run_trim(struct client *client, const char *args)
{
    return on_disks(client, trim_one, args);
}

static int stop_one(struct disk *disk, const char *args)
{
    (void)args;
    return disk_stop(disk);
}

static int run_read(struct client *client, const char *args)
{
    uint64_t mib, seed;
    if (sscanf(args, "%" SCNu64 " %" SCNu64, &mib, &seed) != 2)
        return -EINVAL;
    return client->pulse->reader ? -EALREADY : reader_start(&client->pulse->reader, "/dev/vda", mib, seed);
}

static int run_poweroff(struct client *client, const char *args)
{
    client->power_off = true;
    int r = on_disks(client, stop_one, args);
    return r == -ENODEV ? 0 : r;
}

static const struct command {
    const char *name;
    int (*run)(struct client *client, const char *args);
} commands[] = {
    {"status", run_status}, {"sync", run_sync}, {"write", run_write},       {"rate", run_rate},
    {"dirty", run_dirty},   {"trim", run_trim}, {"poweroff", run_poweroff}, {"read", run_read},
};

static void answer_checksum(struct client *client, const char *path)
{
    uint32_t crc;
    uint64_t bytes;
    int r = checksum_device(path, &crc, &bytes);
    if (r < 0)
        fprintf(client->out, "error: %s: %s\n", path, strerror(-r));
    else
        fprintf(client->out, "{\"crc32\":%" PRIu32 ",\"bytes\":%" PRIu64 "}\n", crc, bytes);
}

/* What the guest takes for the time of day, and what it counts by. */
static void answer_clock(struct client *client)
{
    char source[32] = "?\n";
    struct timespec now;
    FILE *file = fopen("/sys/devices/system/clocksource/clocksource0/current_clocksource", "re");
    if (file != NULL) {
        if (fgets(source, sizeof(source), file) == NULL)
            strcpy(source, "?\n");
        fclose(file);
    }
    source[strcspn(source, "\n")] = '\0';
    clock_gettime(CLOCK_REALTIME, &now);
    fprintf(client->out, "{\"source\":\"%s\",\"nsec\":%" PRId64 "}\n", source,
            (int64_t)now.tv_sec * SECOND + now.tv_nsec);
}

static void run_line(struct client *client, char *line)
{
    line[strcspn(line, "\r\n")] = '\0';
    char *args = line;
    const char *name = strsep(&args, " ");
    if (args == NULL)
        args = "";
    if (strcmp(name, "echo") == 0) {
        fprintf(client->out, "%s\n", args);
        return;
    }
    if (strcmp(name, "crc") == 0) {
        answer_checksum(client, args);
        return;
    }
    if (strcmp(name, "clock") == 0) {
        answer_clock(client);
        return;
    }
    if (strcmp(name, "reads") == 0) {
        reader_print(client->pulse->reader, client->out);
        return;
    }
    for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (strcmp(name, commands[i].name) == 0) {
            answer_result(client, commands[i].run(client, args));
            return;
        }
    }
    fprintf(client->out, "error: unknown command\n");
}

static void client_free(struct client *client)
{
    if (client->out != NULL)
        fclose(client->out);
    if (client->in != NULL)
        fclose(client->in);
    free(client);
}

static void take_networks_down(void)
{
    struct if_nameindex *all = if_nameindex();
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    for (const struct if_nameindex *one = all; one != NULL && one->if_index != 0; one++) {
        struct ifreq request = {.ifr_flags = 0};
        snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", one->if_name);
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    if_freenameindex(all);
    close(fd);
}

/* A moment for the answer to leave, because nothing is sent after this: virtio_net spins for ever when its
 * card is shut down while it sends (Linux before "virtio_ring: fix infinite loop in virtnet_poll_cleantx when
 * device is broken", 2026; one power-off of some hundred, and the guest moved or not). */
static void power_off(void)
{
    pace_wait(&(struct pace){.next = pace_now()}, 100 * MS);
    take_networks_down();
    reboot(RB_POWER_OFF);
}

static void *client_thread(void *arg)
{
    struct client *client = arg;
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, client->in) > 0) {
        run_line(client, line);
        bool sent = fflush(client->out) == 0;
        if (client->power_off)
            power_off();
        if (!sent)
            break;
    }
    free(line);
    client_free(client);
    return NULL;
}

/* Two streams, because one for both directions would need a seek between reading and writing. */
static struct client *client_new(int fd, struct pulse *pulse)
{
    struct client *client = calloc(1, sizeof(*client));
    if (client == NULL || (client->in = fdopen(fd, "r")) == NULL) {
        close(fd);
        free(client);
        return NULL;
    }
    client->pulse = pulse;
    client->out = fdopen(dup(fd), "w");
    if (client->out == NULL) {
        client_free(client);
        return NULL;
    }
    return client;
}

int control_listen(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(CONTROL_PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (const struct sockaddr *)&any, sizeof(any)) == 0 && listen(fd, 16) == 0)
        return fd;
    int r = -errno;
    close(fd);
    return r;
}

void control_serve(int listener, struct pulse *pulse)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        struct client *client = fd >= 0 ? client_new(fd, pulse) : NULL;
        pthread_t thread;
        if (client == NULL)
            continue;
        if (pthread_create(&thread, NULL, client_thread, client) == 0)
            pthread_detach(thread);
        else
            client_free(client);
    }
}
