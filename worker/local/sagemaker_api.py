"""SageMaker's training job API with AWS's manners, on moto's backend.

moto 5.2.5 completes each job at once, overwrites duplicates, drops the Environment and has no StopTrainingJob. The
wording of refusals is AWS's where it is known (API reference; public issue reports).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.exceptions import ResourceInUseException, SagemakerClientError, ValidationError
from moto.sagemaker.models import sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

from worker.local.aws import ACCOUNT, REGION, page_of, replaced
from worker.local.sagemaker_search import search

ENDED = frozenset({"Completed", "Failed", "Stopped"})

_STATUS_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading the training image",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "Interrupted": "The spot instances were interrupted",
    "MaxWaitTimeExceeded": "Training job exceeded its maximum wait time",
    "MaxRuntimeExceeded": "Training job exceeded its maximum runtime",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
}

Ask = Callable[..., Any]
"""A parameter of the request by name, None if it is not there."""

Job = Any
"""moto's FakeTrainingJob. DescribeTrainingJob shows each attribute that it is given."""


@dataclass
class Refusal:
    """The next `times` calls of CreateTrainingJob are refused with this error."""

    code: str
    message: str
    times: int = 1


class TrainingJobs:
    """The training jobs as the API shows them. Safe to use from moto's threads and from the event loop."""

    def __init__(self, account: str = ACCOUNT, region: str = REGION) -> None:
        self._account = account
        self._region = region
        self._lock = threading.RLock()
        self.on_created: Callable[[str], None] = lambda name: None
        """Called with the job's name, in a thread of moto's."""
        self.on_stop: Callable[[str], None] = lambda name: None
        """Called when StopTrainingJob was accepted, in a thread of moto's."""
        self.quota: int | None = None
        """Jobs that may be open at once; beyond that ResourceLimitExceeded. None: no limit."""
        self.instance_quotas: dict[str, int] = {}
        """Instances that open jobs may have, by type (`ml.g5.xlarge`, for spot jobs `ml.g5.xlarge spot`)."""
        self.refusals: list[Refusal] = []

    @property
    def _jobs(self) -> dict[str, Job]:
        jobs: dict[str, Job] = sagemaker_backends[self._account][self._region].training_jobs
        return jobs

    def job(self, name: str) -> Job:
        """moto's record of a job. Raises `ValidationError` as DescribeTrainingJob does for a missing one."""
        try:
            return self._jobs[name]
        except KeyError:
            raise ValidationError("Requested resource not found.") from None

    def create(self, ask: Ask, create: Callable[[], ActionResult]) -> ActionResult:
        """CreateTrainingJob: refused when a fault says so, the quota is full or the name was ever used."""
        name: str = ask("TrainingJobName")
        with self._lock:
            self._refuse_if_told()
            self._refuse_duplicate(name)
            self._refuse_beyond_quota()
            self._refuse_beyond_instance_quota(ask)
            # Read first: moto adds a metric definition of its own to the request.
            metrics = list((ask("AlgorithmSpecification") or {}).get("MetricDefinitions") or ())
            result = create()
            _make_it_start(self._jobs[name], ask, metrics)
        self.on_created(name)
        return result

    def stop(self, name: str) -> None:
        """StopTrainingJob: only a job in progress can be stopped."""
        with self._lock:
            job = self.job(name)
            if job.training_job_status != "InProgress":
                raise ValidationError(
                    f"The request was rejected because the training job is in status {job.training_job_status}."
                )
            self.move(name, "Stopping", status="Stopping")
        self.on_stop(name)

    def describe(self, name: str) -> dict[str, Any]:
        """DescribeTrainingJob."""
        with self._lock:
            description: dict[str, Any] = self.job(name).response_object
            return description

    def move(self, name: str, secondary: str, *, status: str = "", **fields: Any) -> None:
        """Enter a secondary state, with `status` if that changes too; `fields` are set on moto's record."""
        now = datetime.now(UTC)
        with self._lock:
            job = self.job(name)
            for field, value in fields.items():
                setattr(job, field, value)
            done = [{"EndTime": now, **step} for step in job.secondary_status_transitions]
            step = {
                "Status": secondary,
                "StartTime": now,
                "StatusMessage": _STATUS_MESSAGES.get(secondary, secondary),
            }
            job.secondary_status_transitions = [*done, step]
            job.secondary_status, job.last_modified_time = secondary, now
            job.training_job_status = status or job.training_job_status
            if secondary == "Training":
                job.training_start_time = now
            if status in ENDED:
                step["EndTime"] = job.training_end_time = now
                if job.training_start_time:
                    seconds = max(1, int((now - job.training_start_time).total_seconds()))
                    job.billable_time_in_seconds = job.training_time_in_seconds = seconds

    def list(self, ask: Ask) -> dict[str, Any]:
        """ListTrainingJobs. As AWS documents it, StatusEquals filters a page that was cut without it."""
        size = int(ask("MaxResults") or 10)
        if not 1 <= size <= 100:
            raise ValidationError("1 validation error detected: maxResults must be between 1 and 100")
        with self._lock:
            found = _sorted_jobs([job for job in self._jobs.values() if _is_wanted(job, ask)], ask)
            page, more = page_of(found, ask("NextToken"), size)
            status = ask("StatusEquals")
            shown = [_summary(job) for job in page if status in (None, job.training_job_status)]
        return {"TrainingJobSummaries": shown, **more}

    def search(self, ask: Ask) -> dict[str, Any]:
        """Search, for training jobs."""
        with self._lock:
            return search(list(self._jobs.values()), ask)

    def _refuse_if_told(self) -> None:
        refusal = next((r for r in self.refusals if r.times > 0), None)
        if refusal is None:
            return
        refusal.times -= 1
        raise JsonRESTError(refusal.code, refusal.message)  # any code, also those no model has

    def _refuse_duplicate(self, name: str) -> None:
        existing = self._jobs.get(name)
        if existing is not None:
            raise ResourceInUseException(
                "Training job names must be unique within an AWS account and region, and a training job with"
                f" this name already exists ({existing.arn})"
            )

    def _refuse_beyond_quota(self) -> None:
        open_jobs = sum(job.training_job_status not in ENDED for job in self._jobs.values())
        if self.quota is not None and open_jobs >= self.quota:
            raise _limit_exceeded("training jobs", self.quota, open_jobs, 1)

    def _refuse_beyond_instance_quota(self, ask: Ask) -> None:
        resources = ask("ResourceConfig") or {}
        kind = _machine(resources, bool(ask("EnableManagedSpotTraining")))
        if (limit := self.instance_quotas.get(kind)) is None:
            return
        used = sum(
            int(job.resource_config.get("InstanceCount", 1))
            for job in self._jobs.values()
            if job.training_job_status not in ENDED
            and _machine(job.resource_config, bool(job.enable_managed_spot_training)) == kind
        )
        wanted = int(resources.get("InstanceCount", 1))
        if used + wanted > limit:
            raise _limit_exceeded(f"{kind} for training job usage", limit, used, wanted)


