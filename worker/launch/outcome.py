"""How leg 1 of a launch ended, and what becomes of its message."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The four outcomes; each settles the SQS message in its own way."""

    DONE = "done"
    """The ledger holds the launch: delete the message."""
    BUSY = "busy"
    """Another live worker has it: hide the message until that worker's death would be known; never delete."""
    AGAIN = "again"
    """A later try may succeed: hide the message for `delay`."""
    NEVER = "never"
    """Refused; reported, recorded and copied to the DLQ: delete the message."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict, and for BUSY and AGAIN how long (seconds) the message stays hidden."""

    verdict: Verdict
    delay: float = 0.0
    stage: str = ""
    code: str = ""
    reason: str = ""
