# Of the agent alone. Its state is root's; engines read in it.

make_state() { install -d -m 0755 "$state"; }

is_configured() {
    "$program/bin/python3" -I -B -c '
import sys
from pathlib import Path
from agent import config, errors, layout
path = Path(sys.argv[1])
try:
    found = config.load(path)
except errors.AgentError:
    sys.exit(1)
places = layout.resolve(found, path)
has_source = places.enrolment.is_file() or found.sources
sys.exit(not (has_source and places.trust_root.is_file()))
' "$settings/config.toml"
}

say_what_is_missing() {
    # shellcheck disable=SC2086 # a list of units
    cat <<END
holdfast: the agent isn't started yet. It needs the vendor's root.json in $settings and
holdfast: a source in $settings/config.toml. Then: systemctl enable --now$(printf ' %s' $units)
holdfast: For a Security Server instead of a source, once it runs: agentctl enroll URL TOKEN
END
}

say_what_is_next() { :; }

forget() {
    for drop_in in /etc/systemd/system/*.d/@DROP_IN@; do # of agentctl protect
        [ -e "$drop_in" ] || continue
        rm -f "$drop_in"
        rmdir --ignore-fail-on-non-empty "$(dirname "$drop_in")"
    done
}
