"""Law: what an answer is worth; and the commands over a run's episodes, from played ones."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from rl.trajectories import trajectory, turn
from tiny import VOCAB_SIZE, tiny_model, tiny_run
from trace_corpora import CALLER, episode, write_trace_corpus

from cwm_jax.__main__ import main
from cwm_jax.config import DataConfig, EnvironmentConfig, RLConfig, SourceConfig, TokenizerConfig
from cwm_jax.config.schema import to_json
from cwm_jax.data.chat import THINK_OPENING
from cwm_jax.data.sources import documents
from cwm_jax.rl.bootstrap import dialog_of
from cwm_jax.rl.envs import kinds
from cwm_jax.rl.envs.kinds import load_tasks, make_environments
from cwm_jax.rl.envs.prediction import is_same_value
from cwm_jax.rl.playing.tasks import TaskStream, split_tasks
from cwm_jax.rl.trajectory import Trajectory, Turn, read_trajectories, write_trajectories
from cwm_jax.tokenizer import END_OF_TURN, train_tokenizer
from cwm_jax.trace.corpus import read_corpus


@pytest.fixture(scope="module")
def tokenizer():
    words = ["def count(x):\n    return x + 7\n<think>\n</think>\n"] * 50
    return train_tokenizer([*words, *map(str, range(3000))], VOCAB_SIZE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "traces"
    records = [episode(f"p{n}", n, num_frames=1, context=CALLER) for n in range(30)]
    write_trace_corpus(folder, records)
    return folder


def config_of(corpus, kind="output_prediction", profile="small"):
    return EnvironmentConfig(name="output", kind=kind, path=str(corpus), profile=profile)


def make(corpus, tokenizer, **changes):
    config = config_of(corpus, **changes)
    task = load_tasks(config)[0]
    return make_environments([config], tokenizer)("output", task), task


def answer(tokenizer, text, *, end=True):
    ids = tokenizer.encode(text)
    return [*ids, tokenizer.special_tokens[END_OF_TURN]] if end else ids


@pytest.mark.parametrize(
    ("text", "end", "passes", "reason"),
    [
        ("x is 7\n</think>\n7", True, True, ""),
        ("</think>  7 \n", True, True, ""),
        ("</think>\n8", True, False, "another value"),
        ("</think>\n'7'", True, False, "another value"),
        ("7", True, False, "0 </think>"),
        ("</think>\n</think>\n7", True, False, "2 </think>"),
        ("</think>\n7", False, False, "not finished"),
        ("</think>\n7 or 8", True, False, "another value"),
        ("</think>\n", True, False, "another value"),
    ],
)
def test_an_answer_is_right_or_wrong(corpus, tokenizer, text, end, passes, reason):
    environment, _ = make(corpus, tokenizer)
    start = environment.start()
    prompt = tokenizer.decode(start.tokens)
    assert prompt.endswith(THINK_OPENING) and "What does main() return?" in prompt
    step = environment.step(answer(tokenizer, text, end=end))
    assert step.done and step.reward == (1 if passes else -1)
    assert (step.info["pass"], step.info["reason"]) == (passes, reason)


def test_the_gold_answer_is_not_in_the_prompt(corpus, tokenizer):
    config = config_of(corpus)
    for task in load_tasks(config)[10:]:
        environment = make_environments([config], tokenizer)("output", task)
        prompt = tokenizer.decode(environment.start().tokens)
        assert task.data["output"] == "7" and "return 7" not in prompt and "START" not in prompt


@pytest.mark.parametrize(
    ("answer", "output", "same"),
    [
        ("[1, 2]", "[1,2]", True),
        ("(1, 2)", "[1, 2]", False),
        ("1.0", "1", False),
        ("True", "1", False),
        ("0.1", "0.1000001", True),
        ("0.1", "0.1001", False),
        ("nan", "nan", True),
        ("{1: 'a'}", '{1: "a"}', True),
        ("{True: 'a'}", "{1: 'a'}", False),
        ("{'a': 1, 'b': 2}", "{'b': 2, 'a': 1}", False),
        ("{1, 2}", "{2, 1}", True),
        ("{1}", "{True}", False),
        ("b'a'", "'a'", False),
        ("<object>", "<object>", True),
        ("__import__('os')", "1", False),
        ("(" * 500, "1", False),
    ],
)
def test_values_are_compared_with_their_types(answer, output, same):
    assert is_same_value(answer, output) is same


def test_a_whole_trace_is_right_or_wrong(corpus, tokenizer):
    environment, task = make(corpus, tokenizer, kind="trace_prediction", profile="64k")
    start = environment.start()
    shown = tokenizer.decode(start.tokens)
    assert task.data["frames"] not in shown and shown.startswith(task.data["prompt"][:40])
    rest = (task.data["prompt"] + task.data["frames"])[len(shown) :]
    assert environment.step(tokenizer.encode_with_special_tokens(rest)).reward == 1
    wrong = environment.step(tokenizer.encode_with_special_tokens(rest.replace("0", "1")))
    assert wrong.reward == -1 and wrong.info["output_right"]
    cut = environment.step(tokenizer.encode_with_special_tokens(rest[:20]))
    assert cut.reward == -1 and "output_right" not in cut.info


def next_task(stream):
    name = stream.turn()
    return name, stream.draw(name)[1]


def test_tasks_come_once_an_epoch_by_weight_and_held_out_ones_never(corpus):
    configs = [
        EnvironmentConfig(name=name, kind="output_prediction", path=str(corpus), weight=weight)
        for name, weight in (("a", 3.0), ("b", 1.0))
    ]
    train, heldout = split_tasks(load_tasks(configs[0]), 0.3)
    assert len(heldout) > 3 and not {t.name for t in train} & {t.name for t in heldout}
    stream = TaskStream(configs, {"a": train, "b": train}, seed=0)
    drawn = [next_task(stream) for _ in range(4 * len(train))]
    assert sum(name == "a" for name, _ in drawn) == 3 * len(train)
    of_a = [task.name for name, task in drawn if name == "a"]
    n = len(train)
    assert sorted(of_a[:n]) == sorted(of_a[n : 2 * n]) == sorted(t.name for t in train)
    assert of_a[:n] != of_a[n : 2 * n]
    state, later = stream.state(), [next_task(stream)[1].name for _ in range(9)]
    other = TaskStream(configs, {"a": train, "b": train}, seed=0)
    other.restore(state)
    assert [next_task(other)[1].name for _ in range(9)] == later
    with pytest.raises(ValueError, match="'b' has no task"):
        TaskStream(configs, {"a": train, "b": []}, seed=0)


def test_settings_that_cannot_be_used_are_refused(corpus, tokenizer):
    with pytest.raises(ValueError, match=r"profile is 'huge'; those of kind .* are 64k, direct"):
        make(corpus, tokenizer, profile="huge")
    with pytest.raises(ValueError, match="from a path, and there is none"):
        load_tasks(EnvironmentConfig(name="x", kind="output_prediction"))


def test_a_corpus_without_tasks_or_with_two_of_one_name_is_refused(corpus, monkeypatch):
    config = EnvironmentConfig(name="x", kind="output_prediction", path=str(corpus))
    for times, said in (
        (0, "makes a task; expected some"),
        (2, "have one name, .*; expected each"),
    ):
        monkeypatch.setattr(kinds, "read_corpus", lambda path, n=times: [*read_corpus(path)] * n)
        with pytest.raises(
            ValueError, match=rf"^rl environment 'x' \(output_prediction\): .*{said}"
        ):
            load_tasks(config)


# ---------------------------------------------------------------- over a run's episodes


@pytest.fixture
def played(tmp_path, corpus, tokenizer):
    """A run's folder with episodes of a policy that is right at first, wrong later."""
    tokenizer.save(tmp_path / "tokenizer")
    config = tiny_run(
        tmp_path,
        model=tiny_model(),
        data=DataConfig(sources=()),
        tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer")),
        rl=RLConfig(environments=(config_of(corpus),)),
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_json(config)))
    make = make_environments(config.rl.environments, tokenizer)
    made = []
    for n, task in enumerate(load_tasks(config.rl.environments[0])[:6]):
        for text in ("it counts\n</think>\n7", "so be it, at length\n</think>\n7"):
            environment = make("output", task)
            start = environment.start()
            action = answer(tokenizer, text if n < 4 else "</think>\n1")
            step = environment.step(action)
            made.append(
                Trajectory(
                    environment="output",
                    task=task,
                    group=n,
                    seed=0,
                    turns=(
                        Turn(
                            observation=tuple(start.tokens),
                            action=tuple(action),
                            logprobs=(-0.5,) * len(action),
                            first_version=1,
                            last_version=2,
                            reward=step.reward,
                            info=step.info,
                        ),
                    ),
                    ending="done",
                )
            )
    write_trajectories(run / "trajectories" / "00000000.jsonl", made[:6])
    write_trajectories(run / "trajectories" / "00000002.jsonl", made[6:])
    return run


