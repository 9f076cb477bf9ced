/* SPDX-License-Identifier: Apache-2.0
 *
 * Taps, learning and announcing on real interfaces, in a network namespace of this process's own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/macro.h"
#include "net/announce.h"
#include "net/frame.h"
#include "net/learn.h"
#include "net/tap.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MAC "52:54:00:12:34:56"
#define TAP "oraitest0"

static const uint8_t mac[MAC_SIZE] = {0x52, 0x54, 0x00, 0x12, 0x34, 0x56};
static const struct address guest = {.bytes = {192, 0, 2, 7}};
static bool usable;

static int enter_namespace(void **state)
{
    usable = unshare(CLONE_NEWNET) == 0 && access("/dev/net/tun", R_OK | W_OK) == 0;
    return 0;
}

static void need_namespace(void)
{
    if (usable)
        return;
    print_message("skipped: needs root and /dev/net/tun\n");
    skip();
}

static void make_bridge(const char *name, int mtu)
{
    _cleanup_close_ int control = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {0};
    if (ioctl(control, SIOCBRADDBR, name) < 0)
        assert_int_equal(errno, EEXIST);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_mtu = mtu;
    assert_int_equal(ioctl(control, SIOCSIFMTU, &request), 0);
}

static void tap_name_comes_from_the_id(void **state)
{
    struct id id = {{0xde, 0xad, 0xbe, 0xef, 1}};
    char name[IFNAMSIZ];
    assert_string_equal(tap_name(&id, 7, name), "oraideadbeef7");
}

static void tap_is_up_with_a_net_header_and_goes_with_its_descriptor(void **state)
{
    need_namespace();
    struct ifreq request = {.ifr_name = TAP};
    _cleanup_close_ int control = socket(AF_INET, SOCK_DGRAM, 0);
    int tap = tap_open(TAP, "", NULL);
    assert_true(tap >= 0);
    assert_int_equal(tap_header_size(tap), 10);
    assert_int_equal(ioctl(control, SIOCGIFFLAGS, &request), 0);
    assert_true(request.ifr_flags & IFF_UP);
    close(tap);
    assert_int_equal(if_nametoindex(TAP), 0);
}

static void tap_joins_the_bridge_and_takes_its_mtu(void **state)
{
    need_namespace();
    struct ifreq request = {.ifr_name = TAP};
    _cleanup_close_ int control = socket(AF_INET, SOCK_DGRAM, 0);
    make_bridge("br0", 1400);
    _cleanup_close_ int tap = tap_open(TAP, "br0", NULL);
    assert_true(tap >= 0);
    assert_int_equal(ioctl(control, SIOCGIFMTU, &request), 0);
    assert_int_equal(request.ifr_mtu, 1400);
    /* A port cannot join a second time. */
    request = (struct ifreq){.ifr_name = "br0", .ifr_ifindex = (int)if_nametoindex(TAP)};
    assert_int_equal(ioctl(control, SIOCBRADDIF, &request), -1);
    assert_int_equal(errno, EBUSY);
}

static void missing_bridge_says_how_to_make_it(void **state)
{
    need_namespace();
    struct err err = ERR_NONE;
    assert_int_equal(tap_open(TAP, "nobridge", &err), -ENODEV);
    assert_non_null(strstr(err.text, "nobridge"));
    assert_non_null(strstr(err.hint, "ip link add nobridge type bridge"));
    assert_int_equal(if_nametoindex(TAP), 0);
}

static void an_interface_that_is_no_bridge_is_refused(void **state)
{
    need_namespace();
    struct err err = ERR_NONE;
    assert_true(tap_open(TAP, "lo", &err) < 0);
    assert_non_null(strstr(err.text, "lo"));
    assert_int_equal(if_nametoindex(TAP), 0);
}

static void a_tap_in_use_is_busy(void **state)
{
    need_namespace();
    struct err err = ERR_NONE;
    _cleanup_close_ int tap = tap_open(TAP, "", NULL);
    assert_true(tap >= 0);
    assert_int_equal(tap_open(TAP, "", &err), -EBUSY);
    assert_non_null(strstr(err.text, TAP));
}

static int send_raw(const uint8_t *frame, size_t size)
{
    struct sockaddr_ll address = {.sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(TAP)};
    _cleanup_close_ int fd = socket(AF_PACKET, SOCK_RAW, 0);
    return sendto(fd, frame, size, 0, (struct sockaddr *)&address, sizeof address) == (ssize_t)size;
}

