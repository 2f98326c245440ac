"""Checkpoints of a whole run: written beside, checksummed, renamed; verified when read.

    <folder>/00001000/state/         Orbax PyTree of the TrainState, plain zarr, a layer a chunk
                     config.json     architecture, as in an export
                     run.json        resolved config, step, data-iterator state, versions
                     tokenizer/      the run's tokenizer
                     checksums.json  last file written: it does not count without it

``python -m convert`` reads and writes the same format with ``state`` holding parameters alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cwm_jax.config import CheckpointConfig, ModelConfig, RunConfig, schema
from cwm_jax.distributed import Hosts
from cwm_jax.tokenizer import Tokenizer, load_tokenizer
from cwm_jax.training.checksums import STATE_FOLDER, damage, write_checksums
from cwm_jax.training.plan import Plan

_RUN_FILE = "run.json"
_TEMPORARY = ".tmp-"
_DAMAGED = ".damaged"
_MIN_CHUNK_BYTES = 1 << 20  # smaller ones cost more files than they save memory
_MAX_CHUNK_BYTES = 32 << 20
# A run may start from weights with other values of these.
_NEW_PHASE = (
    "rope_parameters",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# A run may be resumed with other values of these; every other difference is refused.
_FREE_KEYS = (
    "run_name",
    "base_output_directory",
    "steps",
    "checkpoint.",
    "logging.",
    "trace_evaluation.",
    "mesh.",
    "execution.",
    "data.cache_directory",
    "data.prefetch_rows",
    "optimizer.max_nonfinite_steps",
    # Who plays, and how much at a time.
    "rl.ray_address",
    "rl.rollout_",
    "rl.groups_at_once",
    "rl.max_groups_per_step",
    "rl.max_rows",
    "rl.ready_groups",
    "rl.environment_timeout_s",
    "rl.eval_",
    # What the batch is made of; the batches themselves are compared.
    "batch.per_device_batch_size",
    "batch.global_batch_tokens",
    "batch.gradient_accumulation_steps",
)


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read, or used by this run."""


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a checkpoint holds besides arrays."""

    step: int
    config: RunConfig
    batches: tuple[tuple[int, int], ...]
    """(first step, tokens in a batch from there): they depend on the devices too."""
    loader_state: dict[str, Any]
    peak_learning_rate: float | None = None
    """As the plan had it: the file of a law may change. None: written before this was kept."""


class Checkpointer:
    """Saves a run's checkpoints in the background and keeps as many as configured."""

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        tokenizer: Tokenizer,
        hosts: Hosts | None = None,
    ):
        self._folder = folder
        self._config = config
        self._tokenizer = tokenizer
        self._hosts = hosts or Hosts()
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._hosts.decide("checkpoint folder", self._prepare_folder)

    def save(self, state: Any, record: RunRecord) -> None:
        """Starts writing; returns when the arrays are copied to the host (at once if asynchronous).

        Raises:
            CheckpointError: this save or the one before it failed; earlier checkpoints are
                untouched.
        """
        self.wait()
        beside = self._folder / f"{_TEMPORARY}{record.step:08d}"
        try:
            self._hosts.decide("start of a save", beside.mkdir)
            save_args = jax.tree_util.tree_map_with_path(_save_args, state)
            self._orbax.save(
                (beside / STATE_FOLDER).absolute(),
                args=ocp.args.PyTreeSave(state, save_args=save_args),
            )
        except Exception as error:
            self._error = error
            self.wait()
        self._thread = threading.Thread(target=self._finish, args=(beside, record))
        self._thread.start()
        if not self._config.async_checkpointing:
            self.wait()

    def check(self) -> None:
        """Raises CheckpointError if a save has failed since it was started; does not wait."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            CheckpointError: the last save failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if self._hosts.is_first:
                for left in self._folder.glob(f"{_TEMPORARY}*"):
                    shutil.rmtree(left, ignore_errors=True)
            good = next(iter(_steps(self._folder)), None)
            kept = f"the newest complete checkpoint is {good.name}" if good else "there is none yet"
            raise CheckpointError(
                f"could not save a checkpoint in {self._folder}: {error}; {kept}. Free space or "
                "mend the cause, then start the same command again: it resumes from there"
            ) from error

    def close(self) -> None:
        self.wait()
        self._orbax.close()

    def _prepare_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob(
            f"{_TEMPORARY}*"
        ):  # of a process that was killed while saving
            shutil.rmtree(left)

    def _finish(self, beside: Path, record: RunRecord) -> None:
        """Waits for the arrays; the first process adds the rest and makes the whole visible."""
        try:
            self._finish_arrays()
            self._hosts.decide("end of a save", lambda: self._commit(beside, record))
        except BaseException as error:  # handed to the main thread by wait()
            self._error = error

    def _finish_arrays(self) -> None:
        """Of all processes: fails on all if it fails on one; here with the error itself."""
        what = "arrays of a save"
        try:
            self._orbax.wait_until_finished()
        except BaseException as error:
            self._hosts.tell(what, error)
            raise
        self._hosts.meet(what)

    def _commit(self, beside: Path, record: RunRecord) -> None:
        config = record.config
        (beside / "config.json").write_text(json.dumps(config.model.to_hf(), indent=1))
        run = {
            "step": record.step,
            "config": schema.to_json(config),
            "batches": record.batches,
            "loader_state": record.loader_state,
            "peak_learning_rate": record.peak_learning_rate,
            "versions": {"jax": jax.__version__, "orbax": ocp.__version__},
        }
        (beside / _RUN_FILE).write_text(json.dumps(run, indent=1))
        self._tokenizer.save(beside / "tokenizer")
        write_checksums(beside)
        os.replace(beside, self._folder / f"{record.step:08d}")
        _sync_folder(self._folder)
        self._prune()

    def _prune(self) -> None:
        keep = self._config.keep_period
        for path in list(_steps(self._folder))[self._config.keep_last :]:
            if keep is None or int(path.name) % keep:
                gone = path.with_name(f"{_TEMPORARY}{path.name}")
                os.replace(path, gone)  # so that a kill leaves no half-deleted checkpoint
                shutil.rmtree(gone)


def newest_checkpoint(folder: Path, report) -> Path | None:
    """The newest whole checkpoint; damaged ones after it are reported and moved aside.

    Raises:
        CheckpointError: there are checkpoints and none is whole; nothing has been moved.
    """
    damaged = {}
    for path in _steps(folder):
        problems = damage(path)
        if not problems:
            for other, text in damaged.items():
                aside = free_name(other.with_name(other.name + _DAMAGED))
                os.replace(other, aside)
                report(f"checkpoint {other} is damaged ({text}); kept as {aside.name}")
            if damaged:
                report(f"using the one before, {path}")
            return path
        damaged[path] = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
    if damaged:
        lines = "\n".join(f"  {path.name}: {text}" for path, text in damaged.items())
        raise CheckpointError(
            f"no checkpoint in {folder} is whole:\n{lines}\nto train again from the first step, "
            "move this folder away or choose another run_name"
        )
    return None


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint meant by a checkpoint's or a run's folder (its newest whole one).

    Raises:
        CheckpointError: there is none, or the one that is named is damaged.
    """
    path = Path(path)
    if (path / STATE_FOLDER).is_dir():
        if problems := damage(path):
            raise CheckpointError(f"checkpoint {path} is damaged: {'; '.join(problems[:5])}")
        return path
    for folder in (path / "checkpoints", path):
        for candidate in _steps(folder):
            if not damage(candidate):
                return candidate
    raise CheckpointError(
        f"{path} holds no whole checkpoint; expected a folder with {STATE_FOLDER}/ or a run's "
        "folder"
    )


