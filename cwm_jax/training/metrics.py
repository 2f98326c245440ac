"""What a run says of itself: metrics.jsonl, TensorBoard, terminal lines, loss curve, MFU's peak."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TextIO

import jax
import jax.numpy as jnp

from cwm_jax.storage import write_whole
from cwm_jax.training import goodput
from cwm_jax.training.hardware import accelerator_of

METRICS_FILE = "metrics.jsonl"
# Fields of a metrics line that depend on the clock; all others repeat bit for bit in a resumed run.
TIMING_FIELDS = goodput.FIELDS | {"time_s", "step_time_s", "tokens_per_s", "tflops_per_s", "mfu"}


class MetricsLog:
    """Appends one JSON object per step to ``metrics.jsonl``; also to TensorBoard if asked.

    Of several processes the first writes.
    """

    def __init__(self, path: Path, *, tensorboard: bool = False):
        self.path = path
        writes = jax.process_index() == 0
        board = tensorboard and writes
        self._board = _tensorboard_writer(path.parent / "tensorboard") if board else None
        self._file = open(path if writes else os.devnull, "a")  # noqa: SIM115 (kept for the run)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line and hands it to the operating system, so that it survives a kill."""
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"could not write {self.path}: {error}; free space, then start the same command "
                "again: it goes on from the newest checkpoint"
            ) from error
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def sync(self) -> None:
        """Flushes to disk; a checkpoint may only exist after the lines before it do."""
        if jax.process_index() == 0:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(
            f"{path}: a line is not JSON ({error}); mend or remove it, then start again"
        ) from error


def keep_metrics_through(path: Path, step: int) -> None:
    """Drops the lines after ``step``, which the resumed run will write again; atomic."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def peak_flops() -> tuple[float, str]:
    """(FLOP/s of all devices together, how it is known).

    On a CPU, and on a device that is not in the table, the peak is that of a matrix product timed
    here.
    """
    device = jax.devices()[0]
    known = accelerator_of(device.device_kind)
    if known is not None:
        total = known.peak_flops * jax.device_count()
        return total, f"{device.device_kind} data sheet, dense bf16"
    count = 1 if device.platform == "cpu" else jax.device_count()  # virtual CPU devices share it
    source = f"{device.device_kind} float32 matrix product, measured"
    return count * _measured_peak_flops(), source


def _measured_peak_flops(size: int = 1024, repeats: int = 3) -> float:
    """Best of a few products on the default device."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul).lower(x, x).compile()
    times = []
    for _ in range(repeats + 1):  # the first warms up
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[1:])


def format_line(line: dict[str, Any], total_steps: int) -> str:
    """One line for the terminal."""
    parts = [f"step {line['step']:>{len(str(total_steps))}}/{total_steps}"]
    formats = {
        "loss": "loss {:.4f}",
        "grad_norm": "grad {:.3f}",
        "learning_rate": "lr {:.3g}",
        "tokens_per_s": "{:,.0f} tok/s",
        "tflops_per_s": "{:.3g} TFLOP/s",
        "mfu": "MFU {:.1%}",
        "length_bucket": "bucket {}",
        "heldout_loss": "held-out {:.4f}",
    }
    parts += [
        form.format(line[name]) for name, form in formats.items() if line.get(name) is not None
    ]
    if line.get("skipped_steps"):
        parts.append(f"skipped {line['skipped_steps']}")
    return "  ".join(parts)


def plot_loss(metrics: list[dict[str, Any]], path: Path) -> None:
    """Writes the loss curve, training (each length bucket's) and held-out, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for name, points in _curves(metrics).items():
        style: dict[str, Any] = {"marker": "o"} if name == "held-out" else {"linewidth": 0.8}
        axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set(xlabel="tokens", ylabel="cross-entropy (nats per token)", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure).print_png(str(path))


def _curves(metrics: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """(tokens, loss) of each curve that has points; where steps have buckets, one for each."""
    buckets = sorted({m["length_bucket"] for m in metrics if "length_bucket" in m})
    names = {f"loss_bucket_{n}": f"training, bucket {n}" for n in buckets} or {"loss": "training"}
    curves = {
        label: [(m["tokens"], m[field]) for m in metrics if m.get(field) is not None]
        for field, label in (names | {"heldout_loss": "held-out"}).items()
    }
    return {label: points for label, points in curves.items() if points}


def print_line(text: str, bar: Any = None, stream: TextIO | None = None) -> None:
    """Prints a line above the progress bar, if there is one; of several processes on the first."""
    if jax.process_index():
        return
    if bar is None:
        print(text, file=stream, flush=True)
    else:
        bar.write(text)


def _tensorboard_writer(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "logging.tensorboard=true needs the package tensorboardX: pip install tensorboardX"
        ) from error
    return SummaryWriter(str(folder))
