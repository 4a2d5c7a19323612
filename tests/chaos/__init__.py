"""Chaos: workers that are killed and frozen, services that fail, and an audit from outside (docs/reliability.md).

* `plan`      what happens when, from a seed (pure)
* `workload`  what is sent, from a seed, and what must become of it (pure)
* `stack`     the local stack in a process of its own
* `proxy`     wire faults between the workers and AWS or W&B
* `fleet`     the workers: started, killed, frozen, started again
* `run`       one ledger's story, from the start of the stack to the evidence
* `evidence`  what is there afterwards, read past the worker
* `audit`     what is wrong with it (pure)
* `report`    the table, and the same as JSON
"""
