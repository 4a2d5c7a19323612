"""A local SageMaker: training jobs that really run, through their real states, with their logs in CloudWatch.

Not real: capacity and spot interruptions (settable), S3 channels and model upload, the 120 s a container gets to stop
(settable), delays of logs and of Describe, throttling.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from worker.aio import wait_for_event
from worker.local.executor import EntrypointNotStarted, Executor, Instance, InstanceSpec
from worker.local.logs import TrainingJobLogs
from worker.local.sagemaker_api import TrainingJobs, aws_like_training_jobs

_FLUSH = 0.2
"""Seconds between two writes of a container's output to CloudWatch."""
_FAILURE_LIMIT = 1024
"""Characters of FailureReason (SageMaker API reference)."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How the containers ended."""

    codes: tuple[int, ...]
    failed: int | None
    """The first instance that failed: it is the reason, the others were only ended because of it."""
    stopped_as: str
    """`Stopped`, `MaxRuntimeExceeded` or `Interrupted` if SageMaker ended them; empty: they ended by themselves."""


@dataclass
class _StopRequest:
    """StopTrainingJob for one job."""

    event: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    interrupted: bool = False
    """It is the spot machines that are taken away; nobody asked for a stop."""


class JobLogs(Protocol):
    """Where containers' output goes: CloudWatch Logs, of this process (`TrainingJobLogs`) or of another."""

    def put(self, stream: str, events: Sequence[tuple[int, str]]) -> None:
        """As `TrainingJobLogs.put`."""
        ...


