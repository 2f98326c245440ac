"""The model in a few lines of Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import sharp_params, tiny_model
from tolerances import LOGITS_ATOL

from convert import save_hf
from cwm_jax import CWM, forward
from cwm_jax.inference.requests import RequestError
from cwm_jax.tokenizer import FRAME_SEP, train_tokenizer
from cwm_jax.trace import TraceEvent, render_prompt
from cwm_jax.trace.contexts import context_of_program

CONFIG = tiny_model(max_position_embeddings=1024)
SOURCE = "def f(x):\n    y = x + 1\n    return y\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    text = " ".join(f"def f{n}(x): return x + {n}" for n in range(500))
    save_hf(folder, CONFIG, sharp_params(CONFIG), train_tokenizer([text], CONFIG.vocab_size))
    with CWM.from_pretrained(folder, max_length=512, max_rows=4) as model:
        yield model


def logprobs_of(model, row):
    logits = forward(model.params, model.model_config, jnp.asarray([row]))[0]
    return np.asarray(jax.nn.log_softmax(logits))


def test_a_prompt_is_continued_as_the_model_would(model):
    made = model.generate("def f", max_tokens=9, temperature=0.0)
    prompt = [model.tokenizer.bos_id, *model.tokenizer.encode("def f")]
    expected = logprobs_of(model, [*prompt, *made.token_ids]).argmax(-1)
    assert made.token_ids == expected[len(prompt) - 1 : -1].tolist()
    assert made.finish_reason == "length" and made.reasoning == ""
    assert model.tokenizer.decode(made.token_ids) == made.text
    assert model.generate(prompt, max_tokens=9, temperature=0.0) == made


def test_many_prompts_at_once_give_each_its_own(model):
    prompts = ["def f", "return x", [1, 2, 3]]
    options = dict(max_tokens=5, temperature=0.0)
    alone = [model.generate(prompt, **options) for prompt in prompts]
    together = model.generate(prompts, **options)
    assert [made.token_ids for made in together] == [made.token_ids for made in alone]
    assert model.generate([], **options) == []


def test_a_bad_prompt_among_others_leaves_none_running(model):
    before = model.service.stats().finished.get("cancelled", 0)
    with pytest.raises(RequestError, match="token -1"):
        model.generate(["def f", "def f", [-1]], max_tokens=400, temperature=0.0)
    model.generate("x", max_tokens=1)
    assert model.service.stats().finished["cancelled"] == before + 2


def test_a_stream_gives_the_same_and_can_be_left(model):
    made = model.generate("def f", max_tokens=30, temperature=0.0)
    deltas = list(model.stream("def f", max_tokens=30, temperature=0.0))
    assert "".join(delta.text for delta in deltas) == made.text and len(deltas) > 1
    before = model.service.stats().finished.get("cancelled", 0)
    next(iter(model.stream("def f", max_tokens=400, temperature=0.0)))
    model.generate("x", max_tokens=1)
    assert model.service.stats().finished["cancelled"] == before + 1


def test_an_answer_is_split_into_reasoning_and_text(model, monkeypatch):
    prompts = []
    submit = model.service.submit

    def scripted(prompt, sampling):
        prompts.append((prompt, sampling))
        return iter(scripted.deltas)

    scripted.deltas = [*model.stream("def f", max_tokens=3, temperature=0.0)]
    text = "so it is\n</think>\nfour"
    scripted.deltas = [
        type(scripted.deltas[-1])(token_ids=[1], text=text, logprobs=[], finish_reason="stop")
    ]
    monkeypatch.setattr(model.service, "submit", scripted)
    answer = model.chat([{"role": "user", "content": "2 + 2?"}])
    assert (answer.reasoning, answer.text) == ("so it is", "four")
    plain = model.chat([{"role": "user", "content": "2 + 2?"}], reasoning=False)
    assert (plain.reasoning, plain.text) == ("", text)
    (with_reasoning, sampling), (without, _) = prompts
    tokenizer = model.tokenizer
    assert tokenizer.decode(with_reasoning).endswith("<|end_header_id|>\n\n<think>\n")
    assert "You always reason before responding" in tokenizer.decode(with_reasoning)
    assert tokenizer.decode(without).endswith("<|end_header_id|>\n\n")
    assert {*tokenizer.stop_ids} <= {*sampling.stop_token_ids}
    assert sampling.max_tokens == 512 - len(with_reasoning)
    monkeypatch.setattr(model.service, "submit", submit)
    with pytest.raises(ValueError, match="message role is 'robot'"):
        model.chat([{"role": "robot", "content": "2 + 2?"}])


def test_a_predicted_trace_begins_with_the_call(model):
    trace = model.predict_trace(SOURCE, "f(2)", max_frames=3, max_frame_tokens=40)
    assert trace.frames[0].event is TraceEvent.CALL
    assert trace.frames[0].source_line.startswith("def main()")
    assert trace.finished or trace.problems  # nobody has trained it
    lines = {
        "def f(x):\n",
        "    y = x + 1\n",
        "    return y\n",
        "def main():\n",
        "    return f(2)\n",
    }
    assert {frame.source_line for frame in trace.frames} <= lines
    with pytest.raises(ValueError, match="g"):
        model.predict_trace(SOURCE, "g(2)")


def test_scores_are_the_models_log_probabilities(model):
    prompt = model.tokenizer.encode_with_special_tokens(
        render_prompt(context_of_program(SOURCE, "f(2)"))
    )
    after = [*model.tokenizer.encode("def main"), model.tokenizer.special_tokens[FRAME_SEP]]
    expected = logprobs_of(model, [*prompt, *after])
    row = np.array([*prompt, *after])
    expected = expected[np.arange(len(row) - 1), row[1:]]
    scores = model.score(prompt, after)
    assert np.abs(np.array(scores) - expected[-len(after) :]).max() <= LOGITS_ATOL
    assert np.abs(np.array(model.score(row.tolist())) - expected).max() <= LOGITS_ATOL
    assert len(model.score("def f", " return")) == len(model.tokenizer.encode(" return"))
    with pytest.raises(ValueError, match="0 tokens and 2 after them"):
        model.score([], [1, 2])


def test_scores_of_tokens_that_there_are_not_are_refused(model):
    for prompt, continuation in (([1, -1], [3]), ([1], [CONFIG.vocab_size])):
        with pytest.raises(RequestError, match="expected 0 to"):
            model.score(prompt, continuation)


def test_what_is_too_long_is_refused_with_the_numbers(model):
    with pytest.raises(RequestError, match="the prompt has 600 tokens; expected 1 to 511"):
        model.generate([1] * 600)