def free_name(path: Path) -> Path:
    """``path`` with the first of ``-1``, ``-2``, ... that names nothing yet."""
    number = 1
    while (candidate := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return candidate


def read_record(path: Path) -> RunRecord:
    """What a run's checkpoint holds besides arrays.

    Raises:
        CheckpointError: it is of another version of the config, or was converted and has none.
    """
    try:
        run = json.loads((path / _RUN_FILE).read_text())
        return RunRecord(
            step=run["step"],
            config=schema.from_json(RunConfig, run["config"]),
            batches=tuple((first, tokens) for first, tokens in run["batches"]),
            loader_state=run["loader_state"],
            peak_learning_rate=run.get("peak_learning_rate"),
        )
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be resumed: {_RUN_FILE}: {error}"
        ) from error


def check_same_run(path: Path, saved: RunRecord, plan: Plan) -> None:
    """Raises CheckpointError with the list of differences that make it another run."""
    free = _FREE_KEYS
    if _has_peak_of(saved, plan):  # whether a law or a number gave it
        free += ("optimizer.learning_rate",)
    differences = [
        f"  {sentence}"
        for key, sentence in _changed("checkpoint", saved.config, plan.config).items()
        if key == "execution.weight_dtype" or not key.startswith(free)
    ]
    same_spelling = saved.config.optimizer.learning_rate == plan.config.optimizer.learning_rate
    if saved.peak_learning_rate is not None and same_spelling and not _has_peak_of(saved, plan):
        differences.append(
            f"  peak learning rate: checkpoint {saved.peak_learning_rate}, now "
            f"{plan.peak_learning_rate}: {plan.config.optimizer.learning_rate!r} says something "
            "else than when the run was started; bring the file's old content back, or set "
            f"optimizer.learning_rate={saved.peak_learning_rate!r}"
        )
    if saved.batches != (now := batches(plan)):
        differences.append(
            f"  batches as (first step, tokens): checkpoint {saved.batches}, config and devices "
            f"{now}; {_what_sets_batches(saved, plan)}"
        )
    if differences:
        lines = "\n".join(differences)
        raise CheckpointError(
            f"checkpoint {path} belongs to another run:\n{lines}\nuse the config it was made with, "
            "or another run_name (checkpoint.load_parameters_path starts it from these weights)"
        )


