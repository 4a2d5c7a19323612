"""SageMaker in memory: the worker's three calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from worker.launch.record import JobFacts
from worker.training.sagemaker import Created, SageMaker, TrainingJob


class FakeSageMaker(SageMaker):
    """Accepts every job, once; the same name again is adopted."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        """Raised, oldest first, by the next calls but `existing`."""
        self.existing_errors: list[Exception] = []
        self.looked_up: list[str] = []
        """Names for which `existing` was asked and gave an answer."""
        self.requests: list[Mapping[str, Any]] = []
        """Of each CreateTrainingJob that was tried."""
        self.jobs: dict[str, JobFacts] = {}
        self.descriptions: dict[str, Mapping[str, Any]] = {}
        """Job name → what `description` answers; by default what was asked of CreateTrainingJob."""
        self.description_errors: list[Exception] = []
        self.described: list[str] = []
        self.stopped: list[str] = []
        self.turns_given_back = 0
        self.answering = asyncio.Event()
        """Cleared: CreateTrainingJob gives no answer."""
        self.answering.set()

    async def turn(self) -> None:
        await asyncio.sleep(0)

    def give_turn_back(self) -> None:
        self.turns_given_back += 1

    async def create_or_adopt(self, request: Mapping[str, Any]) -> TrainingJob:
        self.requests.append(request)
        await self.answering.wait()
        await self._turn()
        name = request["TrainingJobName"]
        how = Created.ADOPTED if name in self.jobs else Created.CREATED
        facts = self.jobs.setdefault(name, JobFacts("InProgress", "Starting"))
        return TrainingJob(_arn(name), how, facts)

    async def existing(self, request: Mapping[str, Any]) -> TrainingJob | None:
        await asyncio.sleep(0)
        if self.existing_errors:
            raise self.existing_errors.pop(0)
        name = request["TrainingJobName"]
        self.looked_up.append(name)
        return TrainingJob(_arn(name), Created.ADOPTED, self.jobs[name]) if name in self.jobs else None

    async def describe(self, name: str) -> JobFacts:
        await self._turn()
        self.described.append(name)
        return self.jobs[name]

    async def description(self, name: str) -> Mapping[str, Any]:
        await self._turn()
        if self.description_errors:
            raise self.description_errors.pop(0)
        requests = {request["TrainingJobName"]: request for request in self.requests}
        return self.descriptions.get(name) or requests.get(name, {})

    async def tags(self, arn: str) -> list[Mapping[str, str]]:
        await self._turn()
        return [{"Key": "team", "Value": "vision"}]

    async def stop(self, name: str) -> bool:
        await self._turn()
        self.stopped.append(name)
        return True

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)


def _arn(name: str) -> str:
    return f"arn:aws:sagemaker:us-east-1:123456789012:training-job/{name}"
