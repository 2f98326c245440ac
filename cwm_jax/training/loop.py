"""The training loop of every phase: clocks, files and processes around the pure step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cwm_jax.config import RunConfig
from cwm_jax.data.loader import Loader, describe_long_dialogs, heldout_rows
from cwm_jax.data.mixture import (
    SourceShare,
    describe_buckets,
    describe_shares,
    source_shares,
)
from cwm_jax.data.prepare import prepare_all
from cwm_jax.data.shards import Shards
from cwm_jax.data.vocabulary import load_or_train_tokenizer
from cwm_jax.distributed import Hosts
from cwm_jax.sharding import make_mesh, process_rows
from cwm_jax.tokenizer import Tokenizer, load_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training import startup
from cwm_jax.training.goodput import GOODPUT_FILE, Goodput
from cwm_jax.training.metrics import (
    METRICS_FILE,
    plot_loss,
    print_line,
    read_metrics,
)
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.signals import StopRequest
from cwm_jax.training.state import (
    TrainState,
    check_host_memory,
)
from cwm_jax.training.trainer import Trainer


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


def run(
    config: RunConfig, hosts: Hosts | None = None, *, started: float | None = None
) -> RunResult:
    """Trains, from the newest checkpoint of ``run_name`` if there is one.

    Args:
        config: the run.
        hosts: its processes; None: this one alone, or those of an earlier ``distributed.start``.
        started: when the process began, in seconds since the epoch, for its goodput; None is now.

    Raises:
        ValueError: the configuration, the corpus or a checkpoint is not usable.
        NonFiniteError: see ``optimizer.max_nonfinite_steps``.
        HostError: a process is absent, has failed, or was started with something else.
    """
    # 1. Processes that agree, devices and derived numbers: nothing is touched before they fit.
    hosts = hosts or Hosts()
    hosts.check_same("start", startup.start_values(config))
    mesh = make_mesh(config.mesh)
    check_host_memory(config, mesh.local_devices)
    plan = make_plan(config)
    # 2. The run's folder, for these processes alone.
    folder = Path(config.base_output_directory) / config.run_name
    goodput = Goodput(folder / GOODPUT_FILE if hosts.is_first else None, started=started)
    with startup.locked(folder, hosts), contextlib.ExitStack() as stack:
        print_line(f"run {config.run_name} in {folder}\n{plan.describe()}")
        # 3. The newest whole checkpoint decides what the run continues.
        newest = startup.newest_checkpoint(folder / "checkpoints", hosts)
        record = None
        if newest is not None:
            record = ckpt.read_record(newest)
            ckpt.check_same_run(newest, record, plan)
        # 4. Tokenizer, tokenised corpus, rows.
        if newest is not None:
            tokenizer = load_tokenizer(newest / "tokenizer")
        else:
            tokenizer = hosts.first(
                "tokenizer", lambda: load_or_train_tokenizer(config.tokenizer, config.data)
            )
        shards = hosts.first(
            "corpus",
            lambda: prepare_all(config.data, tokenizer, model_vocab_size=config.model.vocab_size),
        )
        shares = source_shares(
            config.data.sources, shards, train_tokens=config.optimizer.train_tokens
        )
        loader = stack.enter_context(_loader(plan, mesh, shards, shares))
        lines = [
            *_describe_data(shards, tokenizer, config),
            *describe_shares(shares),
            *describe_buckets(loader.buckets, config.data.length_buckets),
        ]
        print_line("\n".join(lines))
        # 5. State: restored, or made from the seed (and an earlier phase's weights).
        if newest is not None and record is not None:
            state = startup.restored_state(config, mesh, newest)
            loader.restore(record.loader_state)
            print_line(f"resuming at step {record.step} from {newest}")
        else:
            state = startup.first_state(config, mesh, tokenizer, hosts)
        # 6. Logs, cut back to that state.
        log = stack.enter_context(startup.opened_log(config, folder, record, goodput, hosts))
        saver = ckpt.Checkpointer(folder / "checkpoints", config.checkpoint, tokenizer, hosts)
        stack.callback(saver.close)
        # 7. Steps; from here on a signal ends the run with a save.
        heldout = heldout_rows(
            shards,
            config.data,
            shares=shares,
            max_target_length=config.batch.max_target_length,
            num_rows=config.logging.eval_rows,
        )
        trainer = Trainer(config, plan, mesh, loader, heldout, log, saver, goodput, hosts)
        with jax.set_mesh(mesh), StopRequest() as stop:
            state, finished = trainer.train(state, stop)
        saver.wait()
    print_line(goodput.describe())
    metrics = read_metrics(folder / METRICS_FILE)
    if hosts.is_first:
        plot_loss(metrics, folder / "loss.png")
    return RunResult(folder, state, tokenizer, metrics, finished)


def describe_result(config: RunConfig, result: RunResult) -> str:
    """Lines for the end of a run."""
    before, after = result.heldout_losses()
    measured = sum("heldout_loss" in line for line in result.metrics)
    loaded = config.checkpoint.load_parameters_path or config.checkpoint.load_full_state_path
    start = "untrained" if loaded is None else "at the start"
    now = f", {after:.4f} now ({before - after:.4f} nats less)" if measured > 1 else ""
    return (
        f"held-out loss: {before:.4f} {start}{now}\n"
        f"metrics: {result.folder}/{METRICS_FILE}, curve: {result.folder}/loss.png"
    )


def _loader(
    plan: Plan, mesh: Mesh, shards: list[Shards], shares: tuple[SourceShare, ...]
) -> Loader:
    config, num_rows = plan.config, plan.micro_batch_rows
    return Loader(
        shards,
        config.data,
        shares=shares,
        max_target_length=config.batch.max_target_length,
        seed=config.seed,
        own_rows=process_rows(mesh, num_rows),
        micro_batch_rows=num_rows,
    )


def _describe_data(shards: list[Shards], tokenizer: Tokenizer, config: RunConfig) -> Iterator[str]:
    yield f"tokenizer {tokenizer.fingerprint[:16]} with {tokenizer.vocab_size} tokens"
    for shard in shards:
        manifest, notes = shard.manifest, ""
        if manifest.skipped_non_utf8_documents:
            notes += f", {manifest.skipped_non_utf8_documents:,} documents not UTF-8 skipped"
        if manifest.bytes_documents:
            notes += f", {manifest.bytes_documents:,} documents not UTF-8 kept as bytes"
        yield (
            f"source {manifest.source.name}: {manifest.train.tokens:,} training and "
            f"{manifest.heldout.tokens:,} held-out tokens in {shard.folder}{notes}"
        )
        cut = None
        if manifest.source.is_of_dialogs:
            cut = describe_long_dialogs(
                shard, config.data, max_target_length=config.batch.max_target_length
            )
        if cut is not None:
            yield f"source {manifest.source.name}: {cut}"
