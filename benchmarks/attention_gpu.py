"""Attention on one NVIDIA GPU: ours, cuDNN, tokamax and PyTorch on CWM's shapes, in one run.

    python -m benchmarks.attention_gpu [--cases "8k packed" ...] [--implementations hopper ...]

48 query and 8 kv heads of width 128, bfloat16, 131,072 tokens in every case. Each implementation
first meets a float32 reference on a small case with the same kind of mask, then the others at full
size: output and gradients, relative in norm. One that fails, or cannot express a mask, is left out
with its reason.

Inputs are normal, document lengths log-normal with a fixed seed. A case is timed in rounds, each
implementation in every round; a sample is a batch of calls of 20 ms or more, after three warm-ups.
There are fewer of both where a call takes longer than a quarter of a second. FLOPs count visible
pairs alone, the same for all: 4 x heads x width forward, 2.5 times that backward. PyTorch runs
first, in a process of its own (benchmarks/attention_gpu_torch.py), its implementations interleaved
among themselves. `--smallest` runs one tiny case anywhere, our kernels interpreted on the CPU.

Implementations are those of IN_JAX and TORCH below, and any that `attention` has.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# PyTorch's process had the card before, and a case gives back what the next one needs
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from cwm_jax.kernels import attention
from cwm_jax.kernels.library import cudnn_attention
from cwm_jax.kernels.mask import IntervalMask, interval_mask
from cwm_jax.kernels.reference import reference_attention

BACKWARD_FLOPS = 2.5  # of the forward pass: five products for two
SAMPLE_S = 0.02  # a batch of calls, so long that launches do not show
ROUND_S = 1.0  # per implementation, at most, unless one call takes longer
LONG_CALL_S = 0.3  # warms up once: no start shows in it
ERROR_OUT, ERROR_GRADIENT = 1e-2, 2e-2  # in norm; a window off by one key gives 0.06 and more
SMALL_TOKENS, SMALL_WINDOW, SMALL_DOCUMENT = 1024, 192, 160
TORCH_SHARE = 0.4  # of the time limit


@dataclasses.dataclass(frozen=True)
class Case:
    """Rows of equal length under one kind of mask."""

    rows: int
    tokens: int
    """Of a row."""
    window: int | None = None
    mean_document: int | None = None
    """Of the log-normal (sigma 1) that lengths are drawn from; None: a row is one document."""
    heads: tuple[int, int, int] = (48, 8, 128)
    """Query heads, kv heads, width."""

    @property
    def scale(self) -> float:
        return self.heads[2] ** -0.5

    def small(self) -> Case:
        """The same kind of mask and heads at a size that a dense reference can do."""
        return Case(
            rows=2 if self.mean_document else 1,
            tokens=min(self.tokens, SMALL_TOKENS),
            window=self.window and min(self.window, SMALL_WINDOW),
            mean_document=self.mean_document and min(self.mean_document, SMALL_DOCUMENT),
            heads=(2 * self.heads[0] // self.heads[1], 2, self.heads[2]),
        )

    def document_lengths(self) -> list[list[int]]:
        """Of each row; the last document is cut where the row ends."""
        if self.mean_document is None:
            return [[self.tokens]] * self.rows
        rng, rows = np.random.default_rng(0), []
        for _ in range(self.rows):
            row: list[int] = []
            while (left := self.tokens - sum(row)) > 0:
                length = rng.lognormal(math.log(self.mean_document) - 0.5, 1.0)
                row.append(min(max(1, int(length)), left))
            rows.append(row)
        return rows

    def segment_ids(self) -> np.ndarray:
        return np.stack(
            [np.repeat(np.arange(1, len(row) + 1), row) for row in self.document_lengths()]
        ).astype(np.int32)

    def forward_flops(self) -> int:
        """4 x heads x width for each visible pair: two products of the forward pass."""
        lengths = np.concatenate(self.document_lengths()).astype(np.int64)
        pairs = lengths * (lengths + 1) // 2
        if self.window is not None:
            hidden = np.maximum(lengths - self.window, 0)
            pairs -= hidden * (hidden + 1) // 2
        return 4 * self.heads[0] * self.heads[2] * int(pairs.sum())


CASES = {  # what matters most first: a time limit cuts from the end
    "131k local packed": Case(1, 131_072, window=8192, mean_document=12_288),
    "8k packed": Case(16, 8192, mean_document=2048),
    "131k local": Case(1, 131_072, window=8192),
    "8k full": Case(16, 8192),
    "32k local": Case(4, 32_768, window=8192),
    "131k global": Case(1, 131_072),
}
SMALLEST = {
    "smallest": Case(1, 256, window=64, mean_document=96, heads=(2, 1, 64)),
    "smallest full": Case(1, 256, heads=(2, 1, 64)),
}

# the first that works is what the others are compared with at full size
IN_JAX = ("cudnn", "tokamax", "hopper", "triton", "chunked", "cudnn packed")
TORCH = ("torch flash", "torch cudnn", "torch flex", "torch varlen")


class Budget:
    """A time limit that the benchmark stops before, with what it has."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start = seconds, time.monotonic()

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.start)

    def require_time(self) -> None:
        if self.left <= 0:
            raise TimeoutError(f"the time limit of {self.seconds:.0f} s")


