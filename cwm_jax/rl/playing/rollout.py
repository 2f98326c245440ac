"""Many episodes at once on one engine: the policy's tokens from it, the rest from environments.

One loop drives them all. Each round lets the engine compute some tokens, hands finished actions to
their environments, which `Keeper` has in threads of their own, and the next prompts back to it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from cwm_jax.inference.engine import Engine
from cwm_jax.inference.requests import SamplingParams
from cwm_jax.inference.scheduler import Request
from cwm_jax.rl.environment import Environment, EnvironmentFailure, Observation, Step, Task
from cwm_jax.rl.playing.keeper import Keeper
from cwm_jax.rl.trajectory import Ending, Trajectory, Turn

_LOG = logging.getLogger(__name__)
TRUNCATED_RETURN = -1.0  # report: whatever does not succeed within its limits
_WAIT_S = 0.05  # of the loop where nothing but environments has work
_CLOSING_S = 60.0  # assumed: of `Rollouts.close`, for steps under way and what they hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """An episode to be played."""

    environment: str
    task: Task
    group: int
    seed: int


class Rollouts:
    """Plays episodes; for one thread."""

    def __init__(
        self,
        engine: Engine,
        make_environment: Callable[[str, Task], Environment],
        *,
        max_tokens: int,
        ordered: bool,
        timeout_s: float,
        temperature: float = 1.0,
    ):
        """The engine is its own from now on.

        Args:
            engine: with a tokenizer.
            make_environment: of a name and a task.
            max_tokens: of an episode; where no action fits any more it ends, and its return is
                ``TRUNCATED_RETURN``.
            ordered: wait for all environments before the engine goes on, so that what is computed
                together, and with it every bit, does not depend on the clock.
            timeout_s: of each step of an environment, without its waits for others (see
                `waiting_for_others`); one that takes longer has failed.
            temperature: of the draws; 0 is greedy.
        """
        assert engine.tokenizer is not None
        self._engine, self._make_environment = engine, make_environment
        self._stop_ids = tuple(engine.tokenizer.stop_ids)
        self._max_tokens = min(max_tokens, engine.longest)
        self._ordered, self._timeout_s, self._temperature = ordered, timeout_s, temperature
        self._acting: dict[Request, _Episode] = {}
        self._stepping: list[_Episode] = []
        self._closing: list[Keeper] = []
        self.version = 0

    @property
    def num_playing(self) -> int:
        return len(self._acting) + len(self._stepping)

    def add(self, wanted: Wanted) -> None:
        """Begins an episode."""
        make = functools.partial(self._make_environment, wanted.environment, wanted.task)
        self._stepping.append(_Episode(wanted, Keeper(make, self._timeout_s)))

    def step(self) -> list[Trajectory]:
        """Computes some tokens, and gives the episodes that have ended."""
        ended = self._collect()
        if self._engine.has_work:
            for request, delta in self._engine.step():
                self._receive(request, delta)
        elif self._stepping:
            self._stepping[0].keeper.wait(_WAIT_S)
        return ended

    def update_weights(self, params: Any, version: int) -> None:
        """Other weights, for running episodes too; see ``Engine.update_weights``."""
        self._engine.update_weights(params)
        self.version = version

    def close(self) -> None:
        """Ends all episodes, and waits a while until their environments are closed."""
        for request in self._acting:
            self._engine.cancel(request)
        for episode in [*self._acting.values(), *self._stepping]:
            self._leave(episode)
        self._acting, self._stepping = {}, []
        while self._engine.has_work:
            self._engine.step()
        self._wait_for_closing()

    def _leave(self, episode: _Episode) -> None:
        episode.keeper.close()
        self._closing = [keeper for keeper in self._closing if not keeper.is_closed()]
        self._closing.append(episode.keeper)

    def _wait_for_closing(self) -> None:
        deadline = time.monotonic() + _CLOSING_S
        left = [k for k in self._closing if not k.is_closed(max(0.0, deadline - time.monotonic()))]
        if left:
            _LOG.warning(
                "%d environments do not close within %g s; what they hold may outlive this process",
                len(left),
                _CLOSING_S,
            )
        self._closing = []

    def _collect(self) -> list[Trajectory]:
        """What environments have answered: episodes that end; the others act."""
        ended, waiting = [], []
        for episode in self._stepping:
            while self._ordered and not episode.keeper.answered:
                episode.keeper.wait(_WAIT_S)
            if not episode.keeper.answered:
                waiting.append(episode)
                continue
            ending = self._go_on(episode)
            if ending is not None:
                self._leave(episode)
                ended.append(episode.trajectory(ending))
        self._stepping = waiting
        return ended

    def _go_on(self, episode: _Episode) -> Ending | None:
        """Takes an environment's answer; how the episode has ended, if it has."""
        try:
            answer = episode.keeper.answer()
        except EnvironmentFailure as failure:
            episode.failure = str(failure)
            return "failed"
        except Exception as error:  # nor the policy's fault, but someone has to mend it
            episode.failure = f"{type(error).__name__}: {error}"
            _LOG.error("environment %s crashed", episode.wanted.environment, exc_info=error)
            return "crashed"
        if isinstance(answer, Step):
            episode.reward(answer.reward, answer.info)
            if answer.observation is None:
                return "done"
            answer = answer.observation
        episode.tokens += answer.tokens
        room = min(answer.max_action_tokens, self._max_tokens - len(episode.tokens))
        if room < 1:
            episode.reward(TRUNCATED_RETURN - episode.total_reward, {"reason": "no room"})
            return "length"
        sampling = SamplingParams(
            max_tokens=room,
            temperature=self._temperature,
            seed=episode.next_seed(),
            stop_token_ids=self._stop_ids,
        )
        request = self._engine.submit(episode.tokens, sampling)
        episode.begin_action(answer, self.version)
        self._acting[request] = episode
        return None

    def _receive(self, request: Request, delta: Any) -> None:
        episode = self._acting[request]
        if delta.token_ids and not episode.action:
            episode.first_version = self.version
        episode.action += delta.token_ids
        episode.logprobs += [found.logprob for found in delta.logprobs]
        if delta.finish_reason is None:
            return
        del self._acting[request]
        if delta.finish_reason == "error":
            raise RuntimeError("the engine failed on a request; its log says why")
        episode.keeper.step(episode.end_action(self.version))
        self._stepping.append(episode)


