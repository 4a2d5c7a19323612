"""Further attempts of a launch: what operator and message allow, and which instance types follow each other. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

MAX_RETRIES = 20
"""Further attempts of one kind: each is a training job that costs money."""
RETRY_FORM = r"^\s*((capacity|spot|internal)\s*=\s*\d{1,2}\s*(,\s*|$))*$"
"""`capacity=3,spot=5,internal=2`, any of them, in any order."""

_INSTANCE_TYPE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9-]+")


class RetryKind(StrEnum):
    """Ends of a job that are not the code's fault, so that another attempt may do better."""

    CAPACITY = "capacity"
    """AWS had no machine of this type."""
    SPOT = "spot"
    """Spot machines were taken away, or never came, until the job's MaxWaitTimeInSeconds was over."""
    INTERNAL = "internal"
    """SageMaker failed (`InternalServerError`)."""


def parse_retry(text: str) -> dict[str, int]:
    """`capacity=3,spot=5` → how many further attempts each kind of end may have. Raises `ValueError`."""
    if not re.fullmatch(RETRY_FORM, text):
        raise ValueError("is not of the form capacity=3,spot=5,internal=2")
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    allowed = {name.strip(): int(count) for name, _, count in pairs}
    if any(count > MAX_RETRIES for count in allowed.values()):
        raise ValueError(f"allows more than {MAX_RETRIES} further attempts of one kind")
    return allowed


def parse_instance_types(text: str) -> tuple[tuple[str, ...], ...]:
    """`ml.g5.xlarge,ml.g5.2xlarge;ml.m5.large,ml.m5.xlarge` → the two lists. Raises `ValueError`."""
    lists = (tuple(name.strip() for name in part.split(",") if name.strip()) for part in text.split(";"))
    found = tuple(names for names in lists if names)
    if wrong := [name for names in found for name in names if not is_instance_type(name)]:
        raise ValueError(f"{wrong[0]!r} is no instance type of SageMaker")
    return found


def is_instance_type(name: str) -> bool:
    """It has the form of SageMaker's instance types."""
    return _INSTANCE_TYPE.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class RetryRules:
    """What the operator allows each launch that does not say it itself."""

    allowed: Mapping[str, int] = field(default_factory=dict)
    """Kind of end → further attempts."""
    instance_types: tuple[tuple[str, ...], ...] = ()
    """Lists of instance types that may stand for each other, in order."""

    def of(self, own: str, retry: str | None, instance_types: Sequence[str]) -> dict[str, Any]:
        """The fields of the record of a launch with this instance type, and with these options in its message."""
        allowed = self.allowed if retry is None else parse_retry(retry)
        return {"retries": allowed, "instance_types": self.rotation(own, instance_types)}

    def rotation(self, own: str, given: Sequence[str]) -> tuple[str, ...]:
        """The types that attempts take in turn, the launch's own first; `given` by its message, or of the operator's
        list that has its type. Empty: it keeps its own."""
        types = tuple(given) or next((names for names in self.instance_types if own in names), ())
        if not types or not own:
            return ()
        start = types.index(own) if own in types else 0
        return tuple(dict.fromkeys((own, *types[start:], *types[:start])))
