"""What the worker's IAM policy lacks, told once for each action: it goes on with what it may do."""

from __future__ import annotations

from worker.ops.logging import get_logger

_log = get_logger()


class MissingPermissions:
    """Remembers what it has told."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, action: str, *, cost: str, error: Exception) -> None:
        """`action`: of IAM, as a policy names it; `cost`: what the worker does not do, or does slowly, without it."""
        if action not in self._told:
            self._told.add(action)
            _log.warning(
                "permission_missing",
                action=action,
                cost=cost,
                error=str(error),
                remedy="allow it in the worker's IAM policy (docs/iam.md) and start the worker again",
            )
