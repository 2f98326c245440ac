"""Corpora of execution traces: many programs traced in parallel, chosen, stored and read back."""

from cwm_jax.trace.corpus.decontamination import Benchmarks, load_benchmarks
from cwm_jax.trace.corpus.deduplication import NearDuplicates
from cwm_jax.trace.corpus.engines import LocalEngine, RayEngine
from cwm_jax.trace.corpus.generated import generate_corpus
from cwm_jax.trace.corpus.report import CorpusReport
from cwm_jax.trace.corpus.settings import CorpusError, CorpusSettings
from cwm_jax.trace.corpus.shards import Manifest, read_corpus, read_episodes, read_manifest
from cwm_jax.trace.corpus.worker import Work
from cwm_jax.trace.corpus.writer import write_corpus

__all__ = [
    "Benchmarks",
    "CorpusError",
    "CorpusReport",
    "CorpusSettings",
    "LocalEngine",
    "Manifest",
    "NearDuplicates",
    "RayEngine",
    "Work",
    "generate_corpus",
    "load_benchmarks",
    "read_corpus",
    "read_episodes",
    "read_manifest",
    "write_corpus",
]
