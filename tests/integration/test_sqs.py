"""The launch queue on the wire: what is asked of SQS, and what its answers mean."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.fakes.aws_server import AwsError, AwsServer
from worker.clients.aws import AwsClients, AwsDenied, AwsRefused
from worker.errors import SettingsError, Throttled, Unreachable
from worker.intake.sqs import LaunchQueue, QueueFacts, SqsMessage, queue_facts

FACTS = QueueFacts(
    "http://127.0.0.1/1/launches", "arn:aws:sqs:us-east-1:1:launches", False, "http://127.0.0.1/1/dlq"
)
FIFO = QueueFacts(
    "http://127.0.0.1/1/l.fifo", "arn:aws:sqs:us-east-1:1:l.fifo", True, "http://127.0.0.1/1/dlq.fifo"
)
NOT_IN_FLIGHT = "AWS.SimpleQueueService.MessageNotInflight"


def message(name: str) -> SqsMessage:
    return SqsMessage(name, f"handle-{name}", "{}", 1, "")


@pytest.fixture
def queue(aws: AwsClients, aws_server: AwsServer) -> LaunchQueue:
    for operation in ("ChangeMessageVisibility", "DeleteMessage"):
        aws_server.answers[operation] = lambda _: {}
    aws_server.answers["SendMessage"] = lambda _: {"MessageId": "sent"}
    return LaunchQueue(aws.sqs, FACTS)


def fifo(queue: LaunchQueue) -> LaunchQueue:
    queue.facts = FIFO
    return queue


async def test_messages_are_received_under_a_lease_from_the_start(
    queue: LaunchQueue, aws_server: AwsServer
) -> None:
    aws_server.answers["ReceiveMessage"] = lambda _: {
        "Messages": [
            {
                "MessageId": "m",
                "ReceiptHandle": "h",
                "Body": "b",
                "Attributes": {"ApproximateReceiveCount": "3", "MessageGroupId": "q"},
            },
            {"MessageId": "n", "ReceiptHandle": "i", "Body": "c"},
        ]
    }
    assert await queue.receive(7, wait=20, visibility=60) == [
        SqsMessage("m", "h", "b", 3, "q"),
        SqsMessage("n", "i", "c", 1, ""),
    ]
    assert aws_server.requests("ReceiveMessage") == [
        {
            "QueueUrl": FACTS.url,
            "MaxNumberOfMessages": 7,
            "WaitTimeSeconds": 20,
            "VisibilityTimeout": 60,
            "MessageSystemAttributeNames": ["ApproximateReceiveCount", "MessageGroupId"],
        }
    ]


async def test_never_more_than_ten_and_of_a_fifo_queue_one(queue: LaunchQueue, aws_server: AwsServer) -> None:
    aws_server.answers["ReceiveMessage"] = lambda _: {}
    assert await queue.receive(50, wait=0, visibility=60) == []
    assert await fifo(queue).receive(50, wait=0, visibility=60) == []
    assert [r["MaxNumberOfMessages"] for r in aws_server.requests("ReceiveMessage")] == [10, 1]


async def test_hiding_stays_below_the_twelve_hours_that_sqs_allows(
    queue: LaunchQueue, aws_server: AwsServer
) -> None:
    await queue.hide(message("m"), 90.7)
    await queue.hide(message("m"), 1e9)
    assert [r["VisibilityTimeout"] for r in aws_server.requests("ChangeMessageVisibility")] == [90, 43_140]


@pytest.mark.parametrize("code", ["ReceiptHandleIsInvalid", NOT_IN_FLIGHT, "InvalidParameterValue"])
async def test_hiding_a_message_that_is_not_ours_any_more_is_no_error(
    queue: LaunchQueue, aws_server: AwsServer, code: str
) -> None:
    aws_server.fail_next("ChangeMessageVisibility", AwsError(code))
    await queue.hide(message("m"), 1)
    assert len(aws_server.requests("ChangeMessageVisibility")) == 1


async def test_other_failures_of_hiding_are_told(queue: LaunchQueue, aws_server: AwsServer) -> None:
    aws_server.fail_next("ChangeMessageVisibility", AwsError("AWS.SimpleQueueService.NonExistentQueue"))
    with pytest.raises(AwsRefused):
        await queue.hide(message("m"), 1)
    aws_server.fail_next("ChangeMessageVisibility", AwsError("RequestThrottled", status=403))
    with pytest.raises(Throttled):
        await queue.hide(message("m"), 1)


async def test_renewals_fail_one_by_one_inside_a_success(queue: LaunchQueue, aws_server: AwsServer) -> None:
    def failed(number: str, code: str) -> dict[str, Any]:
        return {"Id": number, "Code": code, "SenderFault": True, "Message": ""}

    aws_server.answers["ChangeMessageVisibilityBatch"] = lambda _: {
        "Successful": [{"Id": "0"}],
        "Failed": [
            failed("1", "ReceiptHandleIsInvalid"),
            failed("2", NOT_IN_FLIGHT),
            failed("3", "InternalError"),
            failed("4", "InvalidParameterValue"),
        ],
    }
    lost = await queue.extend([message(str(n)) for n in range(10)], 60)
    assert lost == {"handle-1", "handle-2", "handle-4"}, (
        "a server's failure is no loss: the next round renews"
    )
    (request,) = aws_server.requests("ChangeMessageVisibilityBatch")
    assert len(request["Entries"]) == 10
    assert {entry["VisibilityTimeout"] for entry in request["Entries"]} == {60}


async def test_a_message_is_deleted_by_its_handle(queue: LaunchQueue, aws_server: AwsServer) -> None:
    await queue.delete(message("m"))
    assert aws_server.requests("DeleteMessage") == [{"QueueUrl": FACTS.url, "ReceiptHandle": "handle-m"}]


async def test_sending_to_a_standard_queue_groups_by_wandb_queue(
    queue: LaunchQueue, aws_server: AwsServer
) -> None:
    assert await queue.send("body", "launch-1", group="gpu") == "sent"
    await queue.send("body", "launch-1")
    assert aws_server.requests("SendMessage") == [
        {"QueueUrl": FACTS.url, "MessageBody": "body", "MessageGroupId": "gpu"},
        {"QueueUrl": FACTS.url, "MessageBody": "body"},
    ]


async def test_sending_to_a_fifo_queue_is_idempotent_by_launch_id(
    queue: LaunchQueue, aws_server: AwsServer
) -> None:
    await fifo(queue).send("body", "launch-1", group="gpu")
    assert aws_server.requests("SendMessage") == [
        {
            "QueueUrl": FIFO.url,
            "MessageBody": "body",
            "MessageGroupId": "launch-1",
            "MessageDeduplicationId": "launch-1",
        }
    ]


async def test_a_refused_message_is_copied_with_its_reason(queue: LaunchQueue, aws_server: AwsServer) -> None:
    await queue.copy_to_dlq(
        "body\x00\ud800", "launch-1", {"reason": "no\x07 image", "stage": "agent", "truncated": ""}
    )
    (request,) = aws_server.requests("SendMessage")
    assert request["QueueUrl"] == FACTS.dlq_url
    assert "\x00" not in request["MessageBody"]
    assert request["MessageBody"].startswith("body")
    assert request["MessageAttributes"] == {
        "reason": {"DataType": "String", "StringValue": "no� image"},
        "stage": {"DataType": "String", "StringValue": "agent"},
    }


async def test_a_body_that_would_not_fit_is_cut_and_says_so(
    queue: LaunchQueue, aws_server: AwsServer
) -> None:
    await queue.copy_to_dlq("ä" * 150_000, "launch-1", {"reason": "r" * 10_000})
    (request,) = aws_server.requests("SendMessage")
    assert len(request["MessageBody"].encode()) <= 200_000
    assert set(request["MessageBody"]) == {"ä"}, "no character is torn"
    assert request["MessageAttributes"]["truncated"]["StringValue"] == "300000"
    assert len(request["MessageAttributes"]["reason"]["StringValue"]) == 2000


async def test_an_empty_body_is_copied_as_something(queue: LaunchQueue, aws_server: AwsServer) -> None:
    await queue.copy_to_dlq("", "launch-1", {})
    assert aws_server.requests("SendMessage")[0]["MessageBody"]


async def test_a_fifo_dlq_wants_a_group(queue: LaunchQueue, aws_server: AwsServer) -> None:
    await fifo(queue).copy_to_dlq("body", "launch-1", {})
    assert aws_server.requests("SendMessage")[0]["MessageGroupId"] == "launch-1"


async def test_without_a_dlq_nothing_is_copied(queue: LaunchQueue, aws_server: AwsServer) -> None:
    queue.facts = replace(FACTS, dlq_url="")
    await queue.copy_to_dlq("body", "launch-1", {})
    assert aws_server.calls == []


async def test_the_dlq_is_found_in_the_redrive_policy(aws: AwsClients, aws_server: AwsServer) -> None:
    policy = '{"deadLetterTargetArn": "arn:aws:sqs:us-east-1:1:dead", "maxReceiveCount": 1000}'
    aws_server.answers["GetQueueAttributes"] = lambda _: {
        "Attributes": {"QueueArn": FACTS.arn, "RedrivePolicy": policy}
    }
    aws_server.answers["GetQueueUrl"] = lambda p: {"QueueUrl": f"http://127.0.0.1/1/{p['QueueName']}"}
    found = await queue_facts(aws.sqs, FACTS.url, "")
    assert found == QueueFacts(FACTS.url, FACTS.arn, False, "http://127.0.0.1/1/dead")
    told = await queue_facts(aws.sqs, FIFO.url, "http://127.0.0.1/1/mine")
    assert (told.fifo, told.dlq_url) == (True, "http://127.0.0.1/1/mine")
    assert len(aws_server.requests("GetQueueUrl")) == 1


async def test_a_queue_without_a_redrive_policy_has_no_dlq(aws: AwsClients, aws_server: AwsServer) -> None:
    aws_server.answers["GetQueueAttributes"] = lambda _: {"Attributes": {"QueueArn": FACTS.arn}}
    assert (await queue_facts(aws.sqs, FACTS.url, "")).dlq_url == ""


async def test_a_wrong_queue_url_is_a_wrong_setting_and_trouble_is_not(
    aws: AwsClients, aws_server: AwsServer
) -> None:
    aws_server.fail_next(
        "GetQueueAttributes", AwsError("AWS.SimpleQueueService.NonExistentQueue", "no such queue")
    )
    with pytest.raises(SettingsError, match=r"LAUNCH_QUEUE_URL.*no such queue"):
        await queue_facts(aws.sqs, FACTS.url, "")
    aws_server.fail_next(
        "GetQueueAttributes", AwsError("AWS.SimpleQueueService.NonExistentQueue", "no such queue")
    )
    there = "https://sqs.eu-west-1.amazonaws.com/123456789012/launches"
    with pytest.raises(SettingsError, match=r"the queue is in eu-west-1, .*: set AWS_REGION=eu-west-1, or"):
        await queue_facts(aws.sqs, there, "")
    aws_server.fail_next("GetQueueAttributes", AwsError("InternalError", status=500))
    with pytest.raises(Unreachable):
        await queue_facts(aws.sqs, FACTS.url, "")
    aws_server.fail_next("GetQueueAttributes", AwsError("AccessDenied", status=403))
    with pytest.raises(AwsDenied):
        await queue_facts(aws.sqs, FACTS.url, "")


async def test_depth_is_all_that_is_not_deleted(queue: LaunchQueue, aws_server: AwsServer) -> None:
    names = ("", "NotVisible", "Delayed")
    numbers = {f"ApproximateNumberOfMessages{name}": str(n) for n, name in enumerate(names, 1)}
    aws_server.answers["GetQueueAttributes"] = lambda _: {"Attributes": numbers}
    assert await queue.depth() == 6
    (asked,) = aws_server.requests("GetQueueAttributes")
    assert sorted(asked["AttributeNames"]) == sorted(numbers)


@pytest.mark.parametrize(
    ("given", "sent"),
    [("sm", "sm"), ("GPU jobs (EU)", "GPU-jobs-(EU)"), ("ä/b_c", "-/b_c"), ("q" * 200, "q" * 128)],
)
async def test_any_queue_name_makes_a_group(
    queue: LaunchQueue, aws_server: AwsServer, given: str, sent: str
) -> None:
    await queue.send("{}", "launch", group=given)
    assert aws_server.requests("SendMessage")[0]["MessageGroupId"] == sent


async def test_the_queue_says_how_large_a_message_may_be(aws: AwsClients, aws_server: AwsServer) -> None:
    attributes = {"QueueArn": FACTS.arn, "MaximumMessageSize": "262144"}
    aws_server.answers["GetQueueAttributes"] = lambda _: {"Attributes": attributes}
    assert (await queue_facts(aws.sqs, FACTS.url, FACTS.dlq_url)).max_bytes == 262_144
    del attributes["MaximumMessageSize"]
    assert (await queue_facts(aws.sqs, FACTS.url, FACTS.dlq_url)).max_bytes == 1 << 20


async def test_a_message_may_be_held_back_where_sqs_can(queue: LaunchQueue, aws_server: AwsServer) -> None:
    await queue.send("{}", "launch", group="sm", delay=1)
    await fifo(queue).send("{}", "launch", delay=1)
    standard, in_order = aws_server.requests("SendMessage")
    assert standard["DelaySeconds"] == 1
    assert "DelaySeconds" not in in_order