/* Does a frame that is sent to the tap come out of this descriptor? What was there before is dropped. */
static bool gets_frames(int tap)
{
    uint8_t frame[60] = {0x52, 0x54, 0, 0x12, 0x34, 0x56, 2, 2, 2, 2, 2, 2, 0x88, 0xb5}, got[256];
    while (read(tap, got, sizeof got) > 0)
        ;
    assert_true(send_raw(frame, sizeof frame));
    struct pollfd p = {.fd = tap, .events = POLLIN};
    while (poll(&p, 1, 50) > 0 && p.revents & POLLIN) {
        ssize_t n = read(tap, got, sizeof got);
        if (n > 26 && got[tap_header_size(tap) + 12] == 0x88 && got[tap_header_size(tap) + 13] == 0xb5)
            return true;
    }
    return false;
}

static void frames_go_to_the_one_descriptor_that_is_in_use(void **state)
{
    need_namespace();
    _cleanup_close_ int first = tap_open(TAP, "", NULL);
    unsigned index = if_nametoindex(TAP);
    int size = 12;
    assert_int_equal(ioctl(first, TUNSETVNETHDRSZ, &size), 0);
    _cleanup_close_ int second = tap_stand_in(TAP, NULL);
    assert_true(first >= 0 && second >= 0);
    size = 10; /* as QEMU does when it starts */
    assert_int_equal(ioctl(second, TUNSETVNETHDRSZ, &size), 0);
    assert_int_equal(tap_header_size(first), 12);
    assert_true(gets_frames(first));

    assert_int_equal(tap_join(second, TAP, NULL), 0);
    assert_int_equal(if_nametoindex(TAP "n"), 0);
    assert_int_equal(tap_header_size(second), 12);
    assert_true(gets_frames(first));
    assert_false(gets_frames(second));

    assert_int_equal(tap_use(second, true, NULL), 0);
    assert_int_equal(tap_use(first, false, NULL), 0);
    assert_int_equal(tap_use(first, false, NULL), 0);
    assert_true(gets_frames(second));
    assert_false(gets_frames(first));

    assert_int_equal(tap_use(first, true, NULL), 0);
    assert_int_equal(tap_use(second, false, NULL), 0);
    assert_true(gets_frames(first));
    assert_int_equal(if_nametoindex(TAP), index);
}

static void the_interface_stays_with_either_descriptor(void **state)
{
    need_namespace();
    int first = tap_open(TAP, "", NULL);
    int second = tap_stand_in(TAP, NULL);
    assert_int_equal(tap_join(second, TAP, NULL), 0);
    assert_int_equal(tap_use(second, true, NULL), 0);
    close(first);
    assert_true(gets_frames(second));
    close(second);
    assert_int_equal(if_nametoindex(TAP), 0);
}

