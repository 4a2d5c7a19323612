"""Base images with Python for real builds without a network, and wheels to install in them."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import aiodocker

from worker.local.images import ensure_python_image

PACKAGES = "usr/local/lib/python3.11/dist-packages"
"""Where the local Python image looks for packages."""


def wheel(name: str, text: str, *, version: str = "1.0", requires: str = "") -> bytes:
    """A package of one module (PEP 427)."""
    information = f"{name}-{version}.dist-info"
    needed = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{name}.py": text,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/RECORD": "",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for path, content in files.items():
            packed.writestr(path, content)
    return buffer.getvalue()


async def python_image(
    docker: aiodocker.Docker, state: Path, tag: str, *, label: str, uv: bool = False, package: str = ""
) -> str:
    """The local Python image with this environment's own pip, and with its uv or a package if wanted; returns `tag`."""
    base = await ensure_python_image(docker, state)
    found = find_spec("pip")
    assert found is not None
    assert found.origin is not None
    steps = [f"FROM {base}", f"LABEL {label}", f"COPY pip /{PACKAGES}/pip"]
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as packed:
        packed.add(Path(found.origin).parent, "pip")
        if uv:
            packed.add(Path(sys.executable).parent / "uv", "uv")
            steps.append("COPY uv /usr/local/bin/uv")
        if package:
            _add(packed, "package.whl", wheel(package, f"name = {package!r}\n"))
            steps += [
                "COPY package.whl package.whl",
                f"RUN python3 -c \"import zipfile; zipfile.ZipFile('package.whl').extractall('/{PACKAGES}')\"",
            ]
        _add(packed, "Dockerfile", "\n".join(steps).encode())
    context.seek(0)
    lines = [
        step async for step in docker.images.build(fileobj=context, encoding="identity", tag=tag, stream=True)
    ]
    assert not any("error" in line for line in lines), lines
    return tag


def _add(packed: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    packed.addfile(member, io.BytesIO(content))
