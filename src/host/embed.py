#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed.py FILE NAME OUTPUT: writes FILE as the C array NAME_text and its size NAME_size."""
import sys

path, name, output = sys.argv[1:]
data = open(path, "rb").read()
rows = [", ".join(str(byte) for byte in data[i : i + 24]) for i in range(0, len(data), 24)]
with open(output, "w") as out:
    out.write(f'#include "host/{name}.h"\n\nconst char {name}_text[] = {{\n')
    out.write(",\n".join(rows) + f",\n0}};\nconst size_t {name}_size = sizeof {name}_text - 1;\n")
