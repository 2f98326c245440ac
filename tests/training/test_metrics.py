"""metrics.jsonl survives kills; the terminal line and the curve show it."""

import json
import types

import pytest

from cwm_jax.training import metrics
from cwm_jax.training.metrics import (
    MetricsLog,
    format_line,
    keep_metrics_through,
    peak_flops,
    plot_loss,
    read_metrics,
)


def test_a_line_cut_short_is_ignored_and_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(4):
        log.write({"step": step, "loss": 1.0 / (step + 1)})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [m["step"] for m in read_metrics(path)] == [0, 1, 2, 3]
    keep_metrics_through(path, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_every_line_is_on_file_when_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "loss": 0.1 + 0.2})
    assert read_metrics(log.path) == [{"step": 1, "loss": 0.1 + 0.2}]  # exact, before any close
    log.close()


def test_tensorboard_events_are_written_if_asked(tmp_path):
    pytest.importorskip("tensorboardX")  # a run needs it only if asked for events
    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    log.write({"step": 1, "loss": 2.0, "mfu": None})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_line_and_curve(tmp_path):
    line = {"step": 7, "tokens": 70, "loss": 2.5, "learning_rate": 1e-3, "tokens_per_s": 1234.0}
    line |= {"mfu": 0.5, "tflops_per_s": 0.1, "grad_norm": 1.0, "skipped_steps": 2}
    text = format_line(line, 100)
    assert "step   7/100" in text and "loss 2.5000" in text and "MFU 50.0%" in text
    assert "skipped 2" in text
    lines = [{"step": 0, "tokens": 0, "heldout_loss": 6.0}, line, {**line, "loss": None}]
    plot_loss(lines, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_each_length_bucket_has_a_curve(tmp_path):
    losses = {0: [4.0, 3.0], 2: [5.0, None]}
    lines = [
        {"step": i, "tokens": i, "loss": x, "length_bucket": n, f"loss_bucket_{n}": x}
        for n, values in losses.items()
        for i, x in enumerate(values)
    ]
    assert metrics._curves(lines) == {
        "training, bucket 0": [(0, 4.0), (1, 3.0)],
        "training, bucket 2": [(0, 5.0)],
    }
    plot_loss(lines, tmp_path / "loss.png")
    assert "bucket 2" in format_line(lines[-1], 9)


@pytest.mark.parametrize(
    ("kind", "platform", "peak"),
    [
        ("NVIDIA H200", "gpu", 8 * 989e12),
        ("TPU v5 lite", "tpu", 8 * 197e12),
        ("NVIDIA RTX A1000", "gpu", 8e9),  # not an A100; not in the table: measured on one
    ],
)
def test_peak_of_all_devices_from_the_table_or_measured(monkeypatch, kind, platform, peak):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    monkeypatch.setattr(metrics.jax, "devices", lambda: [device] * 8)
    monkeypatch.setattr(metrics.jax, "device_count", lambda: 8)
    monkeypatch.setattr(metrics, "_measured_peak_flops", lambda: 1e9)
    assert peak_flops()[0] == peak


def test_cpu_peak_is_measured_and_says_so():
    peak, source = peak_flops()
    assert peak > 1e8
    assert "measured" in source
