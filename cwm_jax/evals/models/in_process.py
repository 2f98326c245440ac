"""A model folder on an engine in this process: what the threads ask is one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cwm_jax.evals.models.forcing import ForcedScorer
from cwm_jax.evals.models.model import (
    ModelFailure,
    PromptTooLongError,
    begins_in_reasoning,
    prompt_ids,
    split_reasoning,
    split_stops,
)
from cwm_jax.evals.problem import Answer, Forced, Likelihood, Prompt
from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.inference.pretrained import load_pretrained
from cwm_jax.inference.requests import QueueFullError, RequestError, SamplingParams
from cwm_jax.inference.service import EngineService, ServiceClosedError, Stream
from cwm_jax.storage import file_sha256

_MAX_LENGTH = 32_768  # assumed, as of the server: the cache of all rows grows with it
_EXPORT = "export"
_FINGERPRINT_BYTES = 1 << 20


class EngineModel:
    """Asks an engine's service.

    Args:
        service: with a tokenizer.
        scorer: of the same weights, for given continuations.
        name: of the model.
        identity: as of `Model.identity`.
    """

    def __init__(
        self,
        service: EngineService,
        scorer: ForcedScorer,
        *,
        name: str,
        identity: Mapping[str, Any],
    ) -> None:
        assert service.tokenizer is not None
        self.name, self.tokenizer = name, service.tokenizer
        self._service, self._scorer, self._identity = service, scorer, identity

    @property
    def max_length(self) -> int:
        return self._service.max_length

    @property
    def gives_likelihoods(self) -> bool:
        return True

    def identity(self) -> Mapping[str, Any]:
        return self._identity

    def notes(self) -> Sequence[str]:
        return ()

    def answer(self, prompt: Prompt, *, temperature: float, top_p: float, seed: int) -> Answer:
        """As `Model.answer`."""
        ids = prompt_ids(prompt, self.tokenizer)
        if len(ids) >= self._service.max_length:
            raise PromptTooLongError(
                f"the prompt has {len(ids):,} tokens; the model's rows hold "
                f"{self._service.max_length:,}"
            )
        stop_ids, strings = split_stops(prompt.stop, self.tokenizer)
        sampling = SamplingParams(
            max_tokens=prompt.max_tokens,  # or as many as there is room for
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop_token_ids=stop_ids,
            stop=tuple(strings),
        )
        try:
            stream = self._service.submit(ids, sampling)
        except (RequestError, QueueFullError, ServiceClosedError) as error:
            raise ModelFailure(f"the engine does not take the prompt: {error}") from error
        return _read(stream, len(ids), is_reasoning=begins_in_reasoning(prompt))

    def likelihood(self, forced: Forced) -> Likelihood:
        """As `Model.likelihood`."""
        length = len(forced.tokens) + len(forced.given)
        if length > self.max_length:
            raise PromptTooLongError(
                f"prompt and continuation have {length:,} tokens; the model's rows hold "
                f"{self.max_length:,}"
            )
        try:
            return self._scorer.likelihood(forced.tokens, forced.given)
        except jax.errors.JaxRuntimeError as error:
            raise ModelFailure(f"the device failed: {error}") from error

    def close(self) -> None:
        self._service.close(drain=False)


def open_folder(
    path: Path,
    *,
    parallel: int,
    max_length: int | None = None,
    dtype: str | None = None,
    kv_dtype: str | None = None,
) -> EngineModel:
    """Loads an export, a converted or quantized folder, or the export of a run's folder.

    Args:
        path: the folder.
        parallel: prompts at once.
        max_length: tokens of a prompt and its answer; None is the model's, at most 32,768.
        dtype: of the weights; None keeps the stored one.
        kv_dtype: ``int8`` halves the cache and more; None is the weights' dtype.

    Raises:
        ValueError: as ``load_pretrained`` and ``Engine``; checkpoints, with the way on.
    """
    folder = _model_folder(path)
    loaded = load_pretrained(folder, dtype=dtype)
    longest = loaded.model_config.max_position_embeddings
    options = EngineOptions(
        max_length=max_length or min(longest, _MAX_LENGTH),
        max_rows=parallel,
        max_waiting=max(256, parallel),
        kv_dtype=kv_dtype,
    )
    engine = Engine(loaded.params, loaded.model_config, loaded.tokenizer, options)
    identity = {
        "fingerprint": fingerprint(folder),
        "max_length": options.max_length,
        "dtype": dtype,
        "kv_dtype": kv_dtype,
    }
    scorer = ForcedScorer(loaded.params, loaded.model_config, max_length=options.max_length)
    return EngineModel(EngineService(engine), scorer, name=_name(folder), identity=identity)


def fingerprint(folder: Path) -> str:
    """SHA-256 over a model's config, its tokenizer, and the ends and sizes of its weight files.

    Not over all weights, which takes minutes where there are many; training changes all of them.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.json")):
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(_FINGERPRINT_BYTES))
            opened.seek(max(0, size - _FINGERPRINT_BYTES))
            digest.update(opened.read())
    return digest.hexdigest()


def _model_folder(path: Path) -> Path:
    """A run's folder stands for its export."""
    has_weights = any(path.glob("*.safetensors"))
    if not has_weights and (path / _EXPORT).is_dir():
        return path / _EXPORT
    if (path / "checkpoints").is_dir() and not has_weights:
        raise ValueError(
            f"{path} is a run's folder without an export; expected weights in Hugging Face's "
            f"layout: write them by `python -m convert to-hf {path} FOLDER`"
        )
    return path


def _name(folder: Path) -> str:
    """``RUN/export`` says more than ``export``."""
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name == _EXPORT else folder.name


def _read(stream: Stream, num_prompt_tokens: int, *, is_reasoning: bool) -> Answer:
    text, ids, reason = "", [], None
    try:
        for delta in stream:
            text, reason = text + delta.text, delta.finish_reason
            ids += delta.token_ids
    except BaseException:
        stream.cancel()
        raise
    if reason not in ("stop", "length"):
        raise ModelFailure(f"the engine ended an answer with {reason!r}; its log says why")
    reasoning, answer = split_reasoning(text, is_reasoning=is_reasoning)
    return Answer(
        text=answer,
        finish_reason=reason,
        reasoning=reasoning,
        token_ids=ids,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=len(ids),
    )