class _Episode:
    """Where one stands: its tokens so far, and who has its environment."""

    def __init__(self, wanted: Wanted, keeper: Keeper):
        self.wanted, self.keeper = wanted, keeper
        self.tokens: list[int] = []
        self.turns: list[Turn] = []
        self.action: list[int] = []
        self.logprobs: list[float] = []
        self.first_version = 0
        self.failure = ""
        self._observation: tuple[int, ...] = ()
        self._draws = random.Random(wanted.seed)

    @property
    def total_reward(self) -> float:
        return sum(turn.reward for turn in self.turns)

    def next_seed(self) -> int:
        return self._draws.getrandbits(63)

    def begin_action(self, observation: Observation, version: int) -> None:
        self._observation = tuple(observation.tokens)
        self.action, self.logprobs, self.first_version = [], [], version

    def end_action(self, version: int) -> list[int]:
        self.tokens += self.action
        self.turns.append(
            Turn(
                observation=self._observation,
                action=tuple(self.action),
                logprobs=tuple(self.logprobs),
                first_version=self.first_version,
                last_version=version,
            )
        )
        return self.action

    def reward(self, reward: float, info: Any) -> None:
        """Of the last action; there is none where the prompt fills the whole context."""
        if self.turns:
            last = self.turns[-1]
            info = {**last.info, **info}
            self.turns[-1] = dataclasses.replace(last, reward=last.reward + reward, info=info)

    def trajectory(self, ending: Ending) -> Trajectory:
        return Trajectory(
            environment=self.wanted.environment,
            task=self.wanted.task,
            group=self.wanted.group,
            seed=self.wanted.seed,
            turns=tuple(self.turns),
            ending=ending,
            failure=self.failure,
        )
