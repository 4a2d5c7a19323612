"""The input of CreateTrainingJob as botocore's model describes it: AWS's own names, types and limits."""

from __future__ import annotations

from functools import cache

from botocore.loaders import Loader
from botocore.model import ServiceModel, StructureShape


@cache
def create_training_job() -> StructureShape:
    """The input shape, from the files of the installed botocore: no client, no network; about 50 ms once."""
    model = ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    assert isinstance(shape, StructureShape)
    return shape
