"""Near-duplicate trajectories: MinHash over what the assistant wrote, within each repository.

Source: cwm_report.md, section 6: near-duplicates are found over the concatenated actions, per
repository, and those below a Jaccard similarity of 0.5 are kept.
"""

from __future__ import annotations

import hashlib

import numpy as np

from cwm_jax.data.trajectories import Trajectory
from cwm_jax.trace.corpus.deduplication import NearDuplicateIndex, NearDuplicates, minhash

# Jaccard 0.5: report. 64 bands of two rows find a pair of that similarity with probability
# 1 - (1 - 0.5**2)**64, more than 0.9999; 128 permutations estimate it to 0.044 (assumed).
OPTIONS = NearDuplicates(jaccard=0.5, permutations=128, bands=64)
_SHINGLE_WORDS = 3  # assumed


class TrajectoryIndex:
    """The trajectories that are kept, by repository."""

    def __init__(self) -> None:
        self._indexes: dict[str, NearDuplicateIndex] = {}

    def add(self, trajectory: Trajectory) -> bool:
        """Whether it is kept: no kept one of its repository is estimated as near as 0.5."""
        index = self._indexes.setdefault(trajectory.repository, NearDuplicateIndex(OPTIONS))
        signature = minhash(_shingles(actions(trajectory)), OPTIONS.permutations)
        return index.add(signature) is None


def actions(trajectory: Trajectory) -> str:
    """What the assistant wrote, its calls among it and its reasoning not, a message a line."""
    said = (message.content or "" for message in trajectory.messages if message.is_assistant)
    return "\n".join(said)


def _shingles(text: str) -> np.ndarray:
    """Numbers of the runs of words in it, each once; of a shorter text, of all of it."""
    words = text.split()
    starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
    runs = sorted({" ".join(words[at : at + _SHINGLE_WORDS]) for at in starts})
    digests = (hashlib.blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
