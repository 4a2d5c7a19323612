"""The ECR repository that built images go to: asked first, pushed to with proof, logged in to when needed."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypedDict

from worker.clients.aws import AwsRefused, call, ecr_client, ecr_regions
from worker.clients.docker_errors import RegistryAuthFailed, RepositoryUnknown, TagExists
from worker.clients.docker_types import RegistryAuth
from worker.errors import Again, Never, SettingsError, Stage, Unreachable
from worker.images.reference import parse_ecr_host, parse_reference
from worker.launch.redaction import KnownSecrets

if TYPE_CHECKING:
    from types_aiobotocore_ecr import ECRClient
    from types_aiobotocore_ecr.type_defs import ImageIdentifierTypeDef

    from worker.clients.docker import DockerEngine

_MEDIA_TYPES = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
_EARLY_SHARE, _EARLY_LIMIT = 0.1, 900.0
"""A token is renewed in the last tenth of its life, at most 15 min before its end: a push must fit into the rest."""


class _Account(TypedDict, total=False):
    registryId: str


@dataclass(frozen=True, slots=True)
class _Token:
    auth: RegistryAuth
    renew_at: float
    """On the loop's clock."""


class EcrRegistry:
    """One repository, and the logins to it and to any other private ECR registry.

    `repository_uri` is taken for ECR whatever its host is called: the operator said so, and the local stack's is
    `127.0.0.1:PORT`. Constructor raises `SettingsError` for a URI with a tag or in another Region than `ecr`."""

    def __init__(
        self,
        ecr: ECRClient,
        docker: DockerEngine,
        repository_uri: str,
        *,
        create_repository: bool = False,
        secrets: KnownSecrets | None = None,
        push_timeout: float = 1800.0,
        other_region: Callable[[str], contextlib.AbstractAsyncContextManager[ECRClient]] = ecr_client,
    ) -> None:
        self._secrets = secrets if secrets is not None else KnownSecrets()
        self._ecr = ecr
        self._docker = docker
        self._create_repository = create_repository
        self._push_timeout = push_timeout
        self._other_region = other_region
        self._tokens: dict[str, _Token] = {}
        self._token_lock = asyncio.Lock()
        self._repository_known = False
        try:
            reference = parse_reference(repository_uri)
        except ValueError as error:
            raise SettingsError(f"LAUNCH_REGISTRY: {error}") from error
        if reference.tag or reference.digest:
            raise SettingsError(
                f"LAUNCH_REGISTRY: {repository_uri}: name the repository without tag or digest"
            )
        self.repository_uri = repository_uri
        self._host, self._name = reference.host, reference.path
        self._region = ecr.meta.region_name
        host = parse_ecr_host(self._host)
        self._account: _Account = {"registryId": host.account} if host else {}
        if host and host.region != self._region:
            raise SettingsError(
                f"LAUNCH_REGISTRY: {repository_uri} is in {host.region}, the worker in {self._region};"
                " SageMaker pulls images in its own Region only"
            )

    async def find(self, tag: str) -> str | None:
        """The digest behind `tag`, or None. Raises `RepositoryUnknown` and other kinds of `Again`: what ECR refuses,
        whoever runs the worker can mend.

        BatchGetImage, because it has a quota (2,000/s); DescribeImages has none that is published."""
        return await self._digest({"imageTag": tag})

    async def push(self, local_tag: str, tag: str, on_line: Callable[[str], None]) -> str:
        """Push the local image `local_tag` as `tag`; returns its digest, which the registry has confirmed.

        A refused token is replaced once, also in mid-push, and so is a repository that went away. Raises `Again`
        (also when another image is behind `tag` afterwards: the next `find` has it), `RepositoryUnknown`."""
        if not await self._docker.tag_image(local_tag, self.repository_uri, tag):
            raise Again(f"the built image {local_tag} is no longer on the docker daemon")
        try:
            try:
                pushed = await self._push_once(tag, on_line)
            except RegistryAuthFailed as error:
                on_line(f"{error}; trying once more with a new token")
                self._tokens.pop(self._region, None)
                pushed = await self._push_once(tag, on_line)
            except RepositoryUnknown:
                self._repository_known = False
                await self.ensure_repository()
                pushed = await self._push_once(tag, on_line)
        except TagExists as error:
            return await self._digest_if_same(local_tag, tag, error)
        finally:
            with contextlib.suppress(Unreachable):  # only a name; the next prune takes it
                await self._docker.remove_image(f"{self.repository_uri}:{tag}", keep_parents=True)
        found = await self.find(tag)
        if found != pushed:
            raise Again(f"pushed {pushed} as {tag}, but the registry has {found or 'nothing'} there")
        return pushed

    async def auth(self) -> RegistryAuth:
        """A login that holds for a while yet. Raises `Again`."""
        return await self._auth_in(self._region, self._host)

    async def auth_for(self, reference: str, *, refused: RegistryAuth | None = None) -> RegistryAuth | None:
        """A login for the registry of a base image: any private ECR registry; None for all others.

        `refused`: a login that the registry did not take; it is not given again. Raises `Again`, and `Never`
        (LW-BASE-IMAGE) for a Region that does not exist."""
        try:
            host = parse_reference(reference).host
        except ValueError:
            return None
        ecr = parse_ecr_host(host)
        if host != self._host and ecr is None:
            return None
        region = ecr.region if ecr and host != self._host else self._region
        if region != self._region and region not in await asyncio.to_thread(ecr_regions):
            raise Never(
                f"the base image {reference} lies in {region}, which is no Region with ECR; correct its name",
                code="LW-BASE-IMAGE",
                stage=Stage.BUILD,
            )
        if refused is not None:
            self._forget(region, refused)
        return await self._auth_in(region, host)

    async def ensure_repository(self) -> None:
        """See that the repository is there; create it if that is allowed. Asks once a process.

        Created with immutable tags: a tag is the address of its content, so to overwrite one can only be wrong.
        Raises `RepositoryUnknown`."""
        if self._repository_known:
            return
        try:
            await call(
                "DescribeRepositories",
                lambda: self._ecr.describe_repositories(repositoryNames=[self._name], **self._account),
            )
        except AwsRefused as error:
            if error.aws_code != "RepositoryNotFoundException":
                raise self._again(error) from error
            await self._create()
        self._repository_known = True

    async def _create(self) -> None:
        if not self._create_repository:
            raise RepositoryUnknown(
                f"the ECR repository {self.repository_uri} does not exist; create it, or set"
                " LAUNCH_CREATE_REPOSITORY=true"
            )
        try:
            await call(
                "CreateRepository",
                lambda: self._ecr.create_repository(
                    repositoryName=self._name,
                    imageTagMutability="IMMUTABLE",
                    tags=[{"Key": "CreatedBy", "Value": "launch-worker"}],
                    **self._account,
                ),
            )
        except AwsRefused as error:
            if error.aws_code != "RepositoryAlreadyExistsException":  # else: another worker was quicker
                raise self._again(error) from error

    def _again(self, error: AwsRefused) -> Again:
        """What ECR refuses is the operator's to mend, and no launch is to blame for it."""
        return Again(
            f"ECR refuses {self.repository_uri}: {error}; check LAUNCH_REGISTRY, the repository and the registry's"
            " quotas"
        )

    def _forget(self, region: str, refused: RegistryAuth) -> None:
        token = self._tokens.get(region)
        if token and token.auth.password == refused.password:  # else: somebody has a new one already
            del self._tokens[region]

    async def _push_once(self, tag: str, on_line: Callable[[str], None]) -> str:
        return await self._docker.push(
            self.repository_uri, tag, auth=await self.auth(), on_line=on_line, deadline=self._push_timeout
        )

    async def _digest_if_same(self, local_tag: str, tag: str, refusal: TagExists) -> str:
        """The digest behind an immutable tag, if it is our image: then somebody else has pushed it already."""
        local = await self._docker.inspect_image(local_tag)
        answer = await self._get_image({"imageTag": tag})
        if local is None or answer is None:
            raise Again(f"{refusal}; and then it was gone") from refusal
        digest, manifest = answer
        # An image's id is the digest of its config, which the manifest names; with containerd's store the manifest's.
        if local.id not in manifest and local.id != digest:
            raise Again(f"{refusal}; it is another build of the same, which the next try takes") from refusal
        return digest

    async def _digest(self, image: ImageIdentifierTypeDef) -> str | None:
        answer = await self._get_image(image)
        return answer[0] if answer else None

    async def _get_image(self, image: ImageIdentifierTypeDef) -> tuple[str, str] | None:
        """Digest and manifest."""
        try:
            answer = await call(
                "BatchGetImage",
                lambda: self._ecr.batch_get_image(
                    repositoryName=self._name,
                    imageIds=[image],
                    acceptedMediaTypes=_MEDIA_TYPES,
                    **self._account,
                ),
            )
        except AwsRefused as error:
            if error.aws_code != "RepositoryNotFoundException":
                raise self._again(error) from error
            self._repository_known = False
            await self.ensure_repository()
            return None
        for found in answer.get("images", ()):
            return found["imageId"]["imageDigest"], found.get("imageManifest", "")
        reasons = {failure.get("failureCode", "") for failure in answer.get("failures", ())}
        if reasons <= {"ImageNotFound"}:
            return None
        raise Unreachable(f"BatchGetImage {self.repository_uri}: {', '.join(sorted(reasons))}")

    async def _auth_in(self, region: str, host: str) -> RegistryAuth:
        loop = asyncio.get_running_loop()
        async with self._token_lock:  # many launches ask at once, one fetches
            token = self._tokens.get(region)
            if token is None or loop.time() >= token.renew_at:
                token = await self._fetch_token(region)
                self._tokens[region] = token
        return RegistryAuth(token.auth.username, token.auth.password, host)

    async def _fetch_token(self, region: str) -> _Token:
        """A token holds for every registry of its Region that the credentials may see."""
        try:
            if region == self._region:
                answer = await call("GetAuthorizationToken", self._ecr.get_authorization_token)
            else:
                async with self._other_region(region) as ecr:
                    answer = await call("GetAuthorizationToken", ecr.get_authorization_token)
        except AwsRefused as error:
            raise Again(f"ECR in {region} gives the worker no login: {error}") from error
        data = answer["authorizationData"][0]
        token = data["authorizationToken"]
        username, _, password = base64.b64decode(token).decode().partition(":")
        self._secrets.add(token, password)
        left = (data["expiresAt"] - datetime.now(UTC)).total_seconds()
        early = min(left * _EARLY_SHARE, _EARLY_LIMIT)
        renew_at = asyncio.get_running_loop().time() + left - early
        return _Token(RegistryAuth(username, password, ""), renew_at)
