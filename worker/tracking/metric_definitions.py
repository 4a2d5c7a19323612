"""A job's MetricDefinitions, applied to its log: pure.

A definition is a name and a regular expression, whose first group is the value (SageMaker API, MetricDefinition). The
expressions come with messages and run over every line in this process, so they are RE2's: their time is linear in the
line, whatever they are. Look-around and back-references, which only make sense to matchers that can hang, are not in
it; such a definition is left out, and `unusable` says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import re2

Definitions = Sequence[tuple[str, str]]
"""(name, regular expression), as the ledger keeps them."""
_MAX_LINE = 16_384
"""Characters of a line that are looked at."""


def definitions_of(request: Mapping[str, Any] | None) -> tuple[tuple[str, str], ...]:
    """The MetricDefinitions of a CreateTrainingJob request."""
    algorithm = (request or {}).get("AlgorithmSpecification") or {}
    given = algorithm.get("MetricDefinitions") or ()
    return tuple((str(each["Name"]), str(each["Regex"])) for each in given)


def unusable(definitions: Definitions) -> list[str]:
    """Names of definitions whose expression cannot be used."""
    return [name for name, pattern in definitions if _compiled(pattern) is None]


def metrics_in(text: str, definitions: Definitions) -> dict[str, float | str]:
    """Name → value for each definition that matches a line; of several matches the first counts."""
    found: dict[str, float | str] = {}
    for name, pattern in definitions:
        regex = _compiled(pattern)
        match = regex.search(text[:_MAX_LINE]) if regex else None
        if match and (value := _value(match[1])) is not None:
            found[name] = value
    return found


def _value(text: str | None) -> float | str | None:
    """None for what is no number; JSON has no NaN and no infinity, which W&B's own clients write as text."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


@lru_cache(maxsize=2048)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        regex = re2.compile(pattern, options)  # type: ignore[no-untyped-call]
    except re2.error:
        return None
    return regex if regex.groups >= 1 else None
