#!/bin/sh
# The way back of a node that a run has cut off: the run arms a timer before it changes what packets pass, and disarms it
# over a new login. If it cannot, the node puts back what it had. POSIX sh, which needs nothing of what may be broken.
#
#   confirm.sh arm DIRECTORY SECONDS COMMAND STATE UNITS THEIRS
#   confirm.sh disarm DIRECTORY
#   confirm.sh back DIRECTORY
#
# DIRECTORY has the old files (plugins/module_utils/kept.py), and what `arm` notes: the state of our UNITS and of THEIRS,
# those that ours replace (each a list in one word). Whoever renames it first, `disarm` or `back`, has decided.
set -eu
umask 077
timer=vff-qos-confirm

# The process that serves this login, whatever is between (sudo, a shell). Channels of one connection share it.
login() {
    pid=$$
    while [ "$pid" -gt 1 ]; do
        case $(cat "/proc/$pid/comm") in sshd*|dropbear) echo "$pid $(cut -d' ' -f22 "/proc/$pid/stat")"; return ;; esac
        pid=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$pid/status")
    done
}

# That of a run that was cut short, or that failed and asks for the way back; else there is none.
stop_timer() {
    [ "$(systemctl show --value --property=LoadState "$timer.timer")" = not-found ] || systemctl stop "$timer.timer"
}

arm() {
    directory=$1 seconds=$2
    printf '%s\n' "$3" > "$directory/command"
    printf '%s\n' "$4" > "$directory/state"
    # Again, where a run was cut short: what was before that one counts.
    if [ ! -e "$directory/units" ]; then
        for unit in $5 $6; do
            # Not is-enabled and is-active, to which "no" is a failure.
            enabled=$(systemctl show --value --property=UnitFileState "$unit")
            active=$(systemctl show --value --property=ActiveState "$unit")
            echo "$unit ${enabled:-none} ${active:-none}"
        done > "$directory/units.new"
        mv "$directory/units.new" "$directory/units"
    fi
    login > "$directory/login"
    stop_timer
    systemd-run --quiet --collect --unit="$timer" --description="Per-user limits: back to before the last change" \
        --on-active="$seconds" --timer-property=AccuracySec=100ms /bin/sh "$directory/confirm.sh" back "$directory"
}

disarm() {
    directory=$1
    if [ ! -d "$directory" ]; then
        echo "too late: the node has put back what it had ('journalctl -u $timer' on it says how)" >&2
        exit 1
    fi
    now=$(login)
    if [ -n "$now" ] && [ "$now" = "$(cat "$directory/login")" ]; then
        echo "this is the old connection, which proves nothing: do not share one with others (ControlPath) here" >&2
        exit 1
    fi
    if ! mv "$directory" "$directory.done"; then
        echo "too late: the node puts back what it had" >&2
        exit 1
    fi
    systemctl stop "$timer.timer"
    rm -rf "$directory.done"
}

# Names of $directory/units whose state is one of the words $2 in column $1.
having() {
    while read -r unit enabled active; do
        case $1 in enabled) word=$enabled ;; *) word=$active ;; esac
        case " $2 " in *" $word "*) echo "$unit" ;; esac
    done < "$directory/units"
}

# Says what fails and goes on: each step brings the node nearer to what it had.
try() {
    "$@" || echo "failed: $*" >&2
}

back() {
    directory=$1.back
    mv "$1" "$directory" || exit 0
    try stop_timer
    echo "the last change was not confirmed over a new login; what was before is put back"
    command=$(cat "$directory/command") state=$(cat "$directory/state")
    units=$(cut -d' ' -f1 "$directory/units")
    # Those that exist: systemd calls it a failure to stop another one.
    ours=$(for unit in $units; do
        case $unit in
        vff-qos-bootstrap.*|vff-qos-follow.*|vff-qos-gc.*|vff-qos-report.*|vff-qos-webhook.*)
            ! systemctl cat "$unit" >/dev/null 2>&1 || echo "$unit" ;;
        esac
    done)
    # What stops packets goes first. The program that is to go, and else the one that was before.
    [ -z "$ours" ] || try systemctl stop $ours
    if [ -x "$command" ] && ! "$command" remove; then
        restore
        try "$command" remove
    fi
    if [ -n "$ours" ]; then
        try systemctl unmask $ours
        try systemctl disable --quiet $ours
    fi
    restore
    for copy in "$state".schema-*; do
        # Of an upgrade by the program that goes: its successor cannot read the new one.
        if [ -e "$copy" ] && [ "$copy" -nt "$directory/units" ]; then
            try mv "$copy" "$state"
            try rm -f "$state-wal" "$state-shm"
        fi
    done
    try systemctl daemon-reload
    for verb in enable mask; do
        case $verb in enable) word=enabled ;; *) word=masked ;; esac
        names=$(having enabled $word)
        [ -z "$names" ] || try systemctl $verb --quiet $names
    done
    names=$(having active "active activating reloading")
    [ -z "$names" ] || try systemctl start $names
    rm -rf "$directory"
    echo "done"
}

# The old files; what was not there is deleted. A second time changes nothing.
restore() {
    if [ -e "$directory/made" ]; then
        while read -r path; do try rm -f "$path"; done < "$directory/made"
    fi
    [ -d "$directory/files" ] || return 0
    (cd "$directory/files" && find . ! -type d) | while read -r path; do
        try cp -a "$directory/files/$path" "/$path.back"
        try mv -T "/$path.back" "/$path"
    done
}

verb=$1
shift
"$verb" "$@"
