"""JSON as everything behind us understands it: no NaN, no lone surrogates, no bottomless nesting."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from worker.errors import BadMessage, Problem

MAX_DEPTH = 64
"""Levels of nesting a launch message may have; real ones have about ten. Keeps every later walk shallow."""

_PLAIN_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")


def json_path(base: str, *keys: str | int) -> str:
    """`json_path("$.a", "b", 0, "c d")` → `$.a.b[0]["c d"]`."""
    path = base
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        elif _PLAIN_KEY.fullmatch(key):
            path += f".{key}"
        else:
            path += f"[{json.dumps(key)}]"
    return path


def load_json(text: str, path: str = "$") -> Any:
    """Parse JSON found at `path` of the message; raises `BadMessage` for whatever is not plain JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad(path, f"is not JSON ({error.msg} at {where})", "send a JSON object") from None
    except RecursionError:
        raise _too_deep(path) from None
    except (
        ValueError
    ) as error:  # a constant or number refused below, or an integer beyond Python's digit limit
        raise _bad(path, f"holds a number that JSON cannot carry ({error})", "use a finite number") from None
    problems = tuple(_unusable(value, path))
    if problems:
        raise BadMessage(problems)
    return value


def type_name(value: object) -> str:
    """What JSON calls the type of `value`, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "an integer", float: "a number", dict: "an object", list: "a list"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _unusable(root: Any, path: str) -> Iterator[Problem]:
    """Walk without recursion: the depth is what is being checked."""
    stack: list[tuple[Any, str, int]] = [(root, path, 0)]
    while stack:
        value, where, depth = stack.pop()
        if depth > MAX_DEPTH:
            yield from _too_deep(path).problems
            return
        if isinstance(value, str) and _SURROGATE.search(value):
            yield _surrogate_problem(where)
        elif isinstance(value, list):
            stack.extend((item, json_path(where, i), depth + 1) for i, item in enumerate(value))
        elif isinstance(value, dict):
            if any(_SURROGATE.search(key) for key in value):
                yield _surrogate_problem(where)
            stack.extend((item, json_path(where, key), depth + 1) for key, item in value.items())


def _surrogate_problem(path: str) -> Problem:
    return Problem(path, "holds half of a surrogate pair, which is not text", "send valid Unicode")


def _too_deep(path: str) -> BadMessage:
    return _bad(path, f"is nested more than {MAX_DEPTH} levels deep", "flatten it")


def _bad(path: str, what: str, remedy: str) -> BadMessage:
    return BadMessage((Problem(path, what, remedy),))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("too large")
    return number
