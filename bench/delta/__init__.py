"""Increments beside the tools that an engineer would reach for otherwise.

Bytes, CPU seconds and memory, of making and of applying, between successive
versions of real and of generated files; every tool in the same run, each
making and applying in a process of its own.
"""

from bench.delta.report import run

__all__ = ["run"]
