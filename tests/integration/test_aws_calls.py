"""/metrics counts the calls of every AWS service, once each."""

from __future__ import annotations

import pytest

from tests.fakes.aws_server import AwsError, AwsServer, quick_rates
from worker.clients.api_key import KeyPlaces
from worker.clients.aws import AwsClients
from worker.clients.aws_calls import count_all_calls, count_calls
from worker.errors import Throttled
from worker.intake.sqs import LaunchQueue, QueueFacts
from worker.ledger.dynamodb import DynamoDbLedger
from worker.ops.metrics import Metrics
from worker.training.sagemaker import SageMaker

FACTS = QueueFacts("http://127.0.0.1/1/q", "arn:aws:sqs:us-east-1:1:q", False, "http://127.0.0.1/1/dlq")
THROTTLED = AwsError("ThrottlingException", "slower")


def counted(metrics: Metrics) -> tuple[dict[str, float], dict[str, float]]:
    calls, throttles = (
        {s.labels["api"]: s.value for f in counter.collect() for s in f.samples}
        for counter in (metrics.aws_calls, metrics.aws_throttles)
    )
    return calls, throttles


async def test_calls_without_a_rate_are_counted_and_their_throttles(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    metrics = Metrics()
    count_all_calls(aws, metrics)
    aws_server.answers["ReceiveMessage"] = lambda _: {}
    aws_server.answers["GetItem"] = lambda _: {}
    aws_server.fail_next("ReceiveMessage", THROTTLED)
    queue = LaunchQueue(aws.sqs, FACTS)
    with pytest.raises(Throttled):
        await queue.receive(1, wait=0, visibility=30)
    await queue.receive(1, wait=0, visibility=30)
    await DynamoDbLedger(aws.dynamodb, "table").read("launch-1")
    assert counted(metrics) == ({"ReceiveMessage": 2, "GetItem": 1}, {"ReceiveMessage": 1})


async def test_calls_with_a_rate_are_not_counted_twice(aws: AwsClients, aws_server: AwsServer) -> None:
    metrics = Metrics()
    count_all_calls(aws, metrics)
    count_calls(aws.sagemaker, metrics)
    aws_server.fail_next("StopTrainingJob", THROTTLED)
    with pytest.raises(Throttled):
        await SageMaker(aws.sagemaker, quick_rates(metrics)).stop("job-1")
    calls, throttles = counted(metrics)
    assert (calls["StopTrainingJob"], throttles["StopTrainingJob"]) == (1, 1)


@pytest.mark.usefixtures("aws")
async def test_the_reading_of_a_secret_is_counted(aws_server: AwsServer) -> None:
    metrics = Metrics()
    aws_server.answers["GetSecretValue"] = lambda _: {"SecretString": "k" * 40}
    places = KeyPlaces("secretsmanager:wandb", "", "https://api.wandb.ai", None, "us-east-1", metrics)
    assert await places.read() == "k" * 40
    assert counted(metrics)[0] == {"GetSecretValue": 1}
