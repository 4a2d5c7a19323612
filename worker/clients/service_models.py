"""AWS's service models, the files of the installed botocore, read once a process: SageMaker's alone takes 40 ms of CPU
and 8 MiB, and clients and the checks of requests both need it."""

from __future__ import annotations

from functools import cache

from botocore.loaders import Loader


@cache
def model_loader() -> Loader:
    """For a session's component `data_loader`, and for who reads a model without a client. Keeps what it has read."""
    return Loader()
