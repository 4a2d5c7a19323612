"""docs/errors.md lists every code that a refusal may carry, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import worker

ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
_CODE = re.compile(r"LW-[A-Z0-9]+(?:-[A-Z0-9]+)*")
_FAMILY = re.compile(r"LW-(?:[A-Z0-9]+-)+")
"""The fixed beginning of a code whose end comes from elsewhere (an f-string)."""


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


def codes_of_the_worker() -> set[str]:
    files = Path(worker.__file__).parent.rglob("*.py")
    return set().union(*(codes_in(path.read_text()) for path in files))


def entries() -> list[tuple[str, str, str]]:
    """Code, meaning and remedy of each row."""
    rows = re.findall(r"^\| `(LW-[^`]+)` \|([^|]*)\|([^|]*)\|$", ERRORS.read_text(), re.MULTILINE)
    return [(code, meaning.strip(), remedy.strip()) for code, meaning, remedy in rows]


def test_every_code_has_an_entry_and_every_entry_a_code() -> None:
    listed = {code for code, _, _ in entries()}
    known = codes_of_the_worker()
    assert known - listed == set(), "codes without an entry in docs/errors.md"
    assert listed - known == set(), "entries in docs/errors.md that no code raises"


def test_every_code_is_listed_once_with_its_meaning_and_what_to_do() -> None:
    codes = [code for code, _, _ in entries()]
    assert sorted(codes) == sorted(set(codes))
    assert [code for code, meaning, remedy in entries() if not (meaning and remedy)] == []


def test_no_row_of_the_table_is_overlooked() -> None:
    rows = [line for line in ERRORS.read_text().splitlines() if line.startswith("| `")]
    assert len(rows) == len(entries())


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
