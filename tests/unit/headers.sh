#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Each header under SRC must compile on its own, whatever was included before it. Usage:
#   headers.sh SRC COMPILER [ARGUMENT...]
set -eu
src=$1
shift
failed=0
count=0
for header in $(cd "$src" && find . -name '*.h' | sed 's|^\./||' | sort); do
    count=$((count + 1))
    # Twice: a header without a guard fails too.
    if ! printf '#include "%s"\n#include "%s"\n' "$header" "$header" |
        "$@" -std=gnu17 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-parameter -Werror -I "$src" -fsyntax-only -x c -; then
        echo "$header does not compile alone" >&2
        failed=1
    fi
done
if [ "$count" -eq 0 ]; then
    echo "no headers under $src" >&2
    exit 1
fi
echo "$count headers"
exit $failed
