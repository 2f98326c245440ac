"""Fixtures of the software engineering environment's tests."""

import dataclasses
import subprocess
from collections.abc import Callable, Iterator

import pytest
from swe_players import FIXED, GOLD, MODULE, NEW_TEST, OLD_TEST, Player

from benchmarks.swe_episode import small_tokenizer
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.profiles import PROFILES, SWEProfile
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return small_tokenizer()


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


@pytest.fixture(scope="session")
def git_task(tmp_path_factory) -> Task:
    """A fault at a commit whose repository has the fix in a branch, a tag, a stash and a remote."""
    folder = tmp_path_factory.mktemp("git")

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "safe.directory=*"]
        line = ["git", *identity, *arguments]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q", "-b", "main")
    (folder / "tests").mkdir()
    (folder / "tests/__init__.py").write_text("")
    (folder / "tests/test_module.py").write_text(OLD_TEST)
    (folder / "module.py").write_text("# first\n" + MODULE)
    git("add", ".")
    git("commit", "-qm", "First")
    (folder / "module.py").write_text(MODULE)
    git("commit", "-qam", "Base")
    commit = git("rev-parse", "HEAD")
    (folder / "module.py").write_text(FIXED)
    git("stash")
    (folder / "module.py").write_text(FIXED)
    git("commit", "-qam", "The secret fix")
    git("tag", "v2")
    git("branch", "later")
    git("remote", "add", "upstream", str(folder))
    git("fetch", "-q", "upstream")
    name = "tests.test_module.ModuleTest"
    tests = {
        "command": "python -m unittest -v",
        "format": "unittest",
        "files": {"tests/test_module.py": NEW_TEST},
        "fail_to_pass": [f"{name}.test_double"],
        "pass_to_pass": [f"{name}.test_same"],
        "canary": "tests",
    }
    repository = {"git": str(folder), "commit": commit}
    data = {"issue": "double(3) is 5", "repository": repository, "patch": GOLD, "tests": tests}
    return Task(name="git", data=data)
