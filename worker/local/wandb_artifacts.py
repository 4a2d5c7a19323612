"""The double's GraphQL operations about artifacts. Read only: `WandbState.add_artifact` makes them, `delete_artifact`
ends them."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

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

    def op_ArtifactMembershipFiles(self, v: Json) -> Json:
        """The files, a page at a time."""
        artifact = self._find(v["entity"], v["project"], f"{v['collection']}:{v['alias']}")
        if artifact is None:
            return {"project": {"artifactCollection": None}}
        names = [path for path in artifact.files if v.get("fileNames") is None or path in v["fileNames"]]
        start, size = int(v.get("cursor") or 0), int(v.get("perPage") or 50)
        page, end = names[start : start + size], start + size
        info = {"__typename": "PageInfo", "endCursor": str(end), "hasNextPage": end < len(names)}
        edges = [{"node": self._file(artifact, path)} for path in page]
        files = {"totalCount": len(names), "pageInfo": info, "edges": edges}
        collection = {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
        return {"project": {"artifactCollection": collection}}

    def _file(self, artifact: Artifact, path: str) -> Json:
        # Quoted as one name: clients would take `..` out of an address.
        url = f"{self._state.base_url}/_storage/{artifact.id}/{quote(path, safe='')}"
        content = artifact.files[path]
        digest = hashlib.md5(content, usedforsecurity=False)
        return {
            "__typename": "File",
            "id": storage_id("File", artifact.id, path),
            "name": path,
            "url": url,
            "sizeBytes": len(content),
            "storagePath": f"{artifact.id}/{path}",
            "mimetype": "application/octet-stream",
            "updatedAt": STOCK_TIME,
            "digest": base64.b64encode(digest.digest()).decode(),
            "md5": digest.hexdigest(),
            "directUrl": url,
        }

    def _find(self, entity: str, project: str, name: str) -> Artifact | None:
        collection, _, alias = name.partition(":")
        where = (entity, project, collection)
        versions = [a for a in self._state.artifacts.values() if (a.entity, a.project, a.collection) == where]
        wanted = alias or "latest"
        return next((a for a in versions if wanted in a.aliases or wanted == f"v{a.version}"), None)


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
    aliases = [
        {"__typename": "ArtifactAlias", "id": storage_id("Alias", artifact.id, alias), "alias": alias}
        for alias in sorted(artifact.aliases)
    ]
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": storage_id("Membership", artifact.id),
        "versionIndex": artifact.version,
        "createdAt": STOCK_TIME,
        "aliases": aliases,
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
        "state": artifact.state,
        "size": sum(map(len, artifact.files.values())),
        "digest": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "commitHash": None,
        "fileCount": len(artifact.files) + artifact.references,
        "createdAt": STOCK_TIME,
        "updatedAt": STOCK_TIME,
    }
