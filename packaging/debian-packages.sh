# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# shellcheck disable=SC2034  # the lists are for whoever sources this
# The Debian packages that Orai needs, in one place: sourced by check and demo.

# Clang's sanitizers and libFuzzer, which the package clang only recommends.
clang_runtime() {
    case $(. /etc/os-release && echo "$VERSION_ID") in
    12) echo libclang-rt-14-dev ;;
    *) echo libclang-rt-19-dev ;;
    esac
}

build_packages=(gcc libc6-dev make pkg-config meson ninja-build
    libssl-dev libjansson-dev libsqlite3-dev libwebsockets-dev libcurl4-openssl-dev libxxhash-dev libzstd-dev
    libcmocka-dev)
deb_packages=(git build-essential debhelper)
run_packages=(qemu-system-x86 ovmf qemu-utils iproute2 openssl)
lab_packages=(procps python3 python3-pytest python3-pytest-rerunfailures python3-yaml python3-jsonschema mmdebstrap busybox-static
    cpio xz-utils e2fsprogs apache2-utils)
check_packages=("${deb_packages[@]}" systemd clang "$(clang_runtime)" clang-tidy shellcheck man-db fio nbdkit libnbd-bin libglib2.0-dev bash-completion zsh fish)

is_installed() {
    dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed'
}

# A fresh machine has no package lists, or old ones: only the first failure refreshes them.
install_packages() {
    local package missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "these Debian packages are missing, and only root can install them: ${missing[*]}" >&2
        return 1
    fi
    echo "installing ${missing[*]} ..." >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q install -y --no-install-recommends "${missing[@]}" >&2 ||
        { apt-get -q update >&2 && apt-get -q install -y --no-install-recommends "${missing[@]}" >&2; }
}
