#!/bin/sh
# Repair plan for Debian GNU/Linux 12 (bookworm), made by rescue-agent 0.1.0 at
# 2026-01-02T03:04:05Z.
# Does the work of the plan without the agent: run it as root on the rescue system. It refuses when
# a disk was changed since. Commands have no time limit here; Ctrl-C stops and releases.
#
# What is wrong:
# - The ext4 filesystem is damaged (/dev/vda2)
# - PID 1 cannot start: libc.so.6, which it is linked to, is not there (/sbin/init)
# - Hardly any room is left on /home (/dev/vda3)
#
# What this does not do:
# - Data on /home is not removed to make room. Instead: Move some of it to another disk.
#
# What can be planned only after this:
# - initramfs: the kernels are read once /dev/vda2 is mended

set -eu

stop() {
    printf '%s\n' "$2" >&2
    exit "$1"
}

at() {
    dd if="$1" bs=1 skip="$2" count=8 2> /dev/null | tr -d '\0'
}

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
}

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
}

# A mount point must lie where its name says: mounting over a link could cover this system.
plain() {
    [ "$(realpath -m -- "$1")" = "$1" ] || stop 1 "$1 is a link: nothing is mounted over it"
}

# What is written must lie in the patient, whatever its links say.
within() {
    case $(realpath -m -- "$1")/ in
        "$root"/*) ;;
        *) stop 1 "$1 leads out of the patient: nothing is written there" ;;
    esac
}

regular() {
    [ -f "$1" ] || stop 1 "$1 is not a regular file"
}

# Save the first state of a file before it is changed.
keep() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        [ -e "$work/saved/$2" ] || [ -L "$work/saved/$2" ] || cp -a -T -- "$1" "$work/saved/$2"
    fi
}

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
                    printf '%s\n' "$name" >> "$2"
                elif [ -e "$root/$name" ] || [ -L "$root/$name" ]; then
                    printf '%s\n' "$name"
                fi
                ;;
        esac
    done < "$names" > "$work/unpack/replaced"
    [ -e "$work/saved/$3" ] || tar -c --no-recursion --verbatim-files-from -f "$work/saved/$3" \
        -C "$root" -T "$work/unpack/replaced"
}

# Names that the patient's dpkg keeps out (dpkg(1), --path-exclude): the last rule that fits counts.
path_rules() {
    out=$work/unpack/out
    : > "$out"
    for config in "$root"/etc/dpkg/dpkg.cfg.d/* "$root/etc/dpkg/dpkg.cfg"; do
        if [ -f "$config" ] && [ "$(realpath -- "$config")" = "$config" ]; then
            sed -n 's/^[[:space:]]*path-\([ei][xn]clude\)[ =]*/\1 /p' "$config"
        fi
    done | tr -d "\"'" > "$work/unpack/rules"
    while read -r kind pattern; do
        # The glob as a regular expression, for the names of the archive, which begin with a dot.
        pattern=$(printf '%s\n' "$pattern" | sed 's/[.^$+(){}|\\]/\\&/g; s/[*]/.*/g; s/[?]/./g')
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
            */) has_beginning "$name" "$work/unpack/kept" || printf '%s\n' "${name%/}" ;;
            *) printf '%s\n' "$name" ;;
        esac
    done < "$out"
}

has_beginning() {
    awk 'BEGIN { p = ARGV[1]; ARGV[1] = "" } index($0, p) == 1 { f = 1; exit } END { exit !f }' "$@"
}

# Names that another package has diverted (dpkg-divert(1)) are laid out apart, by lay_diverted.
# $1: package file, $2: files as tar, $3: list of what is left alone
divert() {
    : > "$work/unpack/diverted"
    list=$root/var/lib/dpkg/diversions
    if [ ! -f "$list" ] || [ "$(realpath -- "$list")" != "$list" ]; then return; fi
    package=$(dpkg-deb -f "$1" Package)
    while IFS= read -r from && IFS= read -r to && IFS= read -r owner; do
        if [ "$owner" != "$package" ] && grep -q -x -F -e ".$from" "$work/unpack/names"; then
            printf '.%s\n' "$from" >> "$3"
            printf '%s\n%s\n' "$from" "$to" >> "$work/unpack/diverted"
            mkdir -p -- "$work/unpack/aside"
            tar -x -p --numeric-owner -C "$work/unpack/aside" -f "$2" -- ".$from"
        fi
    done < "$list"
}

