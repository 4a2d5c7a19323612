"""Counts the calls of those AWS APIs that have no rate of their own: SQS, ECR, S3, STS, DynamoDB, Secrets Manager.

A `Rate` counts the calls that it paces. botocore's events see the others, also those that the ledger makes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from worker.clients.aws import THROTTLING_CODES, AwsClients, ecr_client
from worker.ops.rates import QUOTAS

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient

    from worker.ops.metrics import Metrics


def count_calls(client: Any, metrics: Metrics) -> None:
    """Count every call of `client` from now on in `launch_aws_calls` and `launch_aws_throttles`.

    A call counts when it begins, as with a rate."""

    def began(model: Any, **_: Any) -> None:
        if model.name not in QUOTAS:
            metrics.aws_calls.labels(model.name).inc()

    def answered(parsed: Mapping[str, Any], model: Any, **_: Any) -> None:
        if model.name not in QUOTAS and _is_throttled(parsed):
            metrics.aws_throttles.labels(model.name).inc()

    client.meta.events.register("before-call", began)
    client.meta.events.register("after-call", answered)


def count_all_calls(aws: AwsClients, metrics: Metrics) -> None:
    """The same for the clients of the process; SageMaker and CloudWatch Logs have rates for all that is called."""
    for client in (aws.sqs, aws.sts, aws.dynamodb, aws.ecr, aws.s3):
        count_calls(client, metrics)


@contextlib.asynccontextmanager
async def counted_ecr_client(metrics: Metrics, region: str) -> AsyncIterator[ECRClient]:
    """`ecr_client`, counted."""
    async with ecr_client(region) as client:
        count_calls(client, metrics)
        yield client


def _is_throttled(parsed: Mapping[str, Any]) -> bool:
    code = str(parsed.get("Error", {}).get("Code", "")).rpartition("#")[2]
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code in THROTTLING_CODES or status == 429
