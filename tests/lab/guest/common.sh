# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What both guest builders share: Debian packages and the cache. Sourced, never run.

: "${here:?the folder of the sources, set by the caller}"

# A fresh or long unused machine has no package lists, or old ones: the first failure refreshes them.
apt_get() {
    apt-get -q -o APT::Sandbox::User=root "$@" || { apt-get -q update && apt-get -q -o APT::Sandbox::User=root "$@"; }
}

is_installed() {
    dpkg -s "$1" 2>/dev/null | grep -q '^Status: install ok installed'
}

need_packages() {
    local package missing=()
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        DEBIAN_FRONTEND=noninteractive apt_get install -y --no-install-recommends "${missing[@]}"
    fi
}

# One hash over names, modes and contents of the given sources.
source_key() {
    tar -C "$here" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -c "$@" | sha256sum | cut -d' ' -f1
}

# is_fresh KEYFILE KEY OUTPUT...: were all outputs made from exactly these sources?
is_fresh() {
    local keyfile=$1 key=$2 output
    [ -f "$keyfile" ] && [ "$(cat "$keyfile")" = "$key" ] || return 1
    shift 2
    for output in "$@"; do
        [ -e "$output" ] || return 1
    done
}

# Tests may call the same builder at the same time: the second waits, and then finds everything fresh.
lock_output() {
    exec 9>"$1"
    flock 9
}

# compile_static OUTPUT SOURCE...: a program that needs nothing else in the guest.
compile_static() {
    local output=$1
    shift
    (cd "$here" && gcc -std=c17 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -static -pthread -o "$output" "$@")
}
