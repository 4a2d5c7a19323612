"""What the companion says about a job: only what is known, and costs of all instances."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.records import record
from worker.launch.record import JobFacts
from worker.tracking.facts import companion_config, companion_summary

LINKS = {"console": "https://console", "cloudwatch": "https://logs"}


def test_config_has_what_stands_from_the_start_and_nothing_empty() -> None:
    config = companion_config(record(queue="gpu", instance_count=2, attempt=3), LINKS)
    assert config["sagemaker/job_name"] == "job-1"
    assert config["sagemaker/instance_count"] == 2
    assert config["launch/attempt"] == 3
    assert config["launch/run"] == "acme/vision/run-launch-1"
    assert config["launch/queue"] == "gpu"
    assert (config["sagemaker/console"], config["sagemaker/cloudwatch"]) == (
        "https://console",
        "https://logs",
    )
    assert "launch/author" not in config
    assert "" not in config.values()


def test_a_job_that_has_just_begun_has_a_short_summary() -> None:
    assert companion_summary(JobFacts("InProgress", "Starting"), lines=0, instance_count=1) == {
        "sagemaker/status": "InProgress",
        "sagemaker/secondary_status": "Starting",
        "launch/log_lines": 0,
    }


def test_the_end_is_told_with_its_reason_and_the_cost_of_all_instances() -> None:
    facts = JobFacts(
        "Failed", "Failed", "out of memory", 1.0, 2.0, 3.0, 60, 90, (("Starting", 1.0), ("Failed", 3.0))
    )
    summary = companion_summary(facts, lines=7, instance_count=4, end="failed", reason="out of memory")
    assert summary["sagemaker/billable_seconds"] == 240
    assert summary["sagemaker/training_seconds"] == 90
    assert summary["sagemaker/transitions"] == [["Starting", 1.0], ["Failed", 3.0]]
    assert (summary["sagemaker/end"], summary["sagemaker/reason"]) == ("failed", "out of memory")


def test_nothing_billed_is_a_fact_and_not_a_gap() -> None:
    facts = replace(JobFacts("Stopped"), billable_seconds=0)
    assert companion_summary(facts, lines=0, instance_count=2)["sagemaker/billable_seconds"] == 0
