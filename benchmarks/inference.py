"""Generation by the engine and by transformers' ``generate``, from one folder of weights.

    python -m benchmarks.inference [--models tiny small] [--batch-sizes 1 8 32] [--new-tokens 128]

``tiny`` is configs/quickstart.py's model (1M parameters): its time is overhead; ``small`` is
configs/cwm_160m.py's with 32 thousand tokens: its weights do not fit a cache. Random weights,
greedy, prompts of equal length, float32 (``--dtype bfloat16`` on a GPU). Both sides use the same
threads or the same GPU, take turns, and have compiled before. In each round a side generates one
token (time to first token, and prompt tokens/s by it) and then all of them: decode tokens/s are
those after the first, by the difference. Medians of the rounds. On a GPU that is known, also the
share of its memory bandwidth that reading the weights once for each step would take.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from configs import cwm_160m, quickstart
from convert import save_hf
from cwm_jax.config import ExecutionConfig, ModelConfig
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.requests import SamplingParams
from cwm_jax.model.transformer import init, separate_layers
from cwm_jax.training.hardware import accelerator_of

MODELS: dict[str, ModelConfig] = {
    "tiny": quickstart.get_config().model,
    "small": dataclasses.replace(cwm_160m.MODEL, vocab_size=32_768),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to generate."""

    name: str
    generate: Callable[[np.ndarray, int], np.ndarray]
    """Prompts [B, T] and a number of tokens to the new tokens [B, n], on the host."""
    cache_bytes: Callable[[int, int], int]
    """Of so many rows of so many tokens."""


@dataclasses.dataclass(frozen=True)
class Result:
    """Medians of one side at one batch size, in seconds."""

    first_s: float
    rest_s: float
    tokens: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    arguments = parser.parse_args()
    print(versions(arguments.dtype))
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            report(name, folder, arguments)


def versions(dtype: str) -> str:
    import torch
    import transformers

    device = jax.devices()[0].device_kind
    return (
        f"{device}, {dtype}, jax {jax.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads"
    )


def report(name: str, folder: str, arguments: argparse.Namespace) -> None:
    """Prints the table of one model."""
    config, new_tokens = MODELS[name], arguments.new_tokens
    params = init(config, jax.random.key(0), dtype=arguments.dtype)
    save_hf(folder, config, params)
    weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    params = separate_layers(params, config, delete=True)
    print(
        f"\n{name}: {weight_bytes / 2**20:,.0f} MiB of weights, {arguments.prompt_tokens} tokens "
        f"of prompt, {new_tokens} new"
    )
    print(
        f"{'batch':>5}  {'side':12} {'first token':>12} {'prompt tok/s':>12} "
        f"{'decode tok/s':>12} {'cache MiB':>10}  {'of bandwidth':>12}"
    )
    for batch_size in arguments.batch_sizes:
        shape = (batch_size, arguments.prompt_tokens)
        prompts = np.random.default_rng(batch_size).integers(config.vocab_size, size=shape)
        length = arguments.prompt_tokens + new_tokens
        sides = [
            ours(params, config, batch_size, length),
            theirs(folder, arguments.dtype),
        ]
        results = measure(sides, prompts, new_tokens, arguments.rounds)
        for side, result in zip(sides, results, strict=True):
            decode = batch_size * (new_tokens - 1) / result.rest_s
            cache = side.cache_bytes(batch_size, length) / 2**20
            share = bandwidth_share(weight_bytes * decode / batch_size)
            prompt = prompts.size / result.first_s
            print(
                f"{batch_size:5}  {side.name:12} {1e3 * result.first_s:9.1f} ms "
                f"{prompt:12,.0f} {decode:12,.0f} {cache:10,.2f}  {share:>12}"
            )
        our, their = results
        equal = np.mean(our.tokens == their.tokens)
        print(
            f"       ours / theirs: prompt {their.first_s / our.first_s:.2f}x, decode "
            f"{their.rest_s / our.rest_s:.2f}x; equal tokens {equal:.1%}"
        )


def measure(sides: list[Side], prompts: np.ndarray, new_tokens: int, rounds: int) -> list[Result]:
    """The sides in turn, round by round."""
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    tokens: list[Any] = [None for _ in sides]
    for number in range(rounds + 1):
        for i, side in enumerate(sides):
            start = time.perf_counter()
            side.generate(prompts, 1)
            first = time.perf_counter() - start
            start = time.perf_counter()
            tokens[i] = side.generate(prompts, new_tokens)
            if number:  # the first one compiles
                times[i].append((first, time.perf_counter() - start - first))
    return [
        Result(statistics.median(f for f, _ in t), statistics.median(r for _, r in t), made)
        for t, made in zip(times, tokens, strict=True)
    ]


def ours(
    params, config: ModelConfig, batch_size: int, length: int, *, kv_dtype: str | None = None
) -> Side:
    """An engine of so many rows of so many tokens; ``kv_dtype`` as ``EngineOptions`` has it."""
    options = EngineOptions(
        max_length=length,
        max_rows=batch_size,
        prefill_tokens=2048,
        decode_steps=32,
        kv_dtype=kv_dtype,
        keep_prefixes=False,  # the same prompts come again
    )
    engine = Engine(params, config, None, options, execution=ExecutionConfig())

    def generate(prompts: np.ndarray, count: int) -> np.ndarray:
        sampling = SamplingParams(max_tokens=count, temperature=0.0)
        requests = [engine.submit(prompt, sampling) for prompt in prompts.tolist()]
        while engine.has_work:
            engine.step()
        return np.array([request.generated for request in requests])

    def cache_bytes(rows: int, tokens: int) -> int:
        return rows * engine.row_bytes(tokens)

    return Side("engine", generate, cache_bytes)


def theirs(folder: str, dtype: str) -> Side:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
    model.eval()
    kept: dict[int, int] = {}

    def generate(prompts: np.ndarray, count: int) -> np.ndarray:
        made = model.generate(
            torch.from_numpy(prompts).to(device),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long, device=device),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
        )
        layers = made.past_key_values.layers
        kept[len(prompts)] = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return made.sequences[:, prompts.shape[1] :].cpu().numpy()

    return Side("transformers", generate, lambda rows, _: kept[rows])


def bandwidth_share(bytes_per_s: float) -> str:
    """Of the device's memory bandwidth, if it is known."""
    known = accelerator_of(jax.devices()[0].device_kind)
    return "" if known is None else f"{bytes_per_s / known.memory_bytes_per_s:.1%}"


if __name__ == "__main__":
    main()
