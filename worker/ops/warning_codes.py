"""The stable codes of warnings: in the log, on queue items and in alerts; docs/errors.md explains each."""

from __future__ import annotations

import re

_EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")


def code_of(event: str) -> str:
    """`heartbeat_failed` → `LW-HEARTBEAT-FAILED`. Empty for what is no event of ours: libraries log sentences."""
    return f"LW-{event.upper().replace('_', '-')}" if _EVENT.fullmatch(event) else ""
