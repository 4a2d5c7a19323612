"""What the companion says about a job: only what is known, and costs of all instances."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.records import record
from worker.launch.record import JobFacts, PastAttempt
from worker.tracking.facts import companion_config, companion_summary, run_facts

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


def test_config_says_who_launched_what_from_where() -> None:
    launch = record(
        author="jdoe",
        queue="gpu",
        item_id="item-1",
        commit="c" * 40,
        image="repo@sha256:abc",
        attempt=2,
        attempts=(PastAttempt("job-1", "ml.p5.48xlarge", "capacity", "no machine"),),
    )
    config = companion_config(launch, LINKS, REQUEST)
    assert config["launch/author"] == "jdoe"
    assert (config["launch/queue"], config["launch/queue_item"]) == ("gpu", "item-1")
    assert (config["launch/commit"], config["sagemaker/image"]) == ("c" * 40, "repo@sha256:abc")
    assert (config["launch/attempt"], config["launch/attempts"]) == (2, ["job-1"])
    assert config["sagemaker/request"]["OutputDataConfig"] == {"S3OutputPath": "s3://bucket/out"}


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


REQUEST = {
    "EnableManagedSpotTraining": True,
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/out"},
    "Environment": {
        "WANDB_API_KEY": "k" * 40,
        "DB_PASSWORD": "hunter22",
        "STAGE": "prod",
        **{f"WANDB_CONFIG_{n}": piece for n, piece in enumerate(['{"lr": 0.1, "a', '": [1]}'])},
    },
}


def test_the_request_is_shown_without_secrets() -> None:
    config = companion_config(record(commit="c0ffee"), LINKS, REQUEST)
    shown = config["sagemaker/request"]["Environment"]
    assert (shown["DB_PASSWORD"], shown["STAGE"]) == ("***", "prod")
    assert "WANDB_API_KEY" not in shown
    assert (config["launch/commit"], config["sagemaker/output"]) == ("c0ffee", "s3://bucket/out")


def test_tags_and_notes_say_what_it_is_and_where_else_to_look() -> None:
    facts = run_facts(record(queue="gpu", instance_type="ml.g5.xlarge"), LINKS, REQUEST)
    assert facts.tags == ["sagemaker", "ml.g5.xlarge", "spot", "gpu"]
    for place in ("https://console", "https://logs", "s3://bucket/out", "job-1"):
        assert place in facts.notes


def test_a_run_of_the_workers_own_has_the_config_it_was_launched_with() -> None:
    own = run_facts(record(log_target="run"), LINKS, REQUEST).config
    assert (own["lr"], own["a"]) == (0.1, [1])
    assert "lr" not in run_facts(record(), LINKS, REQUEST).config
    broken = {"Environment": {"WANDB_CONFIG": "{"}}
    assert run_facts(record(log_target="run"), LINKS, broken).config["sagemaker/job_name"] == "job-1"


def test_the_attempts_before_are_named() -> None:
    past = PastAttempt("job-1", "ml.m5.large", "spot", "interrupted")
    assert companion_config(record(attempts=(past,)), LINKS)["launch/attempts"] == ["job-1"]


def test_time_and_money() -> None:
    steps = (("Starting", 0.0), ("Pending", 10.0), ("Downloading", 70.0), ("DownloadingTrainingImage", 75.0))
    facts = JobFacts(
        "Completed",
        "Completed",
        billable_seconds=900,
        training_seconds=3600,
        transitions=(*steps, ("Training", 90.0), ("Uploading", 3690.0), ("Completed", 3700.0)),
        spot=True,
    )
    prices = {"ml.g5.xlarge": 1.408}
    summary = companion_summary(facts, lines=1, instance_count=2, instance_type="ml.g5.xlarge", prices=prices)
    assert {
        name: summary[f"sagemaker/{name}"]
        for name in ("pending_seconds", "download_seconds", "training_seconds", "upload_seconds")
    } == {"pending_seconds": 70.0, "download_seconds": 20.0, "training_seconds": 3600, "upload_seconds": 10.0}
    assert (summary["sagemaker/spot_saving_percent"], summary["sagemaker/cost_usd"]) == (75.0, 0.704)
    unknown = companion_summary(facts, lines=1, instance_count=2, instance_type="ml.p5", prices=prices)
    assert "sagemaker/cost_usd" not in unknown
