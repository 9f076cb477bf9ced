/* SPDX-License-Identifier: Apache-2.0
 *
 * rtnetlink: one request, one acknowledgement, on a socket of its own.
 */
#include "net/rtnetlink.h"

#include "base/macro.h"

#include <errno.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#define ANSWER_SECONDS 5 /* the kernel answers within the call; a bound all the same */

/* Sends it, and returns the kernel's 0 or -errno. */
static int request(struct nlmsghdr *message)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    struct timeval limit = {.tv_sec = ANSWER_SECONDS};
    struct {
        struct nlmsghdr header;
        struct nlmsgerr error;
        char request[256]; /* the kernel returns ours with an error */
    } answer;
    message->nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
    _cleanup_close_ int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0 ||
        sendto(fd, message, message->nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) < 0)
        return -errno;
    ssize_t n = recv(fd, &answer, sizeof answer, 0);
    if (n < 0)
        return -errno;
    if ((size_t)n < sizeof answer.header + sizeof answer.error || answer.header.nlmsg_type != NLMSG_ERROR)
        return -EPROTO;
    return answer.error.error;
}

int link_delete(const char *name, struct err *err)
{
    struct {
        struct nlmsghdr header;
        struct ifinfomsg link;
    } message = {.header = {.nlmsg_len = sizeof message, .nlmsg_type = RTM_DELLINK},
                 .link = {.ifi_family = AF_UNSPEC, .ifi_index = (int)if_nametoindex(name)}};
    int r = message.link.ifi_index ? request(&message.header) : -ENODEV;
    return r < 0 ? err_sys(err, r, "cannot remove the interface %s", name) : 0;
}

int link_without_queue(const char *name, struct err *err)
{
    static const char kind[] = "noqueue";
    struct {
        struct nlmsghdr header;
        struct tcmsg queue;
        struct rtattr kind_header;
        char kind[RTA_ALIGN(sizeof kind)];
    } message = {
        .header = {.nlmsg_len = sizeof message,
                   .nlmsg_type = RTM_NEWQDISC,
                   .nlmsg_flags = NLM_F_CREATE | NLM_F_REPLACE},
        .queue = {.tcm_family = AF_UNSPEC, .tcm_ifindex = (int)if_nametoindex(name), .tcm_parent = TC_H_ROOT},
        .kind_header = {.rta_len = RTA_LENGTH(sizeof kind), .rta_type = TCA_KIND}};
    memcpy(message.kind, kind, sizeof kind);
    int r = message.queue.tcm_ifindex ? request(&message.header) : -ENODEV;
    return r < 0 ? err_sys(err, r, "cannot take the queue of the interface %s away", name) : 0;
}