lay_diverted() {
    while IFS= read -r from && IFS= read -r to; do
        within "$root${to%/*}"
        keep "$root$to" "$(printf '%s\n' "${to#/}" | sed 's/%/%25/g; s,/,%2F,g')"
        mkdir -p -- "$root${to%/*}"
        cp -a -T --remove-destination -- "$work/unpack/aside$from" "$root$to"
    done < "$work/unpack/diverted"
    rm -r -f -- "$work/unpack/aside"
}

# Whether the steps that this one builds on have been done.
needs() {
    for before in "$@"; do
        case " $done_steps " in
            *" $before "*) ;;
            *)
                printf 'skipped: %s was not done\n' "$before" >&2
                return 1
                ;;
        esac
    done
}

ended() {
    if [ "$2" -eq 0 ]; then
        done_steps="$done_steps $1"
    else
        failed="$failed $1"
        printf 'failed with %s: %s\n' "$2" "$1" >&2
    fi
    step=
}

# Processes that were left in the patient keep its mounts busy.
end_strays() {
    for process in /proc/[0-9]*; do
        if [ "$(readlink -- "$process/root" 2> /dev/null)" = "$root" ]; then
            printf 'ending process %s, left in the patient\n' "${process#/proc/}" >&2
            kill -s "$1" "${process#/proc/}" 2> /dev/null
            strays=yes
        fi
    done
}

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
        printf 'NOT RELEASED: see the message above\n' >&2
        leaked=yes
    done
    held=
}

finish() {
    code=$?
    set +e
    trap '' INT TERM HUP
    if [ -n "$step" ]; then printf 'stopped in step %s\n' "$step" >&2; fi
    release_all
    sync
    detach_all
    if [ "$leaked" = yes ]; then
        printf 'Something could not be released; its device must not be used yet.\n' >&2
        code=4
    fi
    case $code in
        0 | [1-4] | 129 | 130 | 143) ;;
        *) code=1 ;;
    esac
    exit "$code"
}

release() {
    case $1 in
        1)
            if findmnt -n -M /run/rescue-agent/target > /dev/null; then
                umount -- /run/rescue-agent/target || return
            fi
            ;;
        2)
            if findmnt -n -M /run/rescue-agent/target/proc > /dev/null; then
                umount -- /run/rescue-agent/target/proc || return
            fi
            ;;
        3)
            if findmnt -n -M /run/rescue-agent/target/dev > /dev/null; then
                findmnt -R -n -r -o TARGET -- /run/rescue-agent/target/dev | tac | xargs -r -d '\n' -n 1 umount -- || return
            fi
            ;;
        4)
            if findmnt -n -M /run/rescue-agent/target/run/udev > /dev/null; then
                umount -- /run/rescue-agent/target/run/udev || return
            fi
            ;;
        5)
            if findmnt -n -M /run/rescue-agent/target/proc/cmdline > /dev/null; then
                umount -- /run/rescue-agent/target/proc/cmdline || return
            fi
            if [ -e /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/proc%2Fcmdline.made ]; then
                rm -f -- /run/rescue-agent/target/proc/cmdline /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/proc%2Fcmdline.made
            fi || return
            ;;
        6)
            if [ -e /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d ] || [ -L /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d ]; then
                rm -f -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue &&
                    cp -a -T -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue &&
                    mv -T -f -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue /run/rescue-agent/target/usr/sbin/policy-rc.d &&
                    rm -f -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d
            else
                rm -f -- /run/rescue-agent/target/usr/sbin/policy-rc.d
            fi || return
            ;;
    esac
}

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C.UTF-8
export PATH LC_ALL
[ "$(id -u)" -eq 0 ] || stop 3 "only root can do this"
# In a mount namespace of its own not even SIGKILL leaves a mount behind.
if [ "${RESCUE_AGENT_NAMESPACE-}" != "$$" ]; then
    [ -f "$0" ] || stop 2 "save this script to a file and run that"
    RESCUE_AGENT_NAMESPACE=$$
    export RESCUE_AGENT_NAMESPACE
    exec unshare -m --propagation private -- /bin/sh "$0" "$@"
