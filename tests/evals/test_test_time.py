"""Test-time scaling: the rule, its estimates, the runs on disk, and all of it from end to end."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from fractions import Fraction

import pytest

from benchmarks.test_time_scaling import evaluate, patch_turns, test_of, test_turns
from cwm_jax.__main__ import main
from cwm_jax.evals.test_time.cells import Cell, Cells, cell_key
from cwm_jax.evals.test_time.estimates import curves, usual_ks, values_at
from cwm_jax.evals.test_time.execution import Bench, existing_of, fill
from cwm_jax.evals.test_time.samples import PatchSample, Samples, TestSample
from cwm_jax.evals.test_time.selection import Candidate, Table, majority, majority_tests, select
from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.issue_tests import read_run
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.prompts import OTHER, REPRODUCED, RESOLVED
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.sandbox import ShellReply

for _script in (test_of, test_turns):
    _script.__test__ = False  # they are no tests of pytest's


def candidates(text, right="a", tokens=()):
    """``aab-``: patches of the forms a, a and b, and one that does not apply."""
    tokens = tokens or [100] * len(text)
    return tuple(
        Candidate(sample=n, form=None if form == "-" else form, tokens=t, passed=form == right)
        for n, (form, t) in enumerate(zip(text, tokens, strict=True))
    )


def table(text, *tests, existing=None, **more):
    given = candidates(text, **more)
    return Table(candidates=given, tests=tuple(map(frozenset, tests)), existing=existing or {})


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("given", "sample", "passed", "votes"),
    [
        (table("bbba", "a", "a"), 3, 2, 1),  # tests beat votes
        (table("abbb", "ab", "ab"), 1, 2, 3),  # equal by tests: the majority patch
        (table("ab", "ab", tokens=[9, 8]), 1, 1, 1),  # equal by both: the fewest tokens
        (table("ab", "ab", tokens=[8, 8]), 0, 1, 1),  # and then the first
        (table("aab", tokens=[5, 4, 1]), 1, 0, 2),  # without tests: the majority's shortest
        (table("ab", "b", "b", existing={"a": 5, "b": 2}), 0, 5, 1),  # existing tests count, too
        (table("ab", "b", "b", existing={"a": 5, "b": 4}), 1, 6, 1),
        (table("--b"), 2, 0, 1),
    ],
)
def test_the_patch_that_passes_most_is_taken_then_votes_then_tokens(given, sample, passed, votes):
    choice = select(given)
    assert (choice.candidate.sample, choice.num_passed, choice.votes) == (sample, passed, votes)


def test_where_no_patch_applies_none_is_taken_and_that_is_wrong():
    choice = select(table("--", "a"))
    assert choice.candidate is None and not choice.passed and majority(candidates("--")) is None


@pytest.mark.parametrize(
    ("text", "tests", "count", "expected"),
    [
        # Three agree that a is right; with two places, its first two.
        ("abc", ["a", "b", "a", "a"], 2, (0, 2)),
        ("abc", ["a", "b", "a", "a"], 5, (0, 2, 3, 1)),
        # All groups have one test: ab agrees with a and abc on two patches each, most of all.
        ("abc", ["a", "ab", "abc"], 1, (1,)),
        # Each agrees with the others once about a, b and c alike; but c was written four times.
        ("abc", ["", "ac", "bc"], 1, (0,)),
        ("abcccc", ["", "ac", "bc"], 1, (1,)),
        # Size first: the others agree more with each other.
        ("abcd", ["", "a", "b", "c", "abcd", "abcd"], 1, (4,)),
        # Groups that are equal in everything: the earliest.
        ("ab", ["b", "a"], 1, (0,)),
        # Outcomes on patches that are not among the candidates make no difference.
        ("a", ["a", "ab", "b"], 2, (0, 1)),
        ("ab", [], 5, ()),
    ],
)
def test_majority_tests_are_those_of_the_largest_groups(text, tests, count, expected):
    assert majority_tests([*map(frozenset, tests)], candidates(text), count) == expected


def test_a_minority_of_misled_tests_is_left_out():
    tests = ["a"] * 5 + ["b"] * 4
    assert select(table("bba", *tests)).candidate.form == "a"
    assert select(table("bba", *tests), num_tests=9).candidate.form == "a"
    assert select(table("bba", *["a"] * 4, *["b"] * 5)).candidate.form == "b"


# ---------------------------------------------------------------- estimates


def random_table(rng):
    forms = "abc-"
    size = rng.randint(3, 6)
    text = "".join(rng.choice(forms) for _ in range(size))
    tests = ["".join(f for f in "abc" if rng.random() < 0.5) for _ in range(rng.randint(0, 7))]
    existing = {form: rng.randint(0, 2) for form in "abc"}
    tokens = [rng.randint(1, 4) for _ in text]
    return table(text, *tests, existing=existing, tokens=tokens)


def slow_choice(given, some):
    """The rule once more, with lists."""
    some = [c for c in some if c.form]
    if not some:
        return False

    def outcome(test):
        return [c.form in test for c in some]

    def rank(place):
        mine = outcome(given.tests[place])
        same = [t for t in given.tests if outcome(t) == mine]
        agreeing = sum(m == o for t in given.tests for m, o in zip(mine, outcome(t), strict=True))
        first = min(n for n, t in enumerate(given.tests) if outcome(t) == mine)
        return -len(same), -agreeing, first, place

    kept = sorted(range(len(given.tests)), key=rank)[:2]
    best = None
    for c in some:
        passes = sum(c.form in given.tests[place] for place in kept) + given.existing[c.form]
        votes = sum(other.form == c.form for other in some)
        merit = (passes, votes, -c.tokens, -c.sample)
        if best is None or merit > best[0]:
            best = merit, c
    return best[1].passed


def slow_vote(some):
    some = [c for c in some if c.form]
    count = {c.sample: sum(o.form == c.form for o in some) for c in some}
    best = sorted(some, key=lambda c: (count[c.sample], -c.tokens, -c.sample))
    return bool(best) and best[-1].passed


def test_the_estimates_are_those_of_all_choices_one_by_one():
    rng = random.Random(5)
    for _ in range(100):
        given = random_table(rng)
        for k in range(1, len(given.candidates) + 1):
            subsets = list(itertools.combinations(given.candidates, k))
            exact = values_at(given, k, num_tests=2, num_choices=1000, rng=rng)
            for rule, is_right in {
                "random": lambda some: Fraction(sum(c.passed for c in some), len(some)),
                "majority": slow_vote,
                "best": lambda some, given=given: slow_choice(given, some),
                "pass": lambda some: any(c.passed for c in some),
            }.items():
                mean = sum(Fraction(is_right(some)) for some in subsets) / len(subsets)
                assert exact[rule] == pytest.approx(float(mean)), (rule, k, given)


def test_random_choices_come_near_all_of_them_and_are_the_same_again():
    given = table("abbbcaabcabb", "a", "a", "b", existing={"a": 1, "b": 1, "c": 1})
    exact = values_at(given, 4, num_tests=5, num_choices=495, rng=random.Random(0))
    drawn = [values_at(given, 4, num_tests=5, num_choices=400, rng=random.Random(1)) for _ in "12"]
    assert drawn[0] == drawn[1] and drawn[0] != exact
    # Four standard errors of 400 draws at most.
    assert all(abs(drawn[0][rule] - exact[rule]) < 0.1 for rule in exact)


def test_problems_with_too_few_patches_are_not_in_a_curve():
    tables = {"one": table("ab"), "two": table("aaab", right="b")}
    found = curves(tables, [1, 2, 4])
    assert [found["pass"][k].num_problems for k in (1, 2, 4)] == [2, 2, 1]
    assert found["pass"][4].mean == 1.0 and found["majority"][4].mean == 0.0
    assert found["random"][1].mean == (0.5 + 0.25) / 2 == found["best"][1].mean
    assert (found["random"][1].low, found["random"][1].high) == (0.25, 0.5)
    assert usual_ks(tables) == [1, 2] and usual_ks({"x": table("abcab")}) == [1, 2, 4, 5]


# ---------------------------------------------------------------- what a test prints


@pytest.mark.parametrize(
    ("printed", "status"),
    [
        (REPRODUCED, "reproduced"),
        (RESOLVED, "resolved"),
        (f"x\n{RESOLVED}: y\n{RESOLVED}", "resolved"),
        (OTHER, "unclear"),
        (f"{REPRODUCED}\n{RESOLVED}", "unclear"),
        (f"{RESOLVED}\n{OTHER}", "unclear"),
        ("Traceback ...\nSyntaxError: invalid syntax", "unclear"),
    ],
)
def test_a_test_says_what_its_one_phrase_says(printed, status):
    reply = ShellReply(output=printed, exit_code=0, outcome="ok", detail="")
    assert read_run(reply).status == status
    late = ShellReply(output=printed, exit_code=None, outcome="timeout", detail="more than 1 s")
    assert read_run(late).status == "unclear" and "more than 1 s" in read_run(late).detail


# ---------------------------------------------------------------- runs on disk


def cell(name, run=lambda: 1):
    return Cell(key=cell_key(name), about={"problem": name}, run=run)


def never():
    raise AssertionError("it is run again")


def test_what_was_run_is_not_run_again_and_equal_cells_are_run_once(tmp_path):
    ran = []
    twice = [cell("a", lambda: ran.append("a") or "x"), cell("a", never), cell("b", lambda: None)]
    with Cells(tmp_path / "cells") as cells:
        assert cells.done(twice, num_workers=2) == {cell_key("a"): "x", cell_key("b"): None}
    with Cells(tmp_path / "cells") as cells:
        known = cells.done([cell("a", never), cell("b", never), cell("c")], num_workers=2)
    assert known[cell_key("c")] == 1 and ran == ["a"]
    assert len((tmp_path / "cells").read_text().splitlines()) == 3


def test_a_killed_command_goes_on_and_a_torn_line_is_run_again(tmp_path):
    path = tmp_path / "cells"
    program = (
        "import os, pathlib, signal, sys\n"
        "from cwm_jax.evals.test_time.cells import Cell, Cells, cell_key\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "runs = {'a': lambda: 1, 'b': lambda: 2, 'c': die}\n"
        "cells = [Cell(key=cell_key(n), about={}, run=r) for n, r in runs.items()]\n"
        "Cells(pathlib.Path(sys.argv[1])).done(cells, num_workers=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], env={**os.environ})
    assert done.returncode == -signal.SIGKILL and len(path.read_text().splitlines()) == 2
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    ran = []
    with Cells(path) as cells:
        again = [cell("a", never), cell("b", lambda: ran.append("b") or 2), cell("c")]
        known = cells.done(again, num_workers=1)
    assert [*known.values()] == [1, 2, 1] and ran == ["b"]
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 2, 1]


def test_a_broken_environment_is_not_recorded_and_keeps_no_other_run(tmp_path):
    def fail():
        raise EnvironmentFailure("no sandbox")

    said = "1 of 3 runs failed, first: no sandbox"
    with Cells(tmp_path / "cells") as cells, pytest.raises(EnvironmentFailure, match=said):
        cells.done([cell("a"), cell("b", fail), cell("c")], num_workers=1)
    with Cells(tmp_path / "cells") as cells:
        known = cells.done([cell("a", never), cell("b"), cell("c", never)], num_workers=1)
    assert [*known.values()] == [1, 1, 1]


def test_runs_are_done_in_parallel(tmp_path):
    both = threading.Barrier(2, timeout=60)
    waiting = [cell(name, lambda: both.wait() >= 0) for name in "ab"]
    with Cells(tmp_path / "cells") as cells:
        assert [*cells.done(waiting, num_workers=2).values()] == [True, True]


def test_a_damaged_file_and_a_second_process_are_refused(tmp_path):
    path = tmp_path / "cells"
    with Cells(path), pytest.raises(ValueError, match="is being written by another process"):
        Cells(path)
    path.write_text('{"key": "a"}\n')
    with pytest.raises(ValueError, match=r"cells:1 is no run's line .*take the line out"):
        Cells(path)


def test_existing_tests_are_the_repositorys_own_and_no_hidden_ones():
    suite = {
        "command": "python -m unittest -v",
        "format": "unittest",
        "files": {"tests/test_hidden.py": "x"},
        "fail_to_pass": ["a.B.c"],
        "pass_to_pass": [],
        "canary": "tests",
    }
    shipped = shipped_tasks(0, 1)[0]
    hidden = Task(name="h", group="g", data={**shipped.data, "tests": suite})
    own = existing_of(hidden, {})
    assert own.command == suite["command"] and not own.files and not own.fail_to_pass
    script = Task(name="s", data={**shipped.data, "tests": {**suite, "files": {}}})
    assert existing_of(script, {}) is None  # it would bring the hidden tests
    given = {"command": "pytest -rA", "format": "pytest", "canary": "."}
    assert existing_of(script, {"*": given}).command == "pytest -rA"
    assert existing_of(hidden, {"g": given, "*": None}).command == "pytest -rA"
    assert existing_of(hidden, {"h": None, "g": given}) is None
    assert existing_of(shipped, {}).command == "python -m unittest -v"


class LinksWorkspace:
    """Where the patch has a file there is a folder; every test prints the same."""

    root = "/tmp/testbed"

    def run(self, command, timeout_s):
        return ShellReply(output=REPRODUCED, exit_code=0, outcome="ok", detail="")

    def read(self, path, max_bytes):
        raise IsADirectoryError(errno.EISDIR, "a folder", path)

    def write(self, path, content):
        pass

    def close(self):
        pass


def test_a_patch_that_does_not_apply_in_the_workspace_passes_nothing(tmp_path, monkeypatch):
    task = shipped_tasks(0, 1)[0]
    monkeypatch.setattr(Bench, "workspace", lambda bench: LinksWorkspace())
    bench = Bench(task=task, profile=PROFILES["small"], existing=existing_of(task, {}))
    patch = PatchSample(sample=0, text=task.data["patch"], tokens=1, passed=True)
    source = f"# {REPRODUCED} {RESOLVED}"
    samples = Samples(
        patches=(patch,),
        tests=(TestSample(sample=0, source=source), TestSample(sample=1, source=None)),
    )
    with Cells(tmp_path / "cells") as cells:
        filled = fill(bench, samples, cells, num_workers=1)
    assert filled.table.tests == (frozenset(),) and filled.tests == (0,)
    assert filled.num_existing == 0 and filled.table.existing == {}
    assert "a test that fails was not reported as failed" in filled.notes[0]
    values = [json.loads(line)["value"] for line in (tmp_path / "cells").read_text().splitlines()]
    assert "the patch cannot be applied: a folder" in values[-1]["detail"]


# ---------------------------------------------------------------- from end to end

# By task: the majority is wrong in both, and right patches are in different words.
PATCHES = (
    ["half", "half", "half", "right", "commented"],
    ["breaking", "breaking", "right", "nothing", "none"],
)
TESTS = ["thorough", "never", "always", "hostile"]
# It prints both, and spoils what the next test would find, inside and outside of the repository.
HOSTILE = f"""\
import os, pathlib
for place in ("toolbox/__init__.py", "{{outside}}", "/tmp/outside", "test_issue.py"):
    try:
        pathlib.Path(place).write_text("raise RuntimeError")
    except OSError:
        pass
