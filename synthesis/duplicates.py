"""Which samples of a whole job are equal."""

from typing import Any

import numpy as np

from latentry.synthesis.records import JobRecord, made_shards
from latentry.synthesis.storage.protocol import Storage

_HASHES_AT_ONCE = 8_000_000


def find_duplicates(storage: Storage, record: JobRecord) -> list[list[int]]:
    """Return the indices of equal samples, grouped; in flat memory.

    The hashes are looked through in several passes, each over a part of their range.
    """
    passes = -(-record.samples // _HASHES_AT_ONCE)
    groups: list[list[int]] = []
    for turn in range(passes):
        heads, indices = [], []
        for made in made_shards(storage, record):
            head = np.array([int(text[:16], 16) for text in made.sample_sha256], np.uint64)
            chosen = head % np.uint64(passes) == turn
            heads.append(head[chosen])
            indices.append(np.array(made.indices, np.int64)[chosen])
        groups += _groups(np.concatenate(heads), np.concatenate(indices))
    return sorted(groups)


def _groups(heads: Any, indices: Any) -> list[list[int]]:
    """Return the ``indices`` whose ``heads`` (64 bits of SHA-256) are equal, where several are."""
    order = np.lexsort((indices, heads))
    heads, indices = heads[order], indices[order]
    cuts = np.flatnonzero(np.diff(heads)) + 1
    return [part.tolist() for part in np.split(indices, cuts) if len(part) > 1]