class LocalSageMaker:
    """Takes created jobs and runs them, each in a task of the group it was given."""

    def __init__(
        self,
        jobs: TrainingJobs,
        executor: Executor,
        logs: JobLogs,
        tasks: asyncio.TaskGroup,
        *,
        region: str,
        stop_grace: float = 5.0,
    ) -> None:
        self.jobs = jobs
        self.executor = executor
        self.stop_grace = stop_grace
        """Seconds between SIGTERM and SIGKILL; 120 on AWS."""
        self.log_delay = 0.0
        """Seconds by which CloudWatch lags behind the containers; some seconds on AWS, also after the job's end."""
        self.failures: list[str] = []
        """FailureReason of the next jobs that start (`CapacityError: …`, `InternalServerError: …`), each used once."""
        self.spot_machines = True
        """False: spot jobs that are interrupted get no machines again, and wait for them until MaxWaitTimeInSeconds."""
        self.failing_jobs: dict[str, str] = {}
        """Job name → FailureReason with which it fails although its containers succeed."""
        self._logs = logs
        self._tasks = tasks
        self._region = region
        self._running: dict[str, tuple[asyncio.Task[None], _StopRequest]] = {}
        self._late: set[asyncio.Task[None]] = set()

    def start(self, name: str) -> None:
        """Begin with a job that was just created. To be called on the event loop."""
        stop = _StopRequest()
        task = self._tasks.create_task(self._run(name, stop), name=f"training job {name}")
        self._running[name] = (task, stop)
        task.add_done_callback(lambda _: self._running.pop(name, None))

    def stop(self, name: str) -> None:
        """Pass StopTrainingJob on. To be called on the event loop."""
        if name in self._running:
            self._running[name][1].event.set()

    def interrupt(self, name: str) -> None:
        """Take the machines of a running spot job away. To be called on the event loop."""
        stop = self._running[name][1]
        stop.interrupted = True
        stop.event.set()

    def cancel_all(self) -> None:
        """End all jobs without a word; their instances are removed."""
        for task in [*(task for task, _ in self._running.values()), *self._late]:
            task.cancel()

    async def _run(self, name: str, stop: _StopRequest) -> None:
        instances: list[Instance] = []
        try:
            specs = _instance_specs(self.jobs.describe(name), self._region)
            await self._train(name, specs, instances, stop)
        except Exception as error:  # whatever went wrong, the job failed and its reason says how
            self._fail(name, f"ClientError: {_first(error)}")
        finally:
            for instance in instances:
                await instance.remove()

    async def _train(
        self, name: str, specs: Sequence[InstanceSpec], instances: list[Instance], stop: _StopRequest
    ) -> None:
        if self.failures:
            self._fail(name, self.failures.pop(0))
            return
        while await self._train_once(name, specs, instances, stop) == "Interrupted":
            self.jobs.move(name, "Interrupted")
            while instances:
                await instances.pop().remove()
            stop.event.clear()
            stop.interrupted, stop.reason = False, ""
            if not self.spot_machines:
                await self._wait_in_vain(name, stop)
                return
            self._advance(name, stop, "Starting")

    async def _wait_in_vain(self, name: str, stop: _StopRequest) -> None:
        job = self.jobs.job(name)
        waited = time.time() - job.creation_time.timestamp()
        asked = await wait_for_event(
            stop.event, max(0.0, job.stopping_condition["MaxWaitTimeInSeconds"] - waited)
        )
        self.jobs.move(name, "Stopping", status="Stopping")
        self.jobs.move(name, "Stopped" if asked else "MaxWaitTimeExceeded", status="Stopped")

    async def _train_once(
        self, name: str, specs: Sequence[InstanceSpec], instances: list[Instance], stop: _StopRequest
    ) -> str:
        """One life of the job's machines; returns what SageMaker ended it as, if it did."""
        self._advance(name, stop, "Downloading")
        await self.executor.prepare(specs[0].image)
        for spec in specs:
            instances.append(await self.executor.create(spec))
        if stop.event.is_set():
            if not stop.interrupted:
                self.jobs.move(name, "Stopped", status="Stopped")
            return "Interrupted" if stop.interrupted else "Stopped"
        self._advance(name, stop, "Training")
        try:
            for instance in instances:
                await instance.start()
        except EntrypointNotStarted as error:
            self._fail(name, f"AlgorithmError: {error}, exit code: 127")
            return ""
        limit = self.jobs.job(name).stopping_condition["MaxRuntimeInSeconds"]
        outcome = await self._attend(name, specs, instances, stop, float(limit))
        if outcome.stopped_as == "Interrupted":
            return "Interrupted"
        if outcome.stopped_as:
            self.jobs.move(name, outcome.stopped_as, status="Stopped")
        elif outcome.failed is not None:
            text = await instances[outcome.failed].failure()
            self._fail(name, f"AlgorithmError: {text}, exit code: {outcome.codes[outcome.failed]}")
        elif name in self.failing_jobs:
            self._fail(name, self.failing_jobs.pop(name))
        else:
            self._complete(name)
        return outcome.stopped_as

    async def _attend(
        self,
        name: str,
        specs: Sequence[InstanceSpec],
        instances: Sequence[Instance],
        stop: _StopRequest,
        limit: float,
    ) -> _Outcome:
        """Copy the output of started instances; end all when one fails, time is up or a stop is asked."""
        async with asyncio.TaskGroup() as tasks:
            for spec, instance in zip(specs, instances, strict=True):
                stream = f"{name}/{spec.host}-{int(time.time())}"
                tasks.create_task(self._copy_output(instance, stream))
            waits = [tasks.create_task(instance.wait()) for instance in instances]
            guard = tasks.create_task(self._stop_in_time(instances, stop, limit))
            open_waits, failed = set(waits), None
            while open_waits:
                done, open_waits = await asyncio.wait(open_waits, return_when=asyncio.FIRST_COMPLETED)
                if failed is None:
                    failed = next((i for i, wait in enumerate(waits) if wait in done and wait.result()), None)
                    if open_waits and failed is not None:
                        await _stop_all(instances, self.stop_grace)
            guard.cancel()
        return _Outcome(tuple(wait.result() for wait in waits), failed, stop.reason)

    async def _stop_in_time(self, instances: Sequence[Instance], stop: _StopRequest, limit: float) -> None:
        asked = await wait_for_event(stop.event, limit)
        stop.reason = "Stopped" if asked else "MaxRuntimeExceeded"
        if asked and stop.interrupted:
            stop.reason = "Interrupted"
        await _stop_all(instances, self.stop_grace)

    async def _copy_output(self, instance: Instance, stream: str) -> None:
        """stdout and stderr to CloudWatch in time order, several lines a call."""
        pending: list[tuple[int, str]] = []
        async with asyncio.TaskGroup() as tasks:
            flusher = tasks.create_task(self._flush_regularly(stream, pending))
            latest = 0
            async for line in instance.lines():
                latest = max(latest, int(time.time() * 1000))
                pending.append((latest, line or " "))  # CloudWatch refuses empty messages
            flusher.cancel()
        self._flush(stream, pending)

    async def _flush_regularly(self, stream: str, pending: list[tuple[int, str]]) -> None:
        while True:
            await asyncio.sleep(_FLUSH)
            self._flush(stream, pending)

    def _flush(self, stream: str, pending: list[tuple[int, str]]) -> None:
        if not pending:
            return
        batch = pending.copy()
        pending.clear()
        if self.log_delay:
            late = self._tasks.create_task(self._put_late(stream, batch, self.log_delay))
            self._late.add(late)
            late.add_done_callback(self._late.discard)
        else:
            self._logs.put(stream, batch)

    async def _put_late(self, stream: str, batch: list[tuple[int, str]], delay: float) -> None:
        await asyncio.sleep(delay)
        self._logs.put(stream, batch)

    def _advance(self, name: str, stop: _StopRequest, secondary: str) -> None:
        if not stop.event.is_set():
            self.jobs.move(name, secondary)

    def _complete(self, name: str) -> None:
        self.jobs.move(name, "Uploading")
        prefix = self.jobs.job(name).output_data_config["S3OutputPath"].rstrip("/")
        artifacts = {"S3ModelArtifacts": f"{prefix}/{name}/output/model.tar.gz"}
        self.jobs.move(name, "Completed", status="Completed", model_artifacts=artifacts)

    def _fail(self, name: str, reason: str) -> None:
        self.jobs.move(name, "Failed", status="Failed", failure_reason=reason[:_FAILURE_LIMIT])


