"""Whom the processes of a test run as: roles with the policies of deploy/iam for its queue, ledger and repository.

moto enforces them (tests/deploy/enforcement.py), so that a call which a shipped policy does not allow fails the test.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.enforcement import Denial, Role, new_role
from tests.deploy.policies import policy

OPERATORS = ("dlq", "jobs", "logs", "rebuild", "retry", "stop", "workers")
"""Commands of people."""


@dataclass(kw_only=True)
class Roles:
    """The roles of one bench."""

    denials: Sequence[Denial]
    """Of all benches; it grows."""
    values: dict[str, str]
    """For the policies' placeholders."""
    shared_ledger: bool
    """On DynamoDB; with SQLite nobody has rights on a table."""
    worker: tuple[str, ...] = ("worker.json",)
    """Policies of workers."""
    document: Mapping[str, Any] | None = None
    """Instead of all others: another policy than ours."""
    lacking: frozenset[str] = frozenset()
    """Actions that may be refused: the test is about that."""
    _made: dict[tuple[str, ...], Role] = field(default_factory=dict)

    def environment(self, *command: str) -> Mapping[str, str]:
        """Credentials for `launch-worker COMMAND`, in AWS's variables."""
        names = self._policies(command)
        if names not in self._made:
            self._made[names] = new_role(f"e2e-{uuid.uuid4().hex[:8]}", self.document or self.joined(*names))
        return self._made[names].environment

    def joined(self, *names: str) -> dict[str, Any]:
        """Policies as one, for what this bench has."""
        statements = [
            statement
            for name in names
            for statement in policy(name, **self.values)["Statement"]
            if self.shared_ledger or not statement["Action"][0].startswith("dynamodb:")
        ]
        return {"Version": "2012-10-17", "Statement": statements}

    def unexpected(self) -> list[Denial]:
        """What these roles were refused."""
        ours = {role.name for role in self._made.values()}
        return [
            denial
            for denial in self.denials
            if denial.role in ours and denial.permission.action not in self.lacking
        ]

    def _policies(self, command: tuple[str, ...]) -> tuple[str, ...]:
        match command:
            case ("mirror", *_):
                return ("mirror.json",)
            case ("enqueue", *_):
                return ("sender.json",)
            case (name, *_) if name in OPERATORS:
                return ("operator.json",)
            case ("run", "--mirror", *_):
                return (*self.worker, "mirror.json")
        return self.worker
