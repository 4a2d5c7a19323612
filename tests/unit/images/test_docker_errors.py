"""The daemon's own words, and what the worker makes of them."""

from __future__ import annotations

import pytest

from worker.clients.docker_errors import (
    BuildFailed,
    DiskFull,
    ImageUnknown,
    RegistryAuthFailed,
    RegistryDenied,
    RepositoryUnknown,
    TagExists,
    build_error,
    daemon_error,
    pull_error,
    push_error,
)
from worker.errors import Again, Never, Stage, Unreachable, WorkerError

RUN = "Step 2/3 : RUN make"
METADATA = "[internal] load metadata for docker.io/acme/base"
FROM = "Step 1/3 : FROM acme/base"
DIAL = 'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: no such host'
BK = "failed to solve with frontend dockerfile.v0: failed to create LLB definition: "


def code(error: WorkerError) -> str:
    return error.code if isinstance(error, Never) else ""


@pytest.mark.parametrize(
    ("status", "text", "step", "kind", "code_"),
    [
        (0, "The command '/bin/sh -c make' returned a non-zero code: 2", RUN, BuildFailed, "LW-BUILD-FAILED"),
        (
            0,
            "executor failed running [/bin/sh -c make]: exit code: 7",
            "[2/3] RUN make",
            BuildFailed,
            "LW-BUILD-FAILED",
        ),
        (
            0,
            'process "/bin/sh -c make" did not complete successfully: exit code: 7',
            "",
            BuildFailed,
            "LW-BUILD-FAILED",
        ),
        (
            0,
            "COPY failed: file not found in build context: stat x: file does not exist",
            "Step 2/2 : COPY x /",
            BuildFailed,
            "LW-BUILD-FAILED",
        ),
        (
            0,
            'failed to compute cache key: "/x" not found: not found',
            "[2/2] COPY x /",
            BuildFailed,
            "LW-BUILD-FAILED",
        ),
        (400, "dockerfile parse error line 2: unknown instruction: BANANA", "", Never, "LW-DOCKERFILE"),
        (400, "dockerfile parse error on line 3: unexpected EOF", "", Never, "LW-DOCKERFILE"),
        (500, "Cannot locate specified Dockerfile: Dockerfile", "", Never, "LW-DOCKERFILE"),
        (400, "the Dockerfile (Dockerfile) cannot be empty", "", Never, "LW-DOCKERFILE"),
        (0, f"{BK}dockerfile parse error line 2: unknown instruction: BANANA", "", Never, "LW-DOCKERFILE"),
        (0, "base name ($B) should not be blank", "Step 2/2 : FROM $B", Never, "LW-DOCKERFILE"),
        (0, "invalid reference format: repository name must be lowercase", "", Never, "LW-DOCKERFILE"),
        (
            0,
            "pull access denied for acme/base, repository does not exist or may require 'docker login': denied",
            FROM,
            ImageUnknown,
            "LW-BASE-IMAGE",
        ),
        (0, f"{BK}pull access denied, repository does not exist", METADATA, ImageUnknown, "LW-BASE-IMAGE"),
        (
            0,
            "manifest for acme/base:9 not found: manifest unknown: manifest unknown",
            FROM,
            ImageUnknown,
            "LW-BASE-IMAGE",
        ),
        (0, f"{BK}docker.io/library/python:9: not found", METADATA, ImageUnknown, "LW-BASE-IMAGE"),
        (
            0,
            "no matching manifest for linux/arm64/v8 in the manifest list entries",
            FROM,
            Never,
            "LW-ARCHITECTURE",
        ),
        (0, "Get https://h/v2/: no basic auth credentials", FROM, RegistryAuthFailed, ""),
        (
            0,
            "denied: Your authorization token has expired. Reauthenticate and try again.",
            FROM,
            RegistryAuthFailed,
            "",
        ),
        (
            0,
            "denied: User: arn:aws:sts::1:x is not authorized to perform: ecr:BatchGetImage",
            FROM,
            RegistryDenied,
            "",
        ),
        (0, DIAL, FROM, Unreachable, ""),
        (0, f"{BK}failed to do request: Head: {DIAL}", METADATA, Unreachable, ""),
        (0, "toomanyrequests: You have reached your pull rate limit.", FROM, Unreachable, ""),
        (0, "write /var/lib/docker/tmp/x: no space left on device", RUN, DiskFull, ""),
        (
            500,
            "Error processing tar file(exit status 1): write /x: no space left on device",
            "",
            DiskFull,
            "",
        ),
        (0, "No such image: sha256:0123", RUN, Again, ""),
        (
            0,
            "failed to export image: failed to set parent sha256:0123: unknown parent image ID sha256:0123",
            RUN,
            Again,
            "",
        ),
        (0, "failed to export image: failed to get layer sha256:0123: layer does not exist", RUN, Again, ""),
        (0, "layer does not exist", "Step 2/3 : COPY . /", Again, ""),
        (0, 'unable to find image "sha256:0123"', 'Step 5/7 : COPY [".", "./"]', Again, ""),
        (0, "context canceled", RUN, Unreachable, ""),
        (900, "Cannot connect to Docker Engine via unix:///x", "", Unreachable, ""),
        (404, "network nothere not found", RUN, Again, ""),
        (500, 'network mode "x" not supported by buildkit', "", Again, ""),
        (500, "something went wrong in the daemon", "", Unreachable, ""),
        (0, "something went wrong in the build", RUN, BuildFailed, "LW-BUILD-FAILED"),
    ],
)
def test_a_failed_build(status: int, text: str, step: str, kind: type[WorkerError], code_: str) -> None:
    error = build_error(status, text, step, ["a line"])
    assert type(error) is kind, error
    assert code(error) == code_
    assert text[-30:] in str(error) or isinstance(error, DiskFull)
    assert not isinstance(error, Never) or error.stage is Stage.BUILD