def _instance_specs(description: dict[str, Any], region: str) -> list[InstanceSpec]:
    algorithm = description["AlgorithmSpecification"]
    hosts = tuple(f"algo-{n + 1}" for n in range(description["ResourceConfig"].get("InstanceCount", 1)))
    return [
        InstanceSpec(
            job_name=description["TrainingJobName"],
            job_arn=description["TrainingJobArn"],
            region=region,
            host=host,
            hosts=hosts,
            image=algorithm["TrainingImage"],
            entrypoint=tuple(algorithm.get("ContainerEntrypoint") or ()),
            arguments=tuple(algorithm.get("ContainerArguments") or ()),
            environment=description.get("Environment") or {},
            hyperparameters=description.get("HyperParameters") or {},
            channels=tuple(description.get("InputDataConfig") or ()),
            network_isolation=bool(description.get("EnableNetworkIsolation")),
        )
        for host in hosts
    ]


async def _stop_all(instances: Sequence[Instance], grace: float) -> None:
    await asyncio.gather(*(instance.stop(grace) for instance in instances))


def _first(error: BaseException) -> BaseException:
    """The first single error inside exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextlib.asynccontextmanager
async def running_sagemaker(
    executor: Executor, *, region: str, stop_grace: float = 5.0, logs: JobLogs | None = None
) -> AsyncIterator[LocalSageMaker]:
    """Run the jobs that moto's SageMaker is given, until the context ends; then nothing of them is left."""
    jobs, loop = TrainingJobs(), asyncio.get_running_loop()
    failure: BaseException | None = None
    async with asyncio.TaskGroup() as tasks:
        sagemaker = LocalSageMaker(
            jobs, executor, logs or TrainingJobLogs(), tasks, region=region, stop_grace=stop_grace
        )
        # moto's threads hand names over; everything else happens on the event loop.
        jobs.on_created = lambda name: _hand_over(loop, sagemaker.start, name)
        jobs.on_stop = lambda name: _hand_over(loop, sagemaker.stop, name)
        try:
            with aws_like_training_jobs(jobs):
                yield sagemaker
        except (Exception, asyncio.CancelledError) as error:  # raised again below, not in a group
            failure = error
        finally:
            sagemaker.cancel_all()
    await executor.close()
    if failure is not None:
        raise failure


def _hand_over(loop: asyncio.AbstractEventLoop, method: Any, name: str) -> None:
    loop.call_soon_threadsafe(method, name)
