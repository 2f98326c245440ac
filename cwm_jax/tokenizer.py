"""Byte-level BPE and CWM's special tokens: the single home of the ids 128000...128121.

A vocabulary is a list of byte strings in rank order with 256 reserved ids on top, so a special id
is the number of ranks plus an offset: 128000 + offset for the released tokenizer, whose ranks equal
Llama 3's, and the same offsets on top of a small project-trained one. A tiktoken
``tokenizer.model`` and a Hugging Face ``tokenizer.json`` of one vocabulary give equal tokenizers.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from cwm_jax.storage import write_whole

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
PAD = "<|pad|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
FRAME_SEP = "<|frame_sep|>"
ACTION_SEP = "<|action_sep|>"
RETURN_SEP = "<|return_sep|>"
CALL_SEP = "<|call_sep|>"
LINE_SEP = "<|line_sep|>"
EXCEPTION_SEP = "<|exception_sep|>"
ARG_SEP = "<|arg_sep|>"
TRACE_CONTEXT_START = "<|trace_context_start|>"
THINKING_START = "<|reasoning_thinking_start|>"
THINKING_END = "<|reasoning_thinking_end|>"

NUM_RESERVED_TOKENS = 256
# Above the last rank. Source: Meta's code; its prompting guide prints 8, which is eom, for eot.
SPECIAL_TOKEN_OFFSETS = {
    BEGIN_OF_TEXT: 0,
    END_OF_TEXT: 1,
    PAD: 4,
    START_HEADER: 6,
    END_HEADER: 7,
    END_OF_MESSAGE: 8,
    END_OF_TURN: 9,
    FRAME_SEP: 100,
    ACTION_SEP: 101,
    RETURN_SEP: 102,
    CALL_SEP: 103,
    LINE_SEP: 104,
    EXCEPTION_SEP: 105,
    ARG_SEP: 106,
    TRACE_CONTEXT_START: 107,
    THINKING_START: 120,
    THINKING_END: 121,
}

# Every reserved id has a name, in the order of the ids; no vocabulary changes them.
_NAMES = [f"<|reserved_special_token_{offset}|>" for offset in range(NUM_RESERVED_TOKENS)]
for _name, _offset in SPECIAL_TOKEN_OFFSETS.items():
    _NAMES[_offset] = _name
_ANY_NAME = re.compile("(" + "|".join(map(re.escape, _NAMES)) + ")")

# Llama 3's: contractions, words, up to three digits, punctuation, line ends, other white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Longer text is cut into slices that are encoded separately, as in Meta's code: no token crosses a
# seam, so the word that lies across it gets other tokens than elsewhere.
MAX_SLICE_CHARACTERS = 400_000
MIN_VOCAB_SIZE = 256 + NUM_RESERVED_TOKENS

_ESCAPED_BYTES = re.compile("([\udc80-\udcff]+)")  # what "surrogateescape" makes of invalid UTF-8
_CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

Merge = tuple[bytes, bytes]


class Tokenizer:
    """Text or bytes to ids and back; made by `load_tokenizer` or `train_tokenizer`.

    Attributes:
        special_tokens: name to id; an unnamed slot is ``<|reserved_special_token_{offset}|>``.
        vocab_size: number of ids, the reserved ones included.
        bos_id, eos_id, pad_id: of ``<|begin_of_text|>``, ``<|end_of_text|>`` and ``<|pad|>``.
        stop_ids: each ends an answer of the instruction-tuned model.
        fingerprint: SHA-256 in hex over split rule, ranks and special tokens, whichever file held
            them.
    """

    def __init__(self, tokens: Sequence[bytes], merges: Sequence[Merge]) -> None:
        """Takes the mergeable tokens in rank order and what `_last_merges` makes of them."""
        self.special_tokens = {name: len(tokens) + offset for offset, name in enumerate(_NAMES)}
        self.vocab_size = len(tokens) + len(_NAMES)
        self.bos_id = self.special_tokens[BEGIN_OF_TEXT]
        self.eos_id = self.special_tokens[END_OF_TEXT]
        self.pad_id = self.special_tokens[PAD]
        eom_id, eot_id = self.special_tokens[END_OF_MESSAGE], self.special_tokens[END_OF_TURN]
        self.stop_ids = (eom_id, eot_id, self.eos_id)
        self._spellings = [*tokens, *(name.encode() for name in _NAMES)]
        self.fingerprint = _sha256([SPLIT_PATTERN.encode(), *self._spellings])
        self._byte_ids = {t[0]: rank for rank, t in enumerate(tokens) if len(t) == 1}
        # It knows no special token: that is why text can never yield one.
        self._backend = _backend(
            _bpe(
                {_to_characters(token): rank for rank, token in enumerate(tokens)},
                [(_to_characters(left), _to_characters(right)) for left, right in merges],
            )
        )

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: the name of a special token in it is so many characters."""
        encodings = (self._backend.encode(s, add_special_tokens=False) for s in _slices(text))
        return [i for encoding in encodings for i in encoding.ids]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        slices = [_slices(text) for text in texts]
        flat = [piece for document in slices for piece in document]
        encodings = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        return [[i for _ in document for i in next(encodings).ids] for document in slices]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids that `decode_bytes` inverts: UTF-8 stretches as text, every other byte on its own."""
        parts = _text_and_escapes(data)
        return self._join(parts, map(self.encode, parts[::2]), self._escape_ids)

    def encode_bytes_batch(self, documents: Iterable[bytes]) -> list[list[int]]:
        """`encode_bytes` of each document, on all cores."""
        return self._encode_parts_batch(map(_text_and_escapes, documents), self._escape_ids)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Ids of trusted text: the name of a special token in it is that one token.

        For texts that the project writes itself, such as traces; what users give goes through
        `encode`.
        """
        parts = split_at_special_tokens(text)
        return self._join(parts, map(self.encode, parts[::2]), self._special_ids)

    def encode_with_special_tokens_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode_with_special_tokens` of each text, on all cores."""
        return self._encode_parts_batch(map(split_at_special_tokens, texts), self._special_ids)

    def _encode_parts_batch(
        self, documents: Iterable[list[str]], separator_ids: Callable[[str], list[int]]
    ) -> list[list[int]]:
        parts = list(documents)
        encoded = iter(self.encode_batch(text for document in parts for text in document[::2]))
        return [self._join(document, encoded, separator_ids) for document in parts]

    def _join(
        self,
        parts: Sequence[str],
        encoded_texts: Iterator[list[int]],
        separator_ids: Callable[[str], list[int]],
    ) -> list[int]:
        """Ids of texts (at even places) and of what separates them (at odd ones)."""
        ids = []
        for index, part in enumerate(parts):
            ids += separator_ids(part) if index % 2 else next(encoded_texts)
        return ids

    def _escape_ids(self, escapes: str) -> list[int]:
        return [self._byte_ids[ord(escape) - 0xDC00] for escape in escapes]

    def _special_ids(self, name: str) -> list[int]:
        return [self.special_tokens[name]]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``: special tokens by their names, invalid UTF-8 as U+FFFD.

        Raises:
            ValueError: an id outside 0..vocab_size-1.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Exact bytes of ``ids``, special tokens by their names; raises as `decode` does."""
        ids = [operator.index(i) for i in ids]
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(
                f"token id {wrong}: expected 0 to {self.vocab_size - 1}; decode with the tokenizer "
                "that encoded"
            )
        return b"".join([self._spellings[i] for i in ids])

    def save(self, folder: str | os.PathLike[str], *, model_max_length: int = 131_072) -> None:
        """Writes what ``AutoTokenizer.from_pretrained(folder)`` and `load_tokenizer` read.

        AutoTokenizer then gives the ids of `encode`, except that it reads the names of special
        tokens in a text as ids. It adds no BOS by itself; the chat template does.

        Args:
            folder: made if missing; each file is written beside its place, then renamed.
            model_max_length: context length in tokens that Hugging Face users see.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = [
            tokenizers.AddedToken(n, special=True, normalized=False) for n in self.special_tokens
        ]
        exported = _backend(self._backend.model)
        exported.add_special_tokens(special)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "pad_token": PAD,
            "model_max_length": model_max_length,
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
        }
        write_whole(folder / "tokenizer_config.json", f"{json.dumps(config, indent=2)}\n".encode())
        write_whole(folder / "chat_template.jinja", _CHAT_TEMPLATE.read_bytes())
        write_whole(folder / "tokenizer.json", exported.to_str(pretty=True).encode())


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a tiktoken ``tokenizer.model``, a ``tokenizer.json``, or a folder (its JSON first).

    Raises:
        ValueError: no such file, or not a byte-level BPE with CWM's split rule and reserved tokens.
    """
    file = Path(path)
    if file.is_dir():
        names = ("tokenizer.json", "tokenizer.model")
        file = next((file / name for name in names if (file / name).is_file()), file)
    if not file.is_file():
        raise ValueError(
            f"tokenizer {file}: nothing to read there; expected a tokenizer.model, a "
            "tokenizer.json, or a folder with either"
        )
    return _load_json(file) if file.suffix == ".json" else _load_ranks(file)


def split_at_special_tokens(text: str) -> list[str]:
    """Ordinary text at even places, maybe empty; the name of a special token at odd ones."""
    return _ANY_NAME.split(text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE; the same texts give the same tokenizer.

    Args:
        texts: documents; a pair of tokens must occur twice to be merged.
        vocab_size: ids in all: 256 bytes, merges, 256 reserved.

    Raises:
        ValueError: ``vocab_size`` is below 512 or above what the texts have merges for.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ValueError(f"vocab_size is {vocab_size}; expected {MIN_VOCAB_SIZE} or more")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_RESERVED_TOKENS,
        min_frequency=2,
        initial_alphabet=_CHARACTERS,
        show_progress=False,
    )
    backend = _backend(_bpe({}, []))
    backend.train_from_iterator(map(_scalar_values, texts), trainer)
    vocab = backend.get_vocab()
    possible = len(vocab) + NUM_RESERVED_TOKENS
    if possible != vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}, but the texts have {len(vocab) - 256} merges, enough for "
            f"{possible}; ask for {possible} or give more text"
        )
    tokens = [_to_bytes(token) for token in sorted(vocab, key=vocab.__getitem__)]
    return Tokenizer(tokens, _last_merges(tokens))


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]]) -> models.BPE:
    # A piece that is a token becomes it even where no merges lead there, as in tiktoken.
    return models.BPE(vocab, merges, ignore_merges=True)


def _backend(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _last_merges(tokens: Sequence[bytes]) -> list[Merge]:
    """The merges, by rising rank, with which Hugging Face's BPE does what tiktoken's does by rank.

    tiktoken merges any two neighbours that form a token, lowest rank first; Hugging Face wants the
    pairs listed. One pair per token is enough: where a token forms inside a longer piece nothing
    has merged across its borders before, so it forms as it does alone, or never.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = (_last_merge(token, ranks) for token in tokens if len(token) > 1)
    return [merge for merge in merges if merge is not None]


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> Merge | None:
    parts = [token[i : i + 1] for i in range(len(token))]
    never = len(ranks)
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, never) for left, right in itertools.pairwise(parts)]
        best = min(pair_ranks)
        if best == never:
            return None
        i = pair_ranks.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _sha256(parts: Iterable[bytes]) -> str:
    sized = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hashlib.sha256(sized).hexdigest()


def _load_ranks(file: Path) -> Tokenizer:
    lines = enumerate(file.read_bytes().splitlines(), start=1)
    ranks = dict(_parse_line(line, f"{file}, line {n}") for n, line in lines if line.strip())
    tokens = _in_rank_order(ranks, file)
    return Tokenizer(tokens, _last_merges(tokens))


def _parse_line(line: bytes, place: str) -> tuple[bytes, int]:
    try:
        token, rank = line.split()
        return base64.b64decode(token, validate=True), int(rank)
    except ValueError:
        raise ValueError(
            f"{place}: got {line[:60]!r}; expected tiktoken's 'base64 rank': SentencePiece's "
            "tokenizer.model is another format"
        ) from None


def _in_rank_order(ranks: dict[bytes, int], file: Path) -> list[bytes]:
    """Raises ValueError unless the ranks are 0, 1, 2, ... and every byte is a token."""
    tokens = sorted(ranks, key=ranks.__getitem__)
    wrong = next((i for i, token in enumerate(tokens) if ranks[token] != i), None)
    if wrong is not None:
        raise ValueError(
            f"{file}: token {tokens[wrong]!r} has rank {ranks[tokens[wrong]]}; expected {wrong}: a "
            "rank or token before it is missing or there twice: fetch the file again"
        )
    absent = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if absent:
        raise ValueError(
            f"{file}: {len(absent)} single bytes are no tokens, {absent[0]:#04x} first; expected "
            "none: use a byte-level BPE"
        )
    return tokens


def _load_json(file: Path) -> Tokenizer:
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
        added = {token["content"]: token["id"] for token in spec["added_tokens"]}
        _check_rules(spec, file)
        vocab = {t: rank for t, rank in spec["model"]["vocab"].items() if t not in added}
        tokens = _in_rank_order({_to_bytes(t): rank for t, rank in vocab.items()}, file)
        _check_reserved(added, len(tokens), file)
        merges = _last_merges(tokens)
        _check_merges(spec["model"]["merges"], merges, vocab, file=file)
    except (KeyError, TypeError, AttributeError, UnicodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{file}: {type(error).__name__} {error}; expected a byte-level BPE in Hugging Face's "
            "tokenizer.json format, as Tokenizer.save writes it"
        ) from error
    return Tokenizer(tokens, merges)


def _check_rules(spec: dict[str, Any], file: Path) -> None:
    """Raises ValueError unless text is split and merged as by `_backend`."""
    found, expected = _rules(spec), _rules(json.loads(_backend(_bpe({}, [])).to_str()))
    for name, rule in expected.items():
        if found[name] != rule:
            raise ValueError(
                f"{file}: {name} is {json.dumps(found[name])[:300]}; expected {json.dumps(rule)}: "
                "load a tokenizer.model, or train one with train_tokenizer"
            )


def _rules(spec: dict[str, Any]) -> dict[str, Any]:
    """What of a tokenizer.json decides the ids of ordinary text, beside ranks and merges."""
    steps = (spec["pre_tokenizer"] or {}).get("pretokenizers", [])
    return {
        "type": spec["model"]["type"],
        "ignore_merges": spec["model"].get("ignore_merges", False),
        "normalizer": spec["normalizer"],
        # trim_offsets moves offsets only
        "pre_tokenizer": [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps],
    }


def _check_reserved(added: dict[str, int], num_ranks: int, file: Path) -> None:
    """Raises ValueError unless the added tokens are the 256 ids on top, the named ones in place."""
    named = {name: num_ranks + offset for name, offset in SPECIAL_TOKEN_OFFSETS.items()}
    wrong = [name for name, expected in named.items() if added.get(name) != expected]
    top = range(num_ranks, num_ranks + NUM_RESERVED_TOKENS)
    if wrong or sorted(added.values()) != list(top):
        detail = f"{wrong[0]} with id {added.get(wrong[0])}" if wrong else "others"
        raise ValueError(
            f"{file}: {len(added)} added tokens, {detail}; expected {top[0]} to {top[-1]} with "
            "CWM's names: this is another model's file; load a tokenizer.model"
        )


def _check_merges(
    listed: list[Any], merges: Sequence[Merge], vocab: dict[str, int], *, file: Path
) -> None:
    """Raises ValueError unless a file's merges do what its ranks do, so that both formats agree."""
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in listed]
    results = [vocab.get("".join(pair), -1) for pair in pairs]
    needed = {(_to_characters(left), _to_characters(right)) for left, right in merges}
    missing = needed.difference(pairs)
    if missing or results != sorted(results):
        problem = f"lack {len(missing)} that the ids imply" if missing else "do not follow the ids"
        raise ValueError(
            f"{file}: its merges {problem}; expected ids that rise from merge to merge, as BPE "
            "training gives them: load a tokenizer.model"
        )


def _slices(text: str) -> list[str]:
    text = _scalar_values(text)
    return [text[i : i + MAX_SLICE_CHARACTERS] for i in range(0, len(text), MAX_SLICE_CHARACTERS)]


def _scalar_values(text: str) -> str:
    """Replaces lone surrogates, which UTF-8 cannot write, by U+FFFD, as tiktoken does."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text_and_escapes(data: bytes) -> list[str]:
    """Text at even places; at odd ones runs of invalid bytes b, each as chr(0xDC00 + b)."""
    return _ESCAPED_BYTES.split(data.decode("utf-8", "surrogateescape"))


def _byte_characters() -> list[str]:
    """The visible character that stands for each byte in a tokenizer.json (GPT-2's choice)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


_CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


def _to_characters(token: bytes) -> str:
    return "".join([_CHARACTERS[byte] for byte in token])


def _to_bytes(token: str) -> bytes:
    return bytes([_BYTES[character] for character in token])
