"""One ledger's story: stack, proxies and workers are started, launches sent, faults played; then whole workers finish
what is left, and the evidence is read. Whatever happens, nothing of it is left running."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path

import aiohttp

from tests.chaos.audit import Finding, Violation, audit
from tests.chaos.evidence import (
    Clients,
    Evidence,
    LedgerContent,
    containers_left,
    dead_letters,
    depth,
    dynamodb_content,
    files_left,
    opened_clients,
    processes_left,
    sqlite_content,
    training_jobs,
    wandb_state,
)
from tests.chaos.fleet import Fleet
from tests.chaos.metrics import Scrapes, Truth, at_rest, disagreements
from tests.chaos.plan import HEARTBEAT, Fault, Kind, Options, plan_of
from tests.chaos.proxy import FaultProxy, Rule, running_proxy
from tests.chaos.stack import Stack, running_stack_process
from tests.chaos.workload import ALLOWED_TYPES, DEPLOYMENT, Case, Sent, workload
from worker.launch.identity import launch_id
from worker.local.aws import ACCOUNT, REGION
from worker.local.stack import ENTITY, QUEUE
from worker.settings import inherited_environment

_LATE = 1.0
"""Seconds by which a late log event is late; less than the quiet time after which a log counts as complete."""
_SENT_WITHIN = 0.8
"""Share of the time in which launches are sent."""
_DEAD_FORGOTTEN_WITHIN = 60.0
"""Seconds in which the heartbeats of dead workers leave the ledger."""

_SETTINGS = {
    "LAUNCH_DEPLOYMENT": DEPLOYMENT,
    "LAUNCH_ALLOWED_INSTANCE_TYPES": ALLOWED_TYPES,
    "LAUNCH_BUILDER": "none",
    "LAUNCH_HEARTBEAT": str(HEARTBEAT),
    "LAUNCH_LEASE": "8",
    "LAUNCH_LOG_INTERVAL": "0.5",
    "LAUNCH_LOG_QUIET": "3",
    "LAUNCH_STATUS_INTERVAL": "0.5",
    "LAUNCH_RECEIVE_WAIT": "1",
    "LAUNCH_COMPANION_HEARTBEAT": "2",
    "LAUNCH_SHUTDOWN_GRACE": "5",
    "LAUNCH_INIT_GRACE": "0.5",
    "LAUNCH_HTTP_PORT": "0",
    "LAUNCH_LOG_FORMAT": "json",
    # The local services share no quota with anybody.
    "LAUNCH_RATE_CREATE_TRAINING_JOB": "50",
    "LAUNCH_RATE_DESCRIBE_TRAINING_JOB": "50",
    "LAUNCH_RATE_LIST_TRAINING_JOBS": "50",
    "LAUNCH_RATE_STOP_TRAINING_JOB": "50",
    "LAUNCH_RATE_FILTER_LOG_EVENTS": "50",
    "LAUNCH_RATE_DESCRIBE_LOG_STREAMS": "50",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run. `finding` has what is wrong."""

    options: Options
    finding: Finding
    messages: int
    """Messages sent, duplicates too."""
    refusals_wanted: int
    faults: Mapping[Kind, int]
    """How often each kind happened: workers hit, requests hit, times for late log events."""
    failed_starts: int
    seconds: float
    folder: str
    """Where the workers' logs are, if something is wrong; else empty."""


async def run(options: Options, say: Say) -> Outcome:
    """Play the whole story and audit it."""
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{options.seed}-{options.ledger}-"))
    started_at, outcome = time.monotonic(), None
    try:
        async with _opened(options, folder, say) as chaos:
            await chaos.play()
            evidence = await chaos.evidence()
            finding = audit(chaos.sent, evidence)
            counted = await asyncio.to_thread(chaos.uncounted, finding, evidence)
        wanted = sum(sent.case.fate != "job" for sent in chaos.sent)
        finding = replace(finding, violations=[*finding.violations, *chaos.violations, *counted])
        outcome = Outcome(
            options=options,
            finding=finding,
            messages=sum(sent.case.copies for sent in chaos.sent),
            refusals_wanted=wanted,
            faults=chaos.faults(),
            failed_starts=len(chaos.fleet.failed_starts),
            seconds=time.monotonic() - started_at,
            folder=str(folder) if finding.violations else "",
        )
        if finding.violations:
            text = json.dumps(asdict(evidence), indent=1, ensure_ascii=False, default=sorted)
            await asyncio.to_thread((folder / "evidence.json").write_text, text)
    finally:
        if outcome is None or not outcome.folder:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return outcome


