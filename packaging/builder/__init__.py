"""Builds what administrators install: `python -m builder`, from `make packages`.

The same sources, locks and tools give the same bytes, in whatever folder, at
whatever time and under whatever umask (docs/adr/0013-packages.md).
"""
