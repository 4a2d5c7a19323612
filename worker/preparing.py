"""From a launch to the request it becomes: what it runs is found out, built if it is code, and planned.

    W&B job ─▶ its file ─▶ image ──────────────────────▶ plan
                  └──────▶ code ─▶ checkout ─▶ build ─▶ plan

What is found is pinned in the ledger before anything is made of it, so that a later try finds the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from worker.aio import effect
from worker.building import Building, no_builder
from worker.errors import BadMessage, Problem, Stage
from worker.intake.refusal import Refusals
from worker.launch.job_spec import ArtifactRef, JobSpec, parse_artifact_ref
from worker.launch.message import (
    JOB_PATH,
    CodeSource,
    ImageSource,
    JobCode,
    JobSource,
    Launch,
    LaunchMessage,
)
from worker.launch.parsing import STAND_IN_IMAGE
from worker.ledger.held import HeldLaunch
from worker.ops.logging import get_logger
from worker.sources.checkout import Checkout
from worker.sources.wandb_job import WandbJobs
from worker.training.plan import Plan, plan_launch, read_launch
from worker.training.policy import Policy
from worker.training.request import AccountFacts

Save = Callable[[HeldLaunch], Awaitable[None]]

_log = get_logger()


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """What every request of this worker has in common."""

    account: AccountFacts
    base_url: str
    deployment: str
    macros: Mapping[str, str]
    policy: Policy


class Preparing:
    """Makes launches ready to submit."""

    def __init__(
        self, *, facts: PlanFacts, building: Building | None, jobs: WandbJobs | None, refusals: Refusals
    ) -> None:
        """`building`: None refuses code. `jobs`: None, without a W&B server, refuses W&B jobs."""
        self._checked = facts.policy.for_checked_message()
        """The message itself has passed: what has joined it since comes from its source."""
        self._imageless = replace(facts.policy, images=())
        self._plan = partial(
            plan_launch,
            account=facts.account,
            base_url=facts.base_url,
            deployment=facts.deployment,
            macros=facts.macros,
            policy=facts.policy,
        )
        self._building = building
        self._jobs = jobs
        self._refusals = refusals

    def read(self, parsed: LaunchMessage | BadMessage, *, launch_id: str, default_log_target: str) -> Launch:
        """What a message asks for; raises `BadMessage` with all that is wrong with it."""
        return read_launch(parsed, self._plan, launch_id=launch_id, default_log_target=default_log_target)

    async def plan(self, held: HeldLaunch, launch: Launch, save: Save) -> Plan:
        """What `launch` submits. `save` writes the record of `held`; it raises when the launch is no longer ours.

        Raises `Never` for what cannot be run, and `Again`."""
        plan = await self._planned(held, launch, save)
        for warning in plan.warnings:
            await self._warn(held, str(warning))
        return plan

    async def _warn(self, held: HeldLaunch, what: str) -> None:
        _log.warning("message_odd", what=what)
        await self._refusals.warn(held.record.item_id, "message_odd", what, Stage.AGENT)

    async def _planned(self, held: HeldLaunch, launch: Launch, save: Save) -> Plan:
        attempt, of_job = held.record.attempt, isinstance(launch.source, JobSource)
        if isinstance(launch.source, JobSource):
            launch = await self._resolved(held, launch, launch.source, save)
        if isinstance(launch.source, CodeSource):
            image, launch = await self._built(held, launch, launch.source, save)
            return self._plan(launch, image=image, attempt=attempt, policy=self._checked)
        if of_job:
            return self._plan(launch, image=None, attempt=attempt, policy=self._checked)
        return self._plan(launch, image=None, attempt=attempt)

    async def _resolved(self, held: HeldLaunch, launch: Launch, source: JobSource, save: Save) -> Launch:
        """The launch with what its job turns out to be in the place of the job."""
        if self._jobs is None:
            what = "names a W&B job, and this worker runs without a W&B server"
            remedy = "give the worker a WANDB_API_KEY, or name a ready image"
            raise BadMessage((Problem(JOB_PATH, what, remedy),), code="LW-JOB-OFFLINE")
        # Which image it will be is not known yet; all else can be refused before W&B is asked.
        self._plan(launch, image=STAND_IN_IMAGE, policy=self._imageless)
        pinned = held.record.job_artifact
        ref = ArtifactRef(id=pinned) if pinned else parse_artifact_ref(source.job)
        assert ref is not None, "interpret has looked at it"
        with effect("resolve_job"):
            found = await self._jobs.job(ref)
        artifact, spec = found.artifact, found.spec
        _log.info(
            "job_found", job=artifact.name, version=artifact.version, artifact=artifact.id, kind=spec.kind
        )
        if not pinned:
            held.update(job_artifact=artifact.id)
            await save(held)
        if spec.kind == "image" and source.dockerfile:
            text = f"overrides.dockerfile is not used: job {artifact.name} is a ready image"
            await self._warn(held, text)
        job = JobCode(
            name=artifact.name,
            artifact=artifact.id,
            code=spec.code,
            dockerfile=spec.dockerfile,
            build_context=spec.build_context,
            base_image=spec.base_image,
        )
        return replace(
            launch,
            source=_source(spec, source, job),
            job_entry_point=spec.entry_point,
            python_version=spec.python_version or launch.python_version,
        )

    async def _built(
        self, held: HeldLaunch, launch: Launch, source: CodeSource, save: Save
    ) -> tuple[str, Launch]:
        """The image of a code launch, by digest; what can be refused without it is refused before it is fetched."""
        if self._building is None:
            raise no_builder(JOB_PATH if source.job else "$.runSpec.uri")
        unbuilt = f"{self._building.repository}:unbuilt"
        if source.job:
            self._plan(launch, image=unbuilt, policy=self._checked)
        else:
            self._plan(launch, image=unbuilt)
        if held.record.commit:  # an earlier try has fetched it: a branch may have moved since
            source = replace(source, version=held.record.commit)

        async def pin(fetched: Checkout) -> None:
            held.update(commit=fetched.commit)
            await save(held)

        made = await self._building.image_of(launch, source, pin)
        await self._refusals.warn_of_build(held.record, made.warnings, made.failed_packages)
        if launch.entry_point or not launch.job_entry_point:
            return made.uri, replace(launch, entry_point=made.entry_point)
        return made.uri, replace(launch, job_entry_point=made.entry_point)


def _source(spec: JobSpec, source: JobSource, job: JobCode) -> ImageSource | CodeSource:
    if spec.kind == "image":
        return ImageSource(spec.image, JOB_PATH)
    return CodeSource(spec.remote, spec.commit, source.dockerfile, job)
