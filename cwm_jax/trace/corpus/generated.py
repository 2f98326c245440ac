"""The corpus that a source says to generate."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from cwm_jax.config import SourceConfig, schema
from cwm_jax.trace.corpus.engines import LocalEngine
from cwm_jax.trace.corpus.settings import CorpusSettings
from cwm_jax.trace.corpus.shards import read_manifest
from cwm_jax.trace.corpus.writer import write_corpus
from cwm_jax.trace.episodes import generated_programs
from cwm_jax.trace.generator import KINDS


def generate_corpus(source: SourceConfig) -> None:
    """Traces the programs of ``source.generate`` to its path, or checks the corpus that is there.

    Raises:
        ValueError: a corpus of other programs is there.
    """
    wanted = source.generate
    assert wanted is not None and source.path is not None
    programs = functools.partial(
        generated_programs,
        wanted.seed,
        difficulties=wanted.difficulties,
        kinds=wanted.kinds or KINDS,
    )
    # Another version of the generator may make other programs of the same settings.
    first = "".join(program.context for program in programs(min(wanted.programs, 1000)))
    digest = hashlib.sha256(first.encode()).hexdigest()
    described = {"generate": schema.to_json(wanted), "first_programs_sha256": digest}
    if Path(source.path).exists():
        found = read_manifest(source.path).settings["description"]
        if found != described:
            raise ValueError(
                f"source {source.name!r}: {source.path} holds {found}; the config says "
                f"{described}: remove the folder, or set another path"
            )
        return
    print(f"source {source.name}: tracing {wanted.programs:,} generated programs", flush=True)
    # one run of each: by construction nothing in these programs can differ between two
    settings = CorpusSettings(repeats=1, unsafe=wanted.unsafe, description=described)
    report = write_corpus(
        programs(wanted.programs), source.path, settings=settings, engine=LocalEngine()
    )
    print(f"source {source.name}: {report.total.kept:,} traces in {source.path}")
