"""Servers are asked as they understand it; what passes is tried again, what does not is said."""

import dataclasses
import email.utils
import socket
import textwrap
import time
from pathlib import Path

import pytest
from fake_server import fake_server

from cwm_jax.data.chat import Message
from cwm_jax.evals.models import ModelFailure, PromptTooLongError, openai
from cwm_jax.evals.models.openai import ServerModel, ServerOptions
from cwm_jax.evals.problem import Prompt
from cwm_jax.tokenizer import train_tokenizer

QUICK = ServerOptions(retries=2, retry_wait_s=0.001)
SUM = Prompt(messages=(Message("user", "1 + 2"),), max_tokens=5, stop=("END",))
TEXT = Prompt(text="<|begin_of_text|>1 + 2", max_tokens=5)


@pytest.fixture
def fake():
    with fake_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([Path(textwrap.__file__).read_text()], 576)


def ask(model, prompt=SUM, seed=7):
    return model.answer(prompt, temperature=0.5, top_p=0.9, seed=seed)


def failing(*replies):
    """Gives these replies first."""
    left = list(replies)
    return lambda number, path, body: left.pop(0) if left else None


def refusal(message, param=None, status=400, **headers):
    return status, {"error": {"message": message, "param": param}}, headers


def test_a_dialog_goes_out_as_messages(fake):
    model = ServerModel(fake.url, None, QUICK)
    answer = ask(model)
    ((path, body),) = fake.seen
    assert path == "/v1/chat/completions" and model.name == "fake"
    assert body == {
        "model": "fake",
        "messages": [{"role": "user", "content": "1 + 2"}],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert answer.text.startswith("I think") and answer.finish_reason == "stop"
    assert answer.num_prompt_tokens == 10 and answer.num_tokens


def test_tool_results_and_reasoning_are_sent_as_the_api_has_them(fake):
    dialog = (
        Message("user", "1 + 2"),
        Message("assistant", "calling", reasoning="hm"),
        Message("tool: python", "3"),
    )
    ask(ServerModel(fake.url, None, QUICK), Prompt(messages=dialog, max_tokens=5))
    assert fake.seen[0][1]["messages"][1:] == [
        {"role": "assistant", "content": "calling", "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "name": "python", "tool_call_id": "call-2"},
    ]


@pytest.mark.parametrize(
    "reply", ["drop", refusal("busy", status=429), refusal("no", status=503), (502, "<html>", {})]
)
def test_what_may_pass_is_tried_again(fake, reply):
    fake.refuse = failing(reply, reply)
    assert ask(ServerModel(fake.url, None, QUICK)).text
    assert len(fake.seen) == 3
    fake.refuse = lambda *_: reply
    with pytest.raises(ModelFailure, match="gave up after 3 tries"):
        ask(ServerModel(fake.url, None, QUICK))
    assert len(fake.seen) == 6


def test_waits_double_are_drawn_and_follow_the_server(fake, monkeypatch):
    waits = []
    model = ServerModel(fake.url, None, ServerOptions(retries=4, retry_wait_s=1.0))
    monkeypatch.setattr(model._closed, "wait", lambda s: waits.append(s))
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    fake.refuse = failing(
        refusal("busy", status=429),
        refusal("busy", status=429),
        refusal("busy", status=429, **{"Retry-After": "17"}),
        refusal("busy", status=429, **{"Retry-After": date}),
    )
    ask(model)
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2 and waits[2] == 17 and 90 < waits[3] <= 100
    assert openai._asked_wait_s("soon") is None and openai._asked_wait_s("1e9") == 600


@pytest.mark.parametrize(
    ("status", "next_step"),
    [(401, "--api-key-file"), (403, "--api-key-file"), (404, "--model-name"), (400, "setting")],
)
def test_what_will_not_pass_is_refused_at_once(fake, status, next_step):
    model = ServerModel(f"{fake.url}/v1", None, QUICK)
    fake.refuse = lambda *_: refusal("so not", status=status)
    with pytest.raises(ModelFailure, match=rf"answers {status}: so not; expected.*{next_step}"):
        ask(model)
    assert len(fake.seen) == 1


def test_a_server_that_is_not_there_and_models_that_are_not_are_named(fake):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ModelFailure, match=r"cannot be reached.*gave up after 3 tries"):
            ServerModel(url, None, QUICK)
    with pytest.raises(ModelFailure, match=r"no model 'b'; expected one that it lists: fake"):
        ServerModel(fake.url, None, dataclasses.replace(QUICK, model="b"))
    with pytest.raises(ValueError, match="expected a URL"):
        ServerModel("localhost:80", None, QUICK)


def test_a_field_that_a_server_does_not_know_is_left_out_once_and_noted(fake):
    def refuse(number, path, body):
        unknown = [n for n in ("chat_template_kwargs", "seed") if n in body]
        return refusal(f"unrecognized: {unknown[0]}", unknown[0]) if unknown else None

    fake.refuse = refuse
    said = []
    model = ServerModel(fake.url, None, QUICK, say=said.append)
    ask(model)
    ask(model)
    assert len(fake.seen) == 4 and "seed" not in fake.seen[3][1]
    assert [text.split(":")[0] for text in said] == [
        "the server takes no chat_template_kwargs",
        "the server takes no seed",
    ]
    assert len(model.notes()) == 2


def test_newer_names_of_the_limit_are_learnt(fake):
    fake.refuse = lambda number, path, body: (
        refusal("use 'max_completion_tokens' instead.", "max_tokens")
        if "max_tokens" in body
        else None
    )
    model = ServerModel(fake.url, None, QUICK)
    ask(model)
    ask(model)
    assert [body.get("max_completion_tokens") for _, body in fake.seen] == [None, 5, 5]


def test_an_answer_without_room_is_asked_for_without_a_limit_and_then_the_prompt_is_too_long(
    fake,
):
    message = "This model's maximum context length is 8 tokens"
    model = ServerModel(fake.url, None, QUICK)
    fake.refuse = failing(refusal(message))
    ask(model)
    assert ["max_tokens" in body for _, body in fake.seen] == [True, False]
    fake.refuse = lambda *_: refusal(message)
    with pytest.raises(PromptTooLongError, match="maximum context length"):
        ask(model)


def test_reasoning_is_found_where_servers_put_it(fake):
    model = ServerModel(fake.url, None, QUICK)
    thinking = dataclasses.replace(SUM, think=True)

    def answered(content, prompt=thinking, reason="stop", **more):
        message = {"role": "assistant", "content": content, **more}
        choice = {"message": message, "finish_reason": reason}
        fake.refuse = lambda *_: (200, {"choices": [choice]}, {})
        answer = ask(model, prompt)
        return answer.reasoning, answer.text, answer.finish_reason

    assert answered("3", reasoning_content="hm") == ("hm", "3", "stop")
    assert answered("3", reasoning="hm") == ("hm", "3", "stop")
    assert answered("<think>\nhm\n</think>\n3") == ("hm", "3", "stop")
    assert answered("hm\n</think>\n3") == ("hm", "3", "stop")
    assert answered("<think>\nhm", reason="length") == ("hm", "", "length")
    assert answered(None, reasoning_content="hm") == ("hm", "", "stop")
    assert answered("3") == ("", "3", "stop")
    assert answered("a</think>3", SUM) == ("", "a</think>3", "stop")
    assert fake.seen[0][1]["chat_template_kwargs"] == {"enable_thinking": True}


def test_text_goes_out_as_tokens_of_the_models_tokenizer(fake, tokenizer):
    fake.models = [{"id": "fake", "max_model_len": 12}]
    ids = [*tokenizer.encode("no END yes"), tokenizer.special_tokens["<|frame_sep|>"]]
    choice = {"text": "?", "token_ids": ids, "finish_reason": "stop"}
    fake.refuse = lambda *_: (200, {"choices": [choice]}, {})
    model = ServerModel(fake.url, tokenizer, QUICK)
    prompt = Prompt(text="<|begin_of_text|>1 + 2", max_tokens=50, stop=("<|frame_sep|>", "END"))
    answer = ask(model, prompt)
    ((path, body),) = fake.seen
    assert path == "/v1/completions"
    assert body["prompt"] == [tokenizer.bos_id, *tokenizer.encode("1 + 2")]
    assert body["max_tokens"] == 12 - len(body["prompt"])
    assert body["stop"] == ["END"]
    assert {*body["stop_token_ids"]} == {*tokenizer.stop_ids, ids[-1]}
    assert body["skip_special_tokens"] is False
    assert answer.text == "no " and answer.token_ids == ids and answer.num_tokens == len(ids)
    with pytest.raises(PromptTooLongError, match="reads 12"):
        ask(model, Prompt(tokens=[1] * 12, max_tokens=5))


def test_dialogs_go_out_as_tokens_where_that_is_wanted_or_needed(fake, tokenizer):
    begun = Prompt(messages=(*SUM.messages, Message("assistant", "It is")), max_tokens=5)
    choice = {"text": "hm\n</think>\n3", "finish_reason": "stop"}
    fake.refuse = lambda *_: (200, {"choices": [choice]}, {})
    model = ServerModel(fake.url, tokenizer, QUICK)
    ask(model, begun)
    as_tokens = ServerModel(fake.url, tokenizer, dataclasses.replace(QUICK, completions=True))
    answer = ask(as_tokens, dataclasses.replace(SUM, think=True))
    assert (answer.reasoning, answer.text) == ("hm", "3")
    assert [path for path, _ in fake.seen] == ["/v1/completions"] * 2
    assert tokenizer.decode(fake.seen[0][1]["prompt"]).endswith("It is")
    assert tokenizer.decode(fake.seen[1][1]["prompt"]).endswith("<think>\n")
    with pytest.raises(ValueError, match="--completions is given without --tokenizer"):
        ServerModel(fake.url, None, dataclasses.replace(QUICK, completions=True))


def test_without_a_tokenizer_only_plain_text_goes_out(fake):
    model = ServerModel(fake.url, None, QUICK)
    assert ask(model, TEXT).text
    assert fake.seen[0][1]["prompt"] == "1 + 2"
    for prompt in (
        Prompt(text="1 + 2<|frame_sep|>", max_tokens=5),
        Prompt(tokens=[1], max_tokens=5),
        Prompt(messages=(Message("assistant", "1 + 2"),), max_tokens=5),
    ):
        with pytest.raises(ModelFailure, match="expected --tokenizer"):
            ask(model, prompt)
    assert len(fake.seen) == 1


def test_an_answer_that_is_none_is_shown(fake):
    fake.refuse = lambda *_: (200, {"object": "list"}, {})
    with pytest.raises(ModelFailure, match=r"lacks what a completion has.*'object': 'list'"):
        ask(ServerModel(fake.url, None, QUICK))


def test_a_run_that_stops_does_not_wait_for_the_next_try(fake):
    fake.refuse = lambda *_: refusal("busy", status=429, **{"Retry-After": "500"})
    model = ServerModel(fake.url, None, QUICK)
    model.close()
    with pytest.raises(ModelFailure, match="is being stopped"):
        ask(model)