@dataclasses.dataclass
class Report:
    """What was measured, and what was left out and why; printed as it comes in."""

    results: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    left_out: list[dict[str, str]] = dataclasses.field(default_factory=list)
    out: Any = None
    """Stream for progress; None is stdout."""

    def add(self, row: dict[str, Any]) -> None:
        self.results.append(row)
        print(table_row(row), file=self.out, flush=True)

    def leave_out(self, case: str, implementation: str, reason: object) -> None:
        if isinstance(reason, Exception):
            reason = f"{type(reason).__name__}: {reason}"
        first_line = next(iter(str(reason).strip().splitlines()), "no reason given")[:200]
        self.left_out.append(dict(case=case, implementation=implementation, reason=first_line))
        print(f"left out: {case}, {implementation}: {first_line}", file=self.out, flush=True)

    def merge(self, other: dict[str, Any]) -> None:
        for row in other["results"]:
            self.add(row)
        for row in other["left_out"]:
            self.leave_out(**row)


class Passes(NamedTuple):
    """An implementation on a case's inputs: each starts one call, and returns what it gives."""

    forward: Callable[[], Any]
    both: Callable[[], Any]
    """Forward and backward for a given gradient of the output: ``out, dq, dk, dv``."""
    repeatable: bool = False
    """Two calls of ``both`` gave the same bits."""


def require_fast(passes: Passes, wait: Callable[[Any], Any], slowest_s: float) -> None:
    """Before anything longer is started; warms up."""
    wait(passes.forward())
    if (seconds := _seconds(passes.forward, wait, 1)) > slowest_s:
        raise ValueError(
            f"a forward call takes {seconds:.2f} s, more than {slowest_s} (--slowest-s)"
        )


def measure(
    calls: dict[str, Callable[[], Any]],
    wait: Callable[[Any], Any],
    *,
    rounds: int,
    reps: int,
    budget: Budget,
) -> dict[str, list[float]]:
    """Seconds of a call: ``reps`` samples of each, interleaved in rounds; none once time is up."""
    sizes = {}
    for name, call in calls.items():
        seconds = _seconds(call, wait, 1)
        if seconds < LONG_CALL_S:
            seconds = _seconds(call, wait, 2)
        batch = max(1, math.ceil(SAMPLE_S / seconds))
        samples = min(math.ceil(reps / rounds), int(ROUND_S / (batch * seconds)))
        sizes[name] = batch, max(1, samples)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            batch, samples = sizes[name]
            if budget.left > 0:
                times[name] += [_seconds(call, wait, batch) for _ in range(samples)]
    return times


def _seconds(call: Callable[[], Any], wait: Callable[[Any], Any], batch: int) -> float:
    start = time.perf_counter()
    for _ in range(batch):
        last = call()
    wait(last)
    return (time.perf_counter() - start) / batch


