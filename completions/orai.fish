# SPDX-License-Identifier: Apache-2.0
# fish completion for orai: asks the program itself, whose table of options it therefore always fits.

function __fish_orai_complete
    set -l words (commandline -opc) (commandline -ct)
    for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
        if test "$line" = :file
            __fish_complete_path (commandline -ct)
        else
            printf '%s\n' $line
        end
    end
end

complete -c orai -f -a '(__fish_orai_complete)'
