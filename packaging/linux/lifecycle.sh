# What happens on a machine around the package's files; both kinds of package
# run these functions, each from its own hooks.
#
#  * A guardian that runs is stopped before its files change and started again
#    after them: one that reads half of each version is worse than none. The
#    engines run on meanwhile.
#  * A first install enables and starts the agent only if it is configured.
#  * What an administrator disabled stays so.

units='@UNITS@'
program=/opt/holdfast
settings=/etc/holdfast
state=/var/lib/holdfast
running=/run/holdfast-was-running # until the new files are in place
first=/run/holdfast-is-new

systemd_runs() { [ -d /run/systemd/system ]; }

before_files() { # first | upgrade
    rm -f "$running" "$first"
    if [ "$1" = first ]; then
        : >"$first"
    elif systemd_runs && systemctl is-active --quiet holdfast-agent.service; then
        : >"$running"
        systemctl stop holdfast-agent.service || true
    fi
    remove_compiled
}

after_files() {
    make_account
    "$program/bin/python3" -I -m compileall -q "$program/lib" || true
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
        systemctl start holdfast-agent.service ||
            echo "holdfast: the agent didn't start; journalctl -u holdfast-agent says why" >&2
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
    rm -rf "$state" "$settings" /run/holdfast
    for drop_in in /etc/systemd/system/*.d/@DROP_IN@; do # of agentctl protect
        [ -e "$drop_in" ] || continue
        rm -f "$drop_in"
        rmdir --ignore-fail-on-non-empty "$(dirname "$drop_in")"
    done
    if systemd_runs; then systemctl daemon-reload || true; fi
    if getent passwd holdfast >/dev/null; then userdel holdfast || true; fi
    if getent group holdfast >/dev/null; then groupdel holdfast || true; fi
}

make_account() {
    getent group holdfast >/dev/null || groupadd --system holdfast
    getent passwd holdfast >/dev/null ||
        useradd --system --gid holdfast --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin --comment 'Holdfast fetcher' holdfast
}

# Python's own byte code is written here, not shipped: it fits one interpreter only.
remove_compiled() {
    if [ -d "$program/lib" ]; then
        find "$program/lib" -depth -name __pycache__ -exec rm -rf {} +
    fi
}

is_configured() {
    "$program/bin/python3" -I -B -c '
import sys
from pathlib import Path
from agent import config, errors, layout
path = Path(sys.argv[1])
try:
    root = layout.resolve(config.load(path), path).trust_root
except errors.AgentError:
    sys.exit(1)
sys.exit(not root.is_file())
' "$settings/config.toml"
}

enable_units() {
    # shellcheck disable=SC2086 # a list of units
    if command -v systemctl >/dev/null; then systemctl --quiet enable $units || true; fi
}

say_what_is_missing() {
    cat <<END
holdfast: the agent isn't started yet. It needs a source in $settings/config.toml and
holdfast: the vendor's root.json in $settings. Then: systemctl enable --now$(printf ' %s' $units)
END
}
