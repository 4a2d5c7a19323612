"""The file stream's bodies, as W&B's own clients post them (wandb-core, package filestream): pure."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from worker.launch.console import CONSOLE_LIMIT, ConsoleLine

STRUCTURED = "STRUCTURED_CONSOLE_LOGS"
"""Server feature: console lines are JSON with time and label of their own."""
HEARTBEAT: Mapping[str, Any] = {}
"""An empty post keeps a run alive; W&B takes a silent one for crashed after some minutes."""
_CUT_NOTE = " [launch-worker] cut, too large for this W&B server;"
_LEAST_KEPT = 64
_quoted = json.JSONEncoder(ensure_ascii=False).encode


def console_body(first_line: int, lines: Sequence[ConsoleLine], *, structured: bool) -> dict[str, Any]:
    """Lines for `output.log` at an absolute offset; posting them again replaces them by themselves.

    Beyond W&B's limit there is nothing to post: an empty dict."""
    content = [_encode(line, structured) for line in within_limit(first_line, lines)]
    return {"files": {"output.log": {"offset": first_line, "content": content}}} if content else {}


def history_body(first_row: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows for the history at an absolute offset; without any, an empty dict."""
    content = [json.dumps(row) for row in rows]
    return {"files": {"wandb-history.jsonl": {"offset": first_row, "content": content}}} if content else {}


def joined(*bodies: Mapping[str, Any]) -> dict[str, Any]:
    """Several bodies in one post."""
    files = {name: chunk for body in bodies for name, chunk in body.get("files", {}).items()}
    rest = {key: value for body in bodies for key, value in body.items() if key != "files"}
    return {**rest, **({"files": files} if files else {})}


def within_limit(first_line: int, lines: Sequence[ConsoleLine]) -> list[ConsoleLine]:
    """What W&B keeps of a batch; the line that reaches the limit becomes one that says where the rest is."""
    room = CONSOLE_LIMIT - 1 - first_line
    kept = list(lines[: max(0, room)])
    if 0 <= room < len(lines):
        notice = (
            f"[launch-worker] W&B keeps {CONSOLE_LIMIT} console lines; the whole log is in Files, under logs/"
        )
        kept.append(ConsoleLine(lines[room].timestamp, "launch-worker", notice))
    return kept


def cut(line: ConsoleLine) -> ConsoleLine | None:
    """A line that is too large for the server, with half of its text; None: there is next to nothing left to cut.

    The full text is in the numbered files. Cut again, it is as if it had been cut once, so repeating is harmless."""
    text, _, _ = line.content.partition(_CUT_NOTE)
    kept = len(text) // 2
    if kept < _LEAST_KEPT:
        return None
    return ConsoleLine(
        line.timestamp, line.label, f"{text[:kept]}{_CUT_NOTE} the whole line is in Files, under logs/"
    )


def summary_body(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The whole summary of the run; the last one posted stands."""
    return {"files": {"wandb-summary.json": {"offset": 0, "content": [json.dumps(summary)]}}}


def completion_body(exit_code: int) -> dict[str, Any]:
    """The end of the run: state `finished` for 0, else `failed`."""
    return {"complete": True, "exitcode": exit_code}


def console_time(timestamp: int) -> str:
    """Milliseconds since the epoch as W&B's console lines carry time: UTC, microseconds, no zone."""
    seconds, milliseconds = divmod(timestamp, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}000"


@functools.lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    # A batch's lines share few seconds.
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _encode(line: ConsoleLine, structured: bool) -> str:
    time = console_time(line.timestamp)
    if not structured:
        return f"{time} [{line.label}] {line.content}"
    # Written out, since `json.dumps` makes an encoder for each call that does not escape all but ASCII.
    return f'{{"ts": "{time}", "label": {_quoted(line.label)}, "content": {_quoted(line.content)}}}'
