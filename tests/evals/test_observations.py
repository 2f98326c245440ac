"""Predicted observations: what is asked of trajectories, of what kind it is, how it is scored."""

import dataclasses
import json
import random
import textwrap
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_server import fake_server
from tiny import VOCAB_SIZE, sharp_params, tiny_model
from tolerances import LOGITS_ATOL

from convert import save_hf
from cwm_jax.__main__ import main
from cwm_jax.data.chat import Message
from cwm_jax.data.encoding import dialog_tokens
from cwm_jax.data.shards import OBSERVATION_MARK, TOKEN_BITS
from cwm_jax.data.trajectories import Trajectory
from cwm_jax.evals.models.forcing import ForcedScorer
from cwm_jax.evals.models.in_process import open_folder
from cwm_jax.evals.observations.kinds import KINDS, observation_kind
from cwm_jax.evals.observations.similarity import edit_distance, edit_similarity
from cwm_jax.evals.problem import Answer, Likelihood, SetOptions
from cwm_jax.evals.runs.records import RecordFile, read_records
from cwm_jax.evals.runs.results import token_counts
from cwm_jax.evals.runs.runner import RunLimits, RunSettings, run
from cwm_jax.evals.sets.observations import ENTRIES, MODES
from cwm_jax.model.transformer import forward
from cwm_jax.tokenizer import END_HEADER, END_OF_TURN, START_HEADER, train_tokenizer

MAX_LENGTH = 1024
CONFIG = tiny_model(num_hidden_layers=2, max_position_embeddings=MAX_LENGTH)
PARAMS = sharp_params(CONFIG)
TOKENIZER = train_tokenizer([Path(textwrap.__file__).read_text()], VOCAB_SIZE)
UNITTEST = "....\n-----\nRan 4 tests in 0.00s\n\nOK\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\nKeyError: 3\n'
DIFF = (
    "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n" + "+ a = f(1)\n" * 8
)


def call(tool: str, content: str) -> str:
    return f"I go on.\n\n<tool: {tool}>\n{content}\n</tool>"


def bash(command: str) -> str:
    return call("bash", command)


def trajectory(name: str, *steps: tuple[str, str, str]) -> Trajectory:
    """Of calls with their observations."""
    messages = [Message("system", "Mend it."), Message("user", f"f() of {name} is wrong.")]
    for tool, content, observed in steps:
        messages += [Message("assistant", call(tool, content)), Message(f"tool: {tool}", observed)]
    return Trajectory(
        name=name,
        task=name,
        kind="mutate-fix",
        repository="r",
        policy="hand",
        outcome="finished",
        solved=True,
        reason="",
        messages=[*messages, Message("assistant", "Done.")],
    )


TRAJECTORIES = [
    trajectory(
        "first",
        ("bash", "ls", "a.py\nb.py\n"),
        ("view", "a.py", "     1\tdef f():\n     2\t    return 1"),
        ("edit", "a.py\n...", "Edited a.py: 1 line at line 2 replaced by 1 line."),
        ("bash", "python -m unittest", UNITTEST),
        ("bash", "git diff", DIFF),
    ),
    trajectory(
        "second",
        ("bash", "python a.py", TRACEBACK),
        ("bash", "touch b.py", ""),
        ("bash", "python -c 'print(f())'", "Æ 2 \n"),
    ),
    trajectory("third"),
]
NUM_OBSERVATIONS = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("observations") / "held out.jsonl"
    path.write_text("".join(json.dumps(each.to_json()) + "\n" for each in TRAJECTORIES))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_hf(path, CONFIG, PARAMS, TOKENIZER)
    return path


def load(data, mode="both", max_length=None, **values):
    values = {"per_trajectory": "0"} | values
    options = SetOptions(mode=mode, tokenizer=TOKENIZER, max_length=max_length, values=values)
    return ENTRIES["observations"].load(data, options)


def played(loaded, model, folder, parallel=4) -> dict:
    """Records by problem."""
    settings = RunSettings(samples=1, temperature=0.0, top_p=1.0)
    limits = RunLimits(parallel=parallel)
    with RecordFile(folder, {}) as file:
        outcome = run(loaded.problems, model, file, settings, limits, progress=None)
    assert (outcome.num_left, outcome.num_void) == (0, 0)
    return {record.problem: record for record in read_records(folder).values()}


