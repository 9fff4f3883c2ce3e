# What happens on a machine around a package's files; the packages of both
# products and of both kinds run these functions, each from its own hooks. What
# one product does otherwise is behind them, from agent.sh or server.sh.
#
#  * A service that runs is stopped before its files change and started again
#    after them: one that reads half of each version is worse than none. One that
#    crashes again and again runs, too; one that gave up is started if it is enabled.
#  * What dpkg takes back, it leaves as it was: only a removal that is done disables.
#  * A first install enables and starts it only if it is configured.
#  * What an administrator disabled stays so.
#  * The settings' folder is both products': one doesn't take the other's.

name='@PACKAGE@' # also of the account
service='@SERVICE@'
units='@UNITS@'
program=/opt/$name
settings=/etc/holdfast
state=/var/lib/$name
# Both stay until the package is configured, or gone. A reboot may take the one, since it
# starts what is enabled; the other tells a first install from an upgrade after it, too.
running=/run/$name-was-running
first=/var/lib/$name-is-new

systemd_runs() { [ -d /run/systemd/system ]; }

before_files() { # first | upgrade
    if [ "$1" = first ]; then
        rm -f "$running"
        : >"$first"
        sync -f "$first" || true # before a file is unpacked
    else
        stop "$service"
    fi
    remove_compiled
}

stop() { # unit...
    systemd_runs || return 0
    if is_wanted; then : >"$running"; fi
    systemctl stop "$@" || true
}

is_wanted() {
    case "$(systemctl show --property=ActiveState --value "$service")" in
        active | reloading | refreshing | activating) ;; # activating: between two crashes, too
        failed | deactivating) systemctl --quiet is-enabled "$service" ;;
        *) return 1 ;;
    esac
}

after_files() {
    make_account
    [ -d "$state" ] || make_state
    compile
    if systemd_runs; then systemctl daemon-reload || true; fi
    if [ -e "$first" ]; then
        if is_configured; then
            enable_units
            : >"$running"
        else
            say_what_is_missing
        fi
    fi
    if [ -e "$running" ] && systemd_runs; then
        if systemctl start "$service"; then
            [ ! -e "$first" ] || say_what_is_next
        else
            echo "$name: $service didn't start; journalctl -u $service says why" >&2
        fi
    fi
    forget_marks
}

forget_marks() { rm -f "$running" "$first"; }

# Its files stay, but what it needs may be missing for a while.
before_deconfiguration() { stop "$service"; }

before_removal() {
    # shellcheck disable=SC2086 # a list of units
    stop $units
    remove_compiled
}

after_removal() {
    forget_marks
    disable_units
    if systemd_runs; then
        systemctl daemon-reload || true
        # One that has failed would be listed without its file.
        systemctl reset-failed 'holdfast-*' 2>/dev/null || true
    fi
}

purge() {
    remove "$state"
    remove "/run/$name"
    remove "$settings/@SETTINGS@"
    if ! other_is_there; then remove "$settings"; fi
    forget
    if systemd_runs; then systemctl daemon-reload || true; fi
    if getent passwd "$name" >/dev/null; then userdel "$name" || true; fi
    if getent group "$name" >/dev/null; then groupdel "$name" || true; fi
}

# A mount point can only be emptied: what stays is named, and the rest goes.
remove() {
    if ! rm -rf "$1"; then
        echo "$name: $1 stays, with $(find "$1" -mindepth 1 | wc -l) files in it. Where a file system" \
            "is mounted: unmount it, then rm -r $1" >&2
    fi
}

other_is_there() { [ -e "/opt/@OTHER@" ] || [ -e "$settings/@OTHER_SETTINGS@" ]; }

make_account() {
    getent group "$name" >/dev/null || groupadd --system "$name"
    getent passwd "$name" >/dev/null ||
        useradd --system --gid "$name" --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin --comment '@ACCOUNT@' "$name"
}

# Python's own byte code is written here, not shipped: it fits one interpreter only.
compile() {
    workers=1
    if [ -w /dev/shm ]; then workers=0; fi # as many as there are CPUs
    "$program/bin/python3" -I -m compileall -q -j "$workers" "$program/lib" || true
    # Python flushes none of what it compiles: after a power cut some of it could be torn.
    sync -f "$program/lib" || true
}

remove_compiled() {
    if [ -d "$program/lib" ]; then
        find "$program/lib" -depth -name __pycache__ -exec rm -rf {} +
    fi
}

enable_units() {
    # shellcheck disable=SC2086 # a list of units
    if command -v systemctl >/dev/null; then systemctl --quiet enable $units || true; fi
}

# By hand: the units' own files are gone.
disable_units() {
    for unit in $units; do
        for link in /etc/systemd/system/*.wants/"$unit" /etc/systemd/system/*.requires/"$unit"; do
            [ -L "$link" ] || continue
            rm -f "$link"
            rmdir --ignore-fail-on-non-empty "$(dirname "$link")"
        done
    done
}
