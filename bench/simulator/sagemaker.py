"""SageMaker's operations, as far as programs that run training jobs call them. Source: botocore's service model."""

from __future__ import annotations

import time
from typing import Any

from bench.simulator.errors import AwsError
from bench.simulator.jobs import ENDED, VirtualJob, VirtualJobs, description

Json = dict[str, Any]


class SageMakerOperations:
    """One method an operation, called by its name."""

    def __init__(self, jobs: VirtualJobs) -> None:
        self._jobs = jobs
        self._tags: dict[str, list[Json]] = {}
        self.created_at: list[float] = []
        """When each CreateTrainingJob was accepted, epoch seconds."""
        self.stopped_at: dict[str, float] = {}
        """Job → when its first StopTrainingJob was accepted, epoch seconds."""

    def op_CreateTrainingJob(self, ask: Json) -> Json:
        """A new job; its name must be free."""
        now = time.time()
        name = ask["TrainingJobName"]
        if self._jobs.get(name) is not None:
            raise AwsError("ResourceInUse", f"Training job names must be unique: {name} exists.")
        job = self._jobs.create(name, ask.get("Environment") or {}, now)
        self._tags[job.arn] = ask.get("Tags") or []
        self.created_at.append(now)
        return {"TrainingJobArn": job.arn}

    def op_DescribeTrainingJob(self, ask: Json) -> Json:
        """One job in full."""
        return description(self._found(ask))

    def op_ListTrainingJobs(self, ask: Json) -> Json:
        """Summaries, oldest job first. StatusEquals and the like are left out: nobody here asks for them."""
        self._jobs.advance(time.time())
        after = float(ask.get("LastModifiedTimeAfter", 0))
        behind = int(ask.get("NextToken", -1))
        most = min(100, int(ask.get("MaxResults", 10)))
        found = [job for job in self._jobs if job.number > behind and job.modified_at > after]
        answer: Json = {"TrainingJobSummaries": [_summary(job) for job in found[:most]]}
        if len(found) > most:
            answer["NextToken"] = str(found[most - 1].number)
        return answer

    def op_StopTrainingJob(self, ask: Json) -> Json:
        """The job stops soon; one that has ended is refused."""
        job = self._found(ask)
        if job.status in ENDED:
            text = f"The request was rejected because the training job is in status {job.status}."
            raise AwsError("ValidationException", text)
        self.stopped_at.setdefault(job.name, time.time())
        self._jobs.stop(job, time.time())
        return {}

    def clear(self) -> None:
        """Nothing was asked for yet."""
        self.created_at.clear()
        self.stopped_at.clear()
        self._tags.clear()

    def op_AddTags(self, ask: Json) -> Json:
        """More tags for a resource."""
        tags = self._tags.setdefault(ask["ResourceArn"], [])
        tags += ask["Tags"]
        return {"Tags": tags}

    def op_ListTags(self, ask: Json) -> Json:
        """The tags of a resource."""
        return {"Tags": self._tags.get(ask["ResourceArn"], [])}

    def op_Search(self, ask: Json) -> Json:
        """Nothing is found: the worker asks only when its ledger was lost."""
        del ask
        return {"Results": []}

    def _found(self, ask: Json) -> VirtualJob:
        self._jobs.advance(time.time())
        job = self._jobs.get(ask["TrainingJobName"])
        if job is None:
            raise AwsError("ValidationException", "Requested resource not found.")
        return job


def _summary(job: VirtualJob) -> Json:
    return {
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn,
        "CreationTime": job.created_at,
        "LastModifiedTime": job.modified_at,
        "TrainingJobStatus": job.status,
        "SecondaryStatus": job.secondary_status,
    }