def true_observations() -> dict[str, str]:
    return {
        f"{each.name}#{number}": message.content
        for each in TRAJECTORIES
        for number, message in enumerate(each.messages)
        if message.is_tool
    }


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("text", "observation", "kind"),
    [
        (bash("git status --short"), "", "empty"),
        (call("view", "docs"), " \n", "empty"),
        (call("edit", "a.py\n..."), "Edited a.py: 1 line", "edit"),
        (call("edit", "a.py\n..."), "SEARCH is not in a.py", "edit"),
        (call("create", "a.py\nx"), "Created a.py with 1 line.", "edit"),
        (call("view", "a.py"), "     1\tTraceback (most recent call last):", "file"),
        (call("view", "a.py 90 99"), "The file has 3 lines.", "file"),
        (call("view", "."), "a.py\ndocs/", "listing"),
        (call("view", "b.py"), "Cannot view b.py: no such file or directory.", "error"),
        (call("submit", "p.diff"), f"This patch is submitted:\n\n{DIFF}", "git"),
        (call("submit", "p.diff"), "p.diff is empty.", "error"),
        (bash("cd src && ls -la"), "total 0\n", "listing"),
        (bash("find . -name '*.py' | head"), "./a.py\n", "listing"),
        (bash("git ls-files | head -n 5"), "a.py\n", "listing"),
        (bash("grep -rl foo ."), "./a.py\n", "listing"),
        (bash("find . -name '*.py' | xargs -n 1 grep foo"), "foo = 1\n", "file"),
        (bash("find . -name '*.py' -exec grep foo {} +"), "foo = 1\n", "file"),
        (bash("cat a.py"), UNITTEST, "file"),
        (bash("sed -n 1,9p a.py"), TRACEBACK, "file"),
        (bash("grep -rn 'def ' . | sort | head"), "a.py:1:def f():\n", "file"),
        (bash("# look\nX=1 timeout 5 cat a.py"), "x\n", "file"),
        (bash("echo a; cat a.py"), "a\nx\n", "file"),
        (bash("cat a.py | python"), "3\n", "other"),
        (bash("cat *.py | wc -l"), "3\n", "other"),
        (bash("cat nothing"), "cat: nothing: No such file or directory\n", "error"),
        (bash("ls x y"), "ls: cannot access 'x'\n/bin/ls: cannot access 'y'\n", "error"),
        (bash("ls x a"), "ls: cannot access 'x'\na\n", "listing"),
        (bash("nosuch --help"), "bash: line 1: nosuch: command not found\n", "error"),
        (bash("python -m nothing"), "/usr/bin/python: No module named nothing\n", "error"),
        (bash("git log"), "fatal: not a git repository\n", "error"),
        (bash("cat big"), "The command wrote too much output and was stopped.", "error"),
        (bash("git -C /r --no-pager diff"), DIFF, "git"),
        (bash("git add -A && git status"), "On branch main\n", "git"),
        (bash("git checkout a.py"), "Updated 1 path from the index\n", "git"),
        (bash("diff -u a b"), DIFF, "git"),
        (bash("git grep foo"), "a.py:foo\n", "file"),
        (bash("python -m pytest -q"), "3 passed in 0.12s\n", "tests"),
        (bash("pytest"), f"{TRACEBACK}\n=== 1 failed, 2 passed in 0.10s ===\n", "tests"),
        (bash("tox | tail -n 1"), "FAILED (failures=2)\n", "tests"),
        (bash("cat a.py; make check 2>&1 | tail"), UNITTEST, "tests"),
        (bash("go test ./..."), "ok  \texample.com/a\t0.01s\n", "tests"),
        (bash("cargo test"), "test result: ok. 3 passed; 0 failed\n", "tests"),
        (bash("python a.py"), TRACEBACK, "error"),
        (bash("python a.py 2>&1 | tail -n 1"), "KeyError: 3\n", "error"),
        (bash("python a.py"), "3\n", "other"),
        (bash("python - <<'E'\nimport os; print('ls')\nE"), "ls\n", "other"),
        (bash("cat > a.py <<E\nls\nE\npython a.py"), "3\n", "other"),
        (bash("cat a.py 2>/dev/null"), "x\n", "file"),
        (bash("sed -i s/x/y/ a.py; ls"), "a.py\n", "listing"),
        (bash("if [ -f a ]; then cat a; fi"), "x\n", "file"),
        (bash("{ python a.py; } | tail; git checkout -q ."), "(3,)\n", "other"),
        (bash("echo 'it is not closed"), "x\n", "other"),
        (bash("echo x"), "x\n", "other"),
        ("a turn without a call", TRACEBACK, "error"),
        ("a turn without a call", "x", "other"),
        (call("browse", "x"), UNITTEST, "tests"),
    ],
)
def test_kinds_are_decided_by_call_and_observation(text, observation, kind):
    assert kind in KINDS
    assert observation_kind(text, observation) == kind


