"""Near-duplicate traces: MinHash over what their frames do, found again by banding.

A trace is the set of its shingles, ``shingle_frames`` frames in a row. A frame counts by its event
and its action (source line), and by default also by its observation as the text shows it: locals
that changed, values returned and raised. What a loop repeats counts once.

Why values: of generated functions with five inputs each that differ a little, actions alone drop 3
to 42 % at Jaccard 0.8 and 45 to 78 % at 0.5, the more the longer the trace; with values it is 3 to
6 %, most of them equal texts (measured, difficulties 1 to 5, 120 functions each). Of generated
programs neither drops any.

Everything is a function of the text and of the options: no ``hash()``, no library whose hashes
change with its version (datasketch 2 gives other ones than datasketch 1).
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.tokenizer import ACTION_SEP, ARG_SEP, FRAME_SEP

# Episodes that share a band's key and are compared with a new one, latest first (assumed).
_MAX_CHAIN = 32
_MIN_RECALL = 0.8
_FIRST_CAPACITY = 1024
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, odd


@dataclasses.dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """When two traces are near-duplicates of each other.

    Attributes:
        jaccard: similarity of their sets of shingles from which they are (assumed).
        shingle_frames: frames in a row that make a shingle (assumed; 2 drops about as many).
        values: whether a shingle holds the values of locals, returns and exceptions too: without,
            one path through a program counts once, whatever its inputs.
        permutations: minima in a signature; the estimate of a similarity J has the standard
            error sqrt(J (1 - J) / permutations) (assumed).
        bands: parts of a signature, one of which must be equal to be compared at all: a pair of
            similarity J is, with probability ``recall(J)``, 0.95 at 0.8 by default.
    """

    jaccard: float = 0.8
    shingle_frames: int = 3
    values: bool = True
    permutations: int = 128
    bands: int = 16

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "jaccard", "shingle_frames", "permutations", "bands")
        if self.jaccard > 1:
            raise ValueError(f"jaccard is {self.jaccard}; expected at most 1")
        if self.permutations % self.bands:
            raise ValueError(
                f"permutations is {self.permutations}, bands {self.bands}; expected a multiple: "
                "bands are of one size"
            )
        if self.recall(self.jaccard) < _MIN_RECALL:
            raise ValueError(
                f"{self.bands} bands of {self.permutations} permutations find a pair of jaccard "
                f"{self.jaccard} with probability {self.recall(self.jaccard):.2f}; expected at "
                f"least {_MIN_RECALL}: take more bands"
            )

    def recall(self, jaccard: float) -> float:
        """The probability that a pair of this similarity is compared."""
        return 1 - (1 - jaccard ** (self.permutations // self.bands)) ** self.bands


def trace_signature(frames: str, options: NearDuplicates) -> np.ndarray:
    """The MinHash of a trace, ``permutations`` of uint32.

    Args:
        frames: their text, as `render_frames` writes it.
        options: what counts.
    """
    return minhash(_shingles(_frame_codes(frames, options.values), options), options.permutations)


def minhash(elements: np.ndarray, permutations: int) -> np.ndarray:
    """The minima of a set of well mixed uint64 under that many hash functions."""
    factors, offsets = _hash_functions(permutations)
    minima = np.full(permutations, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(elements), _FIRST_CAPACITY):  # bounds the memory of the product
        part = elements[None, start : start + _FIRST_CAPACITY]
        hashed = ((factors * part + offsets) >> np.uint64(32)).astype(np.uint32)
        np.minimum(minima, hashed.min(axis=1), out=minima)
    return minima


class NearDuplicateIndex:
    """The signatures of the episodes that are kept, and the bands they are found by.

    Memory per episode with the default options: 960 to 1920 bytes (``num_bytes``), as arrays double
    when they are full: 512 of signature, 64 of links, 384 of tables at a load of a half. Episodes
    are numbered by int32.
    """

    def __init__(self, options: NearDuplicates) -> None:
        self._options = options
        self._rows = options.permutations // options.bands
        self._bands = np.arange(options.bands)
        self._salts = _hash_functions(options.bands)[0][:, 0]
        self._powers = _hash_functions(self._rows + 1)[0][1:, 0]
        self._count = 0
        self._signatures = np.empty((_FIRST_CAPACITY, options.permutations), np.uint32)
        # Of the band's key of an episode: the owner before it, or -1.
        self._previous = np.empty((_FIRST_CAPACITY, options.bands), np.int32)
        self._init_tables(2 * _FIRST_CAPACITY)

    def __len__(self) -> int:
        return self._count

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        arrays = (self._signatures, self._previous, self._keys, self._owners)
        return sum(array.nbytes for array in arrays)

    def add(self, signature: np.ndarray) -> int | None:
        """The number of an episode that this one is a near-duplicate of; else None, and it is kept.

        Episodes are numbered from 0 in the order in which they were kept.
        """
        self._reserve()
        keys = self._band_keys(signature)
        slots = self._find(keys)
        owners = self._owners[self._bands, slots]
        found = self._near(signature, owners)
        if found is not None:
            return found
        self._signatures[self._count] = signature
        self._previous[self._count] = owners
        self._keys[self._bands, slots] = keys
        self._owners[self._bands, slots] = self._count
        self._count += 1
        return None

    def _band_keys(self, signature: np.ndarray) -> np.ndarray:
        rows = signature.reshape(-1, self._rows).astype(np.uint64)
        return _mixed((rows * self._powers).sum(axis=1, dtype=np.uint64) + self._salts)

    def _find(self, keys: np.ndarray) -> np.ndarray:
        """Of each band the slot that holds its key, or the free one where it belongs."""
        slots = keys & self._mask
        while True:
            taken = self._owners[self._bands, slots] >= 0
            other = taken & (self._keys[self._bands, slots] != keys)
            if not other.any():
                return slots
            slots[other] = (slots[other] + np.uint64(1)) & self._mask

    def _near(self, signature: np.ndarray, owners: np.ndarray) -> int | None:
        bands = self._bands
        for _ in range(_MAX_CHAIN):
            bands, owners = bands[owners >= 0], owners[owners >= 0]
            if not len(owners):
                return None
            equal = (self._signatures[owners] == signature).mean(axis=1)
            best = int(equal.argmax())
            if equal[best] >= self._options.jaccard:
                return int(owners[best])
            owners = self._previous[owners, bands]
        return None

    def _reserve(self) -> None:
        """Doubles the arrays when they are full; the tables' load stays at most a half."""
        if self._count < len(self._signatures):
            return
        for name in ("_signatures", "_previous"):
            old = getattr(self, name)
            new = np.empty((2 * len(old), old.shape[1]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        keys, owners = self._keys, self._owners
        self._init_tables(2 * keys.shape[1])
        for band in range(self._options.bands):
            live = owners[band] >= 0
            self._insert_all(band, keys[band, live], owners[band, live])

    def _init_tables(self, capacity: int) -> None:
        self._mask = np.uint64(capacity - 1)
        self._keys = np.zeros((self._options.bands, capacity), np.uint64)
        self._owners = np.full((self._options.bands, capacity), -1, np.int32)

    def _insert_all(self, band: int, keys: np.ndarray, owners: np.ndarray) -> None:
        slots = keys & self._mask
        while len(keys):
            free = self._owners[band, slots] < 0
            # Several may want one slot: who is written last has it, and the others go on.
            self._owners[band, slots[free]] = owners[free]
            placed = self._owners[band, slots] == owners
            self._keys[band, slots[placed]] = keys[placed]
            keys, owners = keys[~placed], owners[~placed]
            slots = (slots[~placed] + np.uint64(1)) & self._mask


def _frame_codes(frames: str, values: bool) -> np.ndarray:
    """A number for each frame's text, or for its event and action."""
    texts = frames.split(FRAME_SEP)
    if not values:
        texts = [_event_and_action(text) for text in texts]
    digests = {text: hashlib.blake2b(text.encode(), digest_size=8).digest() for text in set(texts)}
    return np.frombuffer(b"".join(digests[text] for text in texts), "<u8").astype(np.uint64)


def _event_and_action(text: str) -> str:
    before, _, action = text.partition(ACTION_SEP)
    return before.partition("|>")[0] + action.partition(ARG_SEP)[0]


def _shingles(codes: np.ndarray, options: NearDuplicates) -> np.ndarray:
    length = min(options.shingle_frames, len(codes))
    count = len(codes) - length + 1
    shingles = np.zeros(count, np.uint64)
    for at in range(length):
        shingles = _mixed(shingles * _MULTIPLIER + codes[at : at + count])
    return np.unique(shingles)


def _hash_functions(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets, columns of uint64: x to the upper half of factor * x + offset."""
    stream = hashlib.shake_128(b"cwm_jax.trace.corpus").digest(16 * count)
    numbers = np.frombuffer(stream, "<u8").astype(np.uint64).reshape(count, 2)
    return numbers[:, :1] | np.uint64(1), numbers[:, 1:]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result depends on every bit of the value (splitmix64's last step)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