@contextlib.asynccontextmanager
async def _opened(options: Options, folder: Path, say: Say) -> AsyncIterator[_Chaos]:
    async with contextlib.AsyncExitStack() as opened:
        enter = opened.enter_async_context
        stack = await enter(running_stack_process(folder, options.executor))
        there = stack.facts.environment
        aws = await enter(running_proxy(there["AWS_ENDPOINT_URL"]))
        wandb = await enter(running_proxy(there["WANDB_BASE_URL"], wandb=True))
        clients = await enter(opened_clients(there["AWS_ENDPOINT_URL"]))
        http = await enter(aiohttp.ClientSession())
        (folder / "work").mkdir()
        ledger = (
            f"sqlite:///{folder}/ledger.db"
            if options.ledger == "sqlite"
            else f"dynamodb://{stack.facts.table}"
        )
        environment = {
            **inherited_environment({"PATH", "PYTHONPATH"}),
            **{
                name: value.replace(there["AWS_ENDPOINT_URL"], aws.url)
                for name, value in there.items()
                if name != "LAUNCH_REGISTRY"
            },
            **_SETTINGS,
            "HOME": str(folder),
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": "127.0.0.1,localhost",
            "WANDB_BASE_URL": wandb.url,
            "LAUNCH_LEDGER": ledger,
            "LAUNCH_WORK_DIR": str(folder / "work"),
        }
        yield _Chaos(
            options=options,
            folder=folder,
            say=say,
            stack=stack,
            aws=aws,
            wandb=wandb,
            clients=clients,
            http=http,
            fleet=Fleet(folder, environment, options.workers),
        )