def time_case(
    name: str,
    case: Case,
    passes: dict[str, Passes],
    wait: Callable[[Any], Any],
    report: Report,
    arguments: argparse.Namespace,
    budget: Budget,
) -> None:
    """Times the forward pass of all, then both passes of all, and adds the results."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("forward", "both"):
        calls = {implementation: getattr(p, kind) for implementation, p in passes.items()}
        found[kind] = measure(
            calls, wait, rounds=arguments.rounds, reps=arguments.reps, budget=budget
        )
    for implementation in passes:
        times = {kind: found[kind][implementation] for kind in found}
        if not all(times.values()):
            report.leave_out(name, implementation, "the time limit")
            continue
        row = dict(case=name, implementation=implementation, flops=case.forward_flops())
        row["repeatable"] = passes[implementation].repeatable
        report.add(row | times)


# ---------------------------------------------------------------- JAX


class Inputs(NamedTuple):
    q: jax.Array
    k: jax.Array
    v: jax.Array
    d_out: jax.Array
    mask: IntervalMask


def make_inputs(case: Case, dtype=jnp.bfloat16) -> Inputs:
    N, K, H = case.heads
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, d_out = (
        jax.random.normal(key, (case.rows, case.tokens, heads, H), dtype)
        for key, heads in zip(keys, (N, K, K, N), strict=True)
    )
    segment_ids = jnp.asarray(case.segment_ids())
    packed = case.mean_document is not None
    return Inputs(q, k, v, d_out, interval_mask(segment_ids, case.window, packed=packed))


def implementation_of(name: str, case: Case) -> Callable[..., jax.Array]:
    """``(q, k, v, mask) -> out`` of a name; raises where it cannot express the case."""
    if name in ("hopper", "triton"):
        module = importlib.import_module(f"cwm_jax.kernels.{name}")
        interpret = jax.default_backend() == "cpu"
        attend = functools.partial(getattr(module, f"{name}_attention"), interpret=interpret)
    elif name == "cudnn":
        attend = cudnn_attention
    elif name == "cudnn packed":
        return cudnn_packed(case)
    elif name == "tokamax":
        return tokamax(case)
    else:
        attend = functools.partial(attention, implementation=name)
    return functools.partial(attend, scale=case.scale)


def cudnn_packed(case: Case) -> Callable[..., jax.Array]:
    """cuDNN with the offsets of documents, which JAX has behind a private function."""
    if case.mean_document is None:
        raise ValueError("offsets are for packed rows; 'cudnn' has the others")
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    documents = case.document_lengths()
    most = max(map(len, documents))
    lengths = np.full((case.rows, most), -1, np.int32)
    offsets = np.full((case.rows, most + 1), -1, np.int32)
    for row, of_row in enumerate(documents):
        lengths[row, : len(of_row)] = of_row
        offsets[row, : len(of_row)] = np.cumsum(of_row) - of_row

    def attend(q, k, v, mask):
        del mask  # the documents are the same
        return cudnn.dot_product_attention(
            q,
            k,
            v,
            q_seqlen=jnp.asarray(lengths),
            kv_seqlen=jnp.asarray(lengths),
            q_offsets=jnp.asarray(offsets),
            kv_offsets=jnp.asarray(offsets),
            scale=case.scale,
            mask_type=cudnn.MaskType.PADDING_CAUSAL,
            sliding_window_length=case.window,
        )

    return attend


def tokamax(case: Case) -> Callable[..., jax.Array]:
    """tokamax's Hopper kernels; documents need its private mask, which has row intervals."""
    library: Any = importlib.import_module("tokamax")
    window = None if case.window is None else (case.window - 1, 0)
    if case.mean_document is None:
        return lambda q, k, v, mask: library.dot_product_attention(
            q,
            k,
            v,
            scale=case.scale,
            is_causal=True,
            local_window_size=window,
            implementation="mosaic_gpu",
        )
    private = "tokamax._src.ops.attention"
    kernels: Any = importlib.import_module(f"{private}.api").IMPLEMENTATIONS
    make_mask: Any = importlib.import_module(f"{private}.base").Mask

    def attend(q, k, v, mask):
        intervals = make_mask(is_causal=True, k_start=mask.key_start[:, None])
        return kernels["mosaic_gpu"](q, k, v, mask=intervals, logits_scale=case.scale)

    return attend


def make_passes(name: str, case: Case, inputs: Inputs) -> Passes:
    """Both passes, compiled."""
    attend = implementation_of(name, case)

    def both(q, k, v, d_out, mask):
        out, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, mask), q, k, v)
        return out, *vjp(d_out)

    q, k, v, _, mask = inputs
    lowered = jax.jit(attend).lower(q, k, v, mask), jax.jit(both).lower(*inputs)
    with ThreadPoolExecutor() as pool:  # the compiler is most of the time of a case
        forward, both_passes = pool.map(lambda x: x.compile(), lowered)
    return Passes(lambda: forward(q, k, v, mask), lambda: both_passes(*inputs))


@functools.cache
def gate(name: str, case: Case) -> None:
    """Raises where output or gradients of a small case are not those of the float32 reference."""
    inputs, expected = expected_of(case)
    got = make_passes(name, case, inputs).both()
    require_close(errors(got, expected), "the float32 reference")


