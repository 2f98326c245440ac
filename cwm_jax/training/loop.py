"""The training loop of every phase: clocks, files and processes around the pure step."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from cwm_jax import schema
from cwm_jax.config import RunConfig
from cwm_jax.data.loader import Loader, heldout_rows
from cwm_jax.data.prepare import prepare
from cwm_jax.data.shards import Shards
from cwm_jax.data.vocabulary import load_or_train_tokenizer
from cwm_jax.sharding import make_mesh, put_batch
from cwm_jax.tokenizer import Tokenizer, load_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.metrics import (
    MetricsLog,
    format_line,
    keep_metrics_through,
    peak_flops,
    plot_loss,
    print_line,
    read_metrics,
    write_atomically,
)
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import (
    TrainState,
    abstract_state,
    init_sharded_state,
    state_shardings,
)
from cwm_jax.training.step import compiler_options, make_eval_step, make_train_step

METRICS_FILE = "metrics.jsonl"


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What ``run`` leaves in memory; everything else is in ``folder``."""

    folder: Path
    state: TrainState
    tokenizer: Tokenizer
    metrics: list[dict[str, Any]]
    finished: bool
    """False where a signal stopped the run; it has saved itself."""

    def heldout_losses(self) -> tuple[float, float]:
        """Held-out cross-entropy in nats per token before step 1 and newest; nan: not finite."""
        losses = [m["heldout_loss"] for m in self.metrics if "heldout_loss" in m]
        before, after = (math.nan if loss is None else loss for loss in (losses[0], losses[-1]))
        return before, after


def run(config: RunConfig) -> RunResult:
    """Trains, from the newest checkpoint of ``run_name`` if there is one.

    Raises:
        ValueError: the configuration, the corpus or a checkpoint is not usable.
        NonFiniteError: see ``optimizer.max_nonfinite_steps``.
    """
    # 1. Devices and derived numbers: nothing is touched before they fit.
    mesh = make_mesh(config.mesh)
    plan = make_plan(config)
    # 2. The run's folder, for this process alone.
    folder = Path(config.base_output_directory) / config.run_name
    with _locked(folder), contextlib.ExitStack() as stack:
        print_line(f"run {config.run_name} in {folder}\n{plan.describe()}")
        # 3. The newest whole checkpoint decides what the run continues.
        newest = ckpt.newest_checkpoint(folder / "checkpoints", print_line)
        record = None
        if newest is not None:
            record = ckpt.read_record(newest)
            ckpt.check_same_run(newest, record, plan)
        # 4. Tokenizer, tokenised corpus, rows.
        if newest is not None:
            tokenizer = load_tokenizer(newest / "tokenizer")
        else:
            tokenizer = load_or_train_tokenizer(config.tokenizer, config.data)
        shards = [
            prepare(s, config.data, tokenizer, model_vocab_size=config.model.vocab_size)
            for s in config.data.sources
        ]
        loader = stack.enter_context(_loader(config, shards))
        print_line(_describe_data(shards, tokenizer))
        # 5. State: restored, or made from the seed (and an earlier phase's weights).
        if newest is not None and record is not None:
            shardings = state_shardings(config, mesh)
            state = ckpt.restore(newest, abstract_state(config), shardings)
            loader.restore(record.loader_state)
            print_line(f"resuming at step {record.step} from {newest}")
        else:
            state = _first_state(config, mesh, tokenizer)
        # 6. Logs, cut back to that state.
        metrics_path = folder / METRICS_FILE
        keep_metrics_through(metrics_path, record.step if record else -1)
        write_atomically(folder / "config.json", json.dumps(schema.to_json(config), indent=1))
        log = stack.enter_context(
            contextlib.closing(MetricsLog(metrics_path, tensorboard=config.logging.tensorboard))
        )
        saver = ckpt.Checkpointer(folder / "checkpoints", config.checkpoint, tokenizer)
        stack.callback(saver.close)
        # 7. Steps; from here on a signal ends the run with a save.
        heldout = heldout_rows(
            shards,
            config.data,
            max_target_length=config.batch.max_target_length,
            num_rows=config.logging.eval_rows,
        )
        trainer = _Trainer(config, plan, mesh, loader, heldout, log, saver)
        with jax.set_mesh(mesh), StopRequest() as stop:
            state, finished = trainer.train(state, stop)
        saver.wait()
    metrics = read_metrics(metrics_path)
    plot_loss(metrics, folder / "loss.png")
    return RunResult(folder, state, tokenizer, metrics, finished)


