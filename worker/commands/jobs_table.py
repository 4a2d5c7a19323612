"""The table of `launch-worker jobs`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

_COLUMNS = {
    "launch": ["launch"],
    "name": ["name"],
    "run": ["run"],
    "state": ["state"],
    "instance": ["instance"],
    "age": ["age"],
    "waits for / end": ["waits"],
    "lines": ["lines"],
    "worker": ["worker"],
}
"""Heads of the table of launches, and what stands below each."""
_NARROW_COLUMNS = {
    "launch": ["launch"],
    "name, run, worker": ["name", "run", "worker"],
    "state, instance, end": ["state", "instance", "waits"],
    "age": ["age"],
    "lines": ["lines"],
}
_ONE_LINE = 140
"""Characters of a terminal from which on a launch stands in one line."""
_STATE_COLOURS = {"accepted": "green", "waiting": "yellow", "intent": "yellow", "refused": "red"}


def jobs_table(rows: Sequence[dict[str, Any]], nothing: str = "no such launches", *, width: int) -> Table:
    """Launches for people; `nothing` says that there are none. Below `_ONE_LINE` characters some facts of a launch
    stand below each other."""
    priced = any("cost" in row for row in rows)
    columns = _COLUMNS if width >= _ONE_LINE else _NARROW_COLUMNS
    table = Table(box=None, pad_edge=False, caption=None if rows else nothing, caption_justify="left")
    for column in [*columns, *(["cost"] if priced else [])]:
        right = column in ("age", "lines", "cost")
        table.add_column(
            column,
            justify="right" if right else "left",
            no_wrap=column in ("launch", "age", "lines", "cost"),
            overflow="fold",
        )
    for row in rows:
        cells = _cells(row)
        values = [Text("\n").join(cells[name] for name in names if cells[name]) for names in columns.values()]
        table.add_row(*values, *([cells["cost"]] if priced else []))
    return table


def _cells(row: dict[str, Any]) -> dict[str, Text]:
    # Before a further attempt is a job, its facts are those of the job before.
    has_detail = row["secondaryStatus"] and row["state"] != "waiting"
    detail = f" {row['secondaryStatus']}" if has_detail else ""
    attempt = f" (attempt {row['attempt']})" if row["attempt"] > 1 else ""
    return {
        "launch": Text(row["launchId"][:10]),
        "name": Text(row["name"]),
        "run": Text(row["run"]),
        "state": Text(f"{row['state']}{detail}{attempt}", _STATE_COLOURS.get(row["state"], "")),
        "instance": Text(f"{row['instanceCount']} x {row['instanceType']}" if row["instanceType"] else ""),
        "age": Text(age(row["age"])),
        "waits": Text(row["waitsFor"] or row["end"]),
        "lines": Text(str(row["lines"])),
        "worker": Text(row["worker"]),
        "cost": Text(f"{row['cost']:.2f}" if "cost" in row else ""),
    }


def age(seconds: float | None) -> str:
    """`45s`, `12m`, `3h05m`, `2d04h`."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 1:
        return f"{minutes}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02}h" if days else f"{hours}h{minutes:02}m"
