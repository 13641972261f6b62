# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell functions of a plan's script: what the agent does around each operation by itself."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping

# Functions of the script by name; only those that are called are written into it. None of them is
# called where "set -e" would be off, except release and what it calls.
FUNCTIONS: Mapping[str, str] = {
    "stop": """\
        stop() {
            printf '%s\\n' "$2" >&2
            exit "$1"
        }""",
    "attach": """\
        # Show an image file as the device that the plan names. $1: device, $2: image, $3: its format
        attach() {
            file=$2
            if [ "$3" != raw ]; then
                file=$work/export-${1##*/}
                : > "$file"
                name=$(printf '%s\\n' "$2" | sed 's/,/,,/g')
                place=$(printf '%s\\n' "$file" | sed 's/,/,,/g')
                qemu-storage-daemon --daemonize --pidfile "$file.pid" \\
                    --blockdev "driver=file,node-name=file,filename=$name" \\
                    --blockdev "driver=$3,node-name=disk,file=file" \\
                    --export "type=fuse,id=export,node-name=disk,mountpoint=$place,writable=on" ||
                    stop 3 "$2 cannot be opened as $3"
                exports="$file $exports"
            fi
            sector=512
            if [ "$(at "$file" 4096)" = 'EFI PART' ] && [ "$(at "$file" 512)" != 'EFI PART' ]; then
                sector=4096
            fi
            losetup -P -b "$sector" -- "$1" "$file" || stop 3 "$2 cannot be attached as $1: make a new plan"
            attached="$1 $attached"
            # A kernel without partition parsers has to be told.
            [ -e "${1}p1" ] || partx -a -- "$1" 2> /dev/null || :
        }""",
    "at": """\
        at() {
            dd if="$1" bs=1 skip="$2" count=8 2> /dev/null | tr -d '\\0'
        }""",
    "detach_all": """\
        detach_all() {
            for device in $attached; do
                partx -d -- "$device" 2> /dev/null
                losetup -d "$device" || leaked=yes
            done
            for file in $exports; do
                kill "$(cat "$file.pid")"
                for try in 1 2 3 4 5; do
                    findmnt -n -M "$file" > /dev/null || break
                    sleep "$try"
                    umount -- "$file" 2> /dev/null
                done
                if findmnt -n -M "$file" > /dev/null; then leaked=yes; else rm -f -- "$file"; fi
            done
        }""",
    "same_disk": """\
        # The plan fits one disk, in the state that it was in.
        same_disk() {
            [ -b "$1" ] || stop 3 "$1 is not there"
            [ "$(blockdev --getsize64 "$1")" = "$2" ] || stop 3 "$1 has another size: make a new plan"
            if [ -n "$3" ] && [ "$(head -c 1048576 -- "$1" | sha256sum)" != "$3  -" ]; then
                stop 3 "$1 was changed since the plan was made: make a new plan"
            fi
            if [ -n "$(lsblk -n -r -o MOUNTPOINT -- "$1" | tr -d '[:space:]')" ]; then
                stop 3 "$1 is in use: unmount it first"
            fi
        }""",
    "plain": """\
        # A mount point must lie where its name says: mounting over a link could cover this system.
        plain() {
            [ "$(realpath -m -- "$1")" = "$1" ] || stop 1 "$1 is a link: nothing is mounted over it"
        }""",
    "within": """\
        # What is written must lie in the patient, whatever its links say.
        within() {
            case $(realpath -m -- "$1")/ in
                "$root"/*) ;;
                *) stop 1 "$1 leads out of the patient: nothing is written there" ;;
            esac
        }""",
    "regular": """\
        regular() {
            [ -f "$1" ] || stop 1 "$1 is not a regular file"
        }""",
    "keep": """\
        # Save the first state of a file before it is changed.
        keep() {
            if [ -e "$1" ] || [ -L "$1" ]; then
                [ -e "$work/saved/$2" ] || [ -L "$work/saved/$2" ] || cp -a -T -- "$1" "$work/saved/$2"
            fi
        }""",
    "prepare_unpack": """\
        # Refuse a package that would write out of the patient; save what it replaces; note what dpkg
        # would leave alone. $1: files as tar, $2: list of what is left alone, $3: name of the saved copy
        prepare_unpack() {
            names=$work/unpack/names
            tar -t --quoting-style=literal -f "$1" > "$names"
            path_rules "$names" >> "$2"
            last=
            while IFS= read -r name; do
                folder=${name%/*}
                if [ "$folder" != "$last" ]; then
                    within "$root/$folder"
                    last=$folder
                fi
                case $name in
                    */) ;;
                    *)
                        if [ -d "$root/$name" ] && [ ! -L "$root/$name" ]; then
                            printf '%s\\n' "$name" >> "$2"
                        elif [ -e "$root/$name" ] || [ -L "$root/$name" ]; then
                            printf '%s\\n' "$name"
                        fi
                        ;;
                esac
            done < "$names" > "$work/unpack/replaced"
            [ -e "$work/saved/$3" ] || tar -c --no-recursion --verbatim-files-from -f "$work/saved/$3" \\
                -C "$root" -T "$work/unpack/replaced"
        }""",
    "path_rules": """\
        # Names that the patient's dpkg keeps out (dpkg(1), --path-exclude): the last rule that fits counts.
        path_rules() {
            out=$work/unpack/out
            : > "$out"
            for config in "$root"/etc/dpkg/dpkg.cfg.d/* "$root/etc/dpkg/dpkg.cfg"; do
                if [ -f "$config" ] && [ "$(realpath -- "$config")" = "$config" ]; then
                    sed -n 's/^[[:space:]]*path-\\([ei][xn]clude\\)[ =]*/\\1 /p' "$config"
                fi
            done | tr -d "\\"'" > "$work/unpack/rules"
            while read -r kind pattern; do
                # The glob as a regular expression, for the names of the archive, which begin with a dot.
                pattern=$(printf '%s\\n' "$pattern" | sed 's/[.^$+(){}|\\\\]/\\\\&/g; s/[*]/.*/g; s/[?]/./g')
                grep -E -x -e "[.]$pattern/?" "$1" > "$work/unpack/hits" || continue
                if [ "$kind" = exclude ]; then
                    cat "$work/unpack/hits" >> "$out"
                else
                    grep -v -x -F -f "$work/unpack/hits" "$out" > "$out.less" || :
                    mv -f -- "$out.less" "$out"
                fi
            done < "$work/unpack/rules"
            grep -v -x -F -f "$out" "$1" | grep -v '/$' > "$work/unpack/kept" || :
            while IFS= read -r name; do
                # A folder stays out only with all that lies in it.
                case $name in
                    */) has_beginning "$name" "$work/unpack/kept" || printf '%s\\n' "${name%/}" ;;
                    *) printf '%s\\n' "$name" ;;
                esac
            done < "$out"
        }""",
    "has_beginning": """\
        has_beginning() {
            awk 'BEGIN { p = ARGV[1]; ARGV[1] = "" } index($0, p) == 1 { f = 1; exit } END { exit !f }' "$@"
        }""",
    "divert": """\
        # Names that another package has diverted (dpkg-divert(1)) are laid out apart, by lay_diverted.
        # $1: package file, $2: files as tar, $3: list of what is left alone
        divert() {
            : > "$work/unpack/diverted"
            list=$root/var/lib/dpkg/diversions
            if [ ! -f "$list" ] || [ "$(realpath -- "$list")" != "$list" ]; then return; fi
            package=$(dpkg-deb -f "$1" Package)
            while IFS= read -r from && IFS= read -r to && IFS= read -r owner; do
                if [ "$owner" != "$package" ] && grep -q -x -F -e ".$from" "$work/unpack/names"; then
                    printf '.%s\\n' "$from" >> "$3"
                    printf '%s\\n%s\\n' "$from" "$to" >> "$work/unpack/diverted"
                    mkdir -p -- "$work/unpack/aside"
                    tar -x -p --numeric-owner -C "$work/unpack/aside" -f "$2" -- ".$from"
                fi
            done < "$list"
        }""",
    "lay_diverted": """\
        lay_diverted() {
            while IFS= read -r from && IFS= read -r to; do
                within "$root${to%/*}"
                keep "$root$to" "$(printf '%s\\n' "${to#/}" | sed 's/%/%25/g; s,/,%2F,g')"
                mkdir -p -- "$root${to%/*}"
                cp -a -T --remove-destination -- "$work/unpack/aside$from" "$root$to"
            done < "$work/unpack/diverted"
            rm -r -f -- "$work/unpack/aside"
        }""",
    "needs": """\
        # Whether the steps that this one builds on have been done.
        needs() {
            for before in "$@"; do
                case " $done_steps " in
                    *" $before "*) ;;
                    *)
                        printf 'skipped: %s was not done\\n' "$before" >&2
                        return 1
                        ;;
                esac
            done
        }""",
    "ended": """\
        ended() {
            if [ "$2" -eq 0 ]; then
                done_steps="$done_steps $1"
            else
                failed="$failed $1"
                printf 'failed with %s: %s\\n' "$2" "$1" >&2
            fi
            step=
        }""",
    "end_strays": """\
        # Processes that were left in the patient keep its mounts busy.
        end_strays() {
            for process in /proc/[0-9]*; do
                if [ "$(readlink -- "$process/root" 2> /dev/null)" = "$root" ]; then
                    printf 'ending process %s, left in the patient\\n' "${process#/proc/}" >&2
                    kill -s "$1" "${process#/proc/}" 2> /dev/null
                    strays=yes
                fi
            done
        }""",
    "release_all": """\
        # Newest first, one at a time, never lazily; a failure does not stop the rest.
        release_all() {
            [ -n "$held" ] || return 0
            strays=
            end_strays TERM
            if [ -n "$strays" ]; then
                sleep 5
                end_strays KILL
            fi
            for number in $held; do
                for try in 1 2 3; do
                    if release "$number"; then continue 2; fi
                    sleep "$try"
                done
                printf 'NOT RELEASED: see the message above\\n' >&2
                leaked=yes
            done
            held=
        }""",
    "finish": """\
        finish() {
            code=$?
            set +e
            trap '' INT TERM HUP
            if [ -n "$step" ]; then printf 'stopped in step %s\\n' "$step" >&2; fi
            release_all
            sync
            detach_all
            if [ "$leaked" = yes ]; then
                printf 'Something could not be released; its device must not be used yet.\\n' >&2
                code=4
            fi
            case $code in
                0 | [1-4] | 129 | 130 | 143) ;;
                *) code=1 ;;
            esac
            exit "$code"
        }""",
}


def functions_called_in(text: str) -> list[str]:
    """Return the lines of all functions that ``text`` calls, those included that they call."""
    wanted: set[str] = set()
    pending = [text]
    while pending:
        for word in re.findall(r"\w+", pending.pop()):
            if word in FUNCTIONS and word not in wanted:
                wanted.add(word)
                pending.append(FUNCTIONS[word])
    found: list[str] = []
    for name, function in FUNCTIONS.items():
        if name in wanted:
            found += [*textwrap.dedent(function).splitlines(), ""]
    return found[:-1]
