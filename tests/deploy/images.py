"""The worker's image, built with the project's own Dockerfile where nothing can be pulled and no index answers.

Its base is put together from Debian packages (worker/local/images.py), and its wheels are fetched beforehand."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import aiodocker
import pip
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ENVIRON
from tests.deploy.policies import ROOT
from worker.local.images import (
    _download,
    _has_image,
    _make_image,
    _python_version,
    _with_dependencies,
)

STATE = ROOT / ".state"
BASE = "launch-local/debian-python:2"
"""Python, git, ssh and an init, as SYSTEM_PACKAGES would install them."""
DEV_BASE = "launch-local/debian-python-registry:2"
"""And a registry, as DEV_PACKAGES would install it."""
BUILD_BASE = "launch-local/debian-python-pip:2"
LOCALSTACK_BASE = "launch-local/debian-python-curl:1"
"""What the image of LocalStack has besides: its health check in docker-compose.yml calls curl."""
LOCALSTACK_VENV = ROOT / ".venv-localstack"
"""LocalStack of constraints-localstack.txt; `make test-localstack` makes it."""
_OF_LOCALSTACK = ("busybox-static", "ca-certificates", "tzdata")
_SYSTEM = ("libstdc++6", "git", "openssh-client", "tini", "busybox-static", "ca-certificates")


async def ensure_bases(daemon: aiodocker.Docker) -> None:
    """Make both base images unless the daemon has them."""
    if not await _has_image(daemon, BASE):
        version = await _python_version()
        python = (f"python{version}-minimal", f"libpython{version}-stdlib")
        debs = await _download(
            await _with_dependencies((*python, *_SYSTEM)), STATE / "debs" / "debian-python-2"
        )
        links = {"usr/bin/python3": f"python{version}"}
        await _make_image(daemon, BASE, debs, command=["python3"], links=links)
    if not await _has_image(daemon, DEV_BASE):
        debs = await _download(["docker-registry"], STATE / "debs" / "docker-registry")
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as packed:
            registry = await asyncio.create_subprocess_exec(
                *("dpkg-deb", "--fsys-tarfile", str(debs[0])), stdout=asyncio.subprocess.PIPE
            )
            content, _ = await registry.communicate()
            with tarfile.open(fileobj=io.BytesIO(content)) as package:
                program = package.extractfile("./usr/bin/docker-registry")
                assert program is not None
                _pack(packed, "docker-registry", program.read(), 0o755)
            dockerfile = f"FROM {BASE}\nCOPY docker-registry /usr/bin/docker-registry\n"
            _pack(packed, "Dockerfile", dockerfile.encode())
        context.seek(0)
        await daemon.images.build(fileobj=context, encoding="identity", tag=DEV_BASE, rm=True)
    if not await _has_image(daemon, BUILD_BASE):
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as packed:
            packed.add(Path(pip.__file__).parent, "pip")
            _pack(
                packed, "Dockerfile", f"FROM {BASE}\nCOPY pip /usr/lib/python3/dist-packages/pip\n".encode()
            )
        context.seek(0)
        await daemon.images.build(fileobj=context, encoding="identity", tag=BUILD_BASE, rm=True)


def _pack(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


async def ensure_localstack(daemon: aiodocker.Docker) -> str:
    """An image that starts LocalStack as its own does, made of the pinned packages; returns its tag.

    It has no DynamoDB: that is a program in Java which only LocalStack's own image brings along."""
    pins = (ROOT / "constraints-localstack.txt").read_bytes()
    tag = f"launch-local/localstack:{hashlib.sha256(pins + LOCALSTACK_BASE.encode()).hexdigest()[:16]}"
    if await _has_image(daemon, tag):
        return tag
    version = await _python_version()
    if not await _has_image(daemon, LOCALSTACK_BASE):
        python = (f"python{version}-minimal", f"libpython{version}-stdlib")
        names = await _with_dependencies((*python, "curl", "libstdc++6"))
        debs = await _download((*names, *_OF_LOCALSTACK), STATE / "debs" / "debian-python-curl-1")
        links = {"usr/bin/python3": f"python{version}"}
        await _make_image(daemon, LOCALSTACK_BASE, debs, command=["python3"], links=links)
    library = LOCALSTACK_VENV / "lib" / f"python{version}"
    assert library.exists(), f"{LOCALSTACK_VENV} is of another Python than Debian's {version}"
    with tempfile.TemporaryDirectory() as folder:
        dockerfile = (
            f"FROM {LOCALSTACK_BASE}",
            "ADD packages.tar /opt/localstack",
            "ENV PYTHONPATH=/opt/localstack",
            'ENTRYPOINT ["python3", "-m", "localstack.runtime.main"]',
        )
        (Path(folder) / "Dockerfile").write_text("\n".join(dockerfile))
        # One file for the builder, not 20,000; without what only CloudFormation and Kinesis load.
        left_out = [f"--exclude=./{name}" for name in ("pip", "sympy", "amazon_kclpy")]
        await run(
            "tar", "-cf", f"{folder}/packages.tar", *left_out, "-C", str(library / "site-packages"), "."
        )
        await run("docker", "build", "-q", "-t", tag, folder)
    return tag


