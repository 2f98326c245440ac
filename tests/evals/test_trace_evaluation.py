"""A model that knows three traces by heart is right about them, a fresh one is not."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import tiny_model

from cwm_jax.evals.traces import evaluation as traces_module
from cwm_jax.evals.traces.episodes import take_episodes
from cwm_jax.evals.traces.evaluation import MODES, evaluate_traces
from cwm_jax.evals.traces.report import format_evaluation, side_by_side, write_evaluation
from cwm_jax.model.transformer import forward, init
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.trace.episodes import Episode, context_of_call, direct_answer, direct_prompt
from cwm_jax.trace.format import parse_frames, render_frames
from cwm_jax.trace.frames import TraceEvent, TraceFrame, returned_value
from cwm_jax.training.losses import loss

CALL, LINE, RETURN, _ = TraceEvent
MAX_LENGTH = 192


def episode(n: int) -> Episode:
    """The trace of ``main()`` that returns ``f(n)``, written by hand."""
    code = "def f(x):\n    y = x * 2\n    return y\n"
    call = f"    return f({n})\n"
    frames = [
        TraceFrame(CALL, "def main():\n"),
        TraceFrame(LINE, call),
        TraceFrame(CALL, "def f(x):\n", {"x": str(n)}),
        TraceFrame(LINE, "    y = x * 2\n", {"x": str(n)}),
        TraceFrame(LINE, "    return y\n", {"x": str(n), "y": str(2 * n)}),
        TraceFrame(RETURN, "    return y\n", arg=str(2 * n)),
        TraceFrame(RETURN, call, arg=str(2 * n)),
    ]
    return Episode(
        name=f"p{n}#0",
        context=context_of_call(code, str(n)),
        frames=render_frames(frames),
        finished=True,
        status="finished",
        raised=False,
        num_events=len(frames),
        source="function",
        origin="by hand",
        group=f"p{n}",
        python="3.11",
        limits={},
        difficulty=n % 2,
    )


EPISODES = [episode(n) for n in (3, 4, 5)]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [e.context + e.frames for e in EPISODES] * 3
    return train_tokenizer(texts, 560)


@pytest.fixture(scope="module")
def config(tokenizer):
    return tiny_model(
        vocab_size=tokenizer.vocab_size,
        hidden_size=48,
        num_hidden_layers=2,
        layer_types=("full_attention",) * 2,
    )


@pytest.fixture(scope="module")
def fresh(config):
    return init(config, jax.random.key(0))


def documents(tokenizer) -> list[list[int]]:
    """Traces, the same in one step, and assertions."""
    encode = tokenizer.encode_with_special_tokens
    traces = [encode(e.prompt + e.frames) for e in EPISODES]
    frames = [e.frames.split("<|frame_sep|>") for e in EPISODES]
    single = [
        encode(e.prompt + f[0] + "<|frame_sep|>" + f[-2] + "<|frame_sep|><|end_of_text|>")
        for e, f in zip(EPISODES, frames, strict=True)
    ]
    direct = [
        encode(direct_prompt(e.context)) + encode(direct_answer(str(2 * n)))
        for n, e in zip((3, 4, 5), EPISODES, strict=True)
    ]
    return traces + single + direct


@pytest.fixture(scope="module")
def learnt(config, fresh, tokenizer):
    rows = documents(tokenizer)
    tokens = np.zeros((len(rows), MAX_LENGTH), np.int32)
    mask = np.zeros((len(rows), MAX_LENGTH - 1), np.float32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        mask[number, : len(row) - 1] = 1
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(MAX_LENGTH - 1, dtype=np.int32), (len(rows), 1)),
        "segment_ids": mask.astype(np.int32),
        "loss_mask": mask,
    }
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(params, batch):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: loss(p, config, batch)[0])(params)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=150)[0][0]

    return learn(fresh, batch)


@pytest.fixture(scope="module")
def evaluate(config, tokenizer):
    return functools.partial(
        evaluate_traces,
        model_config=config,
        tokenizer=tokenizer,
        max_length=MAX_LENGTH,
        batch_size=2,
    )


def test_what_is_learnt_by_heart_scores_full_marks(evaluate, learnt):
    evaluation = evaluate(learnt, episodes=EPISODES)
    result = evaluation.to_json()
    for mode in ("teacher_forced", "free_running"):
        groups = result[mode]
        assert groups["overall"]["frames"] == 18  # the entry's call is given
        assert groups["event=line"]["frames"] == 9
        assert groups["difficulty=1"]["frames"] == 12
        assert all(v == 1.0 for g in groups.values() for k, v in g.items() if k != "frames")
    assert result["token_accuracy"] == 1.0
    assert result["programs"].keys() == {"overall", "difficulty=0", "difficulty=1"}
    assert result["programs"]["overall"] == {
        "programs": 3,
        "valid_format": 1.0,
        "exact": 1.0,
        "first_divergence_median": None,
        "first_divergence": [],
        "output_full_trace": 1.0,
        "output_single_step": 1.0,
        "output_direct": 1.0,
    }
    shares = ("valid_format", "exact", "output_full_trace", "output_single_step", "output_direct")
    assert result["outcomes"] == {e.name: dict.fromkeys(shares, True) for e in EPISODES}


def test_another_program_shows_where_it_goes_wrong(evaluate, learnt):
    changed = dataclasses.replace(
        EPISODES[0], frames=EPISODES[0].frames.replace('"y": "6"', '"y": "7"')
    )
    result = evaluate(learnt, episodes=[changed], modes=("teacher_forced", "free_running"))
    assert result.predictions[0].divergence == 3
    assert result.predictions[0].valid
    forced = result.to_json()["teacher_forced"]["overall"]
    assert forced["action"] == 1.0
    assert forced["state"] == pytest.approx(5 / 6)
    assert forced["key_values"] == pytest.approx(3.5 / 4)  # of frames with locals
    assert "first different frame: 4" in side_by_side(result.predictions[0])


def test_a_fresh_model_knows_nothing(evaluate, fresh):
    result = evaluate(fresh, episodes=EPISODES).to_json()
    assert result["teacher_forced"]["overall"]["valid"] == 0
    programs = result["programs"]["overall"]
    assert programs["valid_format"] == 0
    assert programs["first_divergence"] == [0, 0, 0]
    assert not any(share for name, share in programs.items() if name.startswith("output_"))


def test_teacher_forcing_decodes_each_frame_after_the_true_ones(
    evaluate, config, tokenizer, learnt
):
    """A model in between, against decoding without a cache."""
    blurred = jax.tree.map(
        lambda x: x + 0.15 * jnp.std(x) * jax.random.normal(jax.random.key(1), x.shape), learnt
    )
    run = jax.jit(forward, static_argnums=1)
    row = np.zeros((1, MAX_LENGTH), np.int32)

    def most_likely(prefix: list[int]) -> np.ndarray:
        row[0, : len(prefix)] = prefix
        return np.asarray(run(blurred, config, jnp.asarray(row))[0, : len(prefix)].argmax(-1))

    exact, right, total, frames = 0, 0, 0, 0
    frame_sep = tokenizer.special_tokens["<|frame_sep|>"]
    for e in EPISODES:
        tokens = tokenizer.encode_with_special_tokens(e.prompt + e.frames)
        ends = [i + 1 for i, token in enumerate(tokens) if token == frame_sep]
        hits = most_likely(tokens)[:-1] == np.array(tokens[1:])
        right, total = right + hits[ends[1] - 1 :].sum(), total + len(tokens) - ends[1]
        for start, end in itertools.pairwise(ends[1:]):
            written = tokens[:start]
            while len(written) < end and written[start:] == tokens[start : len(written)]:
                written = [*written, int(most_likely(written)[-1])]
            exact += written == tokens[:end]
            frames += 1
    evaluation = evaluate(blurred, episodes=EPISODES, modes=["teacher_forced"])
    means = evaluation.teacher_forced["overall"]
    assert means["frames"] == frames == 18
    assert 0 < means["exact"] < 1
    assert means["exact"] == pytest.approx(exact / frames)
    assert evaluation.token_accuracy == pytest.approx(right / total)


def test_a_return_of_a_callee_is_no_output(evaluate, learnt):
    predicted = evaluate(learnt, episodes=EPISODES[1:2], modes=["free_running"]).predictions[0]
    assert predicted.output == "8"
    frames = parse_frames(EPISODES[1].frames)
    assert returned_value(frames) == "8"
    assert returned_value(frames[:-1]) is None
    assert returned_value([*frames[:-1], None]) is None
    assert returned_value([]) is None


def test_results_are_written_as_json_and_picture(evaluate, learnt, tmp_path):
    evaluation = evaluate(learnt, episodes=EPISODES)
    json_path, png_path = write_evaluation(evaluation, tmp_path / "new", about={"step": 3})
    assert json.loads(json_path.read_text()) == {"step": 3} | evaluation.to_json()
    assert png_path.read_bytes().startswith(b"\x89PNG")
    table = format_evaluation(evaluation)
    assert "teacher-forced frames" in table
    assert "full trace   single step        direct" in table
    assert not list((tmp_path / "new").glob(".*"))
    assert "every frame as CPython's" in side_by_side(evaluation.predictions[0])


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_alone_can_be_reported(evaluate, learnt, tmp_path, mode):
    evaluation = evaluate(learnt, episodes=EPISODES[:1], modes=[mode])
    assert write_evaluation(evaluation, tmp_path, about={})[1].stat().st_size
    assert "overall" in format_evaluation(evaluation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(modes=[]), "modes has nothing; expected some of"),
        (
            dict(episodes=[dataclasses.replace(EPISODES[0], context="x = 1  # << START_OF_TRACE")]),
            r"is no trace of a main\(\) to assert about",
        ),
        (dict(modes=["free"]), r"modes has \['free'\]; expected some of"),
        (dict(episodes=[]), "no episode to evaluate"),
        (dict(episodes=[dataclasses.replace(EPISODES[0], finished=False)]), "expected whole ones"),
        (dict(max_length=100), "expected at most 100"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(evaluate, fresh, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(fresh, **{"episodes": EPISODES, "modes": MODES, **change})


def test_episodes_are_taken_in_order_and_what_is_passed_over_is_counted(tokenizer):
    cut = dataclasses.replace(EPISODES[0], finished=False)
    long = dataclasses.replace(EPISODES[0], context=EPISODES[0].context + "#" * 400)
    chosen = take_episodes([cut, long, *EPISODES], tokenizer, count=2, max_length=MAX_LENGTH)
    assert chosen == (EPISODES[:2], {"cut": 1, "too_long": 1})
    with pytest.raises(ValueError, match="no episode to predict has at most 192 tokens"):
        take_episodes([cut], tokenizer, count=2, max_length=MAX_LENGTH)


@pytest.fixture
def predict(evaluate, fresh, monkeypatch):
    """``predict("free_running", text)``: the evaluation of EPISODES[0] if the model writes that."""

    def predict(mode, text):
        monkeypatch.setattr(
            traces_module._Runner, "_generate", lambda self, prompts, stop, **_: [text]
        )
        return evaluate(fresh, episodes=EPISODES[:1], modes=[mode])

    return predict


REST = EPISODES[0].frames.split("<|frame_sep|>", 1)[1]
LAST = REST.removesuffix("<|end_of_text|>").split("<|frame_sep|>")[-2] + "<|frame_sep|>"


@pytest.mark.parametrize(
    ("text", "valid", "divergence"),
    [
        (REST, True, None),
        ("<|end_of_text|>", False, 0),
        (REST.removesuffix("<|end_of_text|>"), False, 6),
        (REST.replace("<|end_of_text|>", LAST + "<|end_of_text|>"), False, 6),
        (REST.replace(LAST, ""), False, 5),
    ],
)
def test_a_trace_is_valid_if_it_ends_where_the_entry_is_left(predict, text, valid, divergence):
    evaluation = predict("free_running", text)
    (predicted,) = evaluation.predictions
    assert (predicted.valid, predicted.divergence) == (valid, divergence)
    assert predicted.output == ("6" if valid else None)
    programs = evaluation.programs()["overall"]
    assert programs["first_divergence"] == ([] if divergence is None else [divergence])


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("6\n<|end_of_text|>", 1.0),
        ("6<|end_of_text|>", 0.0),
        ("6\n", 0.0),
        ("6\n6\n6\n6", 0.0),
        ("6\n6\n<|end_of_text|>", 0.0),
    ],
)
def test_a_direct_answer_counts_if_it_ends_as_it_should(predict, text, right):
    assert predict("direct", text).programs()["overall"]["output_direct"] == right


def test_a_program_that_raises_has_no_output_to_predict(evaluate, learnt):
    raising = dataclasses.replace(EPISODES[0], raised=True)
    means = evaluate(learnt, episodes=[raising, *EPISODES[1:]], modes=["direct"]).programs()
    assert means["overall"]["output_direct"] == 1.0
    alone = evaluate(learnt, episodes=[raising], modes=["direct"]).programs()["overall"]
    assert "output_direct" not in alone
