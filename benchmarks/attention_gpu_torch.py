"""PyTorch's side of benchmarks/attention_gpu.py, in a process of its own; prints JSON.

    python -m benchmarks.attention_gpu_torch [--cases "8k packed" ...]

FlashAttention and cuDNN through SDPA for plain causal rows, compiled FlexAttention for all masks
(its block map is made outside the timing, and its own cost noted), and varlen attention where this
PyTorch has it with what a case needs. Inputs are laid out ``[B, T, N, H]`` as ours are.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import io
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.attention_gpu import (
    CASES,
    SMALLEST,
    TORCH,
    Budget,
    Case,
    Passes,
    Report,
    add_shared_options,
    require_close,
    require_fast,
    time_case,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MOST_PAIRS = 1 << 31  # of a dense mask, a few bytes each


class Inputs(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    d_out: torch.Tensor


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shared_options(parser, list(TORCH))
    arguments = parser.parse_args(argv)
    budget = Budget(arguments.budget_s)
    for name in arguments.cases:
        report, notes = Report(out=io.StringIO()), []  # the parent prints them
        try:
            run_case(name, (CASES | SMALLEST)[name], report, notes, arguments, budget)
        except Exception as error:
            report.leave_out(name, "the rest of PyTorch", error)
        found = dict(results=report.results, left_out=report.left_out)
        print(json.dumps(dict(version=torch.__version__, notes=notes) | found), flush=True)


def run_case(
    case_name: str,
    case: Case,
    report: Report,
    notes: list[str],
    arguments: argparse.Namespace,
    budget: Budget,
) -> None:
    """Gates and times what can express the case."""
    torch._dynamo.reset()  # compiled code of the last case; there is a limit to how much is kept
    inputs = make_inputs(case)
    passes: dict[str, Passes] = {}
    first: tuple[str, Any] | None = None
    for name in arguments.implementations:
        try:
            budget.require_time()
            gate(name, case.small())
            start = time.perf_counter()
            made = make_passes(name, case, inputs)
            if name == "torch flex":
                seconds = time.perf_counter() - start
                notes.append(f"{case_name}: FlexAttention's block map took {seconds:.2f} s")
            require_fast(made, wait, arguments.slowest_s)
            got = made.both()
            first = first or (name, got)
            require_close(errors(got, first[1]), f"{first[0]} at full size", factor=2)
            repeatable = not any(errors(made.both(), got))
            passes[name] = made._replace(repeatable=repeatable)
        except Exception as error:
            report.leave_out(case_name, name, error)
        got = None  # gigabytes
    first = None
    time_case(case_name, case, passes, wait, report, arguments, budget)


def wait(result: Any) -> None:
    del result
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def make_inputs(case: Case) -> Inputs:
    N, K, H = case.heads
    torch.manual_seed(0)
    q, k, v, d_out = (
        torch.randn(case.rows, case.tokens, heads, H, device=DEVICE, dtype=torch.bfloat16)
        for heads in (N, K, K, N)
    )
    return Inputs(*(x.requires_grad_() for x in (q, k, v)), d_out)


def make_passes(name: str, case: Case, inputs: Inputs) -> Passes:
    attend, (q, k, v, d_out) = ATTEND[name](case), inputs

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    def both() -> tuple[torch.Tensor, ...]:
        out = attend(q, k, v)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), d_out)

    return Passes(forward, both)


@functools.cache
def gate(name: str, case: Case) -> None:
    """Raises where output or gradients of a small case are not those of a dense float32 one."""
    inputs = make_inputs(case)
    got = make_passes(name, case, inputs).both()
    exact = Inputs(*(x.detach().float().requires_grad_() for x in inputs))
    q, k, v = (x.transpose(1, 2) for x in exact[:3])
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible(case)[:, None], scale=case.scale, enable_gqa=True
        ).transpose(1, 2)
    expected = out.detach(), *torch.autograd.grad(out, exact[:3], exact.d_out)
    require_close(errors(got, expected), "the float32 reference")


def errors(got: Any, expected: Any) -> list[float]:
    """Relative in norm."""
    pairs = ((x.float(), y.float()) for x, y in zip(got, expected, strict=True))
    return [float((x - y).norm() / y.norm()) for x, y in pairs]


def visible(case: Case) -> torch.Tensor:
    """``[B, T, T]``, for small cases."""
    ids = torch.tensor(case.segment_ids(), device=DEVICE)
    index = torch.arange(case.tokens, device=DEVICE)
    distance = index[:, None] - index
    window = case.window or case.tokens
    return (ids[:, :, None] == ids[:, None]) & (distance >= 0) & (distance < window)


# ---------------------------------------------------------------- implementations


def sdpa(backend: SDPBackend, case: Case) -> Callable[..., torch.Tensor]:
    if case.mean_document is not None or case.window is not None:
        raise ValueError("SDPA has documents and windows as a dense mask alone")

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=case.scale, enable_gqa=True
            )
        return out.transpose(1, 2)

    return attend


def flex(case: Case) -> Callable[..., torch.Tensor]:
    seen = mask_of(case)
    rows, T = case.rows if case.mean_document is not None else None, case.tokens
    # compiled: else the whole mask is made on the way
    compiled = case.rows * T**2 > MOST_PAIRS
    make_map = torch.compile(create_block_mask) if compiled else create_block_mask
    block_mask = make_map(seen, rows, None, T, T, device=DEVICE)
    wait(block_mask)
    attention: Any = torch.compile(flex_attention, dynamic=False)
    if DEVICE == "cpu":
        attention = flex_attention

    def attend(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = attention(q, k, v, block_mask=block_mask, scale=case.scale, enable_gqa=True)
        return out.transpose(1, 2)

    return attend


def mask_of(case: Case) -> Callable[..., torch.Tensor]:
    """FlexAttention's function of a pair, with what the case needs and no more."""
    window = case.window
    ids = torch.tensor(case.segment_ids(), device=DEVICE)

    def causal(b, h, q, k):
        return q >= k

    def local(b, h, q, k):
        return (q >= k) & (q - k < window)

    if case.mean_document is None:
        return causal if window is None else local
    inner = causal if window is None else local

    def packed(b, h, q, k):
        return inner(b, h, q, k) & (ids[b, q] == ids[b, k])

    return packed


def varlen(case: Case) -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {}
    if "window_size" in parameters:
        options["window_size"] = (-1 if case.window is None else case.window - 1, 0)
    elif case.window is None and "is_causal" in parameters:
        options["is_causal"] = True
    else:
        raise ValueError(f"varlen_attn of torch {torch.__version__} has no window_size")
    if "enable_gqa" in parameters:
        options["enable_gqa"] = True
    if "scale" in parameters:
        options["scale"] = case.scale  # else it is H**-0.5, which this is
    lengths = np.concatenate(case.document_lengths())
    ends = torch.tensor(np.r_[0, np.cumsum(lengths)], dtype=torch.int32, device=DEVICE)
    longest = int(lengths.max())

    def attend(q, k, v):
        flat = (x.flatten(0, 1) for x in (q, k, v))
        out = varlen_attn(*flat, ends, ends, longest, longest, **options)
        return out.reshape(q.shape)

    return attend


ATTEND: dict[str, Callable[[Case], Callable[..., torch.Tensor]]] = {
    "torch flash": functools.partial(sdpa, SDPBackend.FLASH_ATTENTION),
    "torch cudnn": functools.partial(sdpa, SDPBackend.CUDNN_ATTENTION),
    "torch flex": flex,
    "torch varlen": varlen,
}

if __name__ == "__main__":
    main()
