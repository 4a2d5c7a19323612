"""Benchmarks: the worker, and W&B's own agent, against a simulator of AWS and W&B on loopback.

* `simulator`   SageMaker, CloudWatch Logs, SQS, STS and W&B in a process of its own, with quotas and latency
* `programs`    the program under test as a process on one core, and what it uses
* `scenarios`   what is done to it, and what is read off
* `report`      the numbers as JSON, tables and plots
"""