# ---------------------------------------------------------------- similarity


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        ("", "", 1.0),
        ("abc", "abc", 1.0),
        ("", "abc", 0.0),
        ("abc", "xyz", 0.0),
        ("kitten", "sitting", 1 - 3 / 7),
        ("a\n", "a", 0.5),
        ("Æble", "able", 0.75),
    ],
)
def test_similarity_of_known_pairs(first, second, similarity):
    assert edit_similarity(first, second) == pytest.approx(similarity)
    assert edit_similarity(second, first) == edit_similarity(first, second)


def test_distance_is_that_of_the_whole_table():
    rng = random.Random(0)
    for _ in range(300):
        first, second = ("".join(rng.choices("abc", k=rng.randint(0, 80))) for _ in range(2))
        assert edit_distance(first, second) == table_distance(first, second), (first, second)


def table_distance(first, second):
    row = list(range(len(second) + 1))
    for i, ours in enumerate(first, 1):
        above, row[0] = row[0], i
        for j, theirs in enumerate(second, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (ours != theirs))
    return row[-1]


# ---------------------------------------------------------------- what is asked


def test_each_observation_is_asked_after_all_that_is_before_it(data):
    loaded = load(data, "generated")
    assert [p.name for p in loaded.problems] == [*true_observations()]
    kinds = [p.labels["kind"] for p in loaded.problems]
    assert kinds == ["listing", "file", "edit", "tests", "git", "error", "empty", "other"]
    for problem in loaded.problems:
        prompt = TOKENIZER.decode(problem.attempt().start().tokens)
        name, number = problem.name.split("#")
        (asked,) = (each for each in TRAJECTORIES if each.name == name)
        before = asked.messages[: int(number)]
        turns = "".join(
            f"{START_HEADER}{m.role}{END_HEADER}\n\n{m.content}{END_OF_TURN}" for m in before
        )
        header = f"{START_HEADER}{asked.messages[int(number)].role}{END_HEADER}\n\n"
        assert prompt == f"<|begin_of_text|>{turns}{header}"
        assert problem.labels["prefix"] == "whole"
    assert "8 observations of held out.jsonl, 3 trajectories, 1 of which have none" in loaded.about


def test_the_draw_is_a_function_of_seed_and_name(data, tmp_path):
    def drawn(path, **values):
        return {p.name for p in load(path, **values).problems}

    two = drawn(data, per_trajectory="2")
    assert len(two) == 4 and two < {*true_observations()}
    alone = tmp_path / "alone.jsonl"
    alone.write_text(json.dumps(TRAJECTORIES[1].to_json()) + "\n")
    assert drawn(alone, per_trajectory="2") == {name for name in two if name.startswith("second")}
    assert len({frozenset(drawn(data, per_trajectory="2", seed=str(s))) for s in range(9)}) > 2
    assert len(drawn(data, per_trajectory="4")) == 7
    twins = tmp_path / "twins.jsonl"
    named = [dataclasses.replace(TRAJECTORIES[0], name=name) for name in "abcd"]
    twins.write_text("".join(json.dumps(each.to_json()) + "\n" for each in named))
    numbers = [name.split("#") for name in sorted(drawn(twins, per_trajectory="1"))]
    assert [name for name, _ in numbers] == [*"abcd"] and len({n for _, n in numbers}) > 1
    assert drawn(data, kinds="tests,error", per_trajectory="1") == {"first#9", "second#3"}


