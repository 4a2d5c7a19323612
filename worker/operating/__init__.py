"""What people do by hand, on any machine with the settings: read from ledger and AWS, never by asking a worker.

* `sender`         `validate` and `enqueue`
* `overview`       `jobs`, `stop`, `workers`
* `job_logs`       `logs`, from CloudWatch
* `dead_letters`   `dlq`
* `sending_again`  `retry`
* `rebuilding`     `rebuild`, for a lost ledger
"""
