"""docs/errors.md lists every code that a refusal, an error of a command or a warning may carry, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import worker
from worker.ops.warning_codes import code_of

ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
_CODE = re.compile(r"LW-[A-Z0-9]+(?:-[A-Z0-9]+)*")
_FAMILY = re.compile(r"LW-(?:[A-Z0-9]+-)+")
"""The fixed beginning of a code whose end comes from elsewhere (an f-string)."""
_LEVELS = frozenset({"warning", "error", "exception", "critical"})
_HANDED_OVER = {"_ridden_out": 0, "RiddenOut": 0, "_tell_once": 0, "code_of": 0, "warn": 1}
"""Functions that are given the name of an event that they log or show, and the place of that argument."""


def codes_in(source: str) -> set[str]:
    """Codes among the string literals of Python code, as the documents write them; docstrings are no codes."""
    codes: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr) and node.values:
            start = node.values[0]
            if isinstance(start, ast.Constant) and _FAMILY.fullmatch(str(start.value)):
                codes.add(f"{start.value!s}…")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _CODE.fullmatch(node.value):
            codes.add(node.value)
    return codes


def events_in(source: str) -> set[str]:
    """Names of the log events of these levels, and of what is shown on queue items. A name is a literal where it is
    logged, or handed over."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else ast.unparse(function)
        of_log = isinstance(function, ast.Attribute) and "log" in ast.unparse(function.value)
        place = 0 if of_log and name in _LEVELS else _HANDED_OVER.get(name, len(node.args))
        given = node.args[place] if place < len(node.args) else None
        if isinstance(given, ast.Constant) and code_of(str(given.value)):
            names.add(str(given.value))
    return names


def sources() -> list[str]:
    return [path.read_text() for path in Path(worker.__file__).parent.rglob("*.py")]


def entries() -> list[tuple[str, str, str]]:
    """Code, meaning and remedy of each refusal and error of a command."""
    rows = re.findall(r"^\| `(LW-[^`]+)` \|([^|`][^|]*)\|([^|]*)\|$", ERRORS.read_text(), re.MULTILINE)
    return [(code, meaning.strip(), remedy.strip()) for code, meaning, remedy in rows]


def warnings() -> list[tuple[str, str, str, str]]:
    """Code, event, meaning and remedy of each warning."""
    row = r"^\| `(LW-[^`]+)` \| `([a-z0-9_]+)` \|([^|]*)\|([^|]*)\|$"
    rows = re.findall(row, ERRORS.read_text(), re.MULTILINE)
    return [(code, event, meaning.strip(), remedy.strip()) for code, event, meaning, remedy in rows]


def test_every_code_has_an_entry_and_every_entry_a_code() -> None:
    listed = {code for code, _, _ in entries()}
    known = set().union(*map(codes_in, sources()))
    assert known - listed == set(), "codes without an entry in docs/errors.md"
    assert listed - known == set(), "entries in docs/errors.md that no code raises"


def test_every_warning_has_an_entry_and_every_entry_a_warning() -> None:
    listed = {event for _, event, _, _ in warnings()}
    known = set().union(*map(events_in, sources()))
    assert known - listed == set(), "events without an entry in docs/errors.md"
    assert listed - known == set(), "entries in docs/errors.md that nothing logs"


def test_a_warnings_code_is_the_one_that_its_log_line_has() -> None:
    assert [(code, event) for code, event, _, _ in warnings() if code != code_of(event)] == []


def test_every_code_is_listed_once_with_its_meaning_and_what_to_do() -> None:
    told = [*entries(), *((code, meaning, remedy) for code, _, meaning, remedy in warnings())]
    codes = [code for code, _, _ in told]
    assert sorted(codes) == sorted(set(codes))
    assert [code for code, meaning, remedy in told if not (meaning and remedy)] == []


def test_no_row_of_the_tables_is_overlooked() -> None:
    rows = [line for line in ERRORS.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(entries()) + len(warnings())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('CODE = "LW-GIT-REF"', {"LW-GIT-REF"}),
        ('f(code=f"LW-AWS-{name}")', {"LW-AWS-…"}),
        ('"""Raises `Never` (LW-GIT-REF)."""', set()),
        ('f"see LW-GIT-REF in {place}"', set()),
    ],
)
def test_codes_are_found_where_they_are_given_and_not_where_they_are_told(
    source: str, found: set[str]
) -> None:
    assert codes_in(source) == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ('_log.warning("heart_beat_failed", error=1)', {"heart_beat_failed"}),
        ('self._log.exception("step_failed")', {"step_failed"}),
        ('self._refusals.warn(item, "launch_waits", told, stage)', {"launch_waits"}),
        ('_log.info("job_accepted")', set()),
    ],
)
def test_events_are_found_where_they_are_logged_or_handed_over(source: str, found: set[str]) -> None:
    assert events_in(source) == found


@pytest.mark.parametrize(
    ("event", "code"),
    [("heartbeat_failed", "LW-HEARTBEAT-FAILED"), ("Unclosed client session", ""), ("word", "")],
)
def test_only_events_of_ours_have_codes(event: str, code: str) -> None:
    assert code_of(event) == code
