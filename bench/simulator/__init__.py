"""AWS and W&B on loopback for benchmarks: they speak the real protocols, keep real quotas, and run no job.

* `lines`       what a virtual job prints, by formula: no memory a line, and its ingestion time is known
* `jobs`        virtual training jobs that move through SageMaker's states
* `sagemaker`, `logs`, `sqs`, `sts`   the operations that the programs call
* `wandb_sink`  W&B's GraphQL and file stream; `console` checks that each line comes once
* `quotas`      token buckets; `latency` percentiles without a list of samples
* `server`      the process: routes, added latency, counters, control
"""
