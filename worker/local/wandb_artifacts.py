"""The double's GraphQL operations about artifacts. Read only: `WandbState.add_artifact` makes them."""

from __future__ import annotations

import hashlib

from worker.local.wandb_records import Artifact, Json, storage_id
from worker.local.wandb_runs import STOCK_TIME
from worker.local.wandb_state import WandbState


class ArtifactOperations:
    """What `wandb.Api().job(…)` and `.artifact(…)` ask."""

    def __init__(self, state: WandbState) -> None:
        self._state = state

    def op_ArtifactMembershipByName(self, v: Json) -> Json:
        """An artifact by `name:alias`."""
        artifact = self._find(v["entity"], v["project"], v["name"])
        return {"project": {"artifactCollectionMembership": _membership(artifact) if artifact else None}}

    def op_ArtifactByID(self, v: Json) -> Json:
        """An artifact by storage id."""
        artifact = self._state.artifacts.get(v["id"])
        return {"artifact": _artifact(artifact) if artifact else None}

    def op_FetchArtifactManifest(self, v: Json) -> Json:
        """Where the manifest is."""
        url = f"{self._state.base_url}/_storage/{v['id']}/.manifest"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def op_GetArtifactMembershipFileUrls(self, v: Json) -> Json:
        """Where the files are."""
        artifact = self._find(v["entity"], v["project"], f"{v['collection']}:{v['alias']}")
        if artifact is None:
            return {"project": {"artifactCollection": None}}
        prefix = f"{self._state.base_url}/_storage/{artifact.id}"
        nodes = [{"__typename": "File", "name": p, "directUrl": f"{prefix}/{p}"} for p in artifact.files]
        last_page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        files = {"pageInfo": last_page, "edges": [{"node": node} for node in nodes]}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    def _find(self, entity: str, project: str, name: str) -> Artifact | None:
        collection, _, alias = name.partition(":")
        where = (entity, project, collection)
        versions = [a for a in self._state.artifacts.values() if (a.entity, a.project, a.collection) == where]
        if alias in ("", "latest"):
            return versions[-1] if versions else None
        return next((a for a in versions if f"v{a.version}" == alias), None)


def _collection(artifact: Artifact) -> Json:
    project_id = storage_id("Project", artifact.project)
    project = {
        "id": project_id,
        "internalId": project_id,
        "name": artifact.project,
        "entity": {"name": artifact.entity},
    }
    return {"__typename": "ArtifactSequence", "name": artifact.collection, "project": project}


def _membership(artifact: Artifact) -> Json:
    alias = {"__typename": "ArtifactAlias", "id": storage_id("Alias", artifact.id), "alias": "latest"}
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": storage_id("Membership", artifact.id),
        "versionIndex": artifact.version,
        "createdAt": STOCK_TIME,
        "aliases": [alias],
        "artifactCollection": _collection(artifact),
        "artifact": _artifact(artifact),
    }


def _artifact(artifact: Artifact) -> Json:
    content = repr(sorted(artifact.files.items())).encode()
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": _collection(artifact),
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.type},
        "description": None,
        "metadata": "{}",
        "ttlDurationSeconds": -2,
        "ttlIsInherited": True,
        "tags": [],
        "historyStep": None,
        "state": "COMMITTED",
        "size": sum(map(len, artifact.files.values())),
        "digest": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "commitHash": None,
        "fileCount": len(artifact.files),
        "createdAt": STOCK_TIME,
        "updatedAt": STOCK_TIME,
    }
