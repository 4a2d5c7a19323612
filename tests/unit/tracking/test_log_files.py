"""Numbered files: the same lines make the same files, and none is lost at a cut."""

from __future__ import annotations

import pytest

from worker.tracking import log_files
from worker.tracking.log_files import LogFile, NumberedFiles


def files_of(lines: list[tuple[int, str]]) -> list[LogFile]:
    numbered = NumberedFiles("algo-1")
    made = [full for timestamp, text in lines if (full := numbered.add(timestamp, text))]
    rest = numbered.rest()
    return [*made, rest] if rest else made


def test_a_small_log_is_one_file() -> None:
    assert files_of([(0, "a"), (1, "b")]) == [
        LogFile("logs/algo-1/00001.log", b"1970-01-01T00:00:00.000000Z a\n1970-01-01T00:00:00.001000Z b\n")
    ]


def test_no_log_is_no_file() -> None:
    assert files_of([]) == []


def test_files_are_cut_behind_a_line_and_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MAX_FILE_BYTES", 100)
    lines = [(n, f"line {n}") for n in range(10)]
    made = files_of(lines)
    assert [file.name for file in made] == [f"logs/algo-1/{n:05d}.log" for n in range(1, len(made) + 1)]
    assert len(made) > 2
    assert all(file.content.endswith(b"\n") for file in made)
    whole = b"".join(file.content for file in made).decode().splitlines()
    assert [line.partition("Z ")[2] for line in whole] == [text for _, text in lines]
    assert files_of(lines) == made, "repeating it changes nothing"


def test_a_file_that_is_just_full_leaves_no_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "MAX_FILE_BYTES", 1)
    assert len(files_of([(0, "a"), (1, "b")])) == 2


def test_what_utf8_cannot_hold_is_replaced() -> None:
    (file,) = files_of([(0, "a\ud800b")])
    assert file.content.endswith(b"Z a?b\n")
