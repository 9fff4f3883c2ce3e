#!/bin/sh
# Write the hashed locks. Called by `make locks` from the repository's root:
#   requirements/lock.sh UV [--upgrade]
#
# dev.txt is resolved first and constrains the other two, so that what is
# tested is what is installed; what tools of their own need stands alone. The locks hold for every platform and every
# Python from 3.11 on, and name no package index.
set -eu

uv=$1
shift

lock() {
    out=$1
    shift
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
        --custom-compile-command "make locks" --output-file "$out" "$@"
    echo "$out: $(grep -c '==' "$out") packages"
}

lock requirements/dev.txt pyproject.toml --extra dev "$@"
lock requirements/agent.txt pyproject.toml --constraint requirements/dev.txt
lock requirements/publisher.txt pyproject.toml --extra publisher --constraint requirements/dev.txt
lock requirements/server.txt pyproject.toml --extra server --constraint requirements/dev.txt
lock requirements/uv.txt requirements/uv.in "$@"
lock requirements/fuzz.txt requirements/fuzz.in "$@"
