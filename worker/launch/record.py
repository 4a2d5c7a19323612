"""The ledger's record of one launch, and the values that the stages hand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from worker.launch.log_state import LogState


class LaunchState(StrEnum):
    """Where a launch stands; it only moves down this list, but that a further attempt waits again."""

    INTENT = "intent"
    """Leg 1 is at work on it, under an SQS lease."""
    WAITING = "waiting"
    """Ready to submit: image pinned, request built. The SQS message is no longer needed."""
    ACCEPTED = "accepted"
    """SageMaker has the training job."""
    FINISHED = "finished"
    """The job ended, and its whole log is in W&B or `log.undelivered` says why not."""
    REFUSED = "refused"
    """It never became a job, or can never become one; the reason is in `failure`."""

    @property
    def is_open(self) -> bool:
        """It is not over; `LaunchRecord.is_open` also knows whether its end has been told."""
        return self in (LaunchState.INTENT, LaunchState.WAITING, LaunchState.ACCEPTED)


@dataclass(frozen=True, slots=True)
class RunRef:
    """The W&B run that the container writes."""

    entity: str
    project: str
    run_id: str

    @property
    def path(self) -> str:
        """As W&B's API names it."""
        return f"{self.entity}/{self.project}/{self.run_id}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a launch was refused: as reported to W&B, kept in the ledger and copied to the DLQ."""

    stage: str
    code: str
    reason: str
    log: str = ""
    """The end of the build's output, kept until W&B has been told."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What DescribeTrainingJob says about a job, as far as the worker uses it. Times are epoch seconds."""

    status: str = ""
    secondary_status: str = ""
    failure_reason: str = ""
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    billable_seconds: int | None = None
    training_seconds: int | None = None
    transitions: tuple[tuple[str, float], ...] = ()
    """(secondary status, its start time), oldest first."""
    spot: bool = False
    """EnableManagedSpotTraining."""
    status_message: str = ""
    """StatusMessage of the newest transition: what a pending job waits for."""


