"""What CPython did scores full marks, whatever differs does not; held-out episodes are asked."""

import json

import pytest
from trace_corpora import write_trace_corpus

from cwm_jax.data.split import is_heldout
from cwm_jax.evals.problem import Answer, SetOptions
from cwm_jax.evals.sets.trace_prediction import ENTRIES, MODES
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.trace.episodes import Program, context_of_call, generated_programs
from cwm_jax.trace.format import parse_frames, render_each
from cwm_jax.trace.tracer import TraceLimits, Tracer

SET = ENTRIES["trace_prediction"]
RAISES = context_of_call("def f(x):\n    return x[3]\n", "[1]")
CODE = "def f(x):\n    y = x * 2\n    return y\n"
ALL = {"heldout_fraction": "1"}


@pytest.fixture(scope="module")
def episodes():
    programs = [
        *generated_programs(3, 8, difficulties=(1, 2)),
        Program(name="raises", context=RAISES, source="function", origin="by hand"),
        Program(
            name="long", context=context_of_call(CODE, "7"), source="function", origin="by hand"
        ),
    ]
    found = []
    with Tracer() as tracer, Tracer(TraceLimits(max_events=4)) as short:
        for program in programs:
            found += program.episodes(short if program.name == "long" else tracer)
    return found


@pytest.fixture(scope="module")
def corpus(episodes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "c"
    records = [episode.to_json() for episode in episodes]
    write_trace_corpus(folder, records[:5], records[5:])
    return folder


def load(path, mode="full_trace", tokenizer=None, max_tokens=None, **values):
    options = SetOptions(mode=mode, tokenizer=tokenizer, max_tokens=max_tokens, values=values)
    return SET.load(path, options)


def true_answers(episode):
    """What follows the prompt of each mode, without the stop string."""
    _, *rest = render_each(parse_frames(episode.frames))
    return {
        "full_trace": "".join(rest),
        "single_step": rest[-1].removeprefix("<|return_sep|>").removesuffix("<|frame_sep|>"),
        "direct": f"{episode.output}\n",
    }


def judged(problem, text, finish_reason="stop"):
    return problem.attempt().step(Answer(text=text, finish_reason=finish_reason))


@pytest.mark.parametrize("mode", MODES)
def test_the_true_answer_is_right_and_no_other(corpus, episodes, mode):
    by_name = {e.name: e for e in episodes}
    problems = load(corpus, mode, **ALL).problems
    assert len(problems) == 9 if mode == "full_trace" else 8
    for problem in problems:
        episode = by_name[problem.name]
        answer = true_answers(episode)[mode]
        prompt = problem.attempt().start()
        if mode != "direct":
            whole = episode.prompt + episode.frames
            assert whole.startswith(prompt.text.removesuffix("<|return_sep|>"))
        verdict = judged(problem, answer)
        assert verdict.passed
        assert verdict.answer == (episode.output or "None")
        assert {*verdict.scores.values()} <= {1.0}
        for wrong in (answer + "x", "x" + answer, ""):
            assert not judged(problem, wrong).passed
        for cut in (answer, answer.rstrip("\n")):
            assert not judged(problem, cut, "length").passed


def test_where_a_trace_goes_wrong_is_scored_by_frame(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"code": CODE, "input": "3", "id": "double"}))
    (problem,) = load(path).problems
    assert problem.name == "p-double#0"
    text = (
        "<|line_sep|>{}<|action_sep|>    return f(3)\n<|frame_sep|>"
        '<|call_sep|>{"x": "3"}<|action_sep|>def f(x):\n<|frame_sep|>'
        '<|line_sep|>{"x": ".."}<|action_sep|>    y = x * 2\n<|frame_sep|>'
        '<|line_sep|>{"x": "..", "y": "7"}<|action_sep|>    return y\n<|frame_sep|>'
        '<|return_sep|><|action_sep|>    return y\n<|arg_sep|>"6"<|frame_sep|>'
        '<|return_sep|><|action_sep|>    return f(3)\n<|arg_sep|>"6"<|frame_sep|>'
    )
    assert judged(problem, text.replace('"7"', '"6"')).scores == {
        "valid_format": 1.0,
        "exact_trace": 1.0,
        "output": 1.0,
        **{f"frames_{n}": 1.0 for n in ("valid", "state", "keys", "key_values", "action", "exact")},
    }
    verdict = judged(problem, text)
    assert verdict.passed  # the output is right all the same
    assert verdict.info == {"frames": 6, "first_divergence": 3}
    scores = verdict.scores
    assert (scores["valid_format"], scores["exact_trace"], scores["output"]) == (1.0, 0.0, 1.0)
    assert scores["frames_state"] == scores["frames_exact"] == pytest.approx(5 / 6)
    assert scores["frames_key_values"] == pytest.approx(3.5 / 4)
    assert scores["frames_action"] == scores["frames_keys"] == scores["frames_valid"] == 1.0
    cut = judged(problem, text[: text.index("<|return_sep|>")], "length")
    assert (cut.passed, cut.answer, cut.scores["valid_format"]) == (False, None, 0.0)
    assert cut.reason == "another frame at place 4 after the call, not well-formed to its end"


