/* SPDX-License-Identifier: Apache-2.0
 *
 * tap: an interface appears with TUNSETIFF and goes when its last descriptor is closed, so whatever fails
 * here, and whoever is killed, nothing is left behind. Offloads are left off until QEMU asks the guest and
 * sets them.
 */
#include "net/tap.h"

#include "base/macro.h"
#include "net/rtnetlink.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

const char *tap_name(const struct id *vm, size_t nic, char name[IFNAMSIZ])
{
    char hex[9];
    snprintf(name, IFNAMSIZ, "orai%s%u", hex_format(vm->bytes, 4, hex), (unsigned)nic % 100);
    return name;
}

static void set_name(struct ifreq *request, const char *name)
{
    memset(request, 0, sizeof *request);
    snprintf(request->ifr_name, sizeof request->ifr_name, "%s", name);
}

/* Gives the descriptor the interface of that name, which is made if there is none. 0 or -errno. */
static int attach(int fd, const char *name)
{
    struct ifreq request;
    set_name(&request, name);
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;
    return ioctl(fd, TUNSETIFF, &request) < 0 ? -errno : 0;
}

/* An interface that may have many queues gets as many of the kernel's own before them: some MB, for frames
 * that never wait there. A kernel that cannot leave them out has the memory. */
static void save_queues(const char *name)
{
    link_without_queue(name, NULL);
}

static int make_interface(const char *name, struct err *err)
{
    _cleanup_close_ int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        int r = err_sys(err, errno, "cannot open /dev/net/tun");
        err_hint(err, "load the module: modprobe tun");
        return r;
    }
    /* Not one that another process has: that would only be a further descriptor of it. */
    int r = if_nametoindex(name) ? -EBUSY : attach(fd, name);
    if (r < 0) {
        err_sys(err, r, "cannot make the tap %s", name);
        if (r == -EBUSY)
            err_hint(err, "another process still holds %s: ip -details link show %s", name, name);
        return r;
    }
    return TAKE_FD(fd);
}

/* The bridge's MTU becomes the tap's; then the bridge takes it in. */
static int join_bridge(int control, const char *name, const char *bridge, struct err *err)
{
    struct ifreq request;
    unsigned index = if_nametoindex(name);
    set_name(&request, bridge);
    if (ioctl(control, SIOCGIFMTU, &request) < 0) {
        int r = err_sys(err, errno, "cannot use the bridge %s", bridge);
        err_hint(err, "make it with: ip link add %s type bridge && ip link set %s up", bridge, bridge);
        return r;
    }
    int mtu = request.ifr_mtu;
    set_name(&request, name);
    request.ifr_mtu = mtu;
    if (ioctl(control, SIOCSIFMTU, &request) < 0)
        return err_sys(err, errno, "cannot give the tap %s the MTU %d of %s", name, mtu, bridge);
    set_name(&request, bridge);
    request.ifr_ifindex = (int)index;
    if (ioctl(control, SIOCBRADDIF, &request) < 0) {
        int r = err_sys(err, errno, "cannot join the tap %s to %s", name, bridge);
        if (r == -EOPNOTSUPP)
            err_hint(err, "%s is not a bridge: name one in vm.json, see ip link show type bridge", bridge);
        return r;
    }
    return 0;
}

/* A bridge takes the lowest address of its ports as its own. A tap that comes and goes with its guest must
 * not change that, or the host's neighbours lose it for as long as they remember the old one. */
static int raise_address(int control, const char *name, struct err *err)
{
    struct ifreq request;
    set_name(&request, name);
    if (ioctl(control, SIOCGIFHWADDR, &request) < 0)
        return err_sys(err, errno, "cannot read the address of the tap %s", name);
    request.ifr_hwaddr.sa_data[0] = (char)0xfe;
    if (ioctl(control, SIOCSIFHWADDR, &request) < 0)
        return err_sys(err, errno, "cannot set the address of the tap %s", name);
    return 0;
}

static int set_up(int control, const char *name, bool up, struct err *err)
{
    struct ifreq request;
    set_name(&request, name);
    if (ioctl(control, SIOCGIFFLAGS, &request) < 0)
        return err_sys(err, errno, "cannot read the flags of the tap %s", name);
    request.ifr_flags = (short)(up ? request.ifr_flags | IFF_UP : request.ifr_flags & ~IFF_UP);
    if (ioctl(control, SIOCSIFFLAGS, &request) < 0)
        return err_sys(err, errno, "cannot set the tap %s %s", name, up ? "up" : "down");
    return 0;
}

