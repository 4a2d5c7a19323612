"""The input of CreateTrainingJob as botocore's model describes it: AWS's own names, types and limits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from botocore.model import ListShape, ServiceModel, Shape, StructureShape

from worker.clients.service_models import model_loader


@cache
def create_training_job() -> StructureShape:
    """The input shape, from the files of the installed botocore: no client, no network; about 50 ms for who
    is the first to read them."""
    model = ServiceModel(model_loader().load_service_model("sagemaker", "service-2"), "sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    assert isinstance(shape, StructureShape)
    return shape


def only_known_members(value: Mapping[str, Any]) -> dict[str, Any]:
    """What CreateTrainingJob accepts of a larger object, for example of DescribeTrainingJob's answer."""
    known: dict[str, Any] = _known(value, create_training_job())
    return known


def _known(value: Any, shape: Shape) -> Any:
    if isinstance(shape, StructureShape) and isinstance(value, Mapping):
        members = shape.members
        return {k: _known(v, members[k]) for k, v in value.items() if k in members and v is not None}
    if isinstance(shape, ListShape) and isinstance(value, list):
        return [_known(item, shape.member) for item in value]
    return value
