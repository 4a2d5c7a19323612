"""What is wrong with the evidence of a run: the whole promise, held against each launch. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tests.chaos.evidence import ConsoleLine, Event, Evidence, Job, Run
from tests.chaos.workload import Case, Sent
from worker.intake.unstarted import NO_INIT, NOT_STARTED

Sort = Literal["lost", "doubled", "out of order", "left over", "wrong"]


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise."""

    sort: Sort
    where: str
    """The launch, or a part of the deployment."""
    what: str
    count: int = 1
    """How many lines or launches."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What an audit found."""

    jobs: int
    refusals: int
    printed: int
    """Lines that containers printed."""
    in_wandb: int
    """Lines of companion runs' consoles."""
    violations: Sequence[Violation]

    def count(self, sort: Sort) -> int:
        """Launches and lines with this sort of violation."""
        return sum(violation.count for violation in self.violations if violation.sort == sort)


def audit(sent: Sequence[Sent], evidence: Evidence) -> Finding:
    """Hold the evidence against what was sent."""
    by_launch: dict[str, list[Job]] = {}
    for job in evidence.jobs:
        by_launch.setdefault(job.launch_id, []).append(job)
    letters = {letter.launch_id for letter in evidence.letters}
    violations: list[Violation] = []
    printed = in_wandb = jobs = refusals = 0
    for one in sent:
        case, mine = one.case, by_launch.get(one.launch_id, [])
        jobs += len(mine)
        if case.fate != "job":
            refusals += one.launch_id in letters
            violations += _refused(one, mine, evidence)
            continue
        run = evidence.runs.get(case.run_id)
        printed += len(case.printed) * case.hosts
        in_wandb += len(run.console) if run else 0
        violations += _became_a_job(one, mine, run, evidence)
    strangers = set(by_launch) - {one.launch_id for one in sent}
    violations += [
        Violation("doubled", f"training job {job.name}", "nobody sent such a launch")
        for launch_id in strangers
        for job in by_launch[launch_id]
    ]
    violations += _left_over(evidence)
    return Finding(jobs, refusals, printed, in_wandb, violations)


def _refused(sent: Sent, jobs: Sequence[Job], evidence: Evidence) -> Iterator[Violation]:
    """One refusal with a reason: in the ledger, in the DLQ (at least one copy), and on the queue item."""
    case, record = sent.case, evidence.ledger.records.get(sent.launch_id)
    if jobs:
        yield Violation("doubled", case.label, "became a training job although it had to be refused")
    if record is None or (record.state, record.code) != ("refused", case.fate):
        yield Violation("lost", case.label, f"has to be refused with {case.fate}; the ledger has {record}")
    letters = [letter for letter in evidence.letters if letter.launch_id == sent.launch_id]
    if not letters:
        yield Violation("lost", case.label, "its refusal never came to the DLQ")
    elif any((letter.code, bool(letter.reason)) != (case.fate, True) for letter in letters):
        yield Violation("wrong", case.label, f"the DLQ gives no or another reason: {letters}")
    if sent.item and not evidence.failed_items.get(sent.item):
        yield Violation("lost", case.label, "its queue item in W&B was never failed with a reason")


def _became_a_job(
    sent: Sent, jobs: Sequence[Job], run: Run | None, evidence: Evidence
) -> Iterator[Violation]:
    case, record = sent.case, evidence.ledger.records.get(sent.launch_id)
    if not jobs:
        yield Violation("lost", case.label, f"has no training job; the ledger has {record}")
        return
    if len(jobs) > 1:
        names = ", ".join(job.name for job in jobs)
        yield Violation("doubled", case.label, f"has {len(jobs)} training jobs: {names}", len(jobs) - 1)
    if record is None or (record.state, record.is_open) != ("finished", False):
        yield Violation("wrong", case.label, f"the ledger does not have it as finished but as {record}")
    if any(letter.launch_id == sent.launch_id for letter in evidence.letters):
        yield Violation("doubled", case.label, "is in the DLQ, too")
    told = evidence.failed_items.get(sent.item, "")
    if sent.item and not told.startswith(NOT_STARTED if case.exit_code else NO_INIT):
        # The containers are shell scripts, which start no run: the item has to say so, and nothing else.
        yield Violation("wrong", case.label, f"W&B was not told that it started no run, but {told!r}")
    job = jobs[0]
    if job.status != ("Failed" if case.exit_code else "Completed"):
        yield Violation("wrong", case.label, f"its job ended as {job.status}, exit code {case.exit_code}")
    if case.own_key and job.api_key != case.own_key:
        yield Violation("wrong", case.label, "its container did not get the launch's own W&B key")
    if case.own_key and case.own_key in evidence.ledger.text:
        yield Violation("wrong", case.label, "its own W&B key is in the ledger")
    if run is None:
        yield Violation("lost", case.label, "has no companion run", max(1, len(case.printed) * case.hosts))
        return
    yield from _end_told(case, run)
    yield from _log(case, job, run)