static void a_tap_for_one_descriptor_is_not_joined(void **state)
{
    need_namespace();
    struct err err = ERR_NONE;
    struct ifreq request = {.ifr_name = TAP, .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    _cleanup_close_ int first = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    assert_int_equal(ioctl(first, TUNSETIFF, &request), 0);
    _cleanup_close_ int second = tap_stand_in(TAP, NULL);
    assert_int_equal(tap_join(second, TAP, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, TAP));
    assert_true(tap_use(first, false, NULL) < 0);
}

static void a_tap_that_is_gone_is_not_made_anew_by_joining(void **state)
{
    need_namespace();
    _cleanup_close_ int second = tap_stand_in(TAP, NULL);
    assert_int_equal(tap_join(second, TAP, NULL), -ENODEV);
    assert_int_equal(if_nametoindex(TAP), 0);
}

static void tap_is_taken_back_from_the_process_that_has_it(void **state)
{
    need_namespace();
    int tap = tap_open(TAP, "", NULL);
    assert_true(tap >= 0);
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    close(tap); /* now only the child has it */
    _cleanup_close_ int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    _cleanup_close_ int back = tap_take(pid, pidfd, TAP, NULL);
    assert_true(back >= 0);
    assert_int_equal(tap_take(pid, pidfd, "oraitest1", NULL), -ENOENT);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_not_equal(if_nametoindex(TAP), 0);
    assert_int_equal(tap_header_size(back), 10);
}

/* --- learning ------------------------------------------------------------------------------------------- */

/* As the guest would: behind an empty net header. */
static void send_as_guest(int tap, const uint8_t *frame, size_t size)
{
    uint8_t data[10 + FRAME_MAX] = {0};
    memcpy(data + 10, frame, size);
    assert_int_equal(write(tap, data, 10 + size), (ssize_t)(10 + size));
}

static size_t known(struct learn *learn)
{
    struct addresses addresses;
    learn_get(learn, 0, &addresses);
    return addresses.count;
}

static void wait_known(struct learn *learn, size_t wanted)
{
    for (int i = 0; i < 500 && known(learn) != wanted; i++)
        clock_sleep(2 * NSEC_PER_MSEC);
    assert_int_equal(known(learn), wanted);
}

static void addresses_are_learned_on_a_bridged_tap(void **state)
{
    need_namespace();
    uint8_t frame[FRAME_MAX];
    struct address six = {.ipv6 = true, .bytes = {0x20, 0x01, 0x0d, 0xb8, [15] = 7}};
    struct learn_nic nic = {.tap = TAP, .mac = MAC};
    struct learn *learn;
    make_bridge("br0", 1500);
    _cleanup_close_ int tap = tap_open(TAP, "br0", NULL);
    assert_int_equal(learn_new(&nic, 1, &learn, NULL), 0);
    send_as_guest(tap, frame, frame_arp(mac, &guest, false, frame));
    wait_known(learn, 1);
    send_as_guest(tap, frame, frame_advertisement(mac, &six, frame));
    wait_known(learn, 2);
    _cleanup_json_ json_t *json = learn_addresses(learn);
    const json_t *first = json_array_get(json_object_get(json_array_get(json, 0), "addresses"), 0);
    assert_string_equal(json_str(first, "address", ""), "192.0.2.7");
    learn_free(learn);
}

static void plain_ipv4_counts_only_while_nothing_is_known(void **state)
{
    need_namespace();
    uint8_t frame[FRAME_MAX] = {0};
    struct learn_nic nic = {.tap = TAP, .mac = MAC};
    struct learn *learn;
    _cleanup_close_ int tap = tap_open(TAP, "", NULL);
    assert_true(tap >= 0);
    assert_int_equal(learn_new(&nic, 1, &learn, NULL), 0);
    memcpy(frame + MAC_SIZE, mac, MAC_SIZE);
    frame[12] = 0x08;
    frame[14] = 0x45;
    memcpy(frame + 14 + 12, guest.bytes, 4);
    send_as_guest(tap, frame, 60);
    wait_known(learn, 1);
    frame[14 + 15] = 99; /* as a guest that routes for others */
    send_as_guest(tap, frame, 60);
    struct address second = {.bytes = {192, 0, 2, 8}};
    send_as_guest(tap, frame, frame_arp(mac, &second, false, frame));
    wait_known(learn, 2);
    learn_free(learn);
}

static void what_another_host_learned_is_added_for_our_macs_only(void **state)
{
    need_namespace();
    struct learn_nic nic = {.tap = TAP, .mac = MAC};
    struct learn *learn;
    _cleanup_close_ int tap = tap_open(TAP, "", NULL);
    assert_true(tap >= 0);
    assert_int_equal(learn_new(&nic, 1, &learn, NULL), 0);
    _cleanup_json_ json_t *json =
        json_pack("[{s:s, s:[{s:s}]}, {s:s, s:[{s:s}]}]", "mac", MAC, "addresses", "address", "192.0.2.7",
                  "mac", "52:54:00:00:00:01", "addresses", "address", "192.0.2.9");
    assert_int_equal(learn_add(learn, json, NULL), 0);
    assert_int_equal(known(learn), 1);
    learn_free(learn);
}

static void a_vanished_tap_keeps_what_is_known(void **state)
{
    need_namespace();
    uint8_t frame[FRAME_MAX];
    struct learn_nic nic = {.tap = TAP, .mac = MAC};
    struct learn *learn;
    int tap = tap_open(TAP, "", NULL);
    assert_int_equal(learn_new(&nic, 1, &learn, NULL), 0);
    send_as_guest(tap, frame, frame_arp(mac, &guest, false, frame));
    wait_known(learn, 1);
    close(tap);
    clock_sleep(20 * NSEC_PER_MSEC);
    assert_int_equal(known(learn), 1);
    learn_free(learn);
}

/* As at a host that a guest has just left, and may come back to. */
static void a_tap_that_is_down_carries_nothing_and_is_listened_to_again(void **state)
{
    need_namespace();
    uint8_t frame[FRAME_MAX];
    struct address six = {.ipv6 = true, .bytes = {0x20, 0x01, 0x0d, 0xb8, [15] = 7}};
    struct learn_nic nic = {.tap = TAP, .mac = MAC};
    struct learn *learn;
    make_bridge("br0", 1500);
    _cleanup_close_ int tap = tap_open(TAP, "br0", NULL);
    assert_int_equal(learn_new(&nic, 1, &learn, NULL), 0);
    send_as_guest(tap, frame, frame_arp(mac, &guest, false, frame));
    wait_known(learn, 1);
    assert_int_equal(tap_set(TAP, false, NULL), 0);
    assert_true(write(tap, frame, 60) < 0);
    clock_sleep(20 * NSEC_PER_MSEC); /* the thread hears of it */
    assert_int_equal(tap_set(TAP, true, NULL), 0);
    send_as_guest(tap, frame, frame_advertisement(mac, &six, frame));
    wait_known(learn, 2);
    learn_free(learn);
    assert_int_equal(tap_set("oraitest9", false, NULL), -ENODEV);
}

static void learning_on_a_tap_that_is_not_there_fails(void **state)
{
    need_namespace();
    struct learn_nic nic = {.tap = "oraitest9", .mac = MAC};
    struct learn *learn;
    struct err err = ERR_NONE;
    assert_int_equal(learn_new(&nic, 1, &learn, &err), -ENODEV);
    assert_non_null(strstr(err.text, "oraitest9"));
}

/* --- announcing ----------------------------------------------------------------------------------------- */

static int listen_on_tap(void)
{
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(TAP)};
    int yes = 1, fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Counts the frames equal to `wanted` that come within `msec`. */
static int count_frames(int fd, int msec, const uint8_t *wanted, size_t size)
{
    int count = 0;
    int64_t deadline = clock_now() + msec * NSEC_PER_MSEC;
    for (;;) {
        uint8_t frame[2048];
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, clock_poll_ms(deadline)) <= 0)
            return count;
        ssize_t n = recv(fd, frame, sizeof frame, 0);
        count += n == (ssize_t)size && memcmp(frame, wanted, size) == 0;
    }
}

