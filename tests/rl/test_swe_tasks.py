"""The shipped tasks, and three policies that play all of them with the real tools."""

import collections
import os
import subprocess
import sys

import pytest
from conftest import call, files_of, final, output

from cwm_jax.rl.envs.swe.calls import call_all
from cwm_jax.rl.envs.swe.patches import apply_patch, parse_patch
from cwm_jax.rl.envs.swe.shipped import mutations as mutating
from cwm_jax.rl.envs.swe.shipped.mutations import KINDS, mutations
from cwm_jax.rl.envs.swe.shipped.tasks import (
    diff_of,
    half_mended,
    hidden_calls,
    repository_files,
    shipped_tasks,
)


def solve(player, task) -> None:
    """Makes each change of the gold patch with the edit tool, as an agent does."""
    for patch in parse_patch(task.data["patch"]):
        for hunk in patch.hunks:
            block = f"<<<<<<< SEARCH\n{''.join(hunk.old)}=======\n{''.join(hunk.new)}>>>>>>> REPLACE"
            shown = player.say(call("edit", f"{patch.path}\n{block}"))
            assert output(shown).startswith("Edited "), shown
    player.say(call("bash", "git diff > /tmp/changes.diff"))
    player.say(call("submit", "/tmp/changes.diff"))
    player.say(final())


def half_of(task) -> str:
    """A patch with the first half of what the gold one changes."""
    before, gold = files_of(task), gold_files(task)
    after = {path: half_mended(before[path], text.decode()) for path, text in gold.items()}
    return diff_of(before, {**before, **after})


def gold_files(task) -> dict[str, bytes]:
    """Files that the gold patch changes, afterwards."""
    before = files_of(task)
    return apply_patch(parse_patch(task.data["patch"]), lambda path: before[path].encode())


def test_a_policy_that_solves_them_gets_1_on_all_tasks(tasks, play):
    for task in tasks:
        player = play(task)
        solve(player, task)
        assert player.last.reward == 1.0, (task.name, player.info, player.read)
        assert player.info["pass"] and player.info["submitted"]
        player.environment.close()


def test_a_policy_that_changes_nothing_that_matters_gets_minus_1_on_all_tasks(tasks, play):
    for task in tasks:
        player = play(task)
        player.say(call("bash", "echo >> README.md; git diff > /tmp/changes.diff"))
        player.say(call("submit", "/tmp/changes.diff"))
        player.say(final())
        assert player.last.reward == -1.0, (task.name, player.info)
        assert "hidden tests fail" in player.info["reason"] and player.info["similarity"] == 0.0
        player.environment.close()


def test_a_policy_that_copies_half_of_the_gold_patch_gets_0_on_all_tasks(tasks, play):
    for task in tasks:
        player = play(task)
        player.submit(half_of(task))
        player.say(final())
        assert player.last.reward == 0.0, (task.name, player.info, half_of(task))
        assert not player.info["pass"] and 0.5 <= player.info["similarity"] < 1.0
        player.environment.close()
