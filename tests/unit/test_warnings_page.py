"""docs/warnings.md lists the name of every warning and error that the worker logs, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import worker

PAGE = Path(__file__).parents[2] / "docs" / "warnings.md"
_HAND_OVER = frozenset({"_ridden_out", "_tell_once"})
"""Methods whose first argument is the event that they log."""
_LEVELS = frozenset({"warning", "error", "exception", "critical"})


def logged() -> set[str]:
    """Names of log events of these levels. A name is a literal where it is logged, or handed over."""
    names: set[str] = set()
    for path in Path(worker.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of_log = "log" in ast.unparse(node.func.value) and node.func.attr in _LEVELS
            first = node.args[0] if node.args else None
            of_log = of_log or node.func.attr in _HAND_OVER
            if of_log and isinstance(first, ast.Constant):
                names.add(str(first.value))
    return names


def entries() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `([a-z_0-9]+)` \|([^|]*)\|([^|]*)\|$", PAGE.read_text(), re.MULTILINE)
    return {name: (what.strip(), remedy.strip()) for name, what, remedy in rows}


def test_every_warning_has_an_entry_and_every_entry_a_warning() -> None:
    assert logged() - entries().keys() == set(), "events without an entry in docs/warnings.md"
    assert entries().keys() - logged() == set(), "entries that nothing logs"


def test_every_entry_says_what_happened_and_what_to_do() -> None:
    assert [name for name, (what, remedy) in entries().items() if not (what and remedy)] == []
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(entries()), "no row is overlooked, none is there twice"
