"""One loop for the logs of all jobs, on a harsh CloudWatch and a failing W&B."""
