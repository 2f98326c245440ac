"""Which problems of a set stand in training data: n-grams of words, and near-duplicates.

As for GPT-3, a problem counts as found where a document has 13 of its words in a row, whatever
their case and what stands between them. Of a problem of 8 to 12 words all must be there; shorter
ones are not looked for. What many problems of the set share, such as a question they all end with,
is no evidence and is left out. A near-duplicate is a document of about the problem's length whose
5-word shingles are the problem's to 0.8 (Jaccard, estimated by MinHash).
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cwm_jax.config import SourceConfig
from cwm_jax.data.shards import KIND as SHARDS_KIND
from cwm_jax.data.shards import SPLITS, TOKEN_BITS, open_shards, tokens_from_record
from cwm_jax.data.sources import documents
from cwm_jax.storage import MANIFEST, read_records
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.corpus import read_corpus
from cwm_jax.trace.corpus.deduplication import minhash

NGRAM_WORDS = 13  # Source: GPT-3's appendix C
LEAST_WORDS = 8  # likewise
_COMMON_PROBLEMS = 10  # GPT-3: n-grams in more than 10 documents are left out
_SHINGLE_WORDS, _PERMUTATIONS, _JACCARD = 5, 128, 0.8  # assumed, as of trace corpora
_WORD = re.compile(r"\w+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_AGAIN = "name a folder that `prepare` or `generate` has written, or JSONL"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """A problem that stands in training data.

    Attributes:
        problem: its name.
        share: of its n-grams that some document has.
        jaccard: to its nearest near-duplicate, estimated; 0 where there is none.
        document: the first that has an n-gram of it, or the near-duplicate.
    """

    problem: str
    share: float
    jaccard: float
    document: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contamination:
    """What a check has found.

    Attributes:
        paths: of the training data.
        num_documents: that were read.
        num_problems: of the set.
        num_short: problems of too few words, which are not looked for.
        found: in the order of the set.
    """

    paths: tuple[str, ...]
    num_documents: int
    num_problems: int
    num_short: int
    found: tuple[Found, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def contamination_from_json(values: Mapping[str, Any]) -> Contamination:
    """The inverse of `Contamination.to_json`."""
    found = tuple(Found(**item) for item in values["found"])
    return Contamination(**{**values, "found": found, "paths": tuple(values["paths"])})


def check(
    problems: Mapping[str, str], paths: Sequence[Path], tokenizer: Tokenizer | None
) -> Contamination:
    """Looks for problems in training data.

    Args:
        problems: name to text.
        paths: each a folder of shards that a run has prepared, or a folder of such; a trace
            corpus; a JSONL file, gzipped or not; a folder of texts.
        tokenizer: that shards were written with.

    Raises:
        ValueError: data that cannot be read; shards without their tokenizer.
    """
    finder = _Finder(problems)
    count = 0
    for path in paths:
        for name, text in training_texts(path, tokenizer):
            count += 1
            finder.look(name, text)
    return Contamination(
        paths=tuple(map(str, paths)),
        num_documents=count,
        num_problems=len(problems),
        num_short=finder.num_short,
        found=tuple(finder.found()),
    )


def training_texts(path: Path, tokenizer: Tokenizer | None) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of training data; raises ValueError."""
    if not path.exists():
        raise ValueError(f"{path} is not there; expected training data: {_AGAIN}")
    if path.is_file():
        yield from _texts_of_file(path)
        return
    folders = (
        [path]
        if (path / MANIFEST).is_file()
        else sorted(manifest.parent for manifest in path.glob(f"*/{MANIFEST}"))
    )
    for folder in folders:
        if _kind(folder) == SHARDS_KIND:
            yield from _texts_of_shards(folder, tokenizer)
        else:
            for episode in read_corpus(folder):
                yield episode.name, episode.context
    if not folders:
        source = SourceConfig(name="training", kind="folder", path=str(path))
        for document in documents(source):
            if document.name.endswith((".jsonl", ".jsonl.gz")):
                yield from _texts_of_file(path / document.name)
            else:
                yield document.name, document.data.decode("utf-8", "replace")


def _kind(folder: Path) -> str:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder}: no readable {MANIFEST} ({error}); {_AGAIN}") from error


def _texts_of_shards(folder: Path, tokenizer: Tokenizer | None) -> Iterator[tuple[str, str]]:
    """Of the training split; what is held out is not trained on."""
    if tokenizer is None:
        raise ValueError(
            f"{folder} holds tokens; expected the tokenizer that they were written with: give "
            "--tokenizer"
        )
    shards = open_shards(folder, tokenizer, verify=False)
    for file in shards.split(SPLITS[0]).files:
        for name, record in read_records(folder / file.name, file, next_step=_AGAIN):
            ids = (tokens_from_record(record) & TOKEN_BITS).tolist()
            yield name, tokenizer.decode(ids)


def _texts_of_file(path: Path) -> Iterator[tuple[str, str]]:
    """All strings of each line's object, or the whole of a file that is no JSONL."""
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        yield path.name, path.read_bytes().decode("utf-8", "replace")
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line.decode("utf-8", "replace"))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}:{number} is not JSON ({error}); expected one object per line"
                ) from error
            yield f"{path.name}:{number}", "\n".join(_strings(values))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _strings(part)


