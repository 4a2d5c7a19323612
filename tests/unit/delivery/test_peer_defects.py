"""How other log followers of SageMaker lose, double or delay lines, one test for each; this one does not.

Each test is named after whom the defect was found in: the W&B launch agent's SageMaker runner, Airflow's amazon
provider, the SageMaker Python SDK v3 (`sagemaker-core` and `sagemaker-train`, and issues of its users), Metaflow,
Kubeflow's components, Dagster Pipes, grand-challenge.org. The real feed and delivery run at production's pace, in
virtual time, on a CloudWatch as harsh as its documents (`tests/fakes/cloudwatch_logs.py`).
"""

from __future__ import annotations

import asyncio

import botocore.session
import pytest

from tests.fakes.aws_errors import AwsError
from tests.fakes.cloudwatch_logs import CloudWatchLogs, Throttle
from tests.unit.delivery.harsh import HOUR, NOW, Delivering, aws_now, numbered
from tests.unit.records import OTHER
from worker.launch.record import JobFacts
from worker.tracking.facts import companion_config
from worker.training.status import console_links, ending

pytestmark = [pytest.mark.looptime, pytest.mark.usefixtures("clock")]

ONE, TWO = "job-1/algo-1-1700000000", "job-1/algo-2-1700000000"


def stream(host: int, job: int = 1, started: int = 1_700_000_000) -> str:
    return f"job-{job}/algo-{host}-{started}"


