"""The steps of a run, one after another: batches, held-out losses, log lines, saves, profile."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from cwm_jax.config import RunConfig
from cwm_jax.data.loader import Loader, merge_states
from cwm_jax.data.packing import cut_rows
from cwm_jax.distributed import Hosts
from cwm_jax.sharding import process_rows, put_batch
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.metrics import MetricsLog, format_line, peak_flops, print_line
from cwm_jax.training.plan import Plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import TrainState, state_shardings
from cwm_jax.training.step import (
    check_finite,
    compiler_options,
    make_eval_step,
    make_train_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pending:
    """A step that was started and is not logged yet."""

    step: int
    batch_tokens: int
    bucket: int
    data_wait_s: float
    metrics: dict[str, jax.Array]


class Trainer:
    """The loop itself; logs a step while the next one runs."""

    def __init__(self, config, plan, mesh, loader, heldout, log, saver, goodput, hosts):
        self._config: RunConfig = config
        self._plan: Plan = plan
        self._mesh = mesh
        self._loader: Loader = loader
        self._log: MetricsLog = log
        self._saver: ckpt.Checkpointer = saver
        self._hosts: Hosts = hosts
        self._goodput: Goodput = goodput
        self._peak_flops, peak_source = peak_flops()
        print_line(f"MFU is a share of {self._peak_flops / 1e12:.3g} TFLOP/s ({peak_source})")
        # Compiled steps by accumulation steps and attention cap.
        self._programs: dict[tuple[int, int | None], Callable[..., Any]] = {}
        self._caps = [b.attention_cap for b in config.data.length_buckets] or [None]
        self._eval_step = jax.jit(make_eval_step(config), compiler_options=compiler_options())
        self._own_rows = process_rows(mesh, plan.micro_batch_rows)
        self._heldout = [put_batch(b, mesh) for b in cut_rows(heldout, plan.micro_batch_rows)]
        self._bar: Any = None
        self._profiling = False

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, bool]:
        """Runs to the end of the plan or a signal; returns the state and whether it is the end."""
        plan, total = self._plan, self._plan.total_steps
        step = int(state.step)
        self._goodput.begin("step")
        if step == 0:
            self._write({"step": 0, "tokens": plan.tokens_before(0)}, state)
        with self._progress_bar(step, total), self._profile_closed():
            pending, started = None, 0.0
            while step < total:
                stage, bucket = plan.stage(step), self._loader.bucket(step)
                batch, data_wait_s = self._goodput.wait(
                    functools.partial(self._next_batch, stage.accumulation_steps, bucket),
                    functools.partial(_is_running, pending),
                )
                self._saver.check()
                program = stage.accumulation_steps, self._caps[bucket]
                if program not in self._programs:
                    if pending is not None:
                        self._finish_step(pending, None, started)
                        pending = None
                    with self._goodput.during("compile"):
                        compiled = self._compile(state, batch, self._caps[bucket])
                    self._programs[program] = compiled
                    started = time.perf_counter()
                self._profile(step + 1, state)
                with jax.transfer_guard("disallow"):
                    state, metrics = self._programs[program](state, batch)
                step += 1
                if pending is not None:
                    started = self._finish_step(pending, None, started)
                pending = _Pending(
                    step=step,
                    batch_tokens=stage.batch_tokens,
                    bucket=bucket,
                    data_wait_s=data_wait_s,
                    metrics=metrics,
                )
                stopping = stop.reached()  # asked once: it may be set at any moment
                if stopping or self._is_boundary(step):
                    self._finish_step(pending, state if self._is_eval(step) else None, started)
                    pending = None
                    if stopping or self._is_save(step):
                        self._save(step, state)
                    started = time.perf_counter()
                if stopping:
                    break
        with self._goodput.during("checkpoint"):
            self._saver.wait()
        self._goodput.write(step, finished=step >= total)
        if step < total:
            print_line(
                f"{stop.name}: saved step {step} and stopped; start the same command again to "
                "resume"
            )
        epochs = (f"{name} {seen:.3g}" for name, seen in self._loader.epochs().items())
        print_line(f"epochs seen: {', '.join(epochs)}")
        return state, step >= total

    def _finish_step(
        self, pending: _Pending, evaluated: TrainState | None, started: float
    ) -> float:
        """Waits for a step, writes its line; returns the moment it was done."""
        step = pending.step
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        now = time.perf_counter()
        tokens_per_s = pending.batch_tokens / (now - started)
        flops_per_s = tokens_per_s * self._plan.bucket_flops_per_token[pending.bucket]
        line: dict[str, Any] = {"step": step, "tokens": self._plan.tokens_before(step)}
        line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        for name in ("num_targets", "skipped_steps", "skipped_in_a_row"):
            line[name] = int(values[name])
        if self._config.data.length_buckets:
            line["length_bucket"] = pending.bucket
            line[f"loss_bucket_{pending.bucket}"] = line["loss"]
        line |= {
            "step_time_s": now - started,
            "tokens_per_s": tokens_per_s,
            "tflops_per_s": flops_per_s / 1e12,
            "mfu": flops_per_s / self._peak_flops,
            "data_wait_s": pending.data_wait_s,
        }
        if self._is_save(step):
            line |= self._goodput.fields()
        self._write(line, evaluated)
        check_finite(self._config.optimizer, step, values)
        return now

    def _write(self, line: dict[str, Any], evaluated: TrainState | None) -> None:
        if evaluated is not None:
            with self._goodput.during("evaluation"):
                loss = self._heldout_loss(evaluated)
            line["heldout_loss"] = loss if math.isfinite(loss) else None
            epochs = self._loader.epochs()  # of all steps so far: none is under way
            line |= {f"epochs_{name}": seen for name, seen in epochs.items()}
        line["time_s"] = time.time()
        self._log.write(line)
        step, total = line["step"], self._plan.total_steps
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            if line.get("loss") is not None:
                self._bar.set_postfix_str(f"loss {line['loss']:.4f}", refresh=False)
        if step in (1, total) or step % self._config.logging.log_period == 0 or evaluated:
            print_line(format_line(line, total), self._bar)

    def _heldout_loss(self, state: TrainState) -> float:
        sums = [self._eval_step(state.params, batch) for batch in self._heldout]
        total = sum(float(s.cross_entropy) for s in sums)
        return total / max(sum(float(s.num_targets) for s in sums), 1.0)

    def _save(self, step: int, state: TrainState) -> None:
        self._log.sync()
        with self._goodput.during("checkpoint"):
            told = self._hosts.meet("data positions", value=json.dumps(self._loader.state()))
            positions = merge_states([json.loads(text) for text in told])
            record = ckpt.run_record(self._plan, step, positions)
            self._saver.save(state, record)
        self._goodput.write(step)

    def _compile(self, state: TrainState, batch, attention_cap: int | None) -> Callable[..., Any]:
        start = time.perf_counter()
        step = jax.jit(
            make_train_step(self._config, plan=self._plan, attention_cap=attention_cap),
            donate_argnums=0,
            out_shardings=(state_shardings(self._config, self._mesh), None),
            compiler_options=compiler_options(),
        )
        compiled = step.lower(state, batch).compile()
        cap = "" if attention_cap is None else f", global attention capped at {attention_cap:,},"
        print_line(f"compiled the step{cap} in {time.perf_counter() - start:.1f} s", self._bar)
        return compiled

    def _next_batch(self, accumulation_steps: int, bucket: int) -> dict[str, jax.Array]:
        R = self._plan.micro_batch_rows
        batch = self._loader.next_rows(accumulation_steps * R, bucket)
        batch = {
            k: v.reshape(len(self._own_rows), accumulation_steps, -1).swapaxes(0, 1)
            for k, v in batch.items()
        }
        return put_batch(batch, self._mesh, rows=self._own_rows, num_rows=R)

    def _is_eval(self, step: int) -> bool:
        return step % self._config.logging.eval_period == 0 or step == self._plan.total_steps

    def _is_save(self, step: int) -> bool:
        period = self._config.checkpoint.checkpoint_period
        return step % period == 0 or step == self._plan.total_steps

    def _is_boundary(self, step: int) -> bool:
        return self._is_eval(step) or self._is_save(step)

    @contextlib.contextmanager
    def _progress_bar(self, first: int, total: int) -> Iterator[None]:
        if not sys.stderr.isatty():
            yield
            return
        with tqdm(total=total, initial=first, unit="step", dynamic_ncols=True) as self._bar:
            yield
        self._bar = None

    def _profile(self, step: int, state: TrainState) -> None:
        """Starts the profile at the first of ``profile_steps`` and ends it after the last."""
        first, last = self._config.logging.profile_steps or (0, 0)
        if step in (first, last + 1):
            # steps run behind: neither cut the last nor see the one before
            jax.block_until_ready(state)
        if step == first:
            jax.profiler.start_trace(str(self._log.path.parent / "profile"))
            self._profiling = True
        elif step == last + 1:
            self._end_profile()

    @contextlib.contextmanager
    def _profile_closed(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._end_profile()

    def _end_profile(self) -> None:
        if self._profiling:
            jax.profiler.stop_trace()
            self._profiling = False


def _is_running(pending: _Pending | None) -> bool:
    if pending is None:
        return False
    loss: Any = pending.metrics["loss"]  # jax.Array's type does not have is_ready
    return not loss.is_ready()
