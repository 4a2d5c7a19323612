"""Another role for SageMaker and CloudWatch Logs, of another account for example; all else stays the worker's own.

The role's credentials last an hour. They are asked for anew before they end, with whatever credentials the worker has
by then: those of a task or instance role are renewed by the SDK itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aiobotocore.credentials import (
    AioCredentialResolver,
    AioDeferredRefreshableCredentials,
)
from aiobotocore.session import AioSession
from botocore.credentials import CredentialProvider

from worker.clients.aws import AwsClients, AwsDenied, AwsRefused, call, client_config
from worker.clients.service_models import model_loader
from worker.errors import SettingsError

if TYPE_CHECKING:
    from types_aiobotocore_logs import CloudWatchLogsClient
    from types_aiobotocore_sagemaker import SageMakerClient
    from types_aiobotocore_sts import STSClient

_SECONDS = 3600
"""The longest that AWS gives when the caller's own credentials come from a role (AssumeRole, "role chaining")."""


@dataclass(frozen=True, slots=True)
class TargetRole:
    """The role to assume."""

    arn: str
    external_id: str = ""
    session_name: str = "launch-worker"

    @property
    def partition(self) -> str:
        """Of the role's account."""
        return self.arn.split(":")[1]

    @property
    def account(self) -> str:
        """The account whose SageMaker is used."""
        return self.arn.split(":")[4]


@contextlib.asynccontextmanager
async def with_role(aws: AwsClients, role: TargetRole) -> AsyncIterator[AwsClients]:
    """`aws`, but SageMaker and CloudWatch Logs are called as `role`.

    Raises `SettingsError` when the role cannot be assumed."""
    credentials = AioDeferredRefreshableCredentials(_Assume(aws.sts, role), method="assume-role")
    try:
        await credentials.get_frozen_credentials()
    except AwsDenied as error:
        raise SettingsError(f"LAUNCH_ASSUME_ROLE: {error}") from error
    session = AioSession()
    session.register_component("data_loader", model_loader())
    session.register_component("credential_provider", AioCredentialResolver([_Given(credentials)]))
    config = client_config()
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        sagemaker: SageMakerClient = await enter(
            session.create_client("sagemaker", region_name=aws.region, config=config)
        )
        logs: CloudWatchLogsClient = await enter(
            session.create_client("logs", region_name=aws.region, config=config)
        )
        yield replace(aws, sagemaker=sagemaker, logs=logs)


class _Assume:
    """Asks STS for credentials of the role; the SDK calls it when those it has are about to end."""

    def __init__(self, sts: STSClient, role: TargetRole) -> None:
        self._sts = sts
        self._role = role

    async def __call__(self) -> dict[str, str]:
        role = self._role
        parameters: dict[str, Any] = {"ExternalId": role.external_id} if role.external_id else {}
        try:
            answer = await call(
                "AssumeRole",
                lambda: self._sts.assume_role(
                    RoleArn=role.arn,
                    RoleSessionName=role.session_name,
                    DurationSeconds=_SECONDS,
                    **parameters,
                ),
            )
        except (AwsDenied, AwsRefused) as error:
            # Also what AWS refuses for good is the operator's to mend, and no launch is to blame for it.
            raise AwsDenied(
                f"{error}; the role {role.arn} must trust the worker's role (its trust policy, and the external id "
                "there, LAUNCH_ASSUME_ROLE_EXTERNAL_ID), and the worker must be allowed sts:AssumeRole on it; with EKS "
                "Pod Identity both must name sts:TagSession, too"
            ) from error
        given = answer["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }


class _Given(CredentialProvider):
    """The session's only source of credentials."""

    METHOD = "assume-role"

    def __init__(self, credentials: AioDeferredRefreshableCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    async def load(self) -> AioDeferredRefreshableCredentials:
        return self._credentials