def test_a_long_prefix_keeps_its_end_and_is_counted(data, tmp_path):
    whole = {p.name: p for p in load(data, "generated").problems}
    given = {name: len(TOKENIZER.encode(text)) + 1 for name, text in true_observations().items()}
    longest = 130
    loaded = load(data, "generated", max_length=longest)
    assert [p.name for p in loaded.problems] == [*whole]
    fates = {p.name: p.labels["prefix"] for p in loaded.problems}
    for problem in loaded.problems:
        before = [*whole[problem.name].attempt().start().tokens]
        room = longest - given[problem.name]
        if fates[problem.name] == "does not fit":
            continue
        prompt = [*problem.attempt().start().tokens]
        assert (fates[problem.name] == "whole") == (len(before) <= room)
        assert prompt[0] == TOKENIZER.bos_id
        if fates[problem.name] == "cut":
            assert len(prompt) == room and prompt[1:] == before[-(room - 1) :]
            assert TOKENIZER.decode(prompt).count("I go on.") >= 1  # its call is there
        else:
            assert prompt == before
    counts = {fate: [*fates.values()].count(fate) for fate in ("whole", "cut", "does not fit")}
    assert all(counts.values()), counts
    assert f"{counts['cut']} have a prefix without its beginning" in loaded.about
    assert f"{counts['does not fit']} do not fit with their call" in loaded.about
    records = played(loaded, Oracle(loaded), tmp_path)
    too_long = {name for name, record in records.items() if record.status == "too_long"}
    assert too_long == {name for name, fate in fates.items() if fate == "does not fit"}
    assert all(records[name].passed == (name not in too_long) for name in records)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": "65"}, "max_length=65: the model takes 64 tokens; expected at most"),
        ({"max_length": "1"}, "'1'; expected a whole number, 2 or more"),
        ({"kinds": "tests,folder"}, "has 'folder'; expected some of tests, listing, file"),
        ({"per_trajectory": "-1"}, "'-1'; expected a whole number, 0 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused(data, values, message):
    options = SetOptions(mode="both", tokenizer=TOKENIZER, max_length=64, values=values)
    with pytest.raises(ValueError, match=message):
        ENTRIES["observations"].load(data, options)


def test_without_tokenizer_or_trajectories_nothing_is_asked(data, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer is given; expected the model's"):
        ENTRIES["observations"].load(data, SetOptions(mode="both"))
    path = tmp_path / "dialogs.jsonl"
    path.write_text('{"messages": []}\n')
    with pytest.raises(ValueError, match=r"dialogs.jsonl:1: a trajectory has \['messages'\]"):
        load(path)


# ---------------------------------------------------------------- scores


class Oracle:
    """A model that knows what is true, changed by ``change``."""

    name, tokenizer, gives_likelihoods = "oracle", TOKENIZER, True

    def __init__(self, loaded, change=lambda text: text):
        true, self._change = true_observations(), change
        asked = [p for p in loaded.problems if p.labels["prefix"] != "does not fit"]
        self._texts = {(*p.attempt().start().tokens,): true[p.name] for p in asked}
        self.limits: list[tuple[int, int]] = []

    def answer(self, prompt, *, temperature, top_p, seed):
        true = self._texts[(*prompt.tokens,)]
        self.limits.append((len(TOKENIZER.encode(true)) + 1, prompt.max_tokens))
        written = self._change(true)
        ended = len(TOKENIZER.encode(written)) < prompt.max_tokens
        return Answer(text=written, finish_reason="stop" if ended else "length")

    def likelihood(self, forced):
        true = self._texts[(*forced.tokens,)]
        expected = [*TOKENIZER.encode(true), TOKENIZER.special_tokens[END_OF_TURN]]
        assert [*forced.given] == expected
        return Likelihood(logprobs=[0.0] * len(expected), likeliest=[True] * len(expected))

    def close(self):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_who_knows_what_is_true_gets_every_point(data, tmp_path, mode):
    loaded = load(data, mode)
    model = Oracle(loaded)
    records = played(loaded, model, tmp_path)
    assert len(records) == NUM_OBSERVATIONS
    for record in records.values():
        assert record.passed and not record.reason
        assert record.scores.get("edit_similarity", 1.0) == 1.0
        assert record.scores.get("loss", 0.0) == 0.0
        assert record.scores.get("token_accuracy", 1.0) == 1.0
        names = {"both": 5, "generated": 1, "loss": 4}
        assert len(record.scores) == names[mode]
    assert len(model.limits) == (0 if mode == "loss" else NUM_OBSERVATIONS)
    assert all(limit == 2 * true + 64 for true, limit in model.limits)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: f"{text} ", "another text: from character {place} on"),
        (lambda text: f"#{text}", "another text: from character 1 on"),
        (lambda text: text + "a" * 9999, "another text: from character {place} on"),
        (lambda text: "#" + "a" * 9999, "another text: from character 1 on"),
    ],
)
def test_what_differs_in_one_character_is_not_exact(data, tmp_path, change, reason):
    loaded = load(data, "generated")
    for name, record in played(loaded, Oracle(loaded, change), tmp_path).items():
        true = true_observations()[name]
        assert not record.passed
        assert record.reason == reason.format(place=len(true) + 1)
        assert record.scores == {"edit_similarity": edit_similarity(true, change(true))}
        assert (record.answer is None) == (len(change(true)) > 9000)  # it was cut


