"""The W&B key of a job's container: put into its request at the last moment, and kept out of all that is told."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from worker.clients.api_key import ApiKey
from worker.errors import Never, Stage, shortened
from worker.launch.record import LaunchRecord
from worker.launch.redaction import is_secret_variable, redact_text
from worker.ledger.held import HeldLaunch
from worker.training.request import with_api_key
from worker.training.retry import API_KEY_VARIABLE
from worker.training.sagemaker import SageMaker

_MAX_TOLD = 10_000
"""Characters."""


class ContainerKey:
    """The worker's key, or the one that a launch brought."""

    def __init__(self, api_key: ApiKey, sagemaker: SageMaker, *, hand_over: bool) -> None:
        """`hand_over`: False keeps every key from containers."""
        self._api_key = api_key
        self._sagemaker = sagemaker
        self._hand_over = hand_over

    async def put_in(self, held: HeldLaunch) -> dict[str, Any]:
        """The request of a waiting launch as SageMaker gets it.

        Raises `Again`, and `Never` (`LW-KEY-GONE`) when the key that the launch brought is to be had from nowhere."""
        record = held.record
        assert record.request is not None
        if not self._hand_over:
            return dict(record.request)
        if record.private_key and held.api_key is None:
            held.api_key = await self._own_key(record)
        key = held.api_key.get_secret_value() if held.api_key else self._api_key.value
        # Offline without a key the container gets none either.
        return with_api_key(record.request, key) if key else dict(record.request)

    def without_secrets(self, held: HeldLaunch, text: str) -> str:
        """AWS quotes the request it refuses, its Environment included, and the ledger keeps what is told: not all."""
        environment = (held.record.request or {}).get("Environment", {})
        keys = [key.get_secret_value() for key in (held.api_key,) if key] + [*self._api_key.secrets]
        hidden = [value for name, value in environment.items() if is_secret_variable(name)]
        return shortened(redact_text(text, (*keys, *hidden)), _MAX_TOLD)

    async def _own_key(self, record: LaunchRecord) -> SecretStr:
        """The ledger does not have it, but the job of the attempt before."""
        described = await self._sagemaker.description(record.previous_job)
        if key := (described.get("Environment") or {}).get(API_KEY_VARIABLE):
            return SecretStr(key)
        gone = f"the W&B key that the launch brought is not in the Environment of {record.previous_job}"
        raise Never(f"{gone}; send the launch again.", code="LW-KEY-GONE", stage=Stage.RUN)
