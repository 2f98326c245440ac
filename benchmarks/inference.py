"""Greedy decoding with the KV cache against one forward pass for each token, on this machine.

    python -m benchmarks.inference [--batch-size 16] [--new-tokens 512] [--rounds 3]

The model is that of configs/quickstart_code.py (2.7M parameters, random weights), prompts have 32
tokens. The decoder makes all tokens. Without a cache each step passes whole rows of the final
length through the model; ten such steps are timed, and their tokens compared. Compile times are
left out; medians of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from configs import quickstart_code
from cwm_jax.inference.decoder import Decoder
from cwm_jax.model.transformer import hidden_states, init, logits_from_hidden

MODEL = quickstart_code.get_config().model
PROMPT_TOKENS = 32
UNCACHED_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    params = init(MODEL, jax.random.key(0))
    shape = (arguments.batch_size, PROMPT_TOKENS)
    prompts = np.random.default_rng(0).integers(MODEL.vocab_size, size=shape)
    with_cache, without = [], []
    for _ in range(arguments.rounds):
        speed, tokens = cached(params, prompts, arguments.new_tokens)
        with_cache.append(speed)
        speed, expected = uncached(params, prompts, arguments.new_tokens)
        without.append(speed)
    same = np.mean(tokens[:, : expected.shape[1]] == expected)
    device = jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, batch {shape[0]}, {arguments.new_tokens} new tokens")
    print(f"with cache    {statistics.median(with_cache):10.1f} tokens/s")
    print(f"without cache {statistics.median(without):10.1f} tokens/s, {same:.1%} of tokens equal")


def cached(params, prompts: np.ndarray, num_new: int) -> tuple[float, np.ndarray]:
    """Tokens/s, and the tokens."""
    batch_size, length = prompts.shape
    decoder = Decoder(params, MODEL, max_length=length + num_new, batch_size=batch_size)

    def run():
        return decoder.generate(prompts.tolist(), max_new_tokens=num_new, stop_ids=())

    run()
    start = time.perf_counter()
    tokens = np.array([made.tokens for made in run()])
    return tokens.size / (time.perf_counter() - start), tokens


def uncached(params, prompts: np.ndarray, num_new: int) -> tuple[float, np.ndarray]:
    """Tokens/s over the first steps, and their tokens."""
    batch_size, length = prompts.shape
    steps = min(UNCACHED_STEPS, num_new)
    rows = jnp.asarray(np.pad(prompts, ((0, 0), (0, num_new))), jnp.int32)
    start = time.perf_counter()
    for end in range(length - 1, length + steps):
        if end == length:  # the first call compiled; the token that it gave is not timed
            start = time.perf_counter()
        rows = jax.block_until_ready(_append(params, rows, end))
    seconds = time.perf_counter() - start
    return batch_size * steps / seconds, np.asarray(rows[:, length : length + steps + 1])


@jax.jit
def _append(params, rows, end):
    x = jax.lax.dynamic_index_in_dim(hidden_states(params, MODEL, rows), end, axis=1)
    return rows.at[:, end + 1].set(jnp.argmax(logits_from_hidden(params, x)[:, 0], axis=-1))


if __name__ == "__main__":
    main()
