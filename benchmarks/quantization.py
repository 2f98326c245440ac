"""What quantized weights and an int8 cache cost a trained model, and what they save.

    python -m benchmarks.quantization --checkpoint runs/quickstart/export --traces \\
        runs/traces/quickstart [--episodes 200] [--new-tokens 256] [--rounds 5]

Held-out episodes of a trace corpus (those that training never saw, by its hash of names) are scored
with each form of the weights, teacher forced: KL is that of the next token's distribution against
the exact weights', in nats, over all tokens; perplexity, tokens and frames are over the frames
after the entry's call: the share of tokens that are the most likely, and of frames all of whose
tokens are. The int8 cache is filled in pieces, so that later tokens read it. Decoding is greedy,
one row and eight, by the pure functions; medians of the rounds, compile times left out. fp8 is not
timed where the device has none.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from convert import load_hf
from cwm_jax.config import DataConfig, ModelConfig
from cwm_jax.data.split import is_heldout
from cwm_jax.inference.cache import decode, extend, init_cache
from cwm_jax.inference.quantization import (
    cast,
    check_device,
    check_group_size,
    dequantize_params,
    num_bytes,
    quantize,
    weight_format_of,
)
from cwm_jax.model.transformer import Params, forward, logits_from_hidden
from cwm_jax.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from cwm_jax.trace.corpus import read_corpus
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.format import parse_frames, render_each

_PIECE = 32  # tokens that are put into the int8 cache at a time
_MAX_LENGTH = 512
_HELDOUT = next(f.default for f in dataclasses.fields(DataConfig) if f.name == "heldout_fraction")


@dataclasses.dataclass(frozen=True)
class Texts:
    """Rows of held-out episodes, padded."""

    tokens: np.ndarray  # [B, T + 1]
    real: np.ndarray  # [B, T] of positions with a next token
    frames: np.ndarray  # [B, T] int: number of the frame that the next token belongs to; 0 is none


@dataclasses.dataclass(frozen=True)
class Quality:
    """Against the exact weights, and against the truth."""

    kl: float
    perplexity: float
    tokens: float
    frames: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="Hugging Face's layout")
    parser.add_argument("--traces", type=Path, required=True, help="a corpus of `trace corpus`")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config, exact = load_hf(options.checkpoint)
    texts = heldout_texts(options.traces, load_tokenizer(options.checkpoint), options.episodes)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}; {options.checkpoint}: {num_bytes(exact):,} bytes")
    print(f"{len(texts.tokens)} held-out episodes, {int((texts.frames > 0).sum()):,} frame tokens")
    print(
        f"{'weights, cache':24} {'bytes':>12} {'KL, nats':>9} {'perplexity':>10} {'tokens':>7} "
        f"{'frames':>7} {'tok/s, 1':>9} {'tok/s, 8':>9}"
    )
    baseline = logits_of(exact, config, texts)
    for name, params, kv in forms(exact, config):
        run = dequantize_params(params) if refused(params) else params
        quality = compare(baseline, logits_of(run, config, texts, kv=kv), texts)
        speeds = [
            f"{'-':>9}"
            if refused(params)
            else f"{speed(params, config, rows, kv, options.new_tokens, options.rounds):9.0f}"
            for rows in (1, 8)
        ]
        print(
            f"{name:24} {num_bytes(params):12,} {quality.kl:9.5f} {quality.perplexity:10.4f} "
            f"{quality.tokens:7.2%} {quality.frames:7.2%} {' '.join(speeds)}",
            flush=True,
        )


def forms(exact: Params, config: ModelConfig):
    """(name, params, dtype of the cache): exact ones, rounded to bfloat16, and quantized."""
    yield "as trained", exact, None
    yield "bfloat16 weights", cast(cast(exact, "bfloat16"), "float32"), None
    yield "int8", quantize(exact, config, "int8"), None
    yield "fp8", quantize(exact, config, "fp8"), None
    largest = check_group_size(config, weight_format_of("int4"), None)
    assert largest is not None, "int4 has groups"
    for group_size in (largest, largest // 2, largest // 4):
        params = quantize(exact, config, "int4", group_size=group_size)
        yield f"int4, groups of {group_size}", params, None
        if group_size == largest:
            head = quantize(exact, config, "int8")["lm_head"]
            yield f"int4, {group_size}, head int8", params | {"lm_head": head}, None
    yield "as trained, int8 cache", exact, "int8"
    yield "int8, int8 cache", quantize(exact, config, "int8"), "int8"


def refused(params: Params) -> bool:
    """Whether this device computes no such weights."""
    try:
        check_device(params)
    except ValueError:
        return True
    return False


def heldout_texts(corpus: Path, tokenizer: Tokenizer, count: int) -> Texts:
    """The first ``count`` finished ones of the episodes that training never sees."""
    rows = []
    for episode in read_corpus(corpus):
        if len(rows) < count and episode.finished and is_heldout(episode.group, _HELDOUT):
            tokens, frames = _tokens(episode, tokenizer)
            if len(tokens) <= _MAX_LENGTH:
                rows.append((tokens, frames))
    if not rows:
        raise SystemExit(f"{corpus} has no held-out episode of at most {_MAX_LENGTH} tokens")
    T = -(-max(len(tokens) for tokens, _ in rows) // _PIECE) * _PIECE
    tokens = np.full((len(rows), T + 1), tokenizer.pad_id, np.int32)
    real, frames = np.zeros((len(rows), T), bool), np.zeros((len(rows), T), np.int32)
    for row, (values, numbers) in enumerate(rows):
        tokens[row, : len(values)] = values
        real[row, : len(values) - 1] = True
        frames[row, : len(values) - 1] = numbers[1:]
    return Texts(tokens, real, frames)


def _tokens(episode: Episode, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Of a whole episode, and of each the number of its frame: 0 of what is given."""
    encode = tokenizer.encode_with_special_tokens
    given, *rest = [encode(text) for text in render_each(parse_frames(episode.frames))]
    tokens = [*encode(episode.prompt), *given]
    numbers = [0] * len(tokens)
    rest.append([tokenizer.special_tokens[END_OF_TEXT]])
    for number, frame in enumerate(rest, 1):
        tokens += frame
        numbers += [number] * len(frame)
    return tokens, numbers