def _end_told(case: Case, run: Run) -> Iterator[Violation]:
    told = (run.state, run.exit_code, run.summary.get("sagemaker/end"))
    right = ("failed", case.exit_code, "failed") if case.exit_code else ("finished", 0, "completed")
    if told != right:
        yield Violation("wrong", case.label, f"W&B shows (state, exit code, end) {told}, not {right}")
    if run.summary.get("launch/log_lines") != len(run.console):
        shown = run.summary.get("launch/log_lines")
        yield Violation("wrong", case.label, f"the summary counts {shown} lines of {len(run.console)}")


def _log(case: Case, job: Job, run: Run) -> Iterator[Violation]:
    hosts = {f"algo-{number + 1}" for number in range(case.hosts)} if case.printed else set()
    for host in sorted(hosts | set(job.log) | {host for host, _, _ in run.console}):
        events = job.log.get(host, ())
        printed = [line.replace("{host}", host) for line in case.printed] if host in hosts else []
        if sorted(event.message for event in events) != sorted(printed):
            yield Violation("wrong", case.label, f"the local stack did not log what {host} printed")
        own = [line for line in run.console if line[0] == host]
        yield from _stream(case, host, events, own)
        yield from _file(case, host, events, run)
    if run.holes or run.overwrites:
        yield Violation(
            "lost",
            case.label,
            f"its console has {run.holes} holes, and {run.overwrites} lines were written over other ones",
            run.holes + run.overwrites,
        )
    if run.refused:
        told = f"{run.refused} posts were refused: lines over other ones, behind a gap, or too many"
        yield Violation("wrong", case.label, told, run.refused)


def _stream(
    case: Case, host: str, events: Sequence[Event], console: Sequence[ConsoleLine]
) -> Iterator[Violation]:
    wanted = Counter((console_time(event.timestamp), folded(event.message)) for event in events)
    found = Counter((time, content) for _, time, content in console)
    if lost := wanted - found:
        yield Violation("lost", case.label, f"{host}: not in W&B: {_some(lost)}", lost.total())
    if doubled := found - wanted:
        yield Violation("doubled", case.label, f"{host}: in W&B too often: {_some(doubled)}", doubled.total())
    if not lost and not doubled and (wrong := out_of_order(events, console)):
        yield Violation(
            "out of order", case.label, f"{host}: {wrong[0]!r} and {len(wrong) - 1} more", len(wrong)
        )


def out_of_order(events: Sequence[Event], console: Sequence[ConsoleLine]) -> list[str]:
    """Lines of one host that stand behind one that CloudWatch has after them, and had no reason to.

    An event that came late, ingested after one that CloudWatch has behind it, may stand behind that one; and then
    behind anything else, too: late events are looked for now and then only."""
    places: dict[tuple[str, str], list[tuple[int, Event]]] = {}
    for place, event in enumerate(events):
        key = (console_time(event.timestamp), folded(event.message))
        places.setdefault(key, []).append((place, event))
    wrong: list[str] = []
    seen: list[tuple[int, Event]] = []
    for _, time, content in console:
        place, event = places[time, content].pop(0)
        passed_by = [other for earlier, other in seen if place < earlier]
        if passed_by and not any(other.ingested < event.ingested for other in passed_by):
            wrong.append(content)
        seen.append((place, event))
    return wrong


def _file(case: Case, host: str, events: Sequence[Event], run: Run) -> Iterator[Violation]:
    """The full record in Files: every line in CloudWatch's order."""
    names = sorted(name for name in run.files if name.startswith(f"logs/{host}/"))
    lines = "".join(run.files[name] for name in names).split("\n")[:-1]
    wanted = [f"{console_time(event.timestamp)}Z {event.message}" for event in events]
    if lines != wanted:
        yield Violation(
            "wrong", case.label, f"{host}: its file has {len(lines)} lines, not CloudWatch's {len(wanted)}"
        )


def _left_over(evidence: Evidence) -> Iterator[Violation]:
    visible, in_flight = evidence.messages
    if visible or in_flight:
        yield Violation(
            "left over", "queue", f"{visible} messages visible, {in_flight} in flight", visible + in_flight
        )
    for launch_id, record in evidence.ledger.records.items():
        if record.is_open:
            yield Violation("left over", f"ledger record {launch_id}", f"is open: {record}")
    for lock in sorted(evidence.ledger.locks):
        yield Violation("left over", "ledger", f"build lock {lock}")
    for thing in evidence.left_over:
        yield Violation("left over", "machine", thing)


def console_time(milliseconds: int) -> str:
    """CloudWatch's time as W&B's console has it."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")


def folded(message: str) -> str:
    """A progress bar as it looks in the end."""
    return message.rstrip("\r").rpartition("\r")[2]


def _some(lines: Counter[tuple[str, str]]) -> str:
    shown = [content for (_, content) in lines][:3]
    return f"{lines.total()} lines, {shown}"