int tap_set(const char *name, bool up, struct err *err)
{
    _cleanup_close_ int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return control < 0 ? err_sys(err, errno, "cannot make a socket") : set_up(control, name, up, err);
}

int tap_open(const char *name, const char *bridge, struct err *err)
{
    _cleanup_close_ int fd = make_interface(name, err);
    if (fd < 0)
        return fd;
    _cleanup_close_ int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return err_sys(err, errno, "cannot make a socket");
    save_queues(name);
    int r = raise_address(control, name, err);
    if (r == 0 && bridge[0])
        r = join_bridge(control, name, bridge, err);
    if (r == 0)
        r = set_up(control, name, true, err);
    return r < 0 ? r : TAKE_FD(fd);
}

/* Does /proc/PID/fdinfo/FD say "iff:\tNAME"? Only tun descriptors have that line. */
static bool is_tap(int fdinfo, const char *fd, const char *name)
{
    char text[1024], wanted[IFNAMSIZ + 8];
    _cleanup_close_ int info = openat(fdinfo, fd, O_RDONLY | O_CLOEXEC);
    ssize_t n = info < 0 ? -1 : read(info, text, sizeof text - 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    snprintf(wanted, sizeof wanted, "\niff:\t%s\n", name);
    return strstr(text, wanted);
}

int tap_take(pid_t pid, int pidfd, const char *name, struct err *err)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fdinfo", (int)pid);
    DIR *dir = opendir(path);
    if (!dir)
        return err_sys(err, errno, "cannot look into process %d", (int)pid);
    int fd = -ENOENT;
    for (struct dirent *entry; fd == -ENOENT && (entry = readdir(dir));) {
        if (!is_tap(dirfd(dir), entry->d_name, name))
            continue;
        fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)strtol(entry->d_name, NULL, 10), 0);
        if (fd < 0)
            fd = -errno;
    }
    closedir(dir);
    return fd < 0 ? err_sys(err, fd, "cannot get the tap %s back from process %d", name, (int)pid) : fd;
}

static const char *stand_in_name(const char *name, char ret[IFNAMSIZ])
{
    snprintf(ret, IFNAMSIZ, "%.14sn", name);
    return ret;
}

int tap_stand_in(const char *name, struct err *err)
{
    char stand_in[IFNAMSIZ];
    return make_interface(stand_in_name(name, stand_in), err);
}

static bool takes_several(int fd)
{
    struct ifreq request;
    return ioctl(fd, TUNGETIFF, &request) == 0 && request.ifr_flags & IFF_MULTI_QUEUE;
}

int tap_join(int fd, const char *name, struct err *err)
{
    char stand_in[IFNAMSIZ];
    int r = link_delete(stand_in_name(name, stand_in), err);
    if (r < 0)
        return r;
    if (!if_nametoindex(name)) /* else it would be made */
        return err_sys(err, ENODEV, "the tap %s is gone", name);
    r = attach(fd, name);
    if (r == -EINVAL) {
        err_set(err, ENOTSUP, "the tap %s takes one user only, as an older version of Orai made it", name);
        return err_hint(err, "stop the VM and start it once; from then on it can be refreshed");
    }
    if (r < 0)
        return err_sys(err, r, "cannot give the tap %s a second descriptor", name);
    return tap_use(fd, false, err);
}

int tap_use(int fd, bool use, struct err *err)
{
    struct ifreq request = {.ifr_flags = use ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};
    if (ioctl(fd, TUNSETQUEUE, &request) == 0 || (errno == EINVAL && takes_several(fd)))
        return 0;
    return err_sys(err, errno, "cannot put a tap's descriptor %s use", use ? "into" : "out of");
}

int tap_header_size(int fd)
{
    struct ifreq request;
    int size = 0;
    if (ioctl(fd, TUNGETIFF, &request) < 0)
        return -errno;
    if (!(request.ifr_flags & IFF_VNET_HDR))
        return 0;
    return ioctl(fd, TUNGETVNETHDRSZ, &size) < 0 ? -errno : size;
}
