"""Bodies of the file stream: console lines at their place, and the console's end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.launch.console import CONSOLE_LIMIT, ConsoleLine
from worker.tracking.file_stream import (
    completion_body,
    console_body,
    console_time,
    summary_body,
)

T = 1_700_000_000_007


def lines(count: int) -> list[ConsoleLine]:
    return [ConsoleLine(T + n, "algo-1", f"line {n}") for n in range(count)]


def chunk(body: dict[str, Any]) -> tuple[int, list[str]]:
    """Offset and contents."""
    log = body["files"]["output.log"]
    return log["offset"], [json.loads(line)["content"] for line in log["content"]]


def test_structured_lines_carry_their_own_time_and_host() -> None:
    body = console_body(5, [ConsoleLine(T, "algo-2", 'ä "quoted" \\ 漢字')], structured=True)
    assert body["files"]["output.log"]["offset"] == 5
    (line,) = body["files"]["output.log"]["content"]
    assert json.loads(line) == {
        "ts": "2023-11-14T22:13:20.007000",
        "label": "algo-2",
        "content": 'ä "quoted" \\ 漢字',
    }
    assert "ä" in line, "as W&B's client writes it"


def test_older_servers_get_text() -> None:
    body = console_body(0, [ConsoleLine(T, "algo-2", "text")], structured=False)
    assert body["files"]["output.log"]["content"] == ["2023-11-14T22:13:20.007000 [algo-2] text"]


def test_no_lines_are_no_post() -> None:
    assert console_body(7, [], structured=True) == {}


def test_the_console_ends_with_one_line_that_says_where_the_rest_is() -> None:
    before = CONSOLE_LIMIT - 3
    offset, contents = chunk(console_body(before, lines(10), structured=True))
    assert (offset, len(contents)) == (before, 3)
    assert contents[:2] == ["line 0", "line 1"]
    assert "logs/" in contents[2]
    assert offset + len(contents) == CONSOLE_LIMIT


@pytest.mark.parametrize(("first_line", "count"), [(CONSOLE_LIMIT, 1), (CONSOLE_LIMIT + 5000, 40)])
def test_beyond_the_limit_nothing_is_posted(first_line: int, count: int) -> None:
    assert console_body(first_line, lines(count), structured=True) == {}


def test_the_notice_is_posted_once_however_batches_meet_the_limit() -> None:
    for size in (1, 2, 3, 7):
        notices = 0
        posted = 0
        for first_line in range(CONSOLE_LIMIT - 14, CONSOLE_LIMIT + 14, size):
            body = console_body(first_line, lines(size), structured=True)
            if body:
                offset, contents = chunk(body)
                assert offset == first_line
                posted += len(contents)
                notices += sum("W&B keeps" in content for content in contents)
        assert (posted, notices) == (14, 1), f"batches of {size}"


def test_times_have_microseconds_and_no_zone() -> None:
    assert console_time(0) == "1970-01-01T00:00:00.000000"
    assert console_time(1_700_000_000_000) == "2023-11-14T22:13:20.000000"


def test_the_other_bodies() -> None:
    assert completion_body(3) == {"complete": True, "exitcode": 3}
    assert summary_body({"a": 1}) == {"files": {"wandb-summary.json": {"offset": 0, "content": ['{"a": 1}']}}}
