"""Fixtures of the software engineering environment's tests."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from swe_players import Player

from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.profiles import PROFILES, SWEProfile
from cwm_jax.rl.envs.swe.prompts import opening
from cwm_jax.rl.envs.swe.shipped.tasks import repository_files, shipped_tasks
from cwm_jax.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    prompt = [m.text for m in opening("an issue", "/tmp/testbed", PROFILES["small"])]
    return train_tokenizer([*repository_files().values(), *prompt], 1536)


@pytest.fixture(scope="session")
def tasks() -> tuple[Task, ...]:
    return shipped_tasks()


@pytest.fixture
def play(tokenizer) -> Iterator[Callable[..., Player]]:
    """``play(task, profile, **changes of the profile)``: an episode that has started."""
    players = []

    def make(task: Task, profile: SWEProfile = PROFILES["small"], **changes) -> Player:
        profile = dataclasses.replace(profile, **changes)
        player = Player(SoftwareEngineering(task, tokenizer, profile), tokenizer)
        players.append(player)
        player.start()
        return player

    yield make
    for player in players:
        player.environment.close()