class TestWandbLaunchAgent:
    async def test_one_instance_of_several_is_read(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        held = await worker.follow(instance_count=4)
        async with worker.running():
            for host in range(1, 5):
                logs.put(stream(host), f"from host {host}")
            await worker.end(held)
        assert sorted(worker.lines()) == [f"from host {host}" for host in range(1, 5)]

    async def test_one_page_only_and_from_the_tail(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        logs.page_events = 100
        logs.put(ONE, *numbered(1_050))
        held = await worker.follow()
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == numbered(1_050)

    async def test_prefix_without_slash_reads_another_jobs_log(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(ONE, "mine")
        logs.put("job-1-again/algo-1-1700000000", "another job's")
        logs.put("job-10/algo-1-1700000000", "a third one's")
        held = await worker.follow(instance_count=2)
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == ["mine"]
        assert {r["logStreamNamePrefix"] for r in logs.requests("DescribeLogStreams")} == {"job-1/"}

    async def test_no_live_log(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        await worker.follow()
        async with worker.running():
            await asyncio.sleep(60)
            logs.put(ONE, "while the job runs")
            await asyncio.sleep(10)
            assert worker.lines() == ["while the job runs"]

    async def test_no_log_of_a_job_that_died(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(60)
            logs.put(ONE, "Traceback (most recent call last):\n  …\nMemoryError")
            await worker.end(held, "Failed")
        assert worker.lines()[-1] == "MemoryError"


class TestAirflow:
    async def test_lines_are_printed_once_before_deferring_and_none_at_the_end(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(ONE, "before")
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(600)
            logs.put(ONE, "in the middle")
            await asyncio.sleep(600)
            logs.put(ONE, "last words")
            await worker.end(held)
        assert worker.lines() == ["before", "in the middle", "last words"]

    async def test_a_second_of_sleep_for_each_event(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(30)
            logs.put(ONE, *numbered(3_000))
            await asyncio.sleep(10)
            assert held.record.log.next_line == 3_000

    async def test_a_reader_without_an_exit(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        logs.put(ONE, "all there is")
        held = await worker.follow()
        async with worker.running():
            await worker.end(held, limit=60)
        assert worker.delivered == ["launch-1"]

    async def test_three_empty_pages_are_the_end(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        logs.page_events, logs.empty_before = 10, lambda page: 5
        logs.put(ONE, *numbered(45))
        held = await worker.follow()
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == numbered(45)

    async def test_a_budget_of_thirty_minutes(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        held = await worker.follow()
        async with worker.running():
            logs.put(ONE, "epoch 1")
            await asyncio.sleep(HOUR)
            logs.put(ONE, "epoch 2")
            await asyncio.sleep(10)
            assert worker.lines() == ["epoch 1", "epoch 2"]
            await worker.end(held)


class TestSagemakerCore:
    async def test_more_than_fifty_instances_are_listed_for_ever(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        for host in range(1, 121):
            logs.put(stream(host), f"from host {host}")
        held = await worker.follow(instance_count=120)
        async with worker.running():
            await worker.end(held)
        assert sorted(worker.lines()) == sorted(f"from host {host}" for host in range(1, 121))
        assert worker.calls_of("DescribeLogStreams") <= 3 * 8, "each listing is three pages and ends"

    async def test_empty_page_in_the_middle_is_the_end(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.page_events, logs.empty_before = 10, lambda page: 1 if page in (0, 2) else 0
        logs.put(ONE, *numbered(50))
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(10)
            assert worker.lines() == numbered(50), "not only once the job has ended"
            await worker.end(held)

    async def test_late_event_with_an_older_timestamp_is_never_printed(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        held = await worker.follow()
        async with worker.running():
            logs.put(ONE, "a")
            await asyncio.sleep(10)
            logs.put(ONE, "b")
            await asyncio.sleep(10)
            logs.put(ONE, "late", age_ms=15_000)
            await worker.end(held)
        assert worker.lines() == ["a", "b", "late"]
        times = [line.timestamp for line in worker.companion.console["launch-1"].values()]
        assert times[0] < times[2] < times[1], "with its own time"

    async def test_late_event_in_the_same_millisecond_sorted_first_prints_one_twice_and_loses_the_other(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        moment = int(NOW * 1000)
        held = await worker.follow()
        async with worker.running():
            logs.put(ONE, "first read", at=moment, ingested=moment, put_id=7)
            await asyncio.sleep(10)
            # Two PutLogEvents of one millisecond: their ids, not their arrival, order them.
            logs.put(ONE, "sorted before it", at=moment, ingested=moment, put_id=3)
            await asyncio.sleep(10)
            logs.put(ONE, "later in that millisecond", at=moment)
            await worker.end(held)
        assert worker.lines() == ["first read", "sorted before it", "later in that millisecond"]

    async def test_streams_after_reboots_and_spot_restarts(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(ONE, "before")
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(60)
            transitions = (("Interrupted", aws_now()),)
            held.update(facts=JobFacts("InProgress", "Interrupted", transitions=transitions))
            worker.delivery.job_changed(held)
            await asyncio.sleep(30 * 60)
            held.update(facts=JobFacts("InProgress", "Training", transitions=transitions))
            worker.delivery.job_changed(held)
            await asyncio.sleep(120)
            logs.put(stream(1, started=1_700_002_000), "after")
            await asyncio.sleep(15)
            assert worker.lines() == ["before", "after"], "while the job runs"
            await worker.end(held)

    async def test_nothing_is_printed_until_all_instances_have_a_stream(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        await worker.follow(instance_count=8)
        async with worker.running():
            logs.put(stream(3), "here I am")
            await asyncio.sleep(10)
            assert worker.lines() == ["here I am"]

    async def test_streams_are_drained_one_after_another(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        for number in range(10):
            logs.put((ONE, TWO)[number % 2], f"line {number}", at=int(NOW * 1000) + number)
        held = await worker.follow(instance_count=2)
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == numbered(10), "interleaved by time"

    async def test_one_list_of_streams_for_all_jobs(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        logs.put(stream(1, job=1), "one's")
        logs.put(stream(1, job=2), "two's")
        one, two = await worker.follow("launch-1"), await worker.follow("launch-2")
        async with worker.running():
            await worker.end(one)
            await worker.end(two)
        assert (worker.lines("launch-1"), worker.lines("launch-2")) == (["one's"], ["two's"])


class TestSagemakerTrain:
    async def test_streams_are_listed_once_and_an_instance_that_logs_later_is_never_read(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        await worker.follow(instance_count=2)
        async with worker.running():
            logs.put(ONE, "at once")
            await asyncio.sleep(20 * 60)
            logs.put(TWO, "twenty minutes later")
            await asyncio.sleep(15)
            assert worker.lines() == ["at once", "twenty minutes later"]

    async def test_five_pages_of_backlog_at_completion(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.page_events = 1_000
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(60)
            logs.put(ONE, *numbered(5_000))
            await worker.end(held)
        assert worker.lines() == numbered(5_000)

    async def test_gives_up_after_five_minutes_of_silence(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        held = await worker.follow()
        async with worker.running():
            logs.put(ONE, "downloading")
            await asyncio.sleep(20 * 60)
            logs.put(ONE, *numbered(20))
            await asyncio.sleep(10)
            assert worker.lines() == ["downloading", *numbered(20)]
            await worker.end(held)

    async def test_filter_mode_stalls_on_an_empty_page_with_a_token(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.empty_before = lambda page: 3
        logs.put(ONE, "behind three empty pages")
        await worker.follow()
        async with worker.running():
            await asyncio.sleep(10)
            assert worker.lines() == ["behind three empty pages"]

    async def test_a_parameter_that_older_models_do_not_know(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.page_events = 2
        logs.put(ONE, *numbered(5))
        held = await worker.follow()
        async with worker.running():
            await worker.end(held)
        known = {
            "FilterLogEvents": {"logGroupName", "logStreamNames", "startTime", "endTime", "nextToken"},
            "DescribeLogStreams": {"logGroupName", "logStreamNamePrefix", "nextToken"},
        }
        model = botocore.session.get_session().get_service_model("logs")
        for operation, parameters in known.items():
            shape = model.operation_model(operation).input_shape
            assert shape is not None
            assert parameters <= set(shape.members)
            assert all(parameters >= request.keys() for request in logs.requests(operation))


class TestIssuesOfUsers:
    async def test_carriage_return_progress_bars_arrive_in_one_line(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(ONE, "  1%\r 50%\r100%", "done\r\n")
        held = await worker.follow()
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == ["100%", "done"]
        (whole,) = worker.companion.files["launch-1"].values()
        assert b"  1%\r 50%\r100%\n" in whole, "the full record keeps all of it"

    async def test_timestamps_differ_between_live_and_replay(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(ONE, "a", "b", age_ms=5_000)
        worker.companion.lost_answers = 10**6
        await worker.follow()
        async with worker.running():
            await asyncio.sleep(20)
        live = dict(worker.companion.console["launch-1"])
        worker.companion.lost_answers = 0
        await asyncio.sleep(HOUR)
        successor = Delivering(logs, worker.companion, worker.ledger, name=OTHER)
        held = await successor.adopt()
        async with successor.running():
            await successor.end(held)
        assert worker.companion.posts == [("launch-1", 0, 2)], "replayed"
        assert "launch_log_lines_total 2.0" in successor.metrics.text().decode(), (
            "W&B has them by this worker"
        )
        assert worker.companion.console["launch-1"] == live
        assert {line.timestamp for line in live.values()} == {int(NOW * 1000) - 5_000}

    async def test_no_lines_captured_since_the_stream_was_not_there_yet(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.group_exists = False
        held = await worker.follow(facts=JobFacts("InProgress", "Downloading"))
        async with worker.running():
            await asyncio.sleep(600)
            logs.group_exists = True
            logs.put(ONE, "first container of this account")
            await asyncio.sleep(15)
            assert worker.lines() == ["first container of this account"]
            await worker.end(held)

    async def test_ansi_colours_by_stream_are_hard_wired(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.put(TWO, "\x1b[32mgreen by its own wish\x1b[0m", "plain")
        held = await worker.follow(instance_count=2)
        async with worker.running():
            await worker.end(held)
        assert worker.lines() == ["\x1b[32mgreen by its own wish\x1b[0m", "plain"]
        assert {line.label for line in worker.companion.console["launch-1"].values()} == {"algo-2"}

    async def test_no_logs_and_no_reason_and_no_log_address_on_failure(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        held = await worker.follow()
        async with worker.running():
            logs.put(ONE, "MemoryError")
            await worker.end(held, "Failed")
        assert worker.lines() == ["MemoryError"]
        failed = JobFacts("Failed", "Failed", failure_reason="AlgorithmError: exit code: 137")
        assert ending(failed, stop_reason="").reason == "AlgorithmError: exit code: 137"
        config = companion_config(held.record, console_links("us-east-1", "job-1"))
        assert any("logsV2" in str(value) and "job-1" in str(value) for value in config.values())

    @pytest.mark.parametrize("target", ["files", "companion"])
    async def test_attach_without_control_over_logs(
        self, worker: Delivering, logs: CloudWatchLogs, target: str
    ) -> None:
        logs.put(ONE, "a line")
        held = await worker.follow(log_target=target)
        async with worker.running():
            await worker.end(held)
        assert list(worker.companion.files["launch-1"]) == ["logs/algo-1/00001.log"]

    async def test_throttling_is_answered_with_twenty_attempts(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.throttles = {name: Throttle(0.5) for name in ("FilterLogEvents", "DescribeLogStreams")}
        logs.page_events = 10
        logs.put(ONE, *numbered(100))
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(600)
            assert worker.lines() == numbered(100)
            await worker.end(held, limit=3 * HOUR)
        assert worker.lines() == numbered(100)


class TestOthers:
    async def test_metaflow_throttling_is_swallowed(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        held = await worker.follow()
        async with worker.running():
            for number in range(40):
                logs.put(ONE, f"line {number}")
                logs.failures = [AwsError("ThrottlingException")] * (number % 4)
                await asyncio.sleep(20)
            await worker.end(held)
        assert worker.lines() == numbered(40)
        text = worker.metrics.text().decode()
        assert 'launch_aws_throttles_total{api="FilterLogEvents"} 0.0' not in text, "told, not swallowed"

    async def test_metaflow_a_poll_a_second_for_each_worker(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        for job in range(100):
            logs.put(stream(1, job), "quiet since")
            await worker.follow(f"launch-{job}")
        async with worker.running():
            await asyncio.sleep(60)
            before = worker.calls_of("FilterLogEvents")
            await asyncio.sleep(60)
        assert worker.calls_of("FilterLogEvents") - before <= 60, "one call for all jobs, not one for each"

    async def test_kubeflow_lines_are_printed_after_the_job(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        await worker.follow()
        async with worker.running():
            for number in range(5):
                logs.put(ONE, f"line {number}")
                await asyncio.sleep(10)
                assert worker.lines() == numbered(number + 1)

    async def test_dagster_hot_loop(self, worker: Delivering, logs: CloudWatchLogs) -> None:
        logs.put(ONE, "quiet")
        held = await worker.follow()
        async with worker.running():
            await asyncio.sleep(60)
            before = len(logs.calls)
            await asyncio.sleep(600)
            assert len(logs.calls) - before <= 600 / 2 + 5
            before = len(logs.calls)
            await worker.end(held)
        assert len(logs.calls) - before <= 40, "nor while it waits for the last lines"

    async def test_dagster_the_end_is_looked_at_only_when_there_are_events(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        held = await worker.follow()
        async with worker.running():
            await worker.end(held, limit=60)
        assert worker.delivered == ["launch-1"]

    async def test_dagster_a_stream_that_is_not_there_yet_breaks_the_run(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        held = await worker.follow()
        async with worker.running():
            logs.failures = [AwsError("ThrottlingException"), AwsError("ResourceNotFoundException")]
            await asyncio.sleep(30)
            logs.put(ONE, "there at last")
            await worker.end(held)
        assert worker.lines() == ["there at last"]

    async def test_grand_challenge_two_pages_of_one_stream_are_all(
        self, worker: Delivering, logs: CloudWatchLogs
    ) -> None:
        logs.page_events = 10
        logs.put(ONE, *numbered(100, "one"))
        logs.put(TWO, *numbered(100, "two"))
        held = await worker.follow(instance_count=2)
        async with worker.running():
            await worker.end(held)
        assert worker.lines_of("algo-1") == numbered(100, "one")
        assert worker.lines_of("algo-2") == numbered(100, "two")