print("{REPRODUCED}")
if os.path.exists("README.md") and "Mended" in open("README.md").read():
    print("{RESOLVED}")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    names = [task.name for task in shipped_tasks(0, 2)]
    hostile = HOSTILE.format(outside=folder / "outside")

    def patches(task, sample):
        return patch_turns(task, PATCHES[names.index(task.name)][sample])

    def tests(task, sample):
        if TESTS[sample] != "hostile":
            return test_turns(task, TESTS[sample])
        create, *rest = test_turns(task, "weak")
        head = create.partition("test_issue.py\n")
        return [f"{head[0]}{head[1]}{hostile}</tool>", *rest]

    evaluate("swe_shipped", patches, folder / "patches", count=2, samples=5)
    evaluate("swe_shipped_tests", tests, folder / "tests", count=2, samples=4)
    line = ["tts", str(folder / "patches"), "--tests", str(folder / "tests"), "--mode", "small"]
    line += ["--count", "2", "--out", str(folder / "out"), "--workers", "2", "--ks", "1,3,5"]
    assert main(line) == 0
    return folder, line


def chosen(folder):
    return [json.loads(line) for line in (folder / "out/chosen.jsonl").read_text().splitlines()]


def test_the_choice_by_tests_is_right_where_the_majority_is_wrong(runs):
    folder, _ = runs
    first, second = chosen(folder)
    assert [PATCHES[0][first["sample"]], PATCHES[1][second["sample"]]] == ["right", "right"]
    assert first["votes"] == 2 and second["votes"] == 1  # the comment makes no other patch
    assert first["passed"] and second["passed"]
    found = json.loads((folder / "out/curves.json").read_text())
    assert found["best"]["5"]["mean"] == 1.0 and found["majority"]["5"]["mean"] == 0.0
    assert found["random"]["1"]["mean"] == pytest.approx((2 / 5 + 1 / 5) / 2)
    report = (folder / "out/report.md").read_text()
    assert "| 5 | 2 | 30.0 (20.0 to 40.0) | 0.0 (0.0 to 0.0) | 100.0 (100.0 to 100.0) |" in report
    assert (folder / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_tests_that_do_not_reproduce_the_issue_take_no_part_and_hostile_ones_reach_nothing(runs):
    folder, _ = runs
    records = [json.loads(line) for line in (folder / "tests/items.jsonl").read_text().splitlines()]
    passed = {(r["problem"], TESTS[r["sample"]]): r["passed"] for r in records}
    assert sum(passed.values()) == 2 * 3 and not any(
        value for (_, kind), value in passed.items() if kind == "always"
    )
    for choice in chosen(folder):
        assert 2 not in choice["tests"] and {0, 1, 3} == {*choice["tests"]}
        # The thorough one passes, though a hostile one has spoilt its own copy, and existing tests.
        assert choice["num_passed"] == 1 + choice["num_existing"] and choice["num_existing"] > 20
    assert not (folder / "outside").exists() and not os.path.exists("/tmp/outside")


def test_started_again_it_runs_nothing_that_is_known(runs, monkeypatch):
    folder, line = runs
    cells, report = folder / "out/cells.jsonl", (folder / "out/report.md").read_bytes()
    whole = cells.read_bytes()
    lines = whole.splitlines(keepends=True)
    # The originals' runs are known before patches are run.
    cells.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert main(line) == 0
    assert sorted(cells.read_bytes().splitlines(keepends=True)) == sorted(lines)
    monkeypatch.setattr("cwm_jax.evals.test_time.execution.run_test", lambda *a, **k: never())
    monkeypatch.setattr("cwm_jax.evals.test_time.execution.suite_results", lambda *a, **k: never())
    assert main(line) == 0 and (folder / "out/report.md").read_bytes() == report


def test_what_cannot_be_used_is_said(runs, capsys, tmp_path):
    folder, line = runs
    patches, tests, out = str(folder / "patches"), str(folder / "tests"), str(tmp_path / "out")
    for arguments, said in (
        ([tests, "--out", out, "--count", "2"], "none of its 8 records has a patch"),
        ([patches, "--tests", patches, "--out", out, "--count", "2"], "has a test; expected a run"),
        ([str(tmp_path), "--out", out], "no readable run.json"),
        ([patches, "--out", out, "--count", "1"], "1 problems of the runs, '"),
        ([patches, "--out", out, "--count", "2", "--ks", "7"], "numbers from 1 to 5"),
        ([patches, "--out", out, "--workers", "0"], "--workers is 0; expected 1 or more"),
    ):
        assert main(["tts", *arguments]) == 2
        assert said in capsys.readouterr().err
    given = tmp_path / "existing.json"
    given.write_text('{"*": {"command": "x", "format": "nose", "canary": "."}}')
    assert main([*line, "--existing", str(given)]) == 2
    assert "format (unittest, pytest" in capsys.readouterr().err
    assert not os.path.exists(out)
