"""The generated corpora are what docs/performance.md says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.delta import corpora


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "cache", lambda: tmp_path)


def test_a_pattern_is_sorted_records_of_which_each_version_adds_and_removes_a_few() -> None:
    first, second, _ = (path.read_bytes() for _, path in corpora.patterns(2).versions)
    before, after = records(first), records(second)
    assert before == sorted(before)
    assert after == sorted(after)
    assert first[:256] != second[:256]
    assert len(set(after) - set(before)) == pytest.approx(0.005 * len(before), rel=0.2)
    assert len(set(before) - set(after)) == pytest.approx(0.001 * len(before), rel=0.5)


def test_a_corpus_is_generated_alike_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = [path.read_bytes() for _, path in corpora.patterns(1).versions]
    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.setattr(corpora, "cache", lambda: again)
    assert [path.read_bytes() for _, path in corpora.patterns(1).versions] == once


def test_a_leap_goes_over_two_steps() -> None:
    versions = tuple((name, Path(name)) for name in "abcd")
    leaps = corpora.Corpus("letters", versions).leaps()
    assert [str(direct) for direct, _, _ in leaps] == ["letters a→c", "letters b→d"]
    assert [str(step) for step in leaps[0][1:]] == ["letters a→b", "letters b→c"]


def records(pattern: bytes) -> list[bytes]:
    size = corpora.RECORD_BYTES
    return [pattern[at : at + size] for at in range(256, len(pattern), size)]
