# Of the server alone. Its state is its account's, since there are keys in it.

make_state() { install -d -m 0700 -o "$name" -g "$name" "$state"; }

# Every setting has a default; what is needed beyond them is asked for by the set-up page.
is_configured() { :; }

say_what_is_missing() { :; }

say_what_is_next() {
    cat <<END
$name: the Security Server runs. The address of its set-up page, good for one use:
$name:     journalctl --unit $service --grep setup
END
}

forget() { :; }