@contextlib.asynccontextmanager
async def one_at_a_time() -> AsyncIterator[None]:
    """Test processes make images in turn: the second finds in docker's cache what the first has made."""
    STATE.mkdir(exist_ok=True)
    with (STATE / "images.lock").open("w") as lock:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            await asyncio.sleep(0.2)
        yield


async def wheelhouse(*extras: str) -> Path:
    """A folder with the wheels of all dependencies, kept as long as the pins are the same."""
    wanted = sorted(_pinned("launch-worker", frozenset(extras)))
    folder = STATE / "wheelhouse" / hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:16]
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--dest", str(folder), "--no-deps", *wanted, "setuptools>=77"),
            cwd=ROOT,
        )
        assert await process.wait() == 0
        (folder / "complete").touch()
    return folder


def lay_out(folder: Path, wheels: Path) -> None:
    """The files of the checkout that an image, or docker-compose, is made of; and the wheels."""
    for name in (
        ".dockerignore",
        "docker-compose.yml",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
    ):
        shutil.copy(ROOT / name, folder / name)
    for name in ("worker", "deploy"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "wheelhouse").mkdir()
    for wheel in wheels.glob("*.whl"):
        (folder / "wheelhouse" / wheel.name).hardlink_to(wheel)


ARGUMENTS = {
    "BASE_IMAGE": BASE,
    "BUILD_IMAGE": BUILD_BASE,
    "BUILD_PACKAGES": "",
    "SYSTEM_PACKAGES": "",
    "DEV_PACKAGES": "",
}
"""Of deploy/Dockerfile, where the base images have everything and nothing can be installed."""


async def build_image(context: Path, tag: str, *, target: str = "worker", extras: str = "") -> None:
    """`docker build -f deploy/Dockerfile` of a folder that was laid out."""
    given = {**ARGUMENTS, "EXTRAS": f"[{extras}]" if extras else ""}
    if target == "dev":
        given["BASE_IMAGE"] = DEV_BASE
    arguments = [part for name, value in given.items() for part in ("--build-arg", f"{name}={value}")]
    await docker(
        "build", "-q", "-f", "deploy/Dockerfile", "-t", tag, "--target", target, *arguments, ".", cwd=context
    )


async def docker(*arguments: str, cwd: Path = ROOT, check: bool = True) -> str:
    """What a docker command prints."""
    return await run("docker", *arguments, cwd=cwd, check=check)


async def run(*command: str, cwd: Path = ROOT, check: bool = True) -> str:
    """What a command prints. docker's builder is the classic one: BuildKit of newer ones is a package of its own."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**ENVIRON, "DOCKER_BUILDKIT": "0"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode(errors="replace")
    assert process.returncode == 0 or not check, f"{' '.join(command[:2])}: {text}"
    return text


def _pinned(name: str, extras: frozenset[str]) -> set[str]:
    """`name==version` of all that a distribution needs, as installed here: nothing has to be resolved again."""
    found: set[str] = set()
    todo, seen = [(name, extras)], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        here = metadata.distribution(name)
        if name != "launch-worker":
            found.add(f"{name}=={here.version}")
        for text in here.requires or ():
            needed = Requirement(text)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)
            ):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return found
