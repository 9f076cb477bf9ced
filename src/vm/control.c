/* SPDX-License-Identifier: Apache-2.0
 *
 * control: the clients of RUN_DIR/control.sock (base/msg.h). Nothing here ever waits for a client: a packet
 * is there or is not, and one that does not read its answers or events is cut off.
 */
#include "vm/vm.h"

#include "base/log.h"
#include "base/macro.h"
#include "base/msg.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

struct client {
    int fd;
    bool watching;
};

struct control {
    int listener;
    char path[PATH_MAX];
    size_t count;
    struct client clients[CONTROL_MAX_CLIENTS];
};

int control_new(const char *path, struct control **ret, struct err *err)
{
    struct control *control = calloc(1, sizeof *control);
    if (!control)
        return err_set(err, ENOMEM, "out of memory");
    snprintf(control->path, sizeof control->path, "%s", path);
    control->listener = msg_listen(path, err);
    if (control->listener < 0) {
        int r = control->listener;
        free(control);
        return r;
    }
    *ret = control;
    return 0;
}

void control_free(struct control *control)
{
    if (!control)
        return;
    for (size_t i = 0; i < control->count; i++)
        close(control->clients[i].fd);
    unlink(control->path);
    close(control->listener);
    free(control);
}

size_t control_poll_fds(const struct control *control, struct pollfd *ret)
{
    for (size_t i = 0; i < control->count; i++)
        ret[i] = (struct pollfd){.fd = control->clients[i].fd, .events = POLLIN};
    /* When all places are taken, others wait in the listen queue. */
    ret[control->count] = (struct pollfd){.fd = control->count < CONTROL_MAX_CLIENTS ? control->listener : -1,
                                          .events = POLLIN};
    return control->count + 1;
}

/* false when the conversation is over. */
static bool serve_client(struct client *client, struct vm *vm)
{
    _cleanup_json_ json_t *request = NULL;
    int fd = -1;
    struct err err = ERR_NONE;
    int r = msg_receive(client->fd, 0, &request, &fd, &err);
    if (r == -ETIMEDOUT || r == -EAGAIN)
        return true;
    if (r < 0)
        return false;
    bool watched = client->watching;
    _cleanup_json_ json_t *answer = vm_request(vm, request, fd, &client->watching);
    if (!answer || msg_send(client->fd, answer, -1, 0, &err) < 0)
        return false;
    if (watched || !client->watching)
        return true;
    /* A watcher begins with what is, so that it misses nothing. */
    _cleanup_json_ json_t *state =
        json_pack("{s:s, s:s}", "event", "state", "state", vm_state_name(vm->state));
    return msg_send(client->fd, state, -1, 0, &err) == 0;
}

static void accept_client(struct control *control)
{
    int fd = accept4(control->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        control->clients[control->count++] = (struct client){.fd = fd};
}

void control_serve(struct control *control, struct vm *vm, const struct pollfd *fds, size_t count)
{
    /* Downwards, so that dropping one does not move those that are still to be served. */
    for (size_t i = count - 1; i-- > 0;) {
        struct client *client = &control->clients[i];
        if (client->fd >= 0 && fds[i].revents && !serve_client(client, vm)) {
            close(client->fd);
            client->fd = -1;
        }
    }
    if (fds[count - 1].revents)
        accept_client(control);
    size_t left = 0;
    for (size_t i = 0; i < control->count; i++)
        if (control->clients[i].fd >= 0)
            control->clients[left++] = control->clients[i];
    control->count = left;
}

void control_tell(struct control *control, json_t *event)
{
    struct err err = ERR_NONE;
    for (size_t i = 0; i < control->count; i++) {
        struct client *client = &control->clients[i];
        if (client->fd < 0 || !client->watching || msg_send(client->fd, event, -1, 0, &err) == 0)
            continue;
        log_debug("a watcher is cut off: %s", err.text);
        close(client->fd);
        client->fd = -1; /* its place is freed by the next control_serve */
    }
    json_decref(event);
}

bool control_watched(const struct control *control)
{
    for (size_t i = 0; i < control->count; i++)
        if (control->clients[i].fd >= 0 && control->clients[i].watching)
            return true;
    return false;
}
