"""The benchmarks' simulator with the real clients: what it promises is what AWS does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import aioboto3
import aiohttp
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from bench.simulator.jobs import Profile
from bench.simulator.running import running_simulator
from bench.simulator.server import Simulator

GROUP = "/aws/sagemaker/TrainingJobs"
ONCE = Config(retries={"total_max_attempts": 1})


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with running_simulator() as running:
        running.latency = 0.0
        yield running


def client(simulator: Simulator, service: str) -> Any:
    session: Any = aioboto3.Session(
        region_name="us-east-1", aws_access_key_id="bench", aws_secret_access_key="bench"
    )
    return session.client(service, endpoint_url=simulator.base_url, config=ONCE)


def job(name: str) -> dict[str, Any]:
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/train",
        "AlgorithmSpecification": {"TrainingImage": "image", "TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        "OutputDataConfig": {"S3OutputPath": "s3://bench/out"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        "Environment": {"LAUNCH_ID": name},
    }


async def test_a_job_goes_through_its_states(simulator: Simulator) -> None:
    simulator.jobs.profile = Profile(pending=60.0, per_second=1.0, runs=60.0)
    async with client(simulator, "sagemaker") as sagemaker:
        created = await sagemaker.create_training_job(**job("one"))
        assert created["TrainingJobArn"].endswith(":training-job/one")
        with pytest.raises(ClientError, match="ResourceInUse"):
            await sagemaker.create_training_job(**job("one"))
        started = await sagemaker.describe_training_job(TrainingJobName="one")
        assert (started["TrainingJobStatus"], started["SecondaryStatus"]) == ("InProgress", "Starting")
        assert started["Environment"] == {"LAUNCH_ID": "one"}
        simulator.jobs.advance(time.time() + 200)
        ended = await sagemaker.describe_training_job(TrainingJobName="one")
        steps = [step["Status"] for step in ended["SecondaryStatusTransitions"]]
        assert steps == ["Starting", "Downloading", "Training", "Completed"]
        with pytest.raises(ClientError, match="in status Completed"):
            await sagemaker.stop_training_job(TrainingJobName="one")


async def test_jobs_are_listed_by_their_last_change_page_by_page(simulator: Simulator) -> None:
    now = int(time.time())  # the wire has whole seconds
    for number in range(250):
        simulator.jobs.add_running(f"job-{number}", {}, now, 600.0 + number)
    async with client(simulator, "sagemaker") as sagemaker:
        found: list[list[str]] = []
        token: dict[str, str] = {}
        while True:
            page = await sagemaker.list_training_jobs(MaxResults=100, **token)
            found.append([item["TrainingJobName"] for item in page["TrainingJobSummaries"]])
            if "NextToken" not in page:
                break
            token = {"NextToken": page["NextToken"]}
        assert [len(names) for names in found] == [100, 100, 50]
        assert len({name for names in found for name in names}) == 250
        changed = await sagemaker.list_training_jobs(LastModifiedTimeAfter=now - 545, MaxResults=100)
        names = [item["TrainingJobName"] for item in changed["TrainingJobSummaries"]]
        assert names == ["job-0", "job-1", "job-2", "job-3", "job-4"]


async def test_a_quota_is_kept(simulator: Simulator) -> None:
    simulator.quotas.set({"CreateTrainingJob": 2.0})
    codes = []
    async with client(simulator, "sagemaker") as sagemaker:
        for number in range(4):
            try:
                await sagemaker.create_training_job(**job(f"job-{number}"))
            except ClientError as error:
                codes.append(error.response["Error"]["Code"])
    assert codes == ["ThrottlingException"] * 2
    assert simulator.quotas.throttled == {"CreateTrainingJob": 2}
    assert len(simulator.jobs) == 2


async def filtered(logs: Any, streams: list[str], **options: Any) -> list[list[dict[str, Any]]]:
    """All pages of FilterLogEvents."""
    pages: list[list[dict[str, Any]]] = []
    token: dict[str, str] = {}
    while True:
        page = await logs.filter_log_events(logGroupName=GROUP, logStreamNames=streams, **options, **token)
        pages.append(page["events"])
        if "nextToken" not in page:
            return pages
        token = {"nextToken": page["nextToken"]}


async def test_each_line_is_on_one_page_in_order(simulator: Simulator) -> None:
    now = time.time()
    names = [f"job-{number}" for number in range(7)]
    for name in names:
        simulator.jobs.add_running(name, {}, now - 30, 600.0)
    simulator.jobs.print_from(now - 20, 333.0)
    until = int(now * 1000) - 2000
    async with client(simulator, "logs") as logs:
        streams = []
        for name in names:
            found = await logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")
            streams += [stream["logStreamName"] for stream in found["logStreams"]]
        assert len(streams) == 7
        pages = await filtered(logs, streams, endTime=until)
        small = await filtered(logs, streams, endTime=until, limit=1000)
    events = [event for page in pages for event in page]
    assert len(pages) > 1
    assert events == [event for page in small for event in page]
    order = [(event["timestamp"], event["ingestionTime"]) for event in events]
    assert order == sorted(order)
    for stream in streams:
        messages = [event["message"] for event in events if event["logStreamName"] == stream]
        assert [int(text.split()[0].removeprefix("seq=")) for text in messages] == list(range(len(messages)))
        assert len(messages) > 5600
        assert {len(text) for text in messages} == {100}


async def test_a_missing_stream_fails_the_call(simulator: Simulator) -> None:
    async with client(simulator, "logs") as logs:
        with pytest.raises(ClientError, match="ResourceNotFoundException"):
            await logs.filter_log_events(logGroupName=GROUP, logStreamNames=["none/algo-1-1"])


async def test_get_log_events_reads_one_stream_to_its_end(simulator: Simulator) -> None:
    now = time.time()
    running = simulator.jobs.add_running("one", {}, now, 600.0)
    async with client(simulator, "logs") as logs:
        ask = {"logGroupName": GROUP, "logStreamName": running.stream, "startFromHead": True, "limit": 6}
        first = await logs.get_log_events(**ask)
        second = await logs.get_log_events(**ask, nextToken=first["nextForwardToken"])
        third = await logs.get_log_events(**ask, nextToken=second["nextForwardToken"])
    assert [len(page["events"]) for page in (first, second, third)] == [6, 4, 0]
    assert third["nextForwardToken"] == second["nextForwardToken"]


async def test_jobs_end_and_have_printed_until_then(simulator: Simulator) -> None:
    began = time.time() - 100
    names = [f"job-{number}" for number in range(5)]
    for name in names:
        simulator.jobs.add_running(name, {}, began, 600.0)
    simulator.jobs.print_from(began, 10.0)
    simulator.jobs.end(began + 50, 2.0)
    async with client(simulator, "logs") as logs:
        pages = await filtered(logs, [job.stream for job in simulator.jobs])
    async with client(simulator, "sagemaker") as sagemaker:
        for name in names:
            ended = await sagemaker.describe_training_job(TrainingJobName=name)
            assert ended["TrainingJobStatus"] == "Completed"
            at = ended["TrainingEndTime"].timestamp()
            assert began + 49 <= at <= began + 53
            printed = [e["timestamp"] / 1000 for page in pages for e in page if name in e["logStreamName"]]
            assert at - 1.2 <= max(printed) <= at + 1  # the wire has whole seconds
            assert 490 <= len(printed) <= 530


async def test_lines_of_uploaded_logs_are_counted_once(simulator: Simulator) -> None:
    async with aiohttp.ClientSession() as session:
        for name, content in (("logs/a/1.log", b"a\n"), ("logs/a/1.log", b"a\nb\n"), ("build.log", b"c\n")):
            url = f"{simulator.base_url}/_storage/acme/bench/run/{name}"
            async with session.put(url, data=content) as answer:
                assert answer.status == 200
    assert simulator.wandb.summary()["lines_in_files"] == 2


async def test_a_message_is_hidden_until_it_is_deleted(simulator: Simulator) -> None:
    async with client(simulator, "sqs") as sqs:
        url = (await sqs.get_queue_url(QueueName="bench"))["QueueUrl"]
        await sqs.send_message(QueueUrl=url, MessageBody="hello", MessageGroupId="team")
        ask = {"QueueUrl": url, "MaxNumberOfMessages": 10, "MessageSystemAttributeNames": ["All"]}
        (message,) = (await sqs.receive_message(**ask, VisibilityTimeout=30))["Messages"]
        assert message["Attributes"] == {"ApproximateReceiveCount": "1", "MessageGroupId": "team"}
        assert "Messages" not in await sqs.receive_message(**ask)
        await sqs.change_message_visibility(
            QueueUrl=url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
        )
        (again,) = (await sqs.receive_message(**ask, WaitTimeSeconds=2))["Messages"]
        assert again["Attributes"]["ApproximateReceiveCount"] == "2"
        await sqs.delete_message(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"])
        assert simulator.sqs.depth() == (0, 0)


async def test_who_is_calling(simulator: Simulator) -> None:
    async with client(simulator, "sts") as sts:
        assert (await sts.get_caller_identity())["Account"] == "123456789012"


async def test_latency_is_added(simulator: Simulator) -> None:
    simulator.latency = 0.2
    began = time.monotonic()
    async with client(simulator, "sagemaker") as sagemaker:
        await sagemaker.list_training_jobs()
    assert time.monotonic() - began >= 0.2


async def test_posts_are_counted_and_checked(simulator: Simulator) -> None:
    url = f"{simulator.base_url}/files/acme/bench/run/file_stream"
    ingested = int(time.time() * 1000) - 1000
    lines = [f"2026-01-01T00:00:00 [algo-1] seq={number} put={ingested} x" for number in range(3)]
    async with aiohttp.ClientSession() as session:
        for offset, content in ((0, lines[:2]), (2, lines[2:]), (2, lines[2:])):
            body = {"files": {"output.log": {"offset": offset, "content": content}}}
            async with session.post(url, json=body) as answer:
                assert await answer.json() == {"stopped": False}
        async with session.post(url, json={}) as answer:
            assert answer.status == 200
        async with session.get(f"{simulator.base_url}/_bench/report") as answer:
            report = (await answer.json())["wandb"]
    assert (report["lines"], report["missing"], report["doubled"], report["repeated_posts"]) == (3, 0, 0, 1)
    assert report["requests"] == {"file_stream": 3, "heartbeat": 1}
    assert 1.0 <= report["latency"]["p50"] < 20


async def test_a_stop_is_told_in_both_ways_and_timed(simulator: Simulator) -> None:
    """In the answer to a companion's post, and by the query for the runs of containers; a job is stopped once."""
    simulator.jobs.add_running("one", {}, time.time(), 600.0)
    base = f"{simulator.base_url}"
    variables = {"e0": "acme", "p0": "bench", "n0": "one", "e1": "acme", "p1": "bench", "n1": "two"}
    query = {"operationName": "RunStoppedStatuses", "query": "", "variables": variables}
    async with aiohttp.ClientSession() as session:
        for path in ("acme/bench/one", "acme/bench/two-sagemaker"):
            async with session.post(f"{base}/_bench/stop", json={"paths": [path]}) as answer:
                assert await answer.json() == {"ok": True}
        async with session.post(f"{base}/graphql", json=query) as answer:
            stopped = (await answer.json())["data"]
        assert stopped == {"r0": {"run": {"stopped": True}}, "r1": {"run": {"stopped": False}}}
        async with session.post(f"{base}/files/acme/bench/two-sagemaker/file_stream", json={}) as answer:
            assert await answer.json() == {"stopped": True}
        async with client(simulator, "sagemaker") as sagemaker:
            await sagemaker.stop_training_job(TrainingJobName="one")
            await sagemaker.stop_training_job(TrainingJobName="one")
        async with session.get(f"{base}/_bench/stops") as answer:
            told = await answer.json()
    assert told["pressed"].keys() == {"acme/bench/one", "acme/bench/two-sagemaker"}
    assert told["stopped"].keys() == {"one"}
    assert told["stopped"]["one"] >= told["pressed"]["acme/bench/one"]
