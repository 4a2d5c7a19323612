"""AWS's service models, the files of the installed botocore, read once a process: SageMaker's alone takes 40 ms of CPU
and 8 MiB, and clients and the checks of requests both need it."""

from __future__ import annotations

from functools import cache

from botocore.loaders import Loader

SERVICES = ("dynamodb", "ecr", "logs", "s3", "sagemaker", "sqs", "sts")
"""Of which the worker opens a client, or reads the model."""


class ServiceModels(Loader):
    """botocore's loader (botocore/loaders.py), which before the first model of each kind goes through the folders of
    all 400 services to tell a wrong name from a missing file: 60 ms of each start. Ours are known."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Those of `SERVICES`, each of which has every kind of model that a client reads."""
        return list(SERVICES)


@cache
def model_loader() -> Loader:
    """For a session's component `data_loader`, and for who reads a model without a client. Keeps what it has read.

    Raises botocore's `UnknownServiceError` for what is not in `SERVICES`."""
    return ServiceModels()