def test_a_step_that_filled_the_disk_is_no_fault_of_the_dockerfile() -> None:
    text = "The command '/bin/sh -c pip install x' returned a non-zero code: 1"
    lines = ["ERROR: Could not install packages: [Errno 28] No space left on device"]
    assert isinstance(build_error(0, text, RUN, lines), DiskFull)
    assert isinstance(build_error(0, text, RUN, ["all fine"]), BuildFailed)


def test_a_failed_step_is_told_with_the_end_of_its_output() -> None:
    error = build_error(0, "returned a non-zero code: 1", RUN, [f"line {n}" for n in range(40)])
    assert isinstance(error, BuildFailed)
    assert error.step == RUN
    assert str(error).startswith(
        "the image build failed at Step 2/3 : RUN make: returned a non-zero code: 1\n"
    )
    assert str(error).endswith("line 38\nline 39")
    assert "line 24\n" not in str(error)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (
            404,
            "pull access denied for x, repository does not exist or may require 'docker login'",
            ImageUnknown,
        ),
        (404, "manifest for x:9 not found: manifest unknown: manifest unknown", ImageUnknown),
        (404, "name unknown: The repository with name 'x' does not exist in the registry", ImageUnknown),
        (400, "invalid reference format", ImageUnknown),
        (500, 'Head "https://h/v2/x": no basic auth credentials', RegistryAuthFailed),
        (500, "Get h: unauthorized: authentication required", RegistryAuthFailed),
        (500, DIAL, Unreachable),
        (500, "received unexpected HTTP status: 503 Service Unavailable", Unreachable),
        (0, "failed to register layer: write /x: no space left on device", DiskFull),
        (0, "no matching manifest for linux/arm64", Never),
        (900, "gone", Unreachable),
        (500, "who knows", Unreachable),
    ],
)
def test_a_failed_pull(status: int, text: str, kind: type[WorkerError]) -> None:
    error = pull_error("acme/base:1", status, text)
    assert type(error) is kind, error
    assert "acme/base:1" in str(error)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (0, "denied: Your authorization token has expired. Reauthenticate and try again.", RegistryAuthFailed),
        (0, "no basic auth credentials", RegistryAuthFailed),
        (0, "unauthorized: authentication required", RegistryAuthFailed),
        (0, "denied: Not Authorized", RegistryAuthFailed),
        (0, "denied: User: arn:x is not authorized to perform: ecr:InitiateLayerUpload", RegistryDenied),
        (0, 'error parsing HTTP 403 response body: unexpected end of JSON input: ""', RegistryDenied),
        (0, "name unknown: The repository with name 'x' does not exist in the registry with id '1'", RepositoryUnknown),
        (0, "tag invalid: The image tag 'v' already exists in the 'x' repository and cannot be overwritten because"
            " the tag is immutable.", TagExists),
        (0, 'Put "http://h/v2/": dial tcp 127.0.0.1:1: connect: connection refused', Unreachable),
        (0, "unexpected EOF", Unreachable),
        (0, "received unexpected HTTP status: 500 Internal Server Error", Unreachable),
        (0, "An image does not exist locally with the tag: x", Again),
        (0, "tag does not exist: x:v", Again),
        (0, "write /x: no space left on device", DiskFull),
        (900, "Cannot connect", Unreachable),
        (0, "who knows", Unreachable),
    ],
)  # fmt: skip
def test_a_failed_push(status: int, text: str, kind: type[WorkerError]) -> None:
    error = push_error("registry/x:v", status, text)
    assert type(error) is kind, error
    assert "registry/x:v" in str(error)


def test_other_questions() -> None:
    assert isinstance(daemon_error("POST images/x/tag", 500, "no space left on device"), DiskFull)
    assert isinstance(daemon_error("GET info", 500, "?"), Unreachable)
