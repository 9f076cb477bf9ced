/* SPDX-License-Identifier: Apache-2.0
 *
 * hand_on: this orai-vm makes place for another one, which is about to be started.
 *
 * A QEMU that loses its connection to a disk tries to connect at once, then a second later, then two... So
 * the connections live on, unserved, until the next orai-vm listens: a child of ours holds them and nothing
 * else, and ends when it sees the last of the disks' sockets replaced. QEMU then makes again what was not
 * answered, as after our death; and as then nothing is closed here, for what we know of the disks is in their
 * files (disk/intent.h).
 *
 * The child has no thread but its own: it makes system calls only. We do not end before it has let go of all
 * else, or the next orai-vm would find the VM's lock still taken.
 */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/macro.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELD_MAX 64
#define LOOK_NSEC NSEC_PER_MSEC
#define HOLD_NSEC (10 * NSEC_PER_SEC)
#define LISTEN_NSEC (2 * NSEC_PER_MSEC) /* from the socket's name to its listening */

static int by_number(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static _Noreturn void hold(const char *path, ino_t inode)
{
    int64_t end = clock_now() + HOLD_NSEC;
    struct stat st;
    while (clock_now() < end && (stat(path, &st) < 0 || st.st_ino == inode))
        clock_sleep(LOOK_NSEC);
    clock_sleep(LISTEN_NSEC);
    _exit(0);
}

void vm_hand_on(struct vm *vm)
{
    int held[HELD_MAX];
    char path[PATH_MAX];
    struct stat st;
    size_t count = machine_disk_clients(vm->machine, held, ARRAY_SIZE(held), path);
    if (count == 0 || stat(path, &st) < 0)
        return;
    qsort(held, count, sizeof *held, by_number);
    int until_closed[2];
    if (pipe2(until_closed, O_CLOEXEC) < 0) {
        log_warning("the disks' connections are lost for a second: %m");
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        file_close_others(held, count);
        hold(path, st.st_ino);
    }
    if (child < 0)
        log_warning("the disks' connections are lost for a second: %m");
    close(until_closed[1]);
    char none;
    file_read_full(until_closed[0], &none, 1); /* its end: the child has closed its own */
    close(until_closed[0]);
}