def _machine(resources: Any, spot: bool) -> str:
    name = str((resources or {}).get("InstanceType", ""))
    return f"{name} spot" if spot else name


def _limit_exceeded(name: str, limit: int, used: int, wanted: int) -> SagemakerClientError:
    return SagemakerClientError(
        "ResourceLimitExceeded",
        f"The account-level service limit '{name}' is {limit} Instances, with current utilization of {used} Instances"
        f" and a request delta of {wanted} Instances. Please use AWS Service Quotas to request an increase for this"
        " quota. If AWS Service Quotas is not available, contact AWS support to request an increase for this quota.",
    )


def _make_it_start(job: Job, ask: Ask, metrics: Sequence[dict[str, str]]) -> None:
    now = datetime.now(UTC)
    job.environment = ask("Environment") or {}
    job.retry_strategy = ask("RetryStrategy")
    job.algorithm_specification = {
        key: value for key, value in job.algorithm_specification.items() if key != "MetricDefinitions"
    } | ({"MetricDefinitions": metrics} if metrics else {})
    job.training_job_status, job.secondary_status = "InProgress", "Starting"
    job.secondary_status_transitions = [
        {"Status": "Starting", "StartTime": now, "StatusMessage": _STATUS_MESSAGES["Starting"]}
    ]
    job.creation_time = job.last_modified_time = now
    # Set here, not later: Describe walks over the attributes in another thread.
    job.training_start_time = job.training_end_time = job.model_artifacts = None
    job.final_metric_data_list = job.failure_reason = None
    job.billable_time_in_seconds = job.training_time_in_seconds = None


def _is_wanted(job: Job, ask: Ask) -> bool:
    if (ask("NameContains") or "") not in job.training_job_name:
        return False
    created, modified = job.creation_time.timestamp(), job.last_modified_time.timestamp()
    bounds: tuple[tuple[Any, Callable[[float], bool]], ...] = (
        (ask("CreationTimeAfter"), lambda bound: created > bound),
        (ask("CreationTimeBefore"), lambda bound: created < bound),
        (ask("LastModifiedTimeAfter"), lambda bound: modified > bound),
        (ask("LastModifiedTimeBefore"), lambda bound: modified < bound),
    )
    return all(bound is None or holds(_seconds(bound)) for bound, holds in bounds)


def _sorted_jobs(jobs: Sequence[Job], ask: Ask) -> list[Job]:
    keys: dict[str, Callable[[Job], Any]] = {
        "Name": lambda job: job.training_job_name,
        "Status": lambda job: job.training_job_status,
        "CreationTime": lambda job: job.creation_time,
    }
    # CreationTime, ascending, by default (API reference).
    key = keys[ask("SortBy") or "CreationTime"]
    return sorted(jobs, key=key, reverse=ask("SortOrder") == "Descending")


def _summary(job: Job) -> dict[str, Any]:
    ended = {"TrainingEndTime": job.training_end_time} if job.training_end_time else {}
    return {
        "TrainingJobName": job.training_job_name,
        "TrainingJobArn": job.arn,
        "CreationTime": job.creation_time,
        "LastModifiedTime": job.last_modified_time,
        "TrainingJobStatus": job.training_job_status,
        "SecondaryStatus": job.secondary_status,
        **ended,
    }


def _seconds(value: datetime | float | str) -> float:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return float(value)


@contextlib.contextmanager
def aws_like_training_jobs(jobs: TrainingJobs) -> Iterator[None]:
    """Let moto's SageMaker answer from `jobs` while the context is open."""
    create = SageMakerResponse.create_training_job

    def create_training_job(self: SageMakerResponse) -> ActionResult:
        return jobs.create(self._get_param, lambda: create(self))

    def stop_training_job(self: SageMakerResponse) -> EmptyResult:
        jobs.stop(self._get_param("TrainingJobName"))
        return EmptyResult()

    def describe_training_job(self: SageMakerResponse) -> ActionResult:
        return ActionResult(jobs.describe(self._get_param("TrainingJobName")))

    def list_training_jobs(self: SageMakerResponse) -> ActionResult:
        return ActionResult(jobs.list(self._get_param))

    def search_jobs(self: SageMakerResponse) -> ActionResult:
        return ActionResult(jobs.search(self._get_param))

    with replaced(
        SageMakerResponse,
        create_training_job=create_training_job,
        stop_training_job=stop_training_job,
        describe_training_job=describe_training_job,
        list_training_jobs=list_training_jobs,
        search=search_jobs,
    ):
        yield