class _Trainer:
    """The loop itself; logs a step while the next one runs."""

    def __init__(self, config, plan, mesh, loader, heldout, log, saver):
        self._config: RunConfig = config
        self._plan: Plan = plan
        self._mesh = mesh
        self._loader: Loader = loader
        self._log: MetricsLog = log
        self._saver: ckpt.Checkpointer = saver
        self._peak_flops, peak_source = peak_flops()
        print_line(f"MFU is a share of {self._peak_flops / 1e12:.3g} TFLOP/s ({peak_source})")
        self._step = jax.jit(
            make_train_step(config, plan=plan),
            donate_argnums=0,
            out_shardings=(state_shardings(config, mesh), None),
            compiler_options=compiler_options(),
        )
        self._eval_step = jax.jit(make_eval_step(config), compiler_options=compiler_options())
        self._heldout = [put_batch(b, mesh) for b in _micro_batches(heldout, plan)]
        self._bar: Any = None
        self._profiling = False

    def train(self, state: TrainState, stop: StopRequest) -> tuple[TrainState, bool]:
        """Runs to the end of the plan or a signal; returns the state and whether it is the end."""
        plan, total = self._plan, self._plan.total_steps
        step = int(state.step)
        if step == 0:
            self._write({"step": 0, "tokens": plan.tokens_before(0)}, state)
        with self._progress_bar(step, total), self._profile_closed():
            pending = None
            compiled, accumulation = None, 0
            while step < total:
                stage = plan.stage(step)
                batch = self._next_batch(stage.accumulation_steps)
                self._saver.check()
                if stage.accumulation_steps != accumulation:
                    if pending is not None:
                        self._finish_step(*pending, started)
                        pending = None
                    compiled, accumulation = self._compile(state, batch), stage.accumulation_steps
                    started = time.perf_counter()
                self._profile(step + 1, state)
                with jax.transfer_guard("disallow"):
                    state, metrics = compiled(state, batch)  # type: ignore[misc]
                step += 1
                if pending is not None:
                    started = self._finish_step(*pending, started)
                pending = (step, stage.batch_tokens, metrics, None)
                stopping = stop.name is not None  # read once: it may be set at any moment
                if stopping or self._is_boundary(step):
                    evaluated = state if self._is_eval(step) else None
                    self._finish_step(*pending[:3], evaluated, started)
                    pending = None
                    if stopping or self._is_save(step):
                        self._save(step, state)
                    started = time.perf_counter()
                if stopping:
                    break
        if step < total:
            self._saver.wait()
            print_line(
                f"{stop.name}: saved step {step} and stopped; start the same command again to "
                "resume"
            )
        return state, step >= total

    def _finish_step(self, step, batch_tokens, metrics, evaluated, started) -> float:
        """Waits for a step, writes its line; returns the moment it was done."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        tokens_per_s = batch_tokens / (now - started)
        flops_per_s = tokens_per_s * self._plan.flops_per_token
        line: dict[str, Any] = {"step": step, "tokens": self._plan.tokens_before(step)}
        line |= {k: v if math.isfinite(v) else None for k, v in values.items()}
        for name in ("num_targets", "skipped_steps", "skipped_in_a_row"):
            line[name] = int(values[name])
        line |= {
            "step_time_s": now - started,
            "tokens_per_s": tokens_per_s,
            "tflops_per_s": flops_per_s / 1e12,
            "mfu": flops_per_s / self._peak_flops,
        }
        self._write(line, evaluated)
        in_a_row = line["skipped_in_a_row"]
        if in_a_row >= self._config.optimizer.max_nonfinite_steps:
            self._stop_nonfinite(step, in_a_row, values)
        return now

    def _write(self, line: dict[str, Any], evaluated: TrainState | None) -> None:
        if evaluated is not None:
            loss = self._heldout_loss(evaluated)
            line["heldout_loss"] = loss if math.isfinite(loss) else None
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
        batches = ckpt.batches(self._plan)
        record = ckpt.RunRecord(step, self._config, batches, self._loader.state())
        self._saver.save(state, record)

    def _compile(self, state: TrainState, batch) -> Callable[..., Any]:
        start = time.perf_counter()
        compiled = self._step.lower(state, batch).compile()
        print_line(f"compiled the step in {time.perf_counter() - start:.1f} s", self._bar)
        return compiled

    def _next_batch(self, accumulation_steps: int) -> dict[str, jax.Array]:
        rows = self._plan.micro_batch_rows // jax.process_count()
        batch = self._loader.next_rows(accumulation_steps * rows)
        batch = {k: v.reshape(accumulation_steps, rows, -1) for k, v in batch.items()}
        return put_batch(batch, self._mesh)

    def _is_eval(self, step: int) -> bool:
        return step % self._config.logging.eval_period == 0 or step == self._plan.total_steps

    def _is_save(self, step: int) -> bool:
        period = self._config.checkpoint.checkpoint_period
        return step % period == 0 or step == self._plan.total_steps

    def _is_boundary(self, step: int) -> bool:
        return self._is_eval(step) or self._is_save(step)

    def _stop_nonfinite(self, step: int, in_a_row: int, values: dict[str, float]) -> None:
        raise NonFiniteError(
            f"steps {step - in_a_row + 1} to {step} all had a loss or gradient that is not finite "
            f"(loss {values['loss']}, gradient norm {values['grad_norm']}); each was skipped, so "
            "the weights are those before them. Lower optimizer.learning_rate or "
            "gradient_clipping_threshold, look at the data of these steps, or raise "
            "optimizer.max_nonfinite_steps; the same command resumes from the newest checkpoint"
        )

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


def _loader(config: RunConfig, shards: list[Shards]) -> Loader:
    return Loader(
        shards,
        config.data,
        max_target_length=config.batch.max_target_length,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _first_state(config: RunConfig, mesh, tokenizer: Tokenizer) -> TrainState:
    """From the seed; parameters, or parameters and optimizer state, from where the config says."""
    state = init_sharded_state(config, mesh)
    source = config.checkpoint.load_full_state_path or config.checkpoint.load_parameters_path
    if source is None:
        return state
    path = ckpt.resolve_checkpoint(source)
    for note in ckpt.check_same_model(path, config.model, tokenizer):
        print_line(note)
    parts = ["params"]
    if config.checkpoint.load_full_state_path is not None:
        parts.append("opt_state")
    abstract, shardings = abstract_state(config), state_shardings(config, mesh)
    loaded = ckpt.restore(
        path,
        {part: getattr(abstract, part) for part in parts},
        {part: getattr(shardings, part) for part in parts},
        cast=parts == ["params"],
    )
    print_line(f"starting from {' and '.join(parts)} of {path}")
    return dataclasses.replace(state, **loaded)


def _micro_batches(rows: dict[str, np.ndarray], plan: Plan) -> list[dict[str, np.ndarray]]:
    """Cuts rows into micro-batches of the plan; the last is filled with padding."""
    size = plan.micro_batch_rows
    missing = -len(rows["tokens"]) % size
    padded = {k: np.pad(v, ((0, missing), (0, 0))) for k, v in rows.items()}
    count = len(padded["tokens"]) // size
    mine = slice(
        size * jax.process_index() // jax.process_count(),
        size * (jax.process_index() + 1) // jax.process_count(),
    )
    return [
        {k: v[i * size : (i + 1) * size][mine] for k, v in padded.items()} for i in range(count)
    ]


def _describe_data(shards: list[Shards], tokenizer: Tokenizer) -> str:
    lines = [f"tokenizer {tokenizer.fingerprint[:16]} with {tokenizer.vocab_size} tokens"]
    for shard in shards:
        manifest, notes = shard.manifest, ""
        if manifest.skipped_non_utf8_documents:
            notes += f", {manifest.skipped_non_utf8_documents:,} documents not UTF-8 skipped"
        if manifest.bytes_documents:
            notes += f", {manifest.bytes_documents:,} documents not UTF-8 kept as bytes"
        lines.append(
            f"source {manifest.source.name}: {manifest.train.tokens:,} training and "
            f"{manifest.heldout.tokens:,} held-out tokens in {shard.folder}{notes}"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Refuses a second process in the same run."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if jax.process_index() == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ValueError(
                    f"another process is training {folder}; wait for it, or use another run_name"
                ) from error
        yield
