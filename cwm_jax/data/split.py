"""Which documents are held out, and the training text from which a tokenizer is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from cwm_jax.config import SourceConfig
from cwm_jax.data.dialogs import parse_dialog
from cwm_jax.data.sources import documents
from cwm_jax.tokenizer import split_at_special_tokens

SPLIT_RULE = (
    "held out if the first 8 bytes of sha256(name) / 2**64 < heldout_fraction; the name of an "
    "episode is its group's"
)


def split_fraction(name: str) -> float:
    """Where in [0, 1) the name of a document falls, the same on every machine."""
    name_bytes = name.encode("utf-8", "surrogateescape")  # a file name need not be UTF-8
    return int.from_bytes(hashlib.sha256(name_bytes).digest()[:8], "big") / 2**64


def is_heldout(name: str, heldout_fraction: float) -> bool:
    """Whether the document of this name is kept from training (``SPLIT_RULE``)."""
    return split_fraction(name) < heldout_fraction


def training_texts(
    sources: Sequence[SourceConfig], *, heldout_fraction: float, training_bytes: int
) -> Iterator[str]:
    """Text of the training split of all sources, for the training of a tokenizer.

    Sources alternate so that the bytes taken from each follow its weight, in the order of the
    corpus; one that ends leaves its share to the others (a source with epochs counts as one of
    weight 1: its tokens are not known yet). Text that is not UTF-8 and the names of special tokens
    in traces are left out. The last document is cut.

    Args:
        sources: the mixture.
        heldout_fraction: as in ``DataConfig``; held-out documents are never among the texts.
        training_bytes: UTF-8 bytes in all texts together, at most.

    Raises:
        DataError: as ``documents`` does.
    """
    streams = {source: _train_texts_of(source, heldout_fraction) for source in sources}
    taken = dict.fromkeys(sources, 0)
    left = training_bytes
    while left > 0 and streams:
        source = min(streams, key=lambda s: taken[s] / s.weight)
        data = next(streams[source], None)
        if data is None:
            del streams[source]
            continue
        text = data[:left].decode(
            "utf-8", "ignore"
        )  # "ignore" drops a character that the cut broke
        taken[source] += len(data)
        left -= len(data)
        if text:
            yield text


def _train_texts_of(source: SourceConfig, heldout_fraction: float) -> Iterator[bytes]:
    for document in documents(source):
        if document.data and not is_heldout(document.split_name, heldout_fraction):
            try:
                text = document.data.decode()
            except UnicodeDecodeError:
                continue
            if source.is_of_dialogs:
                yield "\n".join(m.text for m in parse_dialog(json.loads(text))).encode()
            elif document.context is None:
                yield document.data
            else:
                pieces = split_at_special_tokens(document.context + text)[::2]
                yield from (piece.encode() for piece in pieces if piece)
