"""What can be said of a message that cannot be read otherwise."""

from __future__ import annotations

import json

_MAX_ITEM_ID = 256


def item_id_of(body: str) -> str:
    """The queue item id of a broken message, so that its refusal reaches W&B; empty if there is none to be trusted."""
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    item_id = envelope.get("runQueueItemId") if isinstance(envelope, dict) else None
    usable = isinstance(item_id, str) and item_id.isprintable() and len(item_id) <= _MAX_ITEM_ID
    return str(item_id) if usable else ""


def storable(text: str) -> str:
    """`text` without what UTF-8, and so ledger and queues, cannot hold: lone surrogates."""
    return text.encode("utf-8", "replace").decode()