def _has_peak_of(saved: RunRecord, plan: Plan) -> bool:
    peak = saved.peak_learning_rate
    return peak is not None and math.isclose(peak, plan.peak_learning_rate, rel_tol=1e-9)


def _what_sets_batches(saved: RunRecord, plan: Plan) -> str:
    if plan.batch_law is None:
        return "batch.global_batch_tokens sets them whatever the devices"
    return (
        f"batch.global_batch_tokens={plan.config.batch.global_batch_tokens!r} is a law, whose file "
        "may have changed and whose batch is rounded to what the devices take at once: set it to "
        f"{saved.batches[0][1]}"
    )


def check_same_model(path: Path, config: ModelConfig, tokenizer: Tokenizer) -> list[str]:
    """Compares what a checkpoint says beside its arrays with a run that starts from its weights.

    Shapes alone would let weights of other windows or another vocabulary through.

    Returns:
        A sentence for each difference that a new phase may want: in RoPE, context, special tokens.

    Raises:
        CheckpointError: any other difference.
    """
    stored = ModelConfig.from_hf(json.loads((path / "config.json").read_text()))
    changed = _changed("weights", stored, config)
    refused = [f"  model.{text}" for key, text in changed.items() if not key.startswith(_NEW_PHASE)]
    if refused:
        raise CheckpointError(
            f"the weights of {path} are of another model:\n" + "\n".join(refused) + "\n"
            "take these values from its config.json into the config"
        )
    folder = path / "tokenizer"
    if folder.is_dir() and load_tokenizer(folder).fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"the weights of {path} were trained with another tokenizer than this run's: "
            f"set tokenizer.path={folder}"
        )
    return [f"starting from weights with another {text}" for text in changed.values()]


