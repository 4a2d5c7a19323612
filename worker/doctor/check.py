"""What one check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.errors import BadMessage, WorkerError


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    """There was nothing to look at, or no way to; `detail` says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    verdict: Verdict
    detail: str
    remedy: str = ""
    """What to do; of a failed check only."""


Examine = Callable[[], Awaitable[Sequence[Check]]]


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, Verdict.OK, detail)


def failed(name: str, detail: str, remedy: str) -> Check:
    """A worker would fail, or lose something."""
    return Check(name, Verdict.FAILED, detail, remedy)


def skipped(name: str, why: str) -> Check:
    """Nothing was looked at."""
    return Check(name, Verdict.SKIPPED, why)


def failures(name: str, error: WorkerError, remedy: str = "") -> list[Check]:
    """What an error of the worker says; its sentences have the remedy behind a semicolon. Several problems of a
    message are as many checks."""
    if isinstance(error, BadMessage):
        return [failed(name, f"{p.path}: {p.what}", p.remedy) for p in error.problems]
    what, _, told = str(error).rpartition("; ") if not remedy else (str(error), "", "")
    return [failed(name, what or told, remedy or (told if what else "see docs/errors.md"))]


async def guarded(name: str, examine: Examine) -> Sequence[Check]:
    """The checks of one subject. An error is a finding and ends no examination."""
    try:
        return await examine()
    except WorkerError as error:
        return failures(name, error)
    except Exception as error:  # of any kind: the other subjects are still to be looked at
        return [failed(name, f"{type(error).__name__}: {error}", "most likely a defect of doctor: report it")]
