"""`resource_args.sagemaker.builder`: base images, and how a wrong one is told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.launches import SAGEMAKER, launch_of, message, paths, sagemaker_args
from worker.errors import BadMessage
from worker.launch.builder_arguments import BuilderArguments

DIGEST = "@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("builder", "meant"),
    [
        (None, BuilderArguments()),
        ({}, BuilderArguments()),
        ({"accelerator": None, "type": "docker"}, BuilderArguments()),
        ({"accelerator": {"base_image": "nvidia/cuda:12"}}, BuilderArguments(accelerator="nvidia/cuda:12")),
        ({"cuda": {"base_image": "nvidia/cuda:11"}}, BuilderArguments(accelerator="nvidia/cuda:11")),
        (
            {"cuda": {"base_image": "old"}, "accelerator": {"base_image": "new"}},
            BuilderArguments(accelerator="new"),
        ),
        (
            {"base_image": f"h.example:5000/a/b_c{DIGEST}"},
            BuilderArguments(base_image=f"h.example:5000/a/b_c{DIGEST}"),
        ),
    ],
)
def test_base_images(builder: Any, meant: BuilderArguments) -> None:
    arguments = sagemaker_args()
    assert launch_of(message({**arguments, "builder": builder})).builder == meant


@pytest.mark.parametrize(
    ("builder", "path"),
    [
        ("docker", "builder"),
        ({"accelerator": "nvidia/cuda"}, "builder.accelerator"),
        ({"accelerator": {"base_image": 7}}, "builder.accelerator.base_image"),
        ({"accelerator": {"base_image": "a b"}}, "builder.accelerator.base_image"),
        ({"accelerator": {"base_image": "a\nRUN evil"}}, "builder.accelerator.base_image"),
        ({"cuda": {"base_image": "a#b"}}, "builder.cuda.base_image"),
        ({"base_image": "a@sha256:abc"}, "builder.base_image"),
        ({"base_image": "--platform=x"}, "builder.base_image"),
    ],
)
def test_wrong_ones_are_told_where_they_stand(builder: Any, path: str) -> None:
    with pytest.raises(BadMessage) as raised:
        launch_of(message(sagemaker_args(builder=builder)))
    assert paths(raised.value) == [f"{SAGEMAKER}.{path}"]
