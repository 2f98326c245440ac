"""Which true traces are predicted: held-out episodes of a corpus, or a file's programs, traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from cwm_jax.data.split import is_heldout
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.corpus import read_corpus
from cwm_jax.trace.episodes import Episode, Program, Uncallable
from cwm_jax.trace.format import parse_frames, render_each
from cwm_jax.trace.frames import TraceFrame
from cwm_jax.trace.tracer import TraceError, Tracer


@dataclasses.dataclass(frozen=True)
class EpisodeTokens:
    """An episode in tokens: the prompt with the entry's call, then each frame, then the end."""

    episode: Episode
    frames: list[TraceFrame]
    prompt: list[int]
    given: list[int]  # the entry's call, which no model can know
    rest: list[list[int]]

    @classmethod
    def of(cls, episode: Episode, tokenizer: Tokenizer) -> EpisodeTokens:
        frames = parse_frames(episode.frames)
        first, *rest = [tokenizer.encode_with_special_tokens(t) for t in render_each(frames)]
        prompt = tokenizer.encode_with_special_tokens(episode.prompt)
        return cls(episode, frames, prompt, first, rest)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.given) + sum(map(len, self.rest)) + 1


def heldout_episodes(corpus: str | Path, heldout_fraction: float) -> Iterator[Episode]:
    """Those that a training with this ``data.heldout_fraction`` never saw; 1 takes all.

    Raises:
        CorpusError: as `read_corpus`.
    """
    for episode in read_corpus(corpus):
        if is_heldout(episode.group, heldout_fraction):
            yield episode


def traced_episodes(
    programs: Iterable[Program | Uncallable], tracer: Tracer, failed: list[str]
) -> Iterator[Episode]:
    """Episodes of programs; why one has no trace is printed, its name added to ``failed``."""
    for program in programs:
        try:
            yield from program.episodes(tracer)
        except TraceError as error:
            failed.append(program.name)
            print(f"{program.name}: {error}")


def take_episodes(
    episodes: Iterable[Episode],
    tokenizer: Tokenizer | None,
    *,
    count: int,
    max_length: int | None,
) -> tuple[list[Episode], dict[str, int]]:
    """The first ``count`` finished ones of at most ``max_length`` tokens, and who was passed over.

    Args:
        episodes: as they come; no more of them are read than are needed.
        tokenizer: of the model; None where ``max_length`` is, which then nothing exceeds.
        count: how many, at most.
        max_length: tokens of a prompt and its trace.

    Returns:
        The episodes, and how many were ``cut`` by a limit and ``too_long``.

    Raises:
        ValueError: there is none.
    """
    assert max_length is None or tokenizer is not None
    taken, passed = [], {"cut": 0, "too_long": 0}
    for episode in episodes:
        if len(taken) == count:
            break
        if not episode.finished:
            passed["cut"] += 1
        elif max_length is not None and _num_tokens(episode, tokenizer) > max_length:
            passed["too_long"] += 1
        else:
            taken.append(episode)
    if not taken:
        limit = "ended" if max_length is None else f"has at most {max_length} tokens"
        raise ValueError(
            f"no episode to predict {limit} ({passed}); raise max_length, or heldout_fraction for "
            "a small corpus"
        )
    return taken, passed


def _num_tokens(episode: Episode, tokenizer: Tokenizer | None) -> int:
    assert tokenizer is not None
    return EpisodeTokens.of(episode, tokenizer).num_tokens
