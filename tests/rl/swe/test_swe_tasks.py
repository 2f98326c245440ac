"""The shipped tasks, and three policies that play all of them with the real tools."""

import collections
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from swe_players import call, files_of, final

from benchmarks import swe_episode
from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.envs.kinds import load_tasks, make_environments
from cwm_jax.rl.envs.swe.calls import call_all
from cwm_jax.rl.envs.swe.patches import apply_patch, parse_patch
from cwm_jax.rl.envs.swe.shipped.mutations import KINDS, mutations
from cwm_jax.rl.envs.swe.shipped.tasks import (
    _made,
    diff_of,
    half_mended,
    hidden_calls,
    repository_files,
    shipped_tasks,
)


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
        shown = [player.say(text) for text in swe_episode.turns(task)]
        assert player.last.reward == 1.0, (task.name, player.info, player.read)
        assert player.info["pass"] and player.info["submitted"]
        assert "\nOK\n" in shown[-3]  # what it checked with the tests that it sees
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


def test_the_transcript_in_the_docs_is_what_is_played(tasks):
    written = (Path(__file__).parents[3] / "docs/swe-episode.md").read_text()
    task = next(task for task in tasks if task.name in written)
    assert swe_episode.transcript(task, swe_episode.small_tokenizer()) == written


def test_the_kind_swe_has_the_shipped_tasks_and_the_profiles(tasks, tokenizer):
    config = EnvironmentConfig(name="repair", kind="swe")
    assert load_tasks(config) == list(tasks)
    environment = make_environments([config], tokenizer)("repair", tasks[0])
    assert tokenizer.decode(environment.start().tokens).endswith("<think>\n")
    with pytest.raises(ValueError, match=r"profile is '64k'; those of kind 'swe' are eval, rel"):
        make_environments([dataclasses.replace(config, profile="64k")], tokenizer)


def test_the_same_seed_gives_the_same_tasks_and_another_one_others(tasks):
    again = _made.__wrapped__(0, 5, False)
    assert again == tasks[:5]
    others = shipped_tasks(1, 5)
    assert not {t.data["patch"] for t in others} & {t.data["patch"] for t in tasks[:5]}


def test_the_tasks_are_twenty_of_all_kinds_and_many_functions(tasks):
    kinds = collections.Counter(task.data["fault"]["kind"] for task in tasks)
    assert len(tasks) >= 20 and set(kinds) == set(KINDS) and min(kinds.values()) >= 4
    assert len({task.name for task in tasks}) == len(tasks)
    assert len({task.group for task in tasks}) >= 12


def test_the_gold_patch_is_the_inverse_of_the_fault(tasks):
    whole = repository_files()
    for task in tasks:
        for path, content in gold_files(task).items():
            assert content.decode() == whole[path]
        changed = {path for path, text in files_of(task).items() if text != whole[path]}
        assert changed == set(gold_files(task))


def test_the_issue_shows_one_failing_call_and_not_the_others(tasks):
    calls = hidden_calls()
    for task in tasks:
        files = {path: text.encode() for path, text in files_of(task).items()}
        results = call_all(files, calls, timeout_s=20)
        wrong = [c for c, r in zip(calls, results, strict=True) if not c.is_right(r)]
        shown = [c for c in wrong if f"\n    {c.call}\n" in task.data["issue"]]
        assert len(shown) == 1 and len(wrong) > 1, task.name


def test_the_shipped_repository_passes_its_own_tests_and_the_hidden_ones(tmp_path):
    files = repository_files()
    for path, text in files.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "unittest"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Ran 26 tests" in done.stderr, done.stderr
    calls = hidden_calls()
    encoded = {path: text.encode() for path, text in files.items()}
    results = call_all(encoded, calls, timeout_s=20)
    assert all(c.is_right(r) for c, r in zip(calls, results, strict=True))


def test_no_more_tasks_are_promised_than_there_are(monkeypatch):
    def few(source):
        return (m for m in list(mutations(source))[:1])

    monkeypatch.setattr("cwm_jax.rl.envs.swe.shipped.tasks.mutations", few)
    with pytest.raises(ValueError, match=r"99 tasks are wanted and the repository has \d+: ask"):
        _made.__wrapped__(0, 99, False)


SOURCE = '''import math


def f(a, b=1):
    """Doc."""
    if a < b and not a:
        return math.hypot(a, b)
    c = a - b
    return f"{a + b}" if c in (1, 2) else -c


def g(x):
    return f(x, 2)
'''


@pytest.mark.parametrize(
    ("kind", "function", "before", "after"),
    [
        ("functions", "g", "def g(x):\n    return f(x, 2)\n", ""),
        ("functions", "f", "    if a < b and not a:\n        return math.hypot(a, b)\n", ""),
        ("arguments", "f", "def f(a, b=1)", "def f(a)"),
        ("arguments", "f", "def f(a, b=1)", "def f(b=1)"),
        ("arguments", "g", "f(x, 2)", "f(2, x)"),
        ("statements", "", "import math\n", ""),
        ("statements", "f", "        return math.hypot(a, b)\n", "        pass\n"),
        ("statements", "g", "    return f(x, 2)\n", "    pass\n"),
        ("operators", "f", "a < b", "a <= b"),
        ("operators", "f", "b and not", "b or not"),
        ("operators", "f", "not a", "a"),
        ("operators", "f", "a - b", "a + b"),
        ("operators", "f", "c in (1, 2)", "c not in (1, 2)"),
        ("operators", "f", "-c", "c"),
    ],
)
def test_every_kind_changes_just_its_place(kind, function, before, after):
    assert SOURCE.count(before) == 1
    expected = SOURCE.replace(before, after)
    found = [m for m in mutations(SOURCE) if m.source.strip() == expected.strip()]
    assert [(m.kind, m.function) for m in found] == [(kind, function)]


def test_variables_are_exchanged_everywhere_or_not_at_all():
    source = "def f(a, b):\n    c = a * b\n    return [c + a for a in b]\n"
    changed = [m.source for m in mutations(source) if m.kind == "variables"]
    assert "def f(a, b):\n    c = b * a\n    return [c + b for b in a]\n" in changed
    in_a_string = "def f(a, b):\n    return f'{a}' + b\n"  # places in these differ by version
    assert not [m for m in mutations(in_a_string) if m.kind == "variables"]


def test_all_mutations_compile_and_differ():
    for path, text in repository_files().items():
        if path.startswith("toolbox/"):
            changed = [m.source for m in mutations(text)]
            assert len(set(changed)) == len(changed) and text not in changed
            for source in changed:
                compile(source, path, "exec")


def test_the_environment_loads_without_jax():
    code = "import sys, cwm_jax.rl.envs.swe.environment, cwm_jax.rl.envs.swe.shipped.tasks\n"
    code += "print(*sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not {"jax", "flax", "optax"} & {name.split(".")[0] for name in done.stdout.split()}
