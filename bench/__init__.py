"""Measures what Holdfast promises about cost, each beside a peer in the same run.

    python -m bench                  every bench; writes docs/performance.md
    python -m bench flip check       only these; only their sections are written anew
    python -m bench --quick flip     shorter, prints and writes nothing

Absolute figures depend on the machine; the ratios and the goals are what to
compare. A goal that isn't met makes the exit status 1.
"""