def test_a_right_beginning_that_is_cut_is_not_finished(data):
    problem = load(data, "generated").problems[0]
    verdict = problem.attempt().step(Answer(text="a.p", finish_reason="length"))
    assert (verdict.passed, verdict.reason, verdict.answer) == (False, "not finished", None)
    whole = problem.attempt().step(Answer(text="a.py\nb.py\n", finish_reason="length"))
    assert not whole.passed and whole.scores["edit_similarity"] == 1.0


def expected_losses() -> dict[str, tuple[float, int, int]]:
    """(nats, tokens, likeliest ones) of each observation, of training's marks and whole logits."""
    asked = TRAJECTORIES[:2]
    marks = [dialog_tokens(TOKENIZER, each.messages) for each in asked]
    rows = np.zeros((2, max(map(len, marks))), np.int32)
    for row, marked in zip(rows, marks, strict=True):
        row[: len(marked)] = marked & TOKEN_BITS
    whole = np.asarray(jax.jit(forward, static_argnums=1)(PARAMS, CONFIG, rows))
    found = {}
    for each, marked, tokens, logits in zip(asked, marks, rows, whole, strict=True):
        logprobs = np.asarray(jax.nn.log_softmax(logits))
        places = np.flatnonzero(marked & OBSERVATION_MARK)
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        names = [name for name in true_observations() if name.startswith(each.name)]
        for name, run_ in zip(names, runs, strict=True):
            nats = -logprobs[run_ - 1, tokens[run_]].sum()
            hits = (logits[run_ - 1].argmax(-1) == tokens[run_]).sum()
            found[name] = (float(nats), len(run_), int(hits))
    return found


def test_loss_is_that_of_the_whole_logits_where_training_counts_it(data, folder, tmp_path):
    model = open_folder(folder, parallel=2)
    try:
        records = played(load(data, "loss", model.max_length), model, tmp_path)
    finally:
        model.close()
    expected = expected_losses()
    assert len(records) == len(expected) == NUM_OBSERVATIONS
    for name, (nats, count, hits) in expected.items():
        scores = records[name].scores
        assert abs(scores["loss"] - nats / count) <= LOGITS_ATOL
        assert scores["nats"] == pytest.approx(count * scores["loss"])
        assert scores["tokens"] == count
        assert scores["token_accuracy"] == hits / count
        assert records[name].passed == (hits == count)
        assert not records[name].turns
    assert token_counts([*records.values()]) == {"total": 0}  # nothing was answered


def scored_together(scorer, asked) -> list:
    """The replies to what threads ask while the device is busy, in the order of ``asked``."""
    replies: list = [None] * len(asked)

    def ask(number):
        try:
            replies[number] = scorer.likelihood(*asked[number])
        except Exception as error:
            replies[number] = error

    threads = [threading.Thread(target=ask, args=[n]) for n in range(len(asked))]
    with scorer._device:
        for number, thread in enumerate(threads):
            thread.start()
            while len(scorer._waiting) <= number:
                threading.Event().wait(0.001)
    for thread in threads:
        thread.join()
    return replies


def test_threads_share_batches_and_change_nothing(monkeypatch):
    monkeypatch.setattr("cwm_jax.evals.models.forcing._SHORTEST_ROW", 128)
    monkeypatch.setattr("cwm_jax.evals.models.forcing._BATCH_TOKENS", 256)
    rng = np.random.default_rng(0)
    asked = []
    for num_prompt, num_given in [(1, 1), (40, 7), (120, 9), (60, 30), (100, 60), (129, 128)]:
        tokens = rng.integers(0, VOCAB_SIZE, num_prompt + num_given).tolist()
        asked.append((tokens[:num_prompt], tokens[num_prompt:]))
    scorer = ForcedScorer(PARAMS, CONFIG, max_length=MAX_LENGTH)
    alone = [scorer.likelihood(*each) for each in asked]
    batches = []
    score = scorer._score
    scorer._score = lambda *args, **values: batches.append(values) or score(*args, **values)
    together = scored_together(scorer, asked)
    shapes = [(batch["tokens"].shape, batch["segment_ids"].any(1).sum()) for batch in batches]
    assert shapes == [((2, 128), 2), ((2, 128), 2), ((1, 256), 1), ((1, 256), 1)]
    assert together == alone  # to the bit
    assert [len(reply.logprobs) for reply in alone] == [len(given) for _, given in asked]


