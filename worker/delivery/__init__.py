"""Every log line once: read, assigned to console lines in the ledger, and only then posted to W&B.

* `loop`      one loop for the logs of all jobs
* `posting`   an assigned batch, posted until W&B has it; posted again by whoever takes the job over
* `closing`   late events, and the full record as files, once a job has ended
"""
