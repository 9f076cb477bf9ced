# SPDX-License-Identifier: Apache-2.0
# bash completion for orai: asks the program itself, whose table of options it therefore always fits.

_orai()
{
    local cur=$2 word
    COMPREPLY=()
    # bash takes --format=json for three words; the last one is what it wants to be completed
    [[ $cur == '=' ]] && cur=
    while IFS=$'\t' read -r word _; do
        if [[ $word == :file ]]; then
            compopt -o filenames 2>/dev/null
            local file
            while IFS= read -r file; do
                COMPREPLY+=("$file")
            done < <(compgen -f -- "$cur")
        else
            COMPREPLY+=("$word")
        fi
    done < <("${1/#\~/$HOME}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}

complete -F _orai orai