@dataclass(kw_only=True)
class _Chaos:
    """What is open during a run."""

    options: Options
    folder: Path
    say: Say
    stack: Stack
    aws: FaultProxy
    wandb: FaultProxy
    clients: Clients
    http: aiohttp.ClientSession
    fleet: Fleet
    sent: list[Sent] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    """What is wrong beside what the audit finds."""
    _late_logs: int = 0
    _played: int = 0

    async def play(self) -> None:
        """Everything until the workers have left."""
        async with asyncio.TaskGroup() as tasks:
            self.aws.on_received = self._make_visible
            self.fleet.start(tasks)
            scrapes = Scrapes(self.http, self.fleet.lives)
            scraping = tasks.create_task(scrapes.run(), name="scrapes")
            reporter = tasks.create_task(self._report(), name="report")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.options.minutes * 60 + 1):
                    async with asyncio.TaskGroup() as playing:
                        playing.create_task(self._send_all(), name="send")
                        faults = playing.create_task(self._play_faults(), name="faults")
                        playing.create_task(self._until_all_sent_are_settled(faults), name="settled")
            self.say("no more faults; the workers stay whole until everything is done")
            await self._drain()
            scraping.cancel()
            await self._last_scrape(scrapes)
            reporter.cancel()
            problems = await self.fleet.leave()
            self._blame("workers", [*problems, *self.fleet.ended_by_themselves])
        self._blame("workers", [f"{event['log']}: {_short(event)}" for event in self._errors()])

    async def evidence(self) -> Evidence:
        """Read everything, past workers and proxies."""
        runs, failed_items = await wandb_state(self.http, self.stack.facts.environment["WANDB_BASE_URL"])
        left = [
            *await asyncio.to_thread(processes_left, self.folder / "stack"),
            *await asyncio.to_thread(files_left, self.folder / "stack", "launch-local-"),
            *await asyncio.to_thread(files_left, self.folder / "work"),
        ]
        if self.options.executor == "docker":
            left += await containers_left(f"launch-worker.local={socket.gethostname()}/{self.stack.pid}")
        return Evidence(
            jobs=await training_jobs(self.clients),
            runs=runs,
            failed_items=failed_items,
            ledger=await self._ledger(),
            letters=await dead_letters(self.clients.sqs, self.stack.facts.dlq_url),
            messages=await depth(self.clients.sqs, self.stack.facts.queue_url),
            left_over=left,
        )

    def uncounted(self, finding: Finding, evidence: Evidence) -> list[Violation]:
        """Where /metrics and what the audit found disagree."""
        events = list(self.fleet.events("job_finished", "launch_refused", "launch_claimed"))
        refused = {name for name, record in evidence.ledger.records.items() if record.state == "refused"}
        truth = Truth(
            requests=[*self.aws.requests, *self.wandb.requests],
            jobs=finding.jobs,
            refusals=finding.refusals,
            lines=finding.in_wandb,
            ended=_times(events, "job_finished"),
            refused=_times(events, "launch_refused"),
            told_by_others=len(
                {e["launch_id"] for e in events if e["event"] == "launch_claimed"} & refused,
            ),
        )
        return [Violation("wrong", "/metrics", what) for what in disagreements(self.fleet.lives, truth)]

    def faults(self) -> dict[Kind, int]:
        """How often each kind has happened."""
        late: dict[Kind, int] = {"late log events": self._late_logs}
        return dict(self.fleet.happened + self.aws.hits + self.wandb.hits + collections.Counter(late))

    # Launches.

    async def _send_all(self) -> None:
        seconds = self.options.minutes * 60 * _SENT_WITHIN
        facts, started_at = self.stack.facts, time.monotonic()
        cases = workload(
            self.options.seed,
            self.options.launches,
            seconds=seconds,
            image=facts.image,
            role_arn=facts.role_arn,
        )
        for case in cases:
            await asyncio.sleep(started_at + case.at - time.monotonic())
            self.sent.append(await self._send(case))

    async def _send(self, case: Case) -> Sent:
        body, item, identity = case.body, "", case.launch_id
        if case.queue:
            url = f"{self.stack.facts.environment['WANDB_BASE_URL']}/_double/queue"
            push = {"entity": ENTITY, "queue": case.queue, "specs": [{}]}
            async with self.http.post(url, json=push) as answer:
                (item,) = (await answer.json())["ids"]
            body = body.replace("{item}", item)
            identity = launch_id((self.wandb.url, ENTITY, item))
        extra = {"MessageGroupId": case.queue} if case.queue else {}
        message_id = ""
        for _ in range(case.copies):
            answer_ = await self.clients.sqs.send_message(
                QueueUrl=self.stack.facts.queue_url,
                MessageBody=body,
                **extra,  # type: ignore[arg-type]
            )
            message_id = answer_["MessageId"]
        if not identity:
            identity = launch_id(("sqs", f"arn:aws:sqs:{REGION}:{ACCOUNT}:{QUEUE}", message_id))
        return Sent(case, identity, item)

    # Faults.

    async def _play_faults(self) -> None:
        started_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for fault in plan_of(self.options):
                await asyncio.sleep(started_at + fault.at - time.monotonic())
                tasks.create_task(self._inflict(fault), name=f"fault {fault.kind}")
                self._played += 1

    async def _inflict(self, fault: Fault) -> None:
        match fault.kind:
            case "kill -9":
                await self.fleet.kill(fault.worker, fault.seconds)
            case "SIGTERM":
                await self.fleet.terminate(fault.worker, fault.seconds)
            case "SIGSTOP":
                await self.fleet.freeze(fault.worker, fault.seconds)
            case "late log events":
                await self._delay_logs(fault.seconds)
            case _:
                await self._break_service(fault)

    async def _delay_logs(self, seconds: float) -> None:
        """Each second one: the undelayed ones overtake those that are late."""
        self._late_logs += 1
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                await self.stack.delay_logs(_LATE)
                await asyncio.sleep(0.5)
                await self.stack.delay_logs(0)
                await asyncio.sleep(0.3)
        finally:
            await self.stack.delay_logs(0)

    async def _break_service(self, fault: Fault) -> None:
        proxy = self.wandb if fault.kind.startswith("W&B") else self.aws
        rule = Rule(fault.kind, fault.target, fault.every)
        proxy.rules.append(rule)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            proxy.rules.remove(rule)

    async def _make_visible(self, handles: list[str]) -> None:
        """Messages that somebody has just received can be received by others, too."""
        for handle in handles:
            await self.clients.sqs.change_message_visibility(
                QueueUrl=self.stack.facts.queue_url, ReceiptHandle=handle, VisibilityTimeout=0
            )

    # The end.

    async def _until_all_sent_are_settled(self, faults: asyncio.Task[None]) -> None:
        """Faults end early when there is nothing left that they could hit."""
        expected = self.options.launches

        async def settled() -> bool:
            known = sum(sent.case.fate == "job" for sent in self.sent)
            return known == expected and not await self._unsettled()

        await _becomes(settled, math.inf)
        faults.cancel()

    async def _drain(self) -> None:
        started_at = time.monotonic()
        limit = self.options.drain_minutes * 60
        if await _becomes(lambda: self._is("settled"), limit):
            self.say(f"everything is done {time.monotonic() - started_at:.0f} s after the last fault")
        else:
            what = await self._unsettled()
            self._blame("deployment", [f"not done {limit:.0f} s after the last fault: {what}"])
        if not await _becomes(lambda: self._is("forgotten"), _DEAD_FORGOTTEN_WITHIN):
            dead = (await self._ledger()).workers - self.fleet.living_workers()
            self._blame(
                "ledger", [f"the heartbeat of dead worker {worker} is left" for worker in sorted(dead)]
            )

    async def _last_scrape(self, scrapes: Scrapes) -> None:
        """What the survivors have counted in the end; nothing is in hand any more once they have beaten again."""

        async def idle() -> bool:
            await scrapes.once()
            return not at_rest(self.fleet.lives)

        if not await _becomes(idle, 5 * HEARTBEAT):
            self._blame("/metrics", at_rest(self.fleet.lives))

    async def _is(self, what: str) -> bool:
        if what == "settled":
            return not await self._unsettled()
        return (await self._ledger()).workers <= await asyncio.to_thread(self.fleet.living_workers)

    async def _unsettled(self) -> str:
        """What is still to be done; empty: nothing."""
        visible, in_flight = await depth(self.clients.sqs, self.stack.facts.queue_url)
        content = await self._ledger()
        unknown = sum(sent.launch_id not in content.records for sent in self.sent)
        is_open = sum(record.is_open for record in content.records.values())
        if not (visible or in_flight or unknown or is_open):
            return ""
        return (
            f"{visible} messages visible, {in_flight} in flight; {unknown} launches not in the ledger,"
            f" {is_open} open there"
        )

    async def _ledger(self) -> LedgerContent:
        if self.options.ledger == "dynamodb":
            return await dynamodb_content(self.clients.dynamodb, self.stack.facts.table)
        return await asyncio.to_thread(sqlite_content, self.folder / "ledger.db")

    async def _report(self) -> None:
        started_at = time.monotonic()
        while True:
            await asyncio.sleep(10)
            happened = self.fleet.happened
            self.say(
                f"{time.monotonic() - started_at:4.0f} s  {len(self.sent)} launches sent;"
                f" {happened['kill -9']} kills, {happened['SIGSTOP']} freezes;"
                f" {await self._unsettled() or 'nothing to be done'}"
            )

    def _errors(self) -> list[dict[str, object]]:
        """Defects that a worker itself has noticed, and what it prints beside its log. What one prints that gives up
        while it starts is for its operator, and no defect."""
        started = {event["log"] for event in self.fleet.events("worker_started")}
        return [
            event
            for event in self.fleet.events()
            if event.get("level") in ("error", "critical") and event["log"] in started
        ]

    def _blame(self, where: str, what: list[str]) -> None:
        self.violations += [Violation("wrong", where, text) for text in what]


async def _becomes(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > until:
            return False
        await asyncio.sleep(1)
    return True


def _times(events: Sequence[Mapping[str, object]], name: str) -> list[float]:
    """When log events of a name were written, by this process's monotonic clock."""
    ahead = time.time() - time.monotonic()
    times = (str(event["timestamp"]) for event in events if event["event"] == name)
    return [datetime.fromisoformat(at).timestamp() - ahead for at in times]


def _short(event: Mapping[str, object]) -> str:
    text = " ".join(f"{name}={value}" for name, value in event.items() if name not in ("log", "timestamp"))
    return text if len(text) < 1500 else f"{text[:300]} … {text[-1200:]}"