static void announces_five_times_without_blocking(void **state)
{
    need_namespace();
    uint8_t wanted[FRAME_MAX];
    struct announce *announce;
    _cleanup_close_ int tap = tap_open(TAP, "", NULL);
    _cleanup_close_ int listener = listen_on_tap();
    struct announce_nic nic = {.tap = tap, .addresses = {.count = 1, .list = {guest}}};
    memcpy(nic.mac, mac, MAC_SIZE);
    int64_t before = clock_now();
    assert_int_equal(announce_start(&nic, 1, &announce, NULL), 0);
    assert_true(clock_now() - before < 40 * NSEC_PER_MSEC);
    size_t size = frame_arp(mac, &guest, false, wanted);
    assert_int_equal(count_frames(listener, 1000, wanted, size), 5);
    announce_free(announce);
}

static void announcing_ends_when_told(void **state)
{
    need_namespace();
    uint8_t wanted[FRAME_MAX];
    struct announce *announce;
    _cleanup_close_ int tap = tap_open(TAP, "", NULL);
    _cleanup_close_ int listener = listen_on_tap();
    struct announce_nic nic = {.tap = tap};
    memcpy(nic.mac, mac, MAC_SIZE);
    assert_int_equal(announce_start(&nic, 1, &announce, NULL), 0);
    announce_free(announce);
    size_t size = frame_rarp(mac, wanted);
    assert_int_equal(count_frames(listener, 200, wanted, size), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tap_name_comes_from_the_id),
        cmocka_unit_test(tap_is_up_with_a_net_header_and_goes_with_its_descriptor),
        cmocka_unit_test(tap_joins_the_bridge_and_takes_its_mtu),
        cmocka_unit_test(missing_bridge_says_how_to_make_it),
        cmocka_unit_test(an_interface_that_is_no_bridge_is_refused),
        cmocka_unit_test(a_tap_in_use_is_busy),
        cmocka_unit_test(frames_go_to_the_one_descriptor_that_is_in_use),
        cmocka_unit_test(the_interface_stays_with_either_descriptor),
        cmocka_unit_test(a_tap_for_one_descriptor_is_not_joined),
        cmocka_unit_test(a_tap_that_is_gone_is_not_made_anew_by_joining),
        cmocka_unit_test(tap_is_taken_back_from_the_process_that_has_it),
        cmocka_unit_test(addresses_are_learned_on_a_bridged_tap),
        cmocka_unit_test(plain_ipv4_counts_only_while_nothing_is_known),
        cmocka_unit_test(what_another_host_learned_is_added_for_our_macs_only),
        cmocka_unit_test(a_vanished_tap_keeps_what_is_known),
        cmocka_unit_test(a_tap_that_is_down_carries_nothing_and_is_listened_to_again),
        cmocka_unit_test(learning_on_a_tap_that_is_not_there_fails),
        cmocka_unit_test(announces_five_times_without_blocking),
        cmocka_unit_test(announcing_ends_when_told),
    };
    return cmocka_run_group_tests(tests, enter_namespace, NULL);
}
