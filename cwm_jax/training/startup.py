"""How every run begins: processes that agree, a folder of its own, a state to go on from."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from cwm_jax.config import RunConfig, schema
from cwm_jax.distributed import Hosts
from cwm_jax.storage import file_sha256, write_whole
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training.goodput import Goodput
from cwm_jax.training.metrics import (
    METRICS_FILE,
    MetricsLog,
    keep_metrics_through,
    print_line,
    read_metrics,
)
from cwm_jax.training.scaling.laws import law_files
from cwm_jax.training.state import (
    TrainState,
    abstract_state,
    init_sharded_state,
    state_shardings,
)


def start_values(config: RunConfig) -> dict[str, Any]:
    """What all processes of a run must have been started with."""
    if jax.process_count() == 1:
        return {}
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    code = {"code_sha256": digest.hexdigest(), "jax": jax.__version__}
    laws = law_files(config.optimizer.learning_rate, config.batch.global_batch_tokens)
    code |= {f"content of {f}": file_sha256(f) if f.is_file() else "missing" for f in laws}
    return code | {key: schema.to_json(v) for key, v in schema.flatten(config).items()}


def newest_checkpoint(folder: Path, hosts: Hosts) -> Path | None:
    """Chosen by the first process, which reads all of it to compare its checksums."""

    def choose() -> str:
        newest = ckpt.newest_checkpoint(folder, print_line)
        return newest.name if newest else ""

    name = hosts.decide("newest checkpoint", choose)
    return folder / name if name else None


def restored_state(config: RunConfig, mesh: Mesh, checkpoint: Path) -> TrainState:
    """That of a checkpoint of the run itself."""
    return ckpt.restore(checkpoint, abstract_state(config), state_shardings(config, mesh))


def first_state(config: RunConfig, mesh, tokenizer: Tokenizer, hosts: Hosts) -> TrainState:
    """From the seed; parameters, or parameters and optimizer state, from where the config says."""
    state = init_sharded_state(config, mesh)
    key, source = "load_full_state_path", config.checkpoint.load_full_state_path
    if source is None:
        key, source = "load_parameters_path", config.checkpoint.load_parameters_path
    if source is None:
        return state

    def choose() -> str:
        try:
            return str(ckpt.resolve_checkpoint(source))
        except ckpt.CheckpointError as error:
            raise ckpt.CheckpointError(f"checkpoint.{key}: {error}") from error

    path = Path(hosts.decide("starting weights", choose))
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


@contextlib.contextmanager
def opened_log(
    config: RunConfig,
    folder: Path,
    record: ckpt.RunRecord | None,
    goodput: Goodput,
    hosts: Hosts,
) -> Iterator[MetricsLog]:
    """The run's metrics and books, cut back to a checkpoint's step, None: to none; its config."""
    path = folder / METRICS_FILE
    if hosts.is_first:
        goodput.resume(record.step if record else 0, read_metrics(path))
        keep_metrics_through(path, record.step if record else -1)
        resolved = json.dumps(schema.to_json(config), indent=1)
        write_whole(folder / "config.json", resolved.encode())
    with contextlib.closing(MetricsLog(path, tensorboard=config.logging.tensorboard)) as log:
        yield log


@contextlib.contextmanager
def locked(folder: Path, hosts: Hosts) -> Iterator[None]:
    """Refuses a second run in the same folder, and processes that do not share it."""
    with contextlib.ExitStack() as stack:
        lock = folder / ".lock"
        written = hosts.decide("run folder", lambda: _lock(lock, stack))
        absent = not hosts.is_first and not (lock.exists() and lock.read_text() == written)
        hosts.meet(
            "run folder is shared",
            problem=f"{folder.absolute()} is not the folder of process 0: base_output_directory "
            "must be on storage that all hosts share"
            if absent
            else "",
        )
        yield


def _lock(path: Path, stack: contextlib.ExitStack) -> str:
    """Takes the lock until the stack is left; returns what is written in it, new each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(path.open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(
            f"another process is training {path.parent}; wait for it, or use another run_name"
        ) from error
    file.truncate(0)
    file.write(text := uuid.uuid4().hex)
    file.flush()
    return text