@functools.cache
def expected_of(case: Case) -> tuple[Inputs, Any]:
    """Inputs, and ``out, dq, dk, dv`` of the reference."""
    inputs = make_inputs(case)

    @jax.jit
    def both(q, k, v, d_out):
        attend = functools.partial(reference_attention, mask=inputs.mask, scale=case.scale)
        out, vjp = jax.vjp(attend, q, k, v)
        return out, *vjp(d_out)

    with jax.default_matmul_precision("highest"):  # not TF32
        return inputs, both(*(x.astype(jnp.float32) for x in inputs[:4]))


@jax.jit
def _errors(got, expected):
    def error(x, y):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        return jnp.sqrt(jnp.sum((x - y) ** 2) / jnp.sum(y**2))

    return [error(x, y) for x, y in zip(got, expected, strict=True)]


def errors(got: Any, expected: Any) -> list[float]:
    return [float(x) for x in _errors(tuple(got), tuple(expected))]


def require_close(found: list[float], other: str, factor: float = 1.0) -> None:
    """Of ``out, dq, dk, dv``; a NaN is not close."""
    bounds = (ERROR_OUT, ERROR_GRADIENT, ERROR_GRADIENT, ERROR_GRADIENT)
    if not all(error <= factor * bound for error, bound in zip(found, bounds, strict=True)):
        named = ", ".join(
            f"{n} {e:.2g}" for n, e in zip(("out", "dq", "dk", "dv"), found, strict=True)
        )
        raise ValueError(f"wrong: relative errors against {other}: {named}")


def run_case(
    case_name: str,
    case: Case,
    implementations: list[str],
    report: Report,
    arguments: argparse.Namespace,
    budget: Budget,
) -> None:
    """Gates and times what can express the case."""
    inputs = make_inputs(case)
    passes: dict[str, Passes] = {}
    first: tuple[str, Any] | None = None
    for name in implementations:
        try:
            budget.require_time()
            gate(name, case.small())
            made = make_passes(name, case, inputs)
            require_fast(made, jax.block_until_ready, arguments.slowest_s)
            got = made.both()
            first = first or (name, got)
            require_close(errors(got, first[1]), f"{first[0]} at full size", factor=2)
            repeatable = not any(errors(made.both(), got))
            passes[name] = made._replace(repeatable=repeatable)
        except Exception as error:
            report.leave_out(case_name, name, error)
        got = None  # gigabytes
    first = None
    time_case(case_name, case, passes, jax.block_until_ready, report, arguments, budget)
    jax.clear_caches()


# ---------------------------------------------------------------- PyTorch, and the command


def run_torch(
    cases: list[str],
    implementations: list[str],
    report: Report,
    arguments: argparse.Namespace,
    budget: Budget,
) -> str:
    """Merges what a process with PyTorch finds; returns its version."""
    seconds = TORCH_SHARE * budget.seconds
    command = [sys.executable, "-m", "benchmarks.attention_gpu_torch", "--cases", *cases]
    command += ["--implementations", *implementations, "--rounds", str(arguments.rounds)]
    command += ["--reps", str(arguments.reps), "--budget-s", str(seconds)]
    command += ["--slowest-s", str(arguments.slowest_s)]
    version, folder = "none", Path(__file__).parents[1]
    with tempfile.TemporaryFile("w+") as output:
        streams = dict(stdout=output, stderr=subprocess.PIPE, text=True)
        try:  # the limit is the process's own; it can overrun in a compilation
            done = subprocess.run(command, cwd=folder, timeout=1.5 * seconds, **streams)
            if done.returncode:
                raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            report.leave_out("the rest", "PyTorch", error)
        output.seek(0)
        for line in filter(lambda line: line.startswith("{"), output):  # one for each case
            found = json.loads(line)
            version = found["version"]
            report.merge(found)
            print(*found["notes"], sep="\n", end="\n" if found["notes"] else "")
    return version


def describe(torch_version: str) -> dict[str, Any]:
    """Device and versions; then a matrix product's speed, and the clock that it ran at."""
    packages = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "tokamax")
    versions = {"python": platform.python_version(), "torch": torch_version}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    size = 8192 if jax.default_backend() == "gpu" else 256
    tflops, clock = matmul_ceiling(size)
    print(f"{device}, {', '.join(f'{name} {v}' for name, v in versions.items())}")
    print(f"bfloat16 product of {size}: {tflops:.3g} TFLOP/s; SM clock meanwhile: {clock}")
    return dict(device=device, versions=versions, matmul_tflops=tflops, sm_clock=clock)


