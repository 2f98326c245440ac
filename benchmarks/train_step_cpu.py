"""One optimizer step of the same small CWM: ours against transformers + PyTorch, on this CPU.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.train_step_cpu [--rounds 5]

All train 1.2M parameters (1 global and 3 local layers, window 256) in float32 with AdamW, clipping
and the same tokens per step, on the same threads. PyTorch is timed as a user would write it (the
whole batch at once, SDPA attention) and tuned: the fastest of several splits into micro-batches
and of SDPA and eager attention. Ours takes its fastest split too. Then the three alternate; the
table gives medians of the rounds and of the rounds' ratios.

Limits: a step is 3.5 to 5 MFLOP of matrix products per token and direction; at this width both
sides are bound by small products (attention heads of 32) and by memory traffic of elementwise work,
far from peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers

from configs import quickstart_code
from cwm_jax.config import BatchConfig, TokenizerConfig
from cwm_jax.training.scaling.flops import flops_per_token
from cwm_jax.training.state import init_state
from cwm_jax.training.step import compiler_options, make_train_step

MODEL = dataclasses.replace(
    quickstart_code.get_config().model,
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=448,
    num_attention_heads=4,
    sliding_window=256,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=None,
)
CASES = {512: 16, 2048: 4}  # tokens in a row: rows in a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    print(
        f"{platform.processor() or platform.machine()}, {threads} threads, jax {jax.__version__}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{time.strftime('%Y-%m-%d')}, GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')}"
    )
    print("tok/s, in brackets the micro-batches of a step (and PyTorch's attention)")
    print("| T | ours | PyTorch as is | PyTorch tuned | our GFLOP/s | ratio as is | ratio tuned |")
    print("|---|---|---|---|---|---|---|")
    for T, rows in CASES.items():
        print(compare(T, rows, rounds), flush=True)


def compare(T: int, rows: int, rounds: int) -> str:
    """One line of the table."""
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (rows, T + 1), dtype=np.int32)
    splits = sorted({1, min(4, rows), min(8, rows), rows})
    ours = {f"{n}": our_step(tokens, n) for n in splits}
    plain = {"1, sdpa": torch_step(tokens, 1, "sdpa")}
    tuned = {f"{n}, {a}": torch_step(tokens, n, a) for n in splits for a in ("sdpa", "eager")}
    sides = [_fastest(steps) for steps in (ours, plain, tuned)]
    speeds: list[list[float]] = [[], [], []]
    for _ in range(rounds):
        for speed, (_, step) in zip(speeds, sides, strict=True):
            speed.append(rows * T / seconds(step))
    cells = [
        f"{statistics.median(speed):,.0f} ({name})"
        for speed, (name, _) in zip(speeds, sides, strict=True)
    ]
    ratios = [
        statistics.median(a / b for a, b in zip(speeds[0], speed, strict=True))
        for speed in speeds[1:]
    ]
    gflops = statistics.median(speeds[0]) * flops_per_token(MODEL, T) / 1e9
    row = [f"{T}", *cells, f"{gflops:.0f}", *(f"{ratio:.2f}" for ratio in ratios)]
    return "| " + " | ".join(row) + " |"


def _fastest(steps: dict[str, Callable[[], None]]) -> tuple[str, Callable[[], None]]:
    times = {name: min(seconds(step, 1) for _ in range(2)) for name, step in steps.items()}
    name = min(times, key=lambda n: times[n])
    return name, steps[name]


def seconds(step: Callable[[], None], repeats: int = 2) -> float:
    """Mean time of a step after one that warms up."""
    step()
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def our_step(tokens: np.ndarray, micro_batches: int) -> Callable[[], None]:
    """The project's training step as the loop runs it: jitted, state donated."""
    rows, T = tokens.shape[0], tokens.shape[1] - 1
    config = dataclasses.replace(
        quickstart_code.get_config(),
        model=MODEL,
        tokenizer=TokenizerConfig(vocab_size=MODEL.vocab_size),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=rows / micro_batches),
    )
    shape = (micro_batches, rows // micro_batches, T)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), shape)
    batch = {
        "tokens": tokens[:, :-1].reshape(shape),
        "targets": tokens[:, 1:].reshape(shape),
        "positions": positions,
        "segment_ids": np.ones(shape, np.int32),
        "loss_mask": np.ones(shape, np.float32),
    }
    batch = jax.device_put(batch)
    train = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=compiler_options())
    state = init_state(config, jax.random.key(0))

    def step() -> None:
        nonlocal state
        state, _ = train(state, batch)
        jax.block_until_ready(state)

    return step


def torch_step(tokens: np.ndarray, micro_batches: int, attention: str) -> Callable[[], None]:
    """transformers' CwmForCausalLM with torch's AdamW and gradient clipping."""
    names = {"architectures", "model_type", "rope_theta", "rope_scaling"}
    values = {k: v for k, v in MODEL.to_hf().items() if k not in names}
    config = transformers.CwmConfig(**values, use_cache=False)
    model = transformers.CwmForCausalLM._from_config(config, attn_implementation=attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    parts = torch.tensor(tokens).long().chunk(micro_batches)

    def step() -> None:
        optimizer.zero_grad()
        for part in parts:
            logits = model(input_ids=part[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
            (loss / micro_batches).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