def test_held_out_episodes_are_those_of_the_training_data(corpus, episodes):
    names = {p.name for p in load(corpus, heldout_fraction="0.6").problems}
    wanted = {e.name for e in episodes if e.finished and is_heldout(e.group, 0.6)}
    assert names == wanted
    assert 0 < len(names) < 9


def test_what_is_passed_over_is_told(corpus):
    assert "9 traces of c (passed over: 1 cut)" in load(corpus, **ALL).about
    about = load(corpus, "direct", **ALL).about
    assert "(passed over: 1 without an output to ask for, 1 cut)" in about
    assert "3 traces of c." in load(corpus, episodes="3", **ALL).about


def test_difficulties_are_labels(corpus):
    labels = {tuple(p.labels.items()) for p in load(corpus, **ALL).problems}
    expected = {(("difficulty", n), ("source", "generated")) for n in "12"}
    assert labels == expected | {(("source", "function"),)}


def test_a_length_in_tokens_bounds_prompt_and_answer(corpus, episodes):
    tokenizer = train_tokenizer([e.context + e.frames for e in episodes] * 2, 700)
    encode = tokenizer.encode_with_special_tokens
    lengths = {e.name: len(encode(e.prompt + e.frames)) for e in episodes if e.finished}
    limit = sorted(lengths.values())[4]
    found = load(corpus, tokenizer=tokenizer, max_length=str(limit), **ALL)
    assert {p.name for p in found.problems} == {n for n, v in lengths.items() if v <= limit}
    assert f"{len(lengths) - len(found.problems)} too_long" in found.about
    for problem in found.problems:
        prompt = problem.attempt().start()
        assert len(encode(prompt.text)) + prompt.max_tokens == limit
    with pytest.raises(ValueError, match="max_length is given, but not the model's tokenizer"):
        load(corpus, max_length="900")


def test_contexts_and_calls_of_a_file_are_traced(tmp_path, capsys):
    rows = [
        {"context": context_of_call(CODE, "5"), "id": "five"},
        {"context": "def f():  # << START_OF_TRACE\n    return (\n"},
        {"context": RAISES},
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load(path)
    assert [p.name for p in found.problems] == ["c-five#0", "c-line-3#0"]
    assert "(passed over: 1 without a trace)" in found.about
    assert "c-line-2: no trace: SyntaxError" in capsys.readouterr().out
    (five,) = load(path, "direct", max_tokens=9).problems
    assert five.attempt().start().max_tokens == 9
    assert judged(five, "10\n").passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "c.jsonl:1: no JSON"),
        ("[1]\n", "c.jsonl:1: a list; expected an object"),
        ('{"context": "x"}\n{"code": "y"}\n', r"c.jsonl:2: has \['code'\]; expected a string 'con"),
        ('{"code": "x"}\n', "c.jsonl:1: KeyError"),
        ('{"context": "x ="}\n', "no episode to predict ended"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, text, message):
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heldout_fraction": "0"}, "heldout_fraction=0: expected more than 0"),
        ({"heldout_fraction": "two"}, "heldout_fraction=two: expected more than 0"),
        ({"episodes": "0"}, "'0'; expected a whole number, 1 or more"),
        ({"heldout_fraction": "0.000001"}, "no episode to predict ended"),
    ],
)
def test_options_that_cannot_be_used_are_refused(corpus, values, message):
    with pytest.raises(ValueError, match=message):
        load(corpus, **values)


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="manifest"):
        load(tmp_path)
