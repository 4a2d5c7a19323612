"""Virtual training jobs: they move through SageMaker's states as time passes, and print by formula."""

from __future__ import annotations

import heapq
import itertools
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.simulator.lines import PUT_EVERY, Printer

ACCOUNT = "123456789012"
REGION = "us-east-1"
ENDED = frozenset({"Completed", "Failed", "Stopped"})


@dataclass(frozen=True, slots=True)
class Profile:
    """What becomes of jobs that are created from now on."""

    pending: float = 3.0
    """Seconds from CreateTrainingJob to the state Training."""
    per_second: float = 0.0
    """Lines a second, from the beginning of training."""
    lines: int | None = None
    """Lines in all; None: it prints until it ends."""
    runs: float | None = None
    """Seconds of training; None: it does not end by itself."""
    line_bytes: int = 100
    """Length of a line's message."""


@dataclass(slots=True, eq=False)
class VirtualJob:
    """One training job with one container, and its log stream. Times are epoch seconds."""

    name: str
    number: int
    created_at: float
    environment: Mapping[str, str]
    printer: Printer
    stream: str
    line_bytes: int
    transitions: list[tuple[str, str, float]] = field(default_factory=list)
    """(status, secondary status, since)."""

    @property
    def status(self) -> str:
        """TrainingJobStatus."""
        return self.transitions[-1][0]

    @property
    def secondary_status(self) -> str:
        """SecondaryStatus."""
        return self.transitions[-1][1]

    @property
    def modified_at(self) -> float:
        """LastModifiedTime."""
        return self.transitions[-1][2]

    @property
    def arn(self) -> str:
        """Its ARN."""
        return f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:training-job/{self.name}"

    def since(self, secondary_status: str) -> float | None:
        """When it came into a state; None: it never was in it."""
        return next((at for _, secondary, at in self.transitions if secondary == secondary_status), None)


class VirtualJobs:
    """All jobs of the account. `advance` brings them up to a moment before anybody looks at them."""

    def __init__(self) -> None:
        self.profile = Profile()
        self._jobs: dict[str, VirtualJob] = {}
        self._by_stream: dict[str, VirtualJob] = {}
        self._coming: list[tuple[float, int, VirtualJob, str, str]] = []
        self._numbers = itertools.count()

    def __iter__(self) -> Iterator[VirtualJob]:
        return iter(self._jobs.values())

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, name: str) -> VirtualJob | None:
        """A job by its name."""
        return self._jobs.get(name)

    def of_stream(self, stream: str) -> VirtualJob | None:
        """The job that writes to a stream."""
        return self._by_stream.get(stream)

    def create(self, name: str, environment: Mapping[str, str], now: float) -> VirtualJob:
        """A job as CreateTrainingJob makes it, with the present profile."""
        profile = self.profile
        job = self._add(name, environment, now, started_at=now + profile.pending)
        job.transitions.append(("InProgress", "Starting", now))
        self._at(now + profile.pending / 2, job, "InProgress", "Downloading")
        self._at(now + profile.pending, job, "InProgress", "Training")
        if profile.runs is not None:
            self._at(now + profile.pending + profile.runs, job, "Completed", "Completed")
        job.printer.print_from(round((now + profile.pending) * 1000), profile.per_second, profile.lines)
        return job

    def add_running(self, name: str, environment: Mapping[str, str], now: float, age: float) -> VirtualJob:
        """A job that was accepted `age` seconds ago, at least two minutes; the profile's lines begin now."""
        began = now - age
        job = self._add(name, environment, began, started_at=began + 60)
        job.transitions += [("InProgress", "Starting", began), ("InProgress", "Training", began + 60)]
        # A container says something when it starts, and then its stream exists.
        job.printer.print_from(round((began + 61) * 1000), 5.0, 10)
        job.printer.print_from(round(now * 1000), self.profile.per_second, self.profile.lines)
        return job

    def print_from(self, now: float, per_second: float, most: int | None = None) -> None:
        """From now on every job prints at another pace; jobs begin spread over a second."""
        for job in self._jobs.values():
            shift = zlib.crc32(job.name.encode()) % 1000
            job.printer.print_from(round(now * 1000) + shift, per_second, most)

    def end(self, now: float, within: float) -> None:
        """All jobs that run complete, spread over `within` seconds from now on; each prints until then."""
        self.advance(now)
        self._coming.clear()
        for job in self._jobs.values():
            if job.status not in ENDED:
                at = now + zlib.crc32(job.name.encode()) % 1000 / 1000 * within
                self._at(at, job, "Completed", "Completed")
                job.printer.print_from(round(at * 1000), 0.0)  # a reader may be ahead of `advance`

    def stop(self, job: VirtualJob, now: float) -> None:
        """StopTrainingJob: it is stopped two seconds later."""
        self._coming = [coming for coming in self._coming if coming[2] is not job]
        heapq.heapify(self._coming)
        job.transitions.append(("Stopping", "Stopping", now))
        self._at(now + 2, job, "Stopped", "Stopped")

    def advance(self, now: float) -> None:
        """Let everything happen that is due by `now`."""
        while self._coming and self._coming[0][0] <= now:
            at, _, job, status, secondary = heapq.heappop(self._coming)
            job.transitions.append((status, secondary, at))
            if status in ENDED:
                job.printer.print_from(round(at * 1000), 0.0)

    def clear(self) -> None:
        """No jobs."""
        self._jobs.clear()
        self._by_stream.clear()
        self._coming.clear()

    def _add(
        self, name: str, environment: Mapping[str, str], created_at: float, *, started_at: float
    ) -> VirtualJob:
        job = VirtualJob(
            name=name,
            number=next(self._numbers),
            created_at=created_at,
            environment=environment,
            printer=Printer(zlib.crc32(name.encode()) % PUT_EVERY),
            stream=f"{name}/algo-1-{int(started_at)}",
            line_bytes=self.profile.line_bytes,
        )
        self._jobs[name] = job
        self._by_stream[job.stream] = job
        return job

    def _at(self, at: float, job: VirtualJob, status: str, secondary: str) -> None:
        heapq.heappush(self._coming, (at, next(self._numbers), job, status, secondary))


def description(job: VirtualJob) -> dict[str, Any]:
    """DescribeTrainingJob's answer; times are epoch seconds, as AWS's JSON protocol carries them."""
    steps = [{"Status": secondary, "StartTime": at} for _, secondary, at in job.transitions]
    answer: dict[str, Any] = {
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "TrainingJobStatus": job.status,
        "SecondaryStatus": job.secondary_status,
        "SecondaryStatusTransitions": steps,
        "CreationTime": job.created_at,
        "LastModifiedTime": job.modified_at,
        "Environment": dict(job.environment),
        "ModelArtifacts": {"S3ModelArtifacts": "s3://bench/out/model.tar.gz"},
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
    }
    started = job.since("Training")
    if started is not None:
        answer["TrainingStartTime"] = started
    if job.status in ENDED:
        answer["TrainingEndTime"] = job.modified_at
        answer["BillableTimeInSeconds"] = int(job.modified_at - (started or job.modified_at))
    return answer
