"""Attention with a window on this CPU: ours against a dense one and PyTorch's SDPA.

    python -m benchmarks.attention_cpu [--tokens 512 2048 8192] [--rounds 3]

One row of one document, 2 query heads on 1 kv head of width 64, window 256, float32, forward and
backward. PyTorch gets the window as a boolean mask, made before. Each measurement has a process of
its own, on the same threads; the three alternate in rounds. The time is the median over rounds of
the median call; the memory is what the process grew by in its first call, beyond inputs and
compiled code (Linux: the peak of its resident set).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

IMPLEMENTATIONS = ("chunked", "reference", "torch")
N, K, H = 2, 1, 64  # the dense one holds several N x T x T: 3.4 GiB at 8192
WINDOW = 256
MEASURED_S = 1.0  # of calls in a process, or three calls


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=IMPLEMENTATIONS, help="once, in this process")
    arguments = parser.parse_args(argv)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.tokens[0])))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "torch"))
    print(f"{platform.processor() or platform.machine()}, {num_threads()} threads, {versions}")
    print("| T | implementation | fwd+bwd ms (fastest and slowest round) | ratio | MiB |")
    print("|---|---|---|---|---|")
    for T in arguments.tokens:
        compare(T, arguments.rounds)


def compare(T: int, rounds: int) -> None:
    """Prints the lines of one length; the ratio is to our time."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(rounds):
        for name in IMPLEMENTATIONS:
            command = [sys.executable, "-m", "benchmarks.attention_cpu", "--measure", name]
            command += ["--tokens", str(T)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(output))
    ours = statistics.median(seconds for seconds, _ in found[IMPLEMENTATIONS[0]])
    for name, rows in found.items():
        times, growth = ([row[i] for row in rows] for i in range(2))
        median = statistics.median(times)
        cells = [T, name, f"{1e3 * median:.2f} ({1e3 * min(times):.2f}-{1e3 * max(times):.2f})"]
        cells += [f"{median / ours:.2f}", f"{statistics.median(growth) / 2**20:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def num_threads() -> int:
    return len(os.sched_getaffinity(0))


def measure(name: str, T: int) -> tuple[float, int]:
    """Median seconds of a call, and bytes that the process grew by in its first."""
    call = torch_call(T) if name == "torch" else our_call(name, T)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    growth = max(0, resident("VmHWM") - before)  # Linux counts a thread's pages in batches
    times: list[float] = []
    while sum(times) < MEASURED_S or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), growth


def resident(field: str) -> int:
    """Bytes of a field of Linux's account of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def our_call(implementation: str, T: int) -> Callable[[], None]:
    import jax

    from cwm_jax.kernels import attention, causal_mask

    mask = causal_mask(1, T, WINDOW)
    shapes = [(1, T, heads, H) for heads in (N, K, K, N)]
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

    def both(q, k, v, d_out):
        out, vjp = jax.vjp(
            lambda q, k, v: attention(q, k, v, mask, implementation=implementation), q, k, v
        )
        return out, *vjp(d_out)

    compiled = jax.jit(both).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs)) and None


def torch_call(T: int) -> Callable[[], None]:
    import torch

    torch.set_num_threads(num_threads())
    torch.manual_seed(0)
    q, k, v, d_out = (torch.randn(1, heads, T, H) for heads in (N, K, K, N))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    distance = torch.arange(T)[:, None] - torch.arange(T)
    visible = (distance >= 0) & (distance < WINDOW)

    def call() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(
            *inputs, attn_mask=visible, enable_gqa=True
        )
        torch.autograd.grad(out, inputs, d_out)

    return call


if __name__ == "__main__":
    main()
