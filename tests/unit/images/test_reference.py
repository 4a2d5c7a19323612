"""References as docker reads them, ECR's host names, and tags that are content addresses."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.images.reference import EcrHost, ImageReference, image_tag, parse_ecr_host, parse_reference

DIGEST = "sha256:" + "0a" * 32
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("text", "parts", "repository"),
    [
        ("python", ("docker.io", "library/python", "", ""), "python"),
        ("python:3.11-slim", ("docker.io", "library/python", "3.11-slim", ""), "python"),
        ("docker.io/library/python:3", ("docker.io", "library/python", "3", ""), "python"),
        ("index.docker.io/python", ("docker.io", "library/python", "", ""), "python"),
        ("acme/train:v1", ("docker.io", "acme/train", "v1", ""), "acme/train"),
        (f"acme/train@{DIGEST}", ("docker.io", "acme/train", "", DIGEST), "acme/train"),
        (f"acme/train:v1@{DIGEST}", ("docker.io", "acme/train", "v1", DIGEST), "acme/train"),
        ("127.0.0.1:5566/launch-dev", ("127.0.0.1:5566", "launch-dev", "", ""), "127.0.0.1:5566/launch-dev"),
        ("127.0.0.1:5566/a/b:t", ("127.0.0.1:5566", "a/b", "t", ""), "127.0.0.1:5566/a/b"),
        ("localhost/a", ("localhost", "a", "", ""), "localhost/a"),
        ("[::1]:5000/a:t", ("[::1]:5000", "a", "t", ""), "[::1]:5000/a"),
        (f"{ECR}/team/train:v1", (ECR, "team/train", "v1", ""), f"{ECR}/team/train"),
        ("ghcr.io/a/b-c__d.e:X", ("ghcr.io", "a/b-c__d.e", "X", ""), "ghcr.io/a/b-c__d.e"),
        ("UPPER/a", ("UPPER", "a", "", ""), "UPPER/a"),
    ],
)
def test_a_reference_is_taken_apart_as_docker_does(
    text: str, parts: tuple[str, str, str, str], repository: str
) -> None:
    reference = parse_reference(text)
    assert reference == ImageReference(*parts)
    assert reference.repository == repository
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no repository name"),
        ("Python", "lower case"),
        ("acme/Train:v1", "lower case"),
        ("acme//train", "no repository name"),
        ("python:", "no image tag"),
        ("python:-v1", "no image tag"),
        ("python:" + "a" * 129, "no image tag"),
        ("python@sha256:abc", "no digest"),
        ("python@", "no digest"),
        ("host:port/a", "no registry host"),
        ("a b", "no repository name"),
        ("$BASE", "no repository name"),
        ("https://ghcr.io/a", "no registry host"),
    ],
)
def test_what_is_no_reference_is_told_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_reference(text)


@pytest.mark.parametrize(
    ("host", "account", "region"),
    [
        (ECR, "123456789012", "eu-west-1"),
        (f"{ECR}:443", "123456789012", "eu-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "123456789012", "cn-north-1"),
        ("123456789012.dkr-ecr.us-east-1.on.aws", "123456789012", "us-east-1"),
        ("123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn", "123456789012", "cn-north-1"),
        ("123456789012.dkr.ecr-fips.us-east-2.amazonaws.com", "123456789012", "us-east-2"),
        ("123456789012.dkr-ecr-fips.us-west-2.on.aws", "123456789012", "us-west-2"),
        ("123456789012.dkr.ecr.us-gov-west-1.amazonaws.com", "123456789012", "us-gov-west-1"),
        ("123456789012.dkr.ecr-fips.us-gov-east-1.amazonaws.com", "123456789012", "us-gov-east-1"),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "123456789012", "eusc-de-east-1"),
        ("123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov", "123456789012", "us-iso-east-1"),
    ],
)
def test_ecr_hosts_of_every_form(host: str, account: str, region: str) -> None:
    assert parse_ecr_host(host) == EcrHost(account, region)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:5566",
        "docker.io",
        "public.ecr.aws",
        "api.ecr.us-east-1.amazonaws.com",
        f"{ECR}.evil.example",
        "evil-123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "12345.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com.evil",
        "123456789012.dkr.ecr.a.b.amazonaws.com",
    ],
)
def test_no_other_host_gets_a_login_of_ecr(host: str) -> None:
    assert parse_ecr_host(host) is None


GIVEN = {"origin": "acme/vision", "content_id": "abc", "dockerfile": "FROM x\n", "platform": "linux/amd64"}


def test_the_tag_is_the_same_for_the_same_image() -> None:
    one = image_tag(**GIVEN, bases={"a": "sha256:1", "b": "sha256:2"})
    assert one == image_tag(**GIVEN, bases={"b": "sha256:2", "a": "sha256:1"})
    assert re.fullmatch(r"[0-9a-f]{56}", one)


def test_the_tag_of_yesterday_is_found_today() -> None:
    """A change here rebuilds every image of every user: do it on purpose."""
    assert image_tag(**GIVEN, bases={"x": DIGEST}) == GOLDEN


GOLDEN = "500040a7f458c0033ba7952eb12bac6a78db66b6e3c6b69ef05af83e"


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("origin", "acme/audio"),
        ("content_id", "abd"),
        ("dockerfile", "FROM x\n\n"),
        ("platform", "linux/arm64"),
        ("bases", {"x": "sha256:2"}),
        ("bases", {"y": "sha256:1"}),
        ("bases", {}),
    ],
)
def test_whatever_goes_into_the_image_changes_its_tag(changed: str, value: object) -> None:
    before: dict[str, object] = {**GIVEN, "bases": {"x": "sha256:1"}}
    after = {**before, changed: value}
    assert image_tag(**before) != image_tag(**after)  # type: ignore[arg-type]


@given(st.text(), st.text(), st.text(), st.integers(0, 20))
def test_parts_cannot_run_into_each_other(origin: str, content_id: str, dockerfile: str, cut: int) -> None:
    joined = origin + content_id
    other = (joined[:cut], joined[cut:])
    same = image_tag(origin=origin, content_id=content_id, dockerfile=dockerfile, bases={}, platform="")
    moved = image_tag(origin=other[0], content_id=other[1], dockerfile=dockerfile, bases={}, platform="")
    assert (same == moved) == (other == (origin, content_id))
