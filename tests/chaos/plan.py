"""What happens when: a plan of faults drawn from a seed. Pure; the same options make the same plan."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

LedgerKind = Literal["sqlite", "dynamodb"]
ExecutorKind = Literal["process", "docker"]

Kind = Literal[
    "kill -9",
    "SIGSTOP",
    "SIGTERM",
    "AWS throttles",
    "AWS 5xx",
    "AWS cut before",
    "AWS cut after",
    "AWS slow",
    "no quota left",
    "duplicate delivery",
    "late log events",
    "W&B down",
    "W&B 429",
    "W&B 5xx",
    "W&B slow",
    "W&B cut after",
]

HEARTBEAT = 2.0
"""Seconds between two heartbeats of a worker; after three of them it is taken for dead."""
_PAST_HEARTBEAT = (7.0, 10.0)
"""Seconds a worker is frozen: always longer than three heartbeats."""
AWS_SERVICES = ("sqs", "dynamodb", "sagemaker", "logs")

_SERVICE_FAULTS: tuple[tuple[Kind, str], ...] = (
    *(("AWS throttles", service) for service in AWS_SERVICES),
    *(("AWS 5xx", service) for service in AWS_SERVICES),
    *(("AWS cut before", service) for service in AWS_SERVICES),
    *(("AWS cut after", service) for service in AWS_SERVICES),
    ("AWS slow", ""),
    ("no quota left", "sagemaker CreateTrainingJob"),
    ("duplicate delivery", "sqs ReceiveMessage"),
    ("late log events", ""),
    ("W&B down", ""),
    ("W&B 429", ""),
    ("W&B 5xx", ""),
    ("W&B slow", ""),
    ("W&B cut after", ""),
)
_ALL_REQUESTS: frozenset[Kind] = frozenset({"W&B down", "AWS slow", "W&B slow", "late log events"})
"""Faults that hit every request while they last; of the others every second or third is hit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run against one ledger; `command` says how to make it again."""

    seed: int = 1
    workers: int = 3
    launches: int = 100
    ledger: LedgerKind = "sqlite"
    executor: ExecutorKind = "process"
    minutes: float = 5.0
    """Faults and new launches come for this long."""
    drain_minutes: float = 5.0
    """How long whole workers may take to finish everything afterwards."""
    kill_every: float = 3.0
    freeze_every: float = 10.0
    terminate_every: float = 45.0
    fault_every: float = 4.0
    """Mean seconds between two faults of a kind, or of all services together; 0: none."""

    @property
    def command(self) -> str:
        """The command that makes this run."""
        timing = "".join(
            f" --{name.replace('_', '-')} {getattr(self, name):g}"
            for name in ("drain_minutes", "kill_every", "freeze_every", "terminate_every", "fault_every")
            if getattr(self, name) != getattr(DEFAULTS, name)
        )
        return (
            f'make chaos ARGS="--seed {self.seed} --workers {self.workers} --launches {self.launches}'
            f" --ledger {self.ledger}"
            f' --executor {self.executor} --minutes {self.minutes:g}{timing}"'
        )


DEFAULTS = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. Times are seconds since the start."""

    at: float
    kind: Kind
    seconds: float
    """How long: the service fails, the worker is frozen, or stays away before it is started again."""
    worker: int = 0
    """Which one is hit, for faults of workers."""
    target: str = ""
    """Which requests, for faults of services: the beginning of their name; empty: all."""
    every: int = 1
    """Of these requests each n-th is hit."""


def plan_of(options: Options) -> list[Fault]:
    """All faults of a run, in their order."""
    end = options.minutes * 60
    faults = [
        *_of_workers(options, "kill -9", options.kill_every, (0.2, 1.0)),
        *_of_workers(options, "SIGSTOP", options.freeze_every, _PAST_HEARTBEAT),
        *_of_workers(options, "SIGTERM", options.terminate_every, (0.2, 1.0)),
        *_of_services(options),
    ]
    return sorted((fault for fault in faults if fault.at < end), key=lambda fault: (fault.at, fault.kind))


def _of_workers(options: Options, kind: Kind, every: float, seconds: tuple[float, float]) -> Iterator[Fault]:
    chance = random.Random(f"{options.seed} {kind}")
    for at in _times(chance, every, options.minutes * 60):
        yield Fault(
            at=at, kind=kind, seconds=chance.uniform(*seconds), worker=chance.randrange(options.workers)
        )


def _of_services(options: Options) -> Iterator[Fault]:
    chance = random.Random(f"{options.seed} services")
    kinds = list(_SERVICE_FAULTS)
    if options.ledger != "dynamodb":
        kinds = [(kind, target) for kind, target in kinds if target != "dynamodb"]
    chance.shuffle(kinds)  # each kind comes before any comes again
    for at, (kind, target) in zip(
        _times(chance, options.fault_every, options.minutes * 60), cycle(kinds), strict=False
    ):
        every = 1 if kind in _ALL_REQUESTS else chance.choice((2, 3))
        yield Fault(at=at, kind=kind, target=target, seconds=chance.uniform(1.5, 5.0), every=every)


def _times(chance: random.Random, every: float, end: float) -> Iterator[float]:
    """Moments with a mean distance of `every` seconds; the first ones leave the workers time to start."""
    at = 2.0
    while every > 0 and (at := at + every * chance.uniform(0.7, 1.3)) < end:
        yield at
