"""What the runs of an ablation share, made once: corpora, tokenizers, tokenised shards."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cwm_jax.config import RunConfig, schema
from cwm_jax.data.prepare import prepare_all
from cwm_jax.data.vocabulary import load_or_train_tokenizer
from cwm_jax.sweeps.ablation.grid import Ablation, Config, phases_of
from cwm_jax.tokenizer import load_tokenizer
from cwm_jax.trace.corpus import generate_corpus


def prepare_shared(ablation: Ablation, configs: Sequence[Config]) -> None:
    """Makes what these runs of it read, or finds it; one process at a time, the others wait.

    Raises:
        ValueError: what is there is of other settings, or a source is not usable.
    """
    with _one_at_a_time(ablation.folder):
        if ablation.tokenizer_of is not None:
            shared = ablation.changed_base(ablation.tokenizer_of)
            _generate(phases_of(shared))
            _share_tokenizer(ablation, *phases_of(shared))
        phases = [phase for config in configs for phase in phases_of(config)]
        _generate(phases)
        _tokenise(phases)


def _generate(phases: Sequence[RunConfig]) -> None:
    sources = [source for phase in phases for source in phase.data.sources]
    wanted = {(s.path, json.dumps(schema.to_json(s.generate))): s for s in sources if s.generate}
    for source in wanted.values():
        generate_corpus(source)


def _tokenise(phases: Sequence[RunConfig]) -> None:
    """All but what an earlier phase's tokenizer is needed for."""
    wanted = {}
    for phase in phases:
        path = phase.tokenizer.path
        if phase.data.sources and (path is None or Path(path).exists()):
            of = schema.to_json(phase.tokenizer), schema.to_json(phase.data)
            wanted[json.dumps(of)] = phase
    for phase in wanted.values():
        tokenizer = load_or_train_tokenizer(phase.tokenizer, phase.data)
        prepare_all(phase.data, tokenizer, model_vocab_size=phase.model.vocab_size)


def _share_tokenizer(ablation: Ablation, config: RunConfig) -> None:
    tokenizer, path = (
        load_or_train_tokenizer(config.tokenizer, config.data),
        ablation.tokenizer_path,
    )
    if not path.exists():
        beside = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(beside, ignore_errors=True)
        tokenizer.save(beside)
        beside.rename(path)
    elif load_tokenizer(path).fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{path} is another tokenizer than that of the sources of {ablation.tokenizer_of}; "
            f"expected the one that earlier runs have: remove {ablation.folder} with those runs, "
            "or give the ablation another name"
        )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".preparing").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