def test_a_device_that_fails_is_told_to_all_who_wait_and_may_work_again():
    scorer = ForcedScorer(PARAMS, CONFIG, max_length=MAX_LENGTH)
    score, asked = scorer._score, [([1], [2]), ([3], [4]), ([5], [6])]

    def fails(*args, **values):
        raise jax.errors.JaxRuntimeError("out of memory")

    scorer._score = fails
    assert [str(reply) for reply in scored_together(scorer, asked)] == ["out of memory"] * 3
    scorer._score = score
    assert len(scorer.likelihood([1], [2]).logprobs) == 1


# ---------------------------------------------------------------- the command


def test_the_command_measures_a_folder_by_kind_and_goes_on(data, folder, tmp_path, capfd):
    out = tmp_path / "run"
    arguments = ["eval", "observations", "--data", str(data), "--model", str(folder)]
    arguments += [
        "--option",
        "per_trajectory=0",
        "--max-tokens",
        "4",
        "--parallel",
        "1",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    assert "observations/both: mean " in capfd.readouterr().out
    records = read_records(out)
    assert len(records) == NUM_OBSERVATIONS
    assert all(0 < record.num_tokens <= 4 for record in records.values())
    assert all({"loss", "edit_similarity"} < {*record.scores} for record in records.values())
    report = (out / "report.md").read_text()
    assert "| kind | mean | 95 % interval | problems | edit_similarity:mean | 95 %" in report
    assert "| prompt_max_length | 1024 |" in report
    by_kind = json.loads((out / "report.json").read_text())["by_label"]["kind"]
    counts = {kind: by_kind[kind]["loss:mean"]["num_problems"] for kind in by_kind}
    assert counts == dict.fromkeys(KINDS, 1)
    scores = [record.scores for record in records.values()]
    per_token = sum(s["nats"] for s in scores) / sum(s["tokens"] for s in scores)
    measured = json.loads((out / "report.json").read_text())["scores"]["nats/tokens:mean"]
    assert measured["mean"] == pytest.approx(per_token) and measured["num_problems"] == 8
    assert measured["low"] < per_token < measured["high"]
    loss = tmp_path / "loss"
    assert main([*arguments, "--mode", "loss", "--out", str(loss)]) == 0
    assert "observations/loss: nats/tokens:mean " in capfd.readouterr().out
    assert {key: record.scores["nats"] for key, record in read_records(loss).items()} == {
        key: record.scores["nats"] for key, record in records.items()
    }
    assert "## Tokens" in report and "## Tokens" not in (loss / "report.md").read_text()
    items = (out / "items.jsonl").read_bytes()
    cut = items.splitlines(keepends=True)[:3]
    (out / "items.jsonl").write_bytes(b"".join(cut) + b'{"problem": "fir')
    assert main(arguments) == 0  # as after a kill
    again = read_records(out)
    assert [dataclasses.replace(again[key], seconds=0.0) for key in sorted(again)] == [
        dataclasses.replace(records[key], seconds=0.0) for key in sorted(records)
    ]
    assert main([*arguments, "--option", "max_length=200"]) == 2
    assert "settings.prompt_max_length was 1024 and is 200" in capfd.readouterr().err


def test_a_server_is_asked_for_answers_alone(data, folder, tmp_path, capfd):
    with fake_server() as fake:
        fake.models = [{"id": "fake", "max_model_len": 400}]
        fake.refuse = lambda number, path, body: (
            200,
            {"choices": [{"text": "a.py\nb.py\n", "finish_reason": "stop"}]},
            {},
        )
        arguments = ["eval", "observations", "--data", str(data), "--model", fake.url]
        arguments += ["--tokenizer", str(folder), "--out", str(tmp_path / "run")]
        assert main(arguments) == 2
        said = capfd.readouterr().err
        assert "observations/both asks how likely given texts are" in said and "--mode" in said
        assert main([*arguments, "--mode", "generated", "--option", "per_trajectory=0"]) == 0
        prompts = [body["prompt"] for _, body in fake.seen]
    records = {record.problem: record for record in read_records(tmp_path / "run").values()}
    assert len(records) == NUM_OBSERVATIONS and len(prompts) < NUM_OBSERVATIONS + 1
    assert [name for name, record in records.items() if record.passed] == ["first#3"]
    assert all(len(prompt) < 400 for prompt in prompts)
    assert {record.labels["prefix"] for record in records.values()} >= {"whole", "cut"}
