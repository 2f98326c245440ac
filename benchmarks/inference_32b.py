"""The 32B on one accelerator, by format of its weights: prefill, decode, memory.

    python -m benchmarks.inference_32b [--formats bf16 int8 int4] [--rows 1 16] [--budget-s 300]

The engine as it serves, with random weights made and quantized on the device, greedy, prompts of
equal length. A decode step must read all weights once, which bounds tokens/s: `of bandwidth` is the
share of the memory's that this reading alone takes. Times are the better of two calls after the
first, which compiles. Formats that the budget does not reach are named.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inference import Side, bandwidth_share, ours
from cwm_jax.config import ModelConfig
from cwm_jax.inference import quantization
from cwm_jax.model.transformer import abstract_params, separate_layers


def main() -> None:
    start = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="cwm_32b", help="a module of configs with MODEL")
    parser.add_argument("--formats", nargs="+", default=["int8", "int4", "bf16"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--kv-dtype", choices=["int8"], help="of the cache; else bfloat16")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--budget-s", type=float, default=300.0)
    arguments = parser.parse_args()
    model_config = importlib.import_module(f"configs.{arguments.config}").MODEL
    device = jax.devices()[0].device_kind
    print(f"{device}, python {platform.python_version()}, jax {jax.__version__}, {arguments}")
    for name in arguments.formats:
        if time.perf_counter() - start > arguments.budget_s:
            print(f"{name}: not reached in {arguments.budget_s:.0f} s")
            continue
        try:
            measure(model_config, name, arguments)
        except Exception as error:  # the others are still worth their time
            print(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}")


def measure(model_config: ModelConfig, name: str, arguments: argparse.Namespace) -> None:
    """Prints the table of one format."""
    start = time.perf_counter()
    params = random_weights(model_config, name)
    weight_bytes = quantization.num_bytes(params)
    params = jax.block_until_ready(separate_layers(params, model_config, delete=True))
    print(
        f"\n{name}: {weight_bytes / 2**30:.2f} GiB of weights, made in "
        f"{time.perf_counter() - start:.1f} s; {memory()}; {arguments.prompt_tokens} tokens of "
        f"prompt, {arguments.new_tokens} new\n"
        f"| rows | prefill tok/s | decode tok/s | ms a step | of bandwidth | compiling s |\n"
        "|---|---|---|---|---|---|",
        flush=True,
    )
    length = arguments.prompt_tokens + arguments.new_tokens
    engine = ours(params, model_config, max(arguments.rows), length, kv_dtype=arguments.kv_dtype)
    for rows in arguments.rows:
        prompts = np.random.default_rng(rows).integers(
            model_config.vocab_size, size=(rows, arguments.prompt_tokens)
        )
        compiling = timed(engine, prompts, 2)
        first, whole = (
            min(timed(engine, prompts, count) for _ in range(2))
            for count in (1, arguments.new_tokens)
        )
        step = (whole - first) / (arguments.new_tokens - 1)
        print(
            f"| {rows} | {prompts.size / first:,.0f} | {rows / step:,.0f} | {1e3 * step:.2f} | "
            f"{bandwidth_share(weight_bytes / step)} | {compiling:.0f} |",
            flush=True,
        )
    print(memory(), flush=True)


def random_weights(model_config: ModelConfig, name: str) -> quantization.Params:
    """Of the stacked layout, one branch at a time, so that little is in memory twice."""

    @functools.partial(jax.jit, static_argnums=(1,))
    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return 0.02 * jax.random.normal(key, shape, jnp.bfloat16)

    keys = iter(jax.random.split(jax.random.key(0), 1000))

    def make(branch):
        drawn = jax.tree.map(lambda leaf: draw(next(keys), leaf.shape), branch)
        if name == "bf16":
            return drawn
        return quantization.quantize(drawn, model_config, name)

    made: dict = {}
    for top, branch in abstract_params(model_config).items():
        if top in ("layers", "tail"):
            made[top] = {j: make({top: {j: layer}})[top][j] for j, layer in branch.items()}
        else:
            made[top] = make({top: branch})[top]
    return made


def timed(engine: Side, prompts: np.ndarray, count: int) -> float:
    """Seconds in which each prompt gets so many tokens."""
    start = time.perf_counter()
    engine.generate(prompts, count)
    return time.perf_counter() - start


def memory() -> str:
    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_in_use" not in stats:
        return "memory not counted here"
    used, peak = (stats[k] / 2**30 for k in ("bytes_in_use", "peak_bytes_in_use"))
    return f"{used:.2f} GiB in use, {peak:.2f} at most so far"


if __name__ == "__main__":
    main()
