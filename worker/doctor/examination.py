"""The order of the checks, and what each of them needs to be opened."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.clients.aws import AwsClients, AwsRefused, Caller, aws_clients, call, caller_identity
from worker.clients.aws_role import TargetRole, with_role
from worker.doctor import account, images, launch, ledger, permissions, queue, roles, wandb
from worker.doctor.check import Check, Verdict, failed, failures, guarded, ok, skipped
from worker.errors import BadMessage, Unreachable, WorkerError
from worker.launch.redaction import KnownSecrets
from worker.settings import Settings
from worker.training.log_feed import LOG_GROUP
from worker.training.request import AccountFacts
from worker.unknown_variables import UnknownVariable

Tell = Callable[[Check], None]


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, in order; each finding is told as it comes."""

    settings: Settings
    tell: Tell
    secrets: KnownSecrets
    found: list[Check]
    unknown: Sequence[UnknownVariable] = ()

    async def run(self, message: str | BadMessage | None) -> Sequence[Check]:
        """All checks, in order; `message`: the body of a launch to check as well, or why its file has none."""
        read = f"deployment {self.settings.deployment!r}; all variables can be read"
        self._add(*no_settings(self.unknown) or (ok("settings", read),))
        async with contextlib.AsyncExitStack() as stack:
            self._add(*queue.required_checks(self.settings))
            opened = await self._open_aws(stack)
            if isinstance(opened, str):
                for name in ("queue", "ledger", "registry", "IAM", "log group"):
                    if name != "queue" or self.settings.queue_url:
                        self._add(skipped(name, opened))
                if isinstance(message, BadMessage):
                    self._add(*failures("message", message))
                elif message is not None:
                    self._add(skipped("message", opened))
                self._add(*await guarded("docker", lambda: images.docker_checks(self.settings)))
                self._add(*await self._wandb(""))
            else:
                await self._in_aws(*opened, message)
        return self.found

    def _add(self, *checks: Check) -> None:
        for check in checks:
            self.found.append(check)
            self.tell(check)

    async def _open_aws(self, stack: contextlib.AsyncExitStack) -> tuple[AwsClients, Caller] | str:
        """Credentials, Region, clock; a sentence: why nothing of AWS can be asked."""
        settings, enter = self.settings, stack.enter_async_context
        try:
            aws = await enter(aws_clients(settings.aws_region))
        except WorkerError as error:
            self._add(*failures("region", error))
            return f"not looked at: {str(error).partition('; ')[0]}"
        try:
            caller = await caller_identity(aws.sts)
        except Unreachable as error:
            self._add(account.clock_check(aws.clock.ahead))
            remedy = f"check AWS_REGION ({aws.region}), AWS_ENDPOINT_URL, the network, and proxies"
            self._add(failed("credentials", str(error), remedy))
            return "not looked at: AWS does not answer"
        except WorkerError as error:
            self._add(account.clock_check(aws.clock.ahead))
            remedy = "give the task, pod or instance a role (docs/iam.md), or set AWS_PROFILE"
            self._add(failed("credentials", str(error), remedy))
            return "not looked at: AWS does not let this worker in"
        self._add(account.credentials_check(caller, settings), account.region_check(aws, settings))
        self._add(account.clock_check(aws.clock.ahead))
        if settings.assume_role:
            role = TargetRole(settings.assume_role, settings.assume_role_external_id)
            try:
                aws = await enter(with_role(aws, role))
            except WorkerError as error:
                self._add(*failures("assumed role", error))
            else:
                self._add(ok("assumed role", role.arn))
        return aws, caller

    async def _in_aws(self, aws: AwsClients, caller: Caller, message: str | BadMessage | None) -> None:
        settings = self.settings
        facts = AccountFacts(
            settings.assume_role.split(":")[4] if settings.assume_role else caller.account,
            aws.region,
            caller.partition,
        )
        asked = self._read(message, facts) if message is not None else None
        named = asked.roles if asked else tuple(account.full_role_arns(settings))
        self._add(*await guarded("queue", lambda: queue.queue_checks(aws, settings)))
        self._add(*await guarded("ledger", lambda: ledger.ledger_checks(aws, settings)))
        self._add(*await guarded("registry", lambda: images.registry_checks(aws, settings)))
        self._add(*await guarded("docker", lambda: images.docker_checks(settings)))
        arns = await queue.queue_arns(aws, settings)
        wanted = permissions.wanted_actions(
            settings, caller, aws.region, queue_arn=arns[0], dlq_arn=arns[1], roles=named
        )
        self._add(*await guarded("IAM", lambda: permissions.permission_checks(aws, settings, caller, wanted)))
        self._add(
            *await guarded(
                "execution role",
                lambda: roles.role_checks(named, caller.account, aws.region, given=message is not None),
            )
        )
        self._add(*await guarded("log group", lambda: _log_group(aws)))
        self._add(*await self._wandb(aws.region))
        if asked is not None:
            key = await wandb.api_key(settings, aws.region, self.secrets)
            work_dir = Path(settings.work_dir or await asyncio.to_thread(tempfile.gettempdir))
            self._add(*await launch.launch_checks(asked, aws, settings, key, work_dir))
        elif message is None:
            self._add(
                skipped("quota", "give --message FILE to have a launch checked: quota, image, source, output")
            )

    def _read(self, body: str | BadMessage, facts: AccountFacts) -> launch.Asked | None:
        try:
            if isinstance(body, BadMessage):
                raise body
            return launch.read_message(body, self.settings, facts)
        except WorkerError as error:
            self._add(*failures("message", error))
            return None

    async def _wandb(self, region: str) -> Sequence[Check]:
        return await guarded("W&B login", lambda: wandb.wandb_checks(self.settings, region, self.secrets))


async def examine(
    settings: Settings, message: str | BadMessage | None, tell: Tell, unknown: Sequence[UnknownVariable] = ()
) -> Sequence[Check]:
    """Look at everything; `tell` gets each finding as it comes. `unknown`: variables that are no settings."""
    return await Examination(settings, tell, KnownSecrets(), [], unknown).run(message)


def no_settings(unknown: Sequence[UnknownVariable]) -> list[Check]:
    """Variables that are set and mean nothing: what they were to do is not done."""
    return [
        failed("settings", f"{variable.name}: there is no such setting, it is not in force", variable.remedy)
        for variable in unknown
    ]


def all_well(checks: Sequence[Check]) -> bool:
    """No cross."""
    return all(check.verdict is not Verdict.FAILED for check in checks)


async def _log_group(aws: AwsClients) -> Sequence[Check]:
    try:
        await call(
            "DescribeLogStreams", lambda: aws.logs.describe_log_streams(logGroupName=LOG_GROUP, limit=1)
        )
    except AwsRefused as error:
        if error.aws_code != "ResourceNotFoundException":
            raise
        return [ok("log group", f"{LOG_GROUP}: comes with the account's first training job")]
    return [ok("log group", LOG_GROUP)]
