"""Generated Dockerfiles, built for real and without a network: what is installed, by which tool, and what is told."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiodocker
import pytest
import pytest_asyncio

from tests.integration.docker_bench import STATE, DockerBench, docker_bench
from tests.integration.python_images import python_image, wheel
from worker.clients.docker_errors import BuildFailed
from worker.images.build_output import BuildOutput
from worker.images.builder import ImageBuilder
from worker.images.context import DOCKERFILE, SourceFolder, installer, write_context
from worker.images.dockerfile import plan_recipe
from worker.local.images import BUSYBOX_IMAGE

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

GOOD = {"wheelhouse/greeting-1.0-py3-none-any.whl": wheel("greeting", "text = 'hello'\n", requires="absent")}


@dataclass
class Images:
    """Builds sources and looks into what comes out."""

    bench: DockerBench
    base: str

    async def build(
        self,
        files: dict[str, str | bytes],
        *checks: str,
        base: str = "",
        kind: Literal["docker", "buildkit"] = "docker",
        **options: Any,
    ) -> BuildOutput:
        """Build; `checks` are Python expressions that must hold in the image. Its lines are in `lines`."""
        folder = self.bench.folder / uuid.uuid4().hex
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        given: dict[str, Any] = {"python_version": "", "cache_mounts": kind == "buildkit", **options}
        recipe = plan_recipe(
            SourceFolder(folder),
            dockerfile_override="",
            entry_point=("python", "train.py"),
            base_image=base or self.base,
            installer=installer(),
            **given,
        )
        text = recipe.dockerfile.replace("USER root", f"USER root\nLABEL {self.bench.mark}={folder.name}")
        steps = [f'RUN ["python", "-c", "assert {check}"]\n' for check in checks]
        context = folder.with_suffix(".tar")
        await write_context(folder, replace(recipe, dockerfile="".join([text, *steps])), context)
        self.lines: list[str] = []
        output = BuildOutput(self.lines.append)
        builder = ImageBuilder(
            self.bench.engine,
            kind=kind,
            network="none",
            timeout=100,
            max_builds=1,
            work_dir=self.bench.folder,
            low_water_bytes=0,
        )
        await builder.build(
            context,
            tag=self.bench.tag(folder.name),
            labels={self.bench.mark: ""},
            registry_auths={},
            on_line=output.add,
            dockerfile=DOCKERFILE,
        )
        return output


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def images(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Images]:
    async with docker_bench(tmp_path_factory.mktemp("images")) as bench, aiodocker.Docker() as docker:
        base = await python_image(docker, STATE, bench.tag("base"), label=f"{bench.mark}=")
        yield Images(bench, base)


async def test_what_cannot_be_installed_is_left_out_and_told(images: Images) -> None:
    """A frozen environment of another machine: `missing` is in no wheelhouse, `local` in its public version only."""
    wheels: dict[str, str | bytes] = {"wheelhouse/local-1.0-py3-none-any.whl": wheel("local", "")}
    frozen = "greeting==1.0\nmissing==2.0\nlocal==1.0+cu121\n"
    output = await images.build(
        {"requirements.frozen.txt": frozen, **wheels, **GOOD},
        "__import__('greeting').text == 'hello' and __import__('local')",
        "__import__('sys').prefix == '/env'",
        python_version="3.8.1",
    )
    failed, python, replaced = output.warnings
    assert failed == "Some packages were not successfully installed during the build: missing==2.0"
    assert python.endswith("3.8 was asked for")
    assert replaced == "local==1.0 is installed in the place of local==1.0+cu121"


async def test_requirements_are_all_or_nothing(images: Images) -> None:
    with pytest.raises(BuildFailed, match="absent"):
        await images.build({"requirements.txt": "greeting\n", **GOOD})


async def test_what_the_base_image_has_stays_visible_and_counts(
    images: Images, docker: aiodocker.Docker
) -> None:
    base = await python_image(
        docker, STATE, images.bench.tag("torch"), label=f"{images.bench.mark}=", uv=True, package="absent"
    )
    await images.build(
        {"requirements.txt": "greeting\n", **GOOD},
        "__import__('greeting') and __import__('absent')",
        base=base,
    )
    assert any("Requirement already satisfied: absent" in line for line in images.lines), images.lines


async def test_uv_installs_where_it_is(images: Images, docker: aiodocker.Docker) -> None:
    base = await python_image(docker, STATE, images.bench.tag("uv"), label=f"{images.bench.mark}=", uv=True)
    frozen = "missing==2.0\ngreeting==1.0\n"
    output = await images.build(
        {"requirements.frozen.txt": frozen, **GOOD}, "__import__('greeting')", base=base, kind="buildkit"
    )
    assert any(re.search(r"^uv \d", line) for line in images.lines), images.lines
    assert output.warnings == (
        "Some packages were not successfully installed during the build: missing==2.0",
    )


async def test_an_accelerator_image_with_python_gets_an_environment(images: Images) -> None:
    await images.build({"train.py": ""}, "__import__('sys').prefix == '/env'", may_lack_python=True)


async def test_an_accelerator_image_without_python_and_apt_is_refused_clearly(images: Images) -> None:
    with pytest.raises(BuildFailed, match="no Python, and no apt-get"):
        await images.build({"train.py": ""}, base=BUSYBOX_IMAGE, may_lack_python=True)


@pytest_asyncio.fixture(loop_scope="module")
async def docker() -> AsyncIterator[aiodocker.Docker]:
    async with aiodocker.Docker() as opened:
        yield opened