fi
for tool in blockdev chroot dpkg-deb e2fsck findmnt flock lsblk mount sha256sum tar umount unshare; do
    command -v "$tool" > /dev/null || stop 3 "$tool is not installed on this rescue system"
done
exec < /dev/null

root=/run/rescue-agent/target
work=/var/lib/rescue-agent/runs/20260102T030405Z-00aa
held=
attached=
exports=
leaked=no
step=
done_steps=
failed=
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# The same lock as the agent's: two repairs never work at the same time.
umask 077
mkdir -p -- /run/rescue-agent
exec 9>> /run/rescue-agent/lock
flock -n 9 || stop 3 "another repair is at work"
for folder in archives bind held saved undo unpack; do mkdir -p -- "$work/$folder"; done
umask 022

same_disk /dev/vda 21474836480 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa

# --- 1 of 4: Repair the ext4 filesystem on /dev/vda2 (filesystem)
# Why: e2fsck found damage, and nothing on it can be trusted before it is mended
printf '%s\n' '1 of 4: Repair the ext4 filesystem on /dev/vda2'
set +e
(
    set -e
    e2fsck -f -n -- /dev/vda2 || case $? in 4) ;; *) false ;; esac
    runs=0
    until e2fsck -f -n -- /dev/vda2; do
        runs=$((runs + 1))
        [ "$runs" -le 4 ] || exit 1
        e2fsck -f -y -- /dev/vda2 || [ $? -le 2 ]
    done
)
ended fsck-vda2 "$?"
set -e

# --- 2 of 4: Open the installed system (packages)
# Why: package repair works inside it
printf '%s\n' '2 of 4: Open the installed system'
if needs fsck-vda2; then
    step=workspace
    plain /run/rescue-agent/target
    held="1 $held"
    mkdir -p -- /run/rescue-agent/target
    mount -t ext4 -o rw -- /dev/vda2 /run/rescue-agent/target
    plain /run/rescue-agent/target/proc
    held="2 $held"
    mkdir -p -- /run/rescue-agent/target/proc
    mount -t proc -- proc /run/rescue-agent/target/proc
    plain /run/rescue-agent/target/dev
    held="3 $held"
    mkdir -p -- /run/rescue-agent/target/dev
    mount --rbind -- /dev /run/rescue-agent/target/dev
    mount --make-rslave -- /run/rescue-agent/target/dev
    plain /run/rescue-agent/target/run/udev
    held="4 $held"
    mkdir -p -- /run/rescue-agent/target/run/udev
    mount --bind -- /run/udev /run/rescue-agent/target/run/udev
    mount --make-slave -- /run/rescue-agent/target/run/udev
    mount -o remount,bind,ro -- /run/rescue-agent/target/run/udev
    plain /run/rescue-agent/target/proc/cmdline
    held="5 $held"
    printf '%s\n' 'root=UUID=6d2f ro' > /var/lib/rescue-agent/runs/20260102T030405Z-00aa/bind/proc%2Fcmdline
    chmod 0644 -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/bind/proc%2Fcmdline
    if [ ! -e /run/rescue-agent/target/proc/cmdline ]; then
        mkdir -p -- /run/rescue-agent/target/proc
        : > /run/rescue-agent/target/proc/cmdline
        : > /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/proc%2Fcmdline.made
    fi
    mount --bind -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/bind/proc%2Fcmdline /run/rescue-agent/target/proc/cmdline
    mount --make-slave -- /run/rescue-agent/target/proc/cmdline
    within /run/rescue-agent/target/usr/sbin
    rm -f -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d
    if [ -e /run/rescue-agent/target/usr/sbin/policy-rc.d ] || [ -L /run/rescue-agent/target/usr/sbin/policy-rc.d ]; then
        cp -a -T -- /run/rescue-agent/target/usr/sbin/policy-rc.d /var/lib/rescue-agent/runs/20260102T030405Z-00aa/held/usr%2Fsbin%2Fpolicy-rc.d
    fi
    held="6 $held"
    mkdir -p -- /run/rescue-agent/target/usr/sbin
    rm -f -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue
    printf '%s\n' \
        '#!/bin/sh' \
        'exit 101' > /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue
    if [ -f /run/rescue-agent/target/usr/sbin/policy-rc.d ] && [ ! -L /run/rescue-agent/target/usr/sbin/policy-rc.d ]; then
        cp --attributes-only --preserve=mode,ownership,xattr -T -- /run/rescue-agent/target/usr/sbin/policy-rc.d /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue
    else
        chmod 0755 -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue
    fi
    sync -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue
    mv -T -f -- /run/rescue-agent/target/usr/sbin/.policy-rc.d.rescue /run/rescue-agent/target/usr/sbin/policy-rc.d
    sync -- /run/rescue-agent/target/usr/sbin
    ended workspace 0
