# What happens on a machine around a package's files; the packages of both
# products and of both kinds run these functions, each from its own hooks. What
# one product does otherwise is behind them, from agent.sh or server.sh.
#
#  * A service that runs is stopped before its files change and started again
#    after them: one that reads half of each version is worse than none.
#  * A first install enables and starts it only if it is configured.
#  * What an administrator disabled stays so.
#  * The settings' folder is both products': one doesn't take the other's.

name='@PACKAGE@' # also of the account
service='@SERVICE@'
units='@UNITS@'
program=/opt/$name
settings=/etc/holdfast
state=/var/lib/$name
running=/run/$name-was-running # until the new files are in place
first=/run/$name-is-new

systemd_runs() { [ -d /run/systemd/system ]; }

before_files() { # first | upgrade
    rm -f "$running" "$first"
    if [ "$1" = first ]; then
        : >"$first"
    elif systemd_runs && systemctl is-active --quiet "$service"; then
        : >"$running"
        systemctl stop "$service" || true
    fi
    remove_compiled
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
    rm -f "$running" "$first"
}

before_removal() {
    # shellcheck disable=SC2086 # a list of units
    if systemd_runs; then systemctl stop $units || true; fi
    # shellcheck disable=SC2086
    if command -v systemctl >/dev/null; then systemctl --quiet disable $units || true; fi
    remove_compiled
}

after_removal() {
    if systemd_runs; then
        systemctl daemon-reload || true
        # One that has failed would be listed without its file.
        systemctl reset-failed 'holdfast-*' 2>/dev/null || true
    fi
}

purge() {
    rm -rf "$state" "/run/$name" "$settings/@SETTINGS@"
    if ! other_is_there; then rm -rf "$settings"; fi
    forget
    if systemd_runs; then systemctl daemon-reload || true; fi
    if getent passwd "$name" >/dev/null; then userdel "$name" || true; fi
    if getent group "$name" >/dev/null; then groupdel "$name" || true; fi
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
