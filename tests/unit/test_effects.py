"""The list of effects that crash tests walk is the list of effects there are."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import worker
from worker.aio import EffectName


def marked() -> set[str]:
    """The names in every `effect("…")` of the package; a name that is no literal is an error."""
    names: set[str] = set()
    for path in Path(worker.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "effect":
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{path.name}:{node.lineno}: not a literal"
                names.add(str(argument.value))
    return names


def test_every_listed_effect_is_marked_and_every_marked_one_is_listed() -> None:
    assert marked() == set(get_args(EffectName))
