"""Every metric of the worker, declared in one place."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)


class Metrics:
    """The worker's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a creation time for each series doubles the page and tells nobody anything
        registry = self.registry = CollectorRegistry()
        self.messages = Counter("launch_messages", "SQS messages received.", registry=registry)
        self.outcomes = Counter(
            "launch_outcomes", "Outcomes of leg 1.", ["outcome", "stage"], registry=registry
        )
        self.in_work = Gauge("launch_in_work", "Launches in leg 1 now.", registry=registry)
        self.leases_lost = Counter("launch_leases_lost", "SQS leases lost while in work.", registry=registry)
        self.leg1_seconds = Histogram(
            "launch_leg1_seconds",
            "Duration of leg 1, start of work to outcome.",
            ["outcome", "stage"],
            buckets=(0.1, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3600),
            registry=registry,
        )
        self.images = Counter(
            "launch_images", "Images of code launches: built, or found in ECR.", ["how"], registry=registry
        )
        self._count_jobs(registry)
        self.aws_calls = Counter(
            "launch_aws_calls", "Calls by API, of every AWS service.", ["api"], registry=registry
        )
        self.aws_throttles = Counter(
            "launch_aws_throttles",
            "Throttled calls by API, of every AWS service.",
            ["api"],
            registry=registry,
        )
        self.aws_rate = Gauge(
            "launch_aws_rate",
            "Present pace by API, calls a second; of SageMaker and CloudWatch Logs.",
            ["api"],
            registry=registry,
        )
        self._count_logs(registry)
        self._count_mirror(registry)
        self.claims = Counter("launch_claims", "Launches taken over from other workers.", registry=registry)
        self.ownership_lost = Counter(
            "launch_ownership_lost", "Launches another worker took over.", registry=registry
        )
        self._count_services(registry)
        self.loop_lag = Histogram(
            "launch_loop_lag_seconds",
            "How late the event loop comes back to a task.",
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 5),
            registry=registry,
        )

    def _count_jobs(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge(
            "launch_jobs", "Launches this worker holds, by state.", ["state"], registry=registry
        )
        self.job_states = Gauge(
            "launch_job_states",
            "Jobs of accepted launches that this worker holds, by SageMaker's states as seen last (empty: not yet).",
            ["status", "secondary_status"],
            registry=registry,
        )
        self.jobs_ended = Counter(
            "launch_jobs_ended", "Ended jobs by end status.", ["status"], registry=registry
        )
        self.status_lag = Histogram(
            "launch_status_lag_seconds",
            "SageMaker's change of a job's state until the status feed has seen it: how far that lags.",
            buckets=(1, 2, 5, 10, 15, 30, 60, 300, 900),
            registry=registry,
        )
        self.submits = Counter(
            "launch_submits",
            "CreateTrainingJob results: created, adopted, again, never.",
            ["result"],
            registry=registry,
        )
        self.waiting = Gauge(
            "launch_waiting",
            "Launches that wait to be submitted, by reason: quota, room, retry, trouble, turn.",
            ["reason"],
            registry=registry,
        )
        self.retries = Counter(
            "launch_retries", "Further attempts by the kind of end before.", ["kind"], registry=registry
        )

    def _count_logs(self, registry: CollectorRegistry) -> None:
        self.log_events = Counter("launch_log_events", "CloudWatch events read.", registry=registry)
        self.log_sweep_seconds = Histogram(
            "launch_log_sweep_seconds",
            "Duration of one look at the logs of all jobs: how far the log feed lags at the least.",
            buckets=(0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )
        self.log_lines = Counter(
            "launch_log_lines",
            "Console lines that W&B has acknowledged; after a takeover the last ones of a job again.",
            registry=registry,
        )
        self.log_latency = Histogram(
            "launch_log_latency_seconds",
            "CloudWatch ingestion to W&B acknowledgement.",
            buckets=(0.5, 1, 2, 3, 5, 8, 13, 30, 60, 300),
            registry=registry,
        )
        self.log_unreconciled = Counter(
            "launch_log_unreconciled",
            "Logs whose console could not be compared with CloudWatch at the end; the files are whole.",
            registry=registry,
        )
        self.given_up = Counter(
            "launch_given_up",
            "Steps that W&B or AWS refused until LAUNCH_LOG_GIVE_UP after the job's end.",
            ["step"],
            registry=registry,
        )
        self.wandb_posts = Counter(
            "launch_wandb_posts", "W&B requests by status.", ["status"], registry=registry
        )

    def _count_services(self, registry: CollectorRegistry) -> None:
        self.queue_messages = Gauge(
            "launch_queue_messages",
            "Messages in the queue as SQS tells, by state: waiting, in_work, delayed.",
            ["state"],
            registry=registry,
        )
        self.queue_backed_up = Gauge(
            "launch_queue_backed_up_seconds",
            "For how long the queue has not been seen without a waiting message.",
            registry=registry,
        )
        self.leases = Gauge("launch_leases", "SQS leases that this worker holds.", registry=registry)
        self.building = Gauge("launch_building", "Images being built now.", registry=registry)
        self.build_seconds = Histogram(
            "launch_build_seconds",
            "Duration of image builds, pushed or failed.",
            buckets=(5, 15, 30, 60, 120, 300, 600, 1800, 3600),
            registry=registry,
        )
        self.ledger_seconds = Histogram(
            "launch_ledger_seconds",
            "Duration of operations of the ledger.",
            ["operation"],
            buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )

    def _count_mirror(self, registry: CollectorRegistry) -> None:
        self.mirror_items = Counter(
            "launch_mirror_items",
            "Items of W&B launch queues: popped, sent to SQS, acked, lost to others, left, failed.",
            ["result"],
            registry=registry,
        )
        self.mirror_backlog = Gauge(
            "launch_mirror_backlog", "Mirrored launches that are not submitted yet.", registry=registry
        )

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self.registry)
