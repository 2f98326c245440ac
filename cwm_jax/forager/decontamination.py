"""What data may not be made of: repositories of benchmarks, and texts near to given ones."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cwm_jax.evals.contamination import LEAST_WORDS, training_texts, word_shingles, words_of
from cwm_jax.trace.corpus.deduplication import minhash

# Source: the repositories of SWE-bench's test split (Jimenez et al., arXiv 2310.06770, table of
# repositories), of which Lite and Verified are parts.
SWE_BENCH = (
    "astropy/astropy",
    "django/django",
    "matplotlib/matplotlib",
    "mwaskom/seaborn",
    "pallets/flask",
    "psf/requests",
    "pydata/xarray",
    "pylint-dev/pylint",
    "pytest-dev/pytest",
    "scikit-learn/scikit-learn",
    "sphinx-doc/sphinx",
    "sympy/sympy",
)
# Assumed: names of the repositories that hold the problems of benchmarks of kernels and of proofs.
KERNEL_BENCHMARKS = ("ScalingIntelligence/KernelBench", "thunlp/TritonBench")
LEAN_BENCHMARKS = (
    "openai/miniF2F",
    "rahul3613/ProofNet-lean4",
    "trishullab/PutnamBench",
    "yangky11/miniF2F-lean4",
    "zhangir-azerbayev/ProofNet",
)
_PERMUTATIONS, _JACCARD = 128, 0.8  # assumed, as of trace corpora
_ARCHIVE = re.compile(r"\.(git|zip|whl|tar|tgz|tar\.\w+)$")
_VERSION = re.compile(r"\s*(\[[^]]*\])?\s*([=<>!~]=?|@).*$|-v?\d+(\.\w+)+$")
_INSTANCE = re.compile(r"^.+__(.+?)(-\d+)?$")  # OWNER__NAME-NUMBER, as benchmarks write it


@dataclasses.dataclass(frozen=True)
class Exclusions:
    """Repositories that are left out, whoever has forked them.

    A repository is recognised by the last part of its name, whatever its owner, host, case and
    whether it has ``-``, ``_`` or ``.``; so is a distribution of that name. A fork under another
    name is not recognised: `KnownTexts` are for that.

    Attributes:
        repositories: ``OWNER/NAME`` or ``NAME``.
    """

    repositories: tuple[str, ...] = SWE_BENCH

    def find(self, source: str) -> str | None:
        """The repository that ``source`` is one of, or None.

        Args:
            source: a URL, ``OWNER/NAME``, the path of a checkout or archive, ``NAME==VERSION``.
        """
        name = bare_name(source)
        return next((entry for entry in self.repositories if bare_name(entry) == name), None)


def bare_name(source: str) -> str:
    """The last part of a repository's name in the spelling of distributions' (PEP 503)."""
    text = re.sub(r"[?#].*$", "", source.strip()).replace("\\", "/").rstrip("/")
    if "://" in text or text.startswith("git@"):
        last = re.split(r"[/:]", text)[-1]
    else:
        last = _VERSION.sub("", text).rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    last = _VERSION.sub("", _ARCHIVE.sub("", last.lower()))
    instance = _INSTANCE.match(last)
    return re.sub(r"[-_.]+", "-", instance[1] if instance else last).strip("-")


@dataclasses.dataclass(frozen=True)
class Near:
    """The given text that is nearest to another, and their estimated Jaccard similarity."""

    name: str
    jaccard: float


class KnownTexts:
    """Finds near-duplicates of given texts by MinHash of 5-word shingles.

    Texts of fewer than 8 words are no evidence and are compared on neither side.

    Args:
        texts: name to text.
        jaccard: similarity from which two texts are near, in (0, 1].

    Raises:
        ValueError: ``jaccard`` is out of its range.
    """

    def __init__(self, texts: Mapping[str, str], *, jaccard: float = _JACCARD) -> None:
        if not 0 < jaccard <= 1:
            raise ValueError(f"jaccard is {jaccard}; expected more than 0 and at most 1")
        self._jaccard = jaccard
        long = {name: text for name, text in texts.items() if _is_long(text)}
        self._names = list(long)
        self._signatures = _signatures(long.values())

    def __len__(self) -> int:
        """How many of the texts are compared."""
        return len(self._names)

    def find(self, text: str) -> Near | None:
        """The nearest of the texts, if it is near; of equally near ones the first."""
        if not self._names or not _is_long(text):
            return None
        similar = (self._signatures == _signatures([text])).mean(axis=1)
        best = int(similar.argmax())
        if similar[best] < self._jaccard:
            return None
        return Near(self._names[best], float(similar[best]))


def known_texts(paths: Iterable[str]) -> KnownTexts | None:
    """Those of training data at the paths, as `training_texts` reads it; None if there are none."""
    texts = {
        f"{path}:{name}": text for path in paths for name, text in training_texts(Path(path), None)
    }
    return KnownTexts(texts) if texts else None


def _is_long(text: str) -> bool:
    return len(words_of(text)) >= LEAST_WORDS


def _signatures(texts: Iterable[str]) -> np.ndarray:
    """(texts, permutations) of uint32."""
    rows = [minhash(word_shingles(text), _PERMUTATIONS) for text in texts]
    return np.stack(rows) if rows else np.zeros((0, _PERMUTATIONS), np.uint32)