class _Finder:
    """The n-grams of problems, and what has been found of them."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self._names = [*problems]
        words = [words_of(text) for text in problems.values()]
        self._vocabulary: dict[str, int] = {}
        for problem in words:
            for word in problem:
                self._vocabulary.setdefault(word, len(self._vocabulary) + 1)
        self.num_short = sum(len(problem) < LEAST_WORDS for problem in words)
        self._grams = _Grams([self._codes(problem) for problem in words])
        self._hits: list[set[int]] = [set() for _ in words]
        self._documents: dict[int, str] = {}
        shingles = [_grams_of(_codes_of_words(problem), _SHINGLE_WORDS) for problem in words]
        self._sizes = np.array([len(np.unique(found)) for found in shingles])
        self._signatures = (
            np.stack([minhash(np.unique(found), _PERMUTATIONS) for found in shingles])
            if words
            else np.zeros((0, _PERMUTATIONS), np.uint32)
        )
        self._long = np.array([len(problem) >= LEAST_WORDS for problem in words], bool)
        self._jaccard = np.zeros(len(words))

    def look(self, name: str, text: str) -> None:
        """Takes one document."""
        words = words_of(text)
        if len(words) < LEAST_WORDS or not self._names:
            return
        for problem, gram in self._grams.found(self._codes(words)):
            self._hits[problem].add(gram)
            self._documents.setdefault(problem, name)
        self._compare(name, words)

    def found(self) -> Iterator[Found]:
        """In the order of the problems."""
        for number, name in enumerate(self._names):
            hits, jaccard = self._hits[number], float(self._jaccard[number])
            if hits or jaccard:
                share = len(hits) / max(1, self._grams.counts[number])
                yield Found(
                    problem=name,
                    share=share,
                    jaccard=jaccard,
                    document=self._documents[number],
                )

    def _codes(self, words: Sequence[str]) -> np.ndarray:
        """A number for each word; 0 for those of no problem."""
        get = self._vocabulary.get
        return np.array([get(word, 0) for word in words], np.uint64)

    def _compare(self, name: str, words: Sequence[str]) -> None:
        """Only where sets of such sizes can be that similar."""
        most = self._sizes.max(initial=0)
        if len(words) > 2 * most / _JACCARD + 100:  # words repeat: a loose bound first
            return
        shingles = np.unique(_grams_of(_codes_of_words(words), _SHINGLE_WORDS))
        fits = (self._sizes >= _JACCARD * len(shingles)) & (self._sizes * _JACCARD <= len(shingles))
        near = np.nonzero(fits & self._long)[0]
        if not len(shingles) or not len(near):
            return
        signature = minhash(shingles, _PERMUTATIONS)
        similar = (self._signatures[near] == signature).mean(axis=1)
        for problem, jaccard in zip(
            near[similar >= _JACCARD], similar[similar >= _JACCARD], strict=True
        ):
            if jaccard > self._jaccard[problem]:
                self._jaccard[problem] = jaccard
                self._documents.setdefault(int(problem), name)


class _Grams:
    """The n-grams of problems by hash, sorted, for each length that problems have."""

    def __init__(self, problems: Sequence[np.ndarray]) -> None:
        by_length: dict[int, dict[int, list[int]]] = {}
        for number, codes in enumerate(problems):
            if len(codes) >= LEAST_WORDS:
                length = min(NGRAM_WORDS, len(codes))
                known = by_length.setdefault(length, {})
                for gram in np.unique(_grams_of(codes, length)).tolist():
                    known.setdefault(gram, []).append(number)
        self.counts = [0] * len(problems)
        self._owners: dict[int, dict[int, list[int]]] = {}
        self._sorted: dict[int, np.ndarray] = {}
        for length, known in by_length.items():
            kept = {gram: who for gram, who in known.items() if len(who) <= _COMMON_PROBLEMS}
            for who in kept.values():
                for number in who:
                    self.counts[number] += 1
            self._owners[length] = kept
            self._sorted[length] = np.array(sorted(kept), np.uint64)

    def found(self, codes: np.ndarray) -> Iterator[tuple[int, int]]:
        """(problem, n-gram) of a document."""
        for length, known in self._sorted.items():
            grams = _grams_of(codes, length)
            for gram in np.unique(grams[np.isin(grams, known)]).tolist():
                for problem in self._owners[length][gram]:
                    yield problem, gram


def words_of(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case."""
    return _WORD.findall(text.lower())


def word_shingles(text: str) -> np.ndarray:
    """The 5-word shingles of a text as numbers, each once, sorted; uint64."""
    return np.unique(_grams_of(_codes_of_words(words_of(text)), _SHINGLE_WORDS))


def _codes_of_words(words: Sequence[str]) -> np.ndarray:
    """A number for each word that is the same in every process."""
    digests: dict[str, bytes] = {
        word: hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for word in set(words)
    }
    joined = b"".join(digests[word] for word in words)
    return np.frombuffer(joined, "<u8").astype(np.uint64)


def _grams_of(codes: np.ndarray, length: int) -> np.ndarray:
    """A well mixed number for each run of that many words; of fewer words one for all."""
    length = min(length, len(codes))
    count = len(codes) - length + 1 if length else 0
    grams = np.zeros(count, np.uint64)
    for at in range(length):
        grams = _mixed(grams * _MULTIPLIER + codes[at : at + count])
    return grams


def _mixed(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