@dataclass(frozen=True, slots=True)
class PastAttempt:
    """An attempt whose training job ended in a way that another attempt may better."""

    job_name: str
    instance_type: str
    kind: str
    """A `RetryKind`: whose budget the next attempt uses; or `by hand`, which uses none."""
    reason: str
    """How it ended, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """One launch in the ledger. Every write is conditional on (owner, epoch). No W&B key is in it; a message's own
    Environment is, while the launch waits, as DescribeTrainingJob shows it afterwards."""

    launch_id: str
    state: LaunchState
    run: RunRef
    owner: str = ""
    """Id of the worker that holds it; empty: released, whoever wants it may claim it."""
    epoch: int = 1
    """Raised by each claim; a write with an older epoch fails."""
    attempt: int = 1
    """Which training job of this launch; attempt n > 1 has job name suffix `-r<n>`."""
    tries: int = 0
    """Failed tries of leg 1, or of submitting."""
    item_id: str = ""
    """W&B run queue item id; empty for direct launches."""
    queue: str = ""
    queue_entity: str = ""
    agent_run: str = ""
    """The launch agent's own run in W&B, whose files W&B shows with the item; empty: nobody mirrored it."""
    message: str = ""
    """The SQS body with secrets taken out, kept until SageMaker accepts the job (for the DLQ)."""
    message_cut: bool = False
    """`message` was cut further, so that the refusal fits into the ledger."""
    message_id: str = ""
    given_id: str = ""
    """The message's own `launchId`, of which `launch_id` is made; empty: none, or a huge one. It outlives the
    message, so that a corrected one can be given it again."""
    private_key: bool = False
    """The launch brought its own W&B key: it can be submitted only by whoever holds its SQS message."""
    name: str = ""
    sweep_id: str = ""
    """The sweep of the run, which must go on when the launch is submitted; empty: none."""
    author: str = ""
    job_artifact: str = ""
    """Storage id of the W&B job's version that was found first: an alias may have moved by the next try."""
    commit: str = ""
    """Full id of the git commit, or storage id of the code artifact, that was fetched first: a later try fetches the
    same, whatever a branch says then."""
    image: str = ""
    job_name: str = ""
    job_arn: str = ""
    request: Mapping[str, Any] | None = None
    """The CreateTrainingJob request without secrets; dropped once accepted (DescribeTrainingJob has it)."""
    instance_type: str = ""
    instance_count: int = 1
    log_target: str = "companion"
    metrics: tuple[tuple[str, str], ...] = ()
    """(name, regular expression) of the job's MetricDefinitions, kept from the request for the history."""
    opened: int = 0
    """The attempt whose facts the companion's config has; 0: none yet, or it is not in the ledger."""
    alerted: tuple[str, ...] = ()
    """Kinds of alerts (`LAUNCH_ALERTS`) that were sent."""
    priority: int = 2
    """0 (critical) to 3 (low), within its queue."""
    retries: Mapping[str, int] = field(default_factory=dict)
    """Kind of end (`RetryKind`) → further attempts that it may have."""
    instance_types: tuple[str, ...] = ()
    """Types that attempts take in turn after a want of capacity; empty: always the same."""
    attempts: tuple[PastAttempt, ...] = ()
    """Earlier training jobs of this launch, oldest first."""
    previous_job: str = ""
    """The training job from which this attempt's request was rebuilt; it also has the launch's own W&B key, if any."""
    given_up: str = ""
    """Why no further attempt is made although one was to follow: the launch ends as its last job did."""
    delivered: int = 0
    """The attempt whose log is complete in W&B and whose end is told, or being told: nothing is posted any more."""
    end_told: int = 0
    """The attempt whose end the companion has: it is told no second time, though its queue item may have to be."""
    waits_for: str = ""
    """What it waits for, as told on the queue item; told again only when this changes."""
    waited: float = 0.0
    """Seconds that earlier attempts have waited to be submitted: LAUNCH_MAX_WAIT is for all of them."""
    not_before: float = 0.0
    """Do not submit before this time, epoch seconds."""
    created_at: float = 0.0
    waiting_at: float = 0.0
    accepted_at: float = 0.0
    finished_at: float = 0.0
    facts: JobFacts = field(default_factory=JobFacts)
    stop_reason: str = ""
    """Why this worker asked SageMaker to stop the job; empty: it did not."""
    stopped_before: bool = False
    """The attempt before was stopped, and W&B may go on to say so of its runs: there, only a stop that was not there
    at first is a new one."""
    stop_asked: str = ""
    """Why somebody wanted the job stopped although SageMaker was not asked: its container has time to end by itself, or
    it had ended. No other attempt follows."""
    failure: Failure | None = None
    reported: bool = False
    """The refusal has reached W&B (or there is no queue item to report to)."""
    log: LogState = field(default_factory=LogState)
    expires_at: float = 0.0
    """Epoch seconds after which the ledger may forget it; 0: never. Longer than SQS keeps messages (14 days)."""

    @property
    def has_history(self) -> bool:
        """The worker writes states and metrics of its job into a run's history."""
        return self.log_target in ("companion", "run")

    @property
    def is_open(self) -> bool:
        """Somebody still has to do something about it: a refusal that nobody was told is not over."""
        return self.state.is_open or (self.state is LaunchState.REFUSED and not self.reported)

    @property
    def is_delivered(self) -> bool:
        """Nothing is left but to tell the end of its last job."""
        return self.state is LaunchState.ACCEPTED and self.delivered == self.attempt

    @property
    def needs_message(self) -> bool:
        """It waits, and the W&B key that it brings is nowhere but in its SQS message."""
        return self.state is LaunchState.WAITING and self.private_key and not self.previous_job

    @property
    def is_between_attempts(self) -> bool:
        """Its last job has ended, its companion run lives, and another attempt is to follow."""
        return self.state is LaunchState.WAITING and bool(self.previous_job)


_CODEC = TypeAdapter(LaunchRecord)


def record_to_json(record: LaunchRecord) -> str:
    """The record as JSON text, defaults left out to keep items small."""
    return _CODEC.dump_json(record, exclude_defaults=True).decode()


def record_from_json(text: str | bytes) -> LaunchRecord:
    """Read a record written by `record_to_json`; unknown keys of newer versions are ignored."""
    return _CODEC.validate_json(text)