else
    failed="$failed "workspace
fi

# --- 3 of 4: Lay libc6 over the system from outside (packages)
# Why: nothing in the system starts without libc.so.6, its own package manager neither
printf '%s\n' '3 of 4: Lay libc6 over the system from outside'
if needs workspace; then
    set +e
    (
        set -e
        dpkg-deb --fsys-tarfile /var/lib/rescue-agent/runs/20260102T030405Z-00aa/archives/libc6_2.36-9+deb12u14_amd64.deb > /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.tar
        dpkg-deb --ctrl-tarfile /var/lib/rescue-agent/runs/20260102T030405Z-00aa/archives/libc6_2.36-9+deb12u14_amd64.deb | tar -x -O -f - ./conffiles 2> /dev/null | grep '^/' |
            while read -r file; do
                if [ -e /run/rescue-agent/target"$file" ] || [ -L /run/rescue-agent/target"$file" ]; then printf '.%s\n' "$file"; fi
            done > /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.keep
        prepare_unpack /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.tar /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.keep var%2Flib%2Frescue-agent%2Fruns%2F20260102T030405Z-00aa%2Farchives%2Flibc6_2.36-9+deb12u14_amd64.deb.tar
        divert /var/lib/rescue-agent/runs/20260102T030405Z-00aa/archives/libc6_2.36-9+deb12u14_amd64.deb /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.tar /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.keep
        tar -x -p --numeric-owner --keep-directory-symlink --no-overwrite-dir --anchored --no-wildcards -X /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.keep -C /run/rescue-agent/target -f /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.tar
        rm -f -- /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.tar /var/lib/rescue-agent/runs/20260102T030405Z-00aa/unpack/libc6_2.36-9+deb12u14_amd64.deb.keep
        lay_diverted
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 LANGUAGE= chroot /run/rescue-agent/target true
    )
    ended outside "$?"
    set -e
else
    failed="$failed "outside
fi

# --- 4 of 4: Reinstall libc6 with the system's own package manager (packages)
# Why: its scripts and the database must agree with the files
printf '%s\n' '4 of 4: Reinstall libc6 with the system'"'"'s own package manager'
if needs workspace outside; then
    set +e
    (
        set -e
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 LANGUAGE= DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none chroot /run/rescue-agent/target apt-get -q -y install --reinstall libc6=2.36-9+deb12u14
    )
    ended inside "$?"
    set -e
else
    failed="$failed "inside
fi

# End of the packages stage: everything is given back.
set +e
release_all
set -e
[ "$leaked" = no ] || exit 4

if [ -n "$failed" ]; then
    printf 'Not done:%s\n' "$failed" >&2
    exit 1
fi
printf 'Done. More can be planned now: run "rescue-agent plan" again.\n'