def logits_of(
    params: Params, config: ModelConfig, texts: Texts, *, kv: str | None = None, rows: int = 8
) -> np.ndarray:
    """Float32 ``[B, T, V]``: with a cache's dtype, through a cache."""
    run = _forward if kv is None else functools.partial(_through_cache, kv=kv)
    parts = []
    for start in range(0, len(texts.tokens), rows):
        tokens = texts.tokens[start : start + rows, :-1]
        full = np.zeros((rows, tokens.shape[1]), np.int32)
        full[: len(tokens)] = tokens
        parts.append(np.asarray(run(params, config, full))[: len(tokens)])
    return np.concatenate(parts)


_forward = jax.jit(forward, static_argnums=1)


def _through_cache(params: Params, config: ModelConfig, tokens: np.ndarray, *, kv: str):
    B, T = tokens.shape
    cache = init_cache(config, B, T, dtype=kv)
    lengths, rows = np.full(B, _PIECE, np.int32), np.arange(B, dtype=np.int32)
    parts = []
    for start in range(0, T, _PIECE):
        piece = tokens[:, start : start + _PIECE]
        logits, cache = _extend(params, cache, piece, lengths=lengths, rows=rows)
        parts.append(logits)
    return jnp.concatenate(parts, axis=1)


@jax.jit
def _extend(params, cache, tokens, *, lengths, rows):
    x, cache = extend(params, cache, tokens, lengths=lengths, rows=rows)
    return logits_from_hidden(params, x), cache


def compare(baseline: np.ndarray, logits: np.ndarray, texts: Texts) -> Quality:
    """Of some logits."""
    targets = texts.tokens[:, 1:]
    exact, ours = (np.asarray(jax.nn.log_softmax(x, axis=-1)) for x in (baseline, logits))
    kl = np.sum(np.exp(exact) * (exact - ours), axis=-1)[texts.real]
    counted = texts.frames > 0
    chosen = np.take_along_axis(ours, targets[..., None], axis=-1)[..., 0][counted]
    hits = logits.argmax(-1) == targets
    frames = [
        bool(np.all(hits[row][texts.frames[row] == number]))
        for row in range(len(targets))
        for number in range(1, texts.frames[row].max() + 1)
    ]
    return Quality(
        kl=float(kl.mean()),
        perplexity=float(np.exp(-chosen.mean())),
        tokens=float(hits[counted].mean()),
        frames=float(np.mean(frames)),
    )


def speed(
    params: Params, config: ModelConfig, rows: int, kv: str | None, new_tokens: int, rounds: int
) -> float:
    """Tokens/s of greedy decoding from an empty cache, all rows together."""
    dtype = kv or params["embed_tokens"]["embedding"].dtype.name
    length = min(config.max_position_embeddings, new_tokens)
    empty = init_cache(config, rows, length, dtype=dtype)

    @jax.jit
    def run(params, cache):
        def step(carry, _):
            tokens, cache = carry
            logits, cache = decode(params, cache, tokens)
            return (jnp.argmax(logits, axis=-1).astype(jnp.int32), cache), None

        first = jnp.zeros(rows, jnp.int32)
        return jax.lax.scan(step, (first, cache), None, length=length)[0][0]

    jax.block_until_ready(run(params, empty))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run(params, empty))
        seconds.append(time.perf_counter() - start)
    return rows * length / statistics.median(seconds)


if __name__ == "__main__":
    main()