def _changed(owner: str, old: Any, new: Any) -> dict[str, str]:
    """Key -> sentence for every field in which two configs of one class differ."""
    old, new = schema.flatten(old), schema.flatten(new)
    return {
        key: f"{key}: {owner} {old[key]!r}, config {new[key]!r}"
        for key in new
        if old[key] != new[key]
    }


def run_record(plan: Plan, step: int, loader_state: dict[str, Any]) -> RunRecord:
    """What a run of that plan leaves after ``step`` steps."""
    peak = plan.peak_learning_rate
    return RunRecord(step, plan.config, batches(plan), loader_state, peak)


def batches(plan: Plan) -> tuple[tuple[int, int], ...]:
    """A plan's batches as a checkpoint records them."""
    return tuple((stage.first_step, stage.batch_tokens) for stage in plan.stages)


def restore(path: Path, abstract: Any, shardings: Any, *, cast: bool = False) -> Any:
    """Reads arrays onto the mesh; other parts of the tree than ``abstract``'s are not read.

    Raises:
        CheckpointError: an array is absent, or has another shape or (unless ``cast``) dtype.
    """
    stored = dict(_stored_arrays(path / STATE_FOLDER))
    wanted = {
        jax.tree_util.keystr(key, simple=True, separator="."): _Array(
            str(np.dtype(leaf.dtype)), list(leaf.shape)
        )
        for key, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    if cast:  # Orbax does it, and says nothing
        wanted = {
            k: dataclasses.replace(w, dtype=stored.get(k, w).dtype) for k, w in wanted.items()
        }
    if differences := _array_differences(stored, wanted):
        raise CheckpointError(
            f"checkpoint {path} does not fit the config:\n" + "\n".join(differences)
        )
    restore_args = jax.tree.map(lambda s: ocp.ArrayRestoreArgs(sharding=s), shardings)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as orbax:
        return orbax.restore(
            (path / STATE_FOLDER).absolute(),
            args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=restore_args, partial_restore=True
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Array:
    dtype: str
    shape: list[int]

    def __str__(self) -> str:
        return f"{self.dtype}{self.shape}"


def _array_differences(stored: dict[str, _Array], wanted: dict[str, _Array]) -> list[str]:
    parts = {name.split(".")[0] for name in wanted}
    names = {name for name in stored if name.split(".")[0] in parts} | set(wanted)
    return [
        f"  {name}: checkpoint {stored.get(name, 'has none')}, config "
        f"{wanted.get(name, 'has none')}"
        for name in sorted(names)
        if stored.get(name) != wanted.get(name)
    ]


def _stored_arrays(state: Path) -> Iterator[tuple[str, _Array]]:
    for path in state.glob("*/.zarray"):
        spec = json.loads(path.read_text())
        yield path.parent.name, _Array(str(np.dtype(spec["dtype"])), spec["shape"])


def _save_args(path: Any, leaf: Any) -> ocp.SaveArgs:
    """Chunks that converters can read one by one: a layer of a stack, and 32 MiB of anything.

    Orbax cuts ``shard_axes`` down to 1 whatever the target: for a vocabulary of 128256 that would
    be as many files.
    """
    if leaf.nbytes <= _MIN_CHUNK_BYTES:
        return ocp.SaveArgs()
    stacked = "layers" in (getattr(key, "key", None) for key in path)
    slice_bytes = leaf.nbytes // leaf.shape[0] if stacked else leaf.nbytes
    chunk_bytes = max(_MIN_CHUNK_BYTES, min(slice_bytes, _MAX_CHUNK_BYTES))
    return ocp.SaveArgs(chunk_byte_size=chunk_bytes, shard_axes=(0,) if stacked else ())


def _steps(folder: Path) -> list[Path]:
    """Checkpoints of a folder, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