def matmul_ceiling(size: int) -> tuple[float, str]:
    """TFLOP/s of a square bfloat16 product, and the SM clock during many of them."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size)) for key in keys)
    a, b = a.astype(jnp.bfloat16), (b * size**-0.5).astype(jnp.bfloat16)
    product = jax.jit(jnp.matmul)
    calls = {"product": lambda: product(a, b)}
    times = measure(calls, jax.block_until_ready, rounds=1, reps=20, budget=Budget(10))["product"]
    seconds = statistics.median(times)
    # b has unit gain: the product of the product stays of one size
    many = jax.jit(lambda a, b, n: jax.lax.fori_loop(0, n, lambda _, x: jnp.matmul(x, b), a))
    running = many(a, b, math.ceil(0.5 / seconds))  # while nvidia-smi looks
    clock = sm_clock()
    jax.block_until_ready(running)
    return 2 * size**3 / seconds / 1e12, clock


def sm_clock() -> str:
    command = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def print_documents(cases: dict[str, Case]) -> None:
    for name, case in cases.items():
        if case.mean_document is not None:
            lengths = np.concatenate(case.document_lengths())
            print(
                f"{name}: {len(lengths)} documents in {case.rows} rows, mean {lengths.mean():.0f}, "
                f"median {np.median(lengths):.0f}, longest {lengths.max()} tokens (log-normal, "
                f"mean {case.mean_document} and sigma 1, cut at the row's end, seed 0)"
            )


def print_table(results: list[dict[str, Any]]) -> None:
    print("\nMedian ms of a call (fastest and slowest sample); TFLOP/s of visible pairs")
    print("| case | implementation | fwd ms | TFLOP/s | fwd+bwd ms | TFLOP/s | samples |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        print(table_row(row))
    unequal = [f"{r['implementation']} ({r['case']})" for r in results if not r["repeatable"]]
    print(f"Not bitwise repeatable: {', '.join(unequal) or 'none'}")


def table_row(row: dict[str, Any]) -> str:
    cells = [row["case"], row["implementation"]]
    for kind, factor in (("forward", 1.0), ("both", 1 + BACKWARD_FLOPS)):
        median, low, high = (1e3 * f(row[kind]) for f in (statistics.median, min, max))
        cells.append(f"{median:.4g} ({low:.4g}-{high:.4g})")
        cells.append(f"{factor * row['flops'] / median / 1e9:.3g}")
    cells.append(f"{len(row['forward'])}, {len(row['both'])}")
    return f"| {' | '.join(cells)} |"


def add_shared_options(parser: argparse.ArgumentParser, implementations: list[str]) -> None:
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=[*CASES, *SMALLEST])
    parser.add_argument("--implementations", nargs="+", default=implementations)
    parser.add_argument("--reps", type=int, default=6, help="samples of each, in all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=290.0, help="stop before, and print")
    parser.add_argument(
        "--slowest-s",
        type=float,
        default=1.0,
        help="leave out what takes longer for a forward call",
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shared_options(parser, [*IN_JAX, *TORCH])
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--json", type=Path, help="file for all samples")
    parser.add_argument("--smallest", action="store_true", help="one tiny case, on any device")
    arguments = parser.parse_args(argv)
    budget, report = Budget(arguments.budget_s), Report()
    names = ["smallest"] if arguments.smallest else arguments.cases
    cases = {name: (CASES | SMALLEST)[name] for name in names}
    print_documents(cases)
    in_torch = [name for name in arguments.implementations if name in TORCH]
    version = "none"
    if in_torch and not arguments.no_torch:
        version = run_torch(names, in_torch, report, arguments, budget)
    about = describe(version)
    in_jax = [name for name in arguments.implementations if name not in TORCH]
    for name, case in cases.items():
        try:
            run_case(name, case, in_jax, report, arguments, budget)
        except Exception as error:
            report.leave_out(name, "the rest", error)
        if arguments.json:
            found = dict(results=report.results, left_out=report.left_out)
            arguments.json.write_text(json.dumps(about | found, indent=1))
    print_table(sorted(report.results, key=lambda row: names.index(row["case"])))


if __name__ == "__main__":
    main()
