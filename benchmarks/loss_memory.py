"""Memory of the loss and its gradient at CWM's vocabulary: chunked against naive, as XLA allots it.

    python -m benchmarks.loss_memory [--tokens 8192] [--width 512]

Nothing is executed: the figures are the compiled programs' temporary buffers. The naive loss holds
the [T, V] logits in float32 more than once; the chunked one holds a chunk's, and the float32
gradient of the head.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from cwm_jax.training.losses import chunked_cross_entropy

VOCAB_SIZE = 128_256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--width", type=int, default=512)
    args = parser.parse_args()
    x = jax.ShapeDtypeStruct((1, args.tokens, args.width), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((args.width, VOCAB_SIZE), jnp.bfloat16)
    targets = jax.ShapeDtypeStruct((1, args.tokens), jnp.int32)

    def naive(x, kernel, targets):
        logits = jnp.einsum("btd,dv->btv", x, kernel, preferred_element_type=jnp.float32)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, targets[..., None], -1).sum()

    def chunked(chunk_tokens):
        def loss(x, kernel, targets):
            mask = jnp.ones(targets.shape, jnp.float32)
            return chunked_cross_entropy(x, kernel, targets, mask, 0.0, chunk_tokens)[0]

        return loss

    print(f"jax {jax.__version__}, T {args.tokens}, D {args.width}, V {VOCAB_SIZE}, bf16 inputs")
    print("| loss | temporary GiB |\n|---|---|")
    losses = {"naive": naive} | {f"chunks of {n}": chunked(n) for n in (512, 2048, 4096)}
    for name, loss in losses.items():
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel, targets).compile()
        print(f"| {name} | {compiled.memory_analysis().temp_size_in_bytes / 2**30:.2f} |")


if __name__ == "__main__":
    main()