def test_episodes_can_be_read(played, capsys):
    assert main(["rl", "show", str(played), "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "output/p5#5, group 5: return -1, done" in printed
    assert "What does main() return?" in printed and "another value" in printed
    assert "mean log-probability -0.500, weights of step 1 to 2" in printed
    main(["rl", "show", str(played), "--passed", "--group", "2", "--limit", "9"])
    assert capsys.readouterr().out.count("===") == 2


def test_a_run_is_read_wherever_its_tokenizer_was(played, tokenizer, capsys):
    path = played / "config.json"
    path.write_text(path.read_text().replace(str(played.parent / "tokenizer"), "moved/away"))
    assert main(["rl", "show", str(played)]) == 2
    assert "moved/away" in capsys.readouterr().err
    (played / "checkpoints").mkdir()
    for step in ("00000002", "00000004"):
        tokenizer.save(played / "checkpoints" / step / "tokenizer")
    assert main(["rl", "show", str(played)]) == 0
    assert "What does main() return?" in capsys.readouterr().out


def test_episodes_can_be_played_again(played, capsys):
    assert main(["rl", "replay", str(played)]) == 0
    assert "12 episodes as they were, 0 not" in capsys.readouterr().out
    path = played / "trajectories" / "00000000.jsonl"
    path.write_text(path.read_text().replace('"reward": 1.0', '"reward": 0.5', 1))
    assert main(["rl", "replay", str(played)]) == 1
    assert "the reward of turn 1 is +1 and was +0.5" in capsys.readouterr().out


def test_solved_episodes_become_dialogs_in_the_same_tokens(played, tmp_path, capsys, tokenizer):
    out = tmp_path / "kept" / "chat.jsonl"
    assert main(["rl", "keep", str(played), "--out", str(out), "--per-task", "1"]) == 0
    assert "4 dialogs; left out: 4 for their returns, 4 since" in capsys.readouterr().out
    source = SourceConfig(name="kept", kind="chat", path=str(out))
    assert len(list(documents(source))) == 4
    assert "it counts" in out.read_text() and "at length" not in out.read_text()  # the shortest
    (first, *_) = read_trajectories(played / "trajectories" / "00000000.jsonl")
    messages = dialog_of(first, tokenizer)
    assert [m.role for m in messages] == ["user", "assistant"]
    assert messages[1].content == "<think>\nit counts\n</think>\n7"


def test_kept_dialogs_are_replaced_by_nothing_and_added_to_when_asked(played, tmp_path, capsys):
    out = tmp_path / "chat.jsonl"
    keep = ["rl", "keep", str(played), "--out", str(out)]
    out.write_text('{"messages": "of another run"}\n')
    assert main(keep) == 2
    assert f"{out} is there already; expected a new file" in capsys.readouterr().err
    assert out.read_text() == '{"messages": "of another run"}\n'
    assert main([*keep, "--append", "--per-task", "1"]) == 0
    assert "4 dialogs; " in (said := capsys.readouterr().out) and "; 5 in the file" in said
    assert main([*keep, "--append"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: 4 dialogs; ") and ", 4 that are there already; 9 in" in said
    lines = out.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 9 and "of another run" in lines[0]


@pytest.mark.parametrize("asked", ["--environment nope", "--task nope", "--group 99"])
def test_that_no_episode_matches_is_said_with_what_there_is(played, asked, capsys):
    for part in ("show", "replay"):
        assert main(["rl", part, str(played), *asked.split()]) == 2
        err = capsys.readouterr().err
        assert f"no episode matches {asked}; environments are output (12 episodes" in err
    assert main(["rl", "keep", str(played), "--out", "x", "--environment", "nope"]) == 2
    assert "no episode matches --environment nope" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_no_text_is_shown_with_backslashes(played, encoding, capsys, monkeypatch):
    path = played / "trajectories" / "00000002.jsonl"
    made = list(read_trajectories(path))[-1]
    last = dataclasses.replace(made.turns[0], info={"reason": "no file \udcff", "é": "é"})
    made = dataclasses.replace(made, turns=(last,), failure="half \ud800, é")
    write_trajectories(path, [made])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    assert main(["rl", "show", str(played), "--limit", "1"]) == 0
    sys.stdout.flush()
    shown = written.getvalue().decode(encoding)
    accent = "é" if encoding == "utf-8" else "\\xe9"
    assert f"failed: half \\ud800, {accent}" in shown
    assert f'"no file \\udcff", "{accent}": "{accent}"' in shown


def test_what_no_dialog_says_is_left_out(tokenizer):
    assert dialog_of(trajectory([turn([5, 6])]), tokenizer) is None  # no headers
    assert dialog_of(trajectory([]), tokenizer) is None


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (["show", "nowhere"], "no config.json"),
        (["keep", "RUN", "--out", "x.jsonl", "--min-return", "5"], "no episode is left"),
    ],
)
def test_a_wrong_command_says_why(played, part, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["rl", *(str(played) if word == "RUN" else word for word in part)]) == 2
    assert expected in capsys.readouterr().err and not Path("x.jsonl").exists()


def test_what_an_environment_quotes_need_not_be_text(tmp_path):
    """A file name of a patch that is not UTF-8 comes as halves of surrogate pairs."""
    made = trajectory([turn([5])])
    last = dataclasses.replace(made.turns[0], info={"reason": "no file b/\udcff.bin"})
    made = dataclasses.replace(made, turns=(last,), failure="\ud800")
    write_trajectories(tmp_path / "t.jsonl", [made])
    assert list(read_trajectories(tmp_path / "t.jsonl")) == [made]


def test_a_line_that_a_kill_has_cut_is_left_out_and_a_wrong_one_named(played):
    path = played / "trajectories" / "00000000.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert len(list(read_trajectories(path))) == 5
    path.write_text(whole.replace('"version": 1', '"version": 0', 1))
    with pytest.raises(ValueError, match=r":1 is no trajectory \(version is 0; expected 1\)"):
        list(read_trajectories(path))
