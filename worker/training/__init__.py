"""A launch becomes a SageMaker training job that is followed to its end.

`request`, `limits`, `policy`, `status` and `cursor` are pure decisions; the rest talks to AWS.
"""
