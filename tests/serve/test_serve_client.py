"""The official client against a real server of a tiny model."""

import asyncio
import json
import urllib.request

import openai
import pytest
from serving import MAX_LENGTH, MODEL, metrics

from cwm_jax.data.chat import Message, encode_dialog
from cwm_jax.debugger.http import HttpPredictor
from cwm_jax.debugger.prediction import PredictionRequest
from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.inference.requests import SamplingParams

HI = [{"role": "user", "content": "hi"}]
OFF = {"reasoning_effort": "none"}
GREEDY = {"model": MODEL, "temperature": 0.0, "max_tokens": 12}


def continued(service, prompt, **sampling):
    """(ids, text, log-probabilities) of the engine itself, greedy."""
    params = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling})
    deltas = [*service.submit(prompt, params)]
    ids = [i for delta in deltas for i in delta.token_ids]
    logprobs = [t for delta in deltas for t in delta.logprobs]
    return ids, "".join(delta.text for delta in deltas), logprobs


def stops(tokenizer) -> dict:
    return {"stop_token_ids": tokenizer.stop_ids}


def test_a_chat_is_the_engines_continuation_of_the_dialog(client, service, tokenizer):
    prompt = encode_dialog(tokenizer, [Message("user", "hi")])
    ids, text, _ = continued(service, prompt, **stops(tokenizer))
    reply = client.chat.completions.create(messages=HI, **GREEDY, **OFF)
    (choice,) = reply.choices
    assert (choice.message.content, choice.message.role) == (text, "assistant")
    assert choice.finish_reason == "length" and reply.model == MODEL
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.completion_tokens == len(ids) == 12
    assert reply.usage.total_tokens == len(prompt) + 12
    assert reply.usage.prompt_tokens_details.cached_tokens is not None
    assert not hasattr(choice.message, "reasoning_content")


def test_a_streamed_chat_adds_up_to_the_whole_one(client):
    whole = client.chat.completions.create(messages=HI, n=2, seed=3, model=MODEL, max_tokens=9)
    chunks = [
        *client.chat.completions.create(
            messages=HI,
            n=2,
            seed=3,
            model=MODEL,
            max_tokens=9,
            stream=True,
            stream_options={"include_usage": True},
        )
    ]
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 4
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    for index, choice in enumerate(whole.choices):
        own = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == index]
        assert own[0].delta.role == "assistant"
        # Reasoning is on unless it is said, and this model never ends it.
        reasoning = "".join(getattr(c.delta, "reasoning_content", None) or "" for c in own)
        assert reasoning == choice.message.reasoning_content and reasoning
        assert choice.message.content is None
        assert [c.finish_reason for c in own] == [None] * (len(own) - 1) + ["length"]
    assert whole.choices[0].message != whole.choices[1].message  # seeds differ


def test_seeds_repeat_what_was_drawn(client):
    def drawn(seed):
        reply = client.completions.create(prompt="a", seed=seed, model=MODEL, max_tokens=8, n=2)
        return [choice.text for choice in reply.choices]

    assert drawn(5) == drawn(5) != drawn(7)
    assert drawn(5)[1] == drawn(6)[0]


def test_completions_of_every_kind_of_prompt(client, service, tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("def f")]
    other = [tokenizer.bos_id, *tokenizer.encode("x = ")]
    expected = [continued(service, prompt, **stops(tokenizer))[:2] for prompt in (ids, other)]
    prompts = {"def f": 1, ("def f", "x = "): 2, tuple(ids): 1, (tuple(ids), tuple(other)): 2}
    for prompt, count in prompts.items():
        given = json.loads(json.dumps(prompt))
        reply = client.completions.create(prompt=given, **GREEDY)
        found = [(choice.token_ids, choice.text) for choice in reply.choices]
        assert found == expected[:count]
        assert [choice.tokens for choice in reply.choices] == [i for i, _ in found]
        assert reply.usage.prompt_tokens == sum(map(len, [ids, other][:count]))


def test_a_streamed_completion_adds_up(client):
    asked = {"prompt": ["a", "b"], "n": 2, "logprobs": 1, **GREEDY}
    whole = client.completions.create(**asked)
    chunks = [*client.completions.create(**asked, stream=True)]
    for index, choice in enumerate(whole.choices):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.text for c in own) == choice.text
        assert [i for c in own for i in c.token_ids] == choice.token_ids
        assert own[-1].finish_reason == choice.finish_reason
        offsets = [offset for c in own for offset in c.logprobs.text_offset]
        assert offsets == choice.logprobs.text_offset and offsets[0] == 0
    assert len(chunks) > 4


def test_logprobs_are_the_engines(client, service, tokenizer):
    prompt = encode_dialog(tokenizer, [Message("user", "hi")])
    _, _, expected = continued(service, prompt, num_logprobs=2, **stops(tokenizer))
    reply = client.chat.completions.create(
        messages=HI, logprobs=True, top_logprobs=2, **GREEDY, **OFF
    )
    found = reply.choices[0].logprobs.content
    assert [t.logprob for t in found] == pytest.approx([t.logprob for t in expected], abs=1e-4)
    for token, own in zip(found, expected, strict=True):
        assert bytes(token.bytes) == tokenizer.decode_bytes([own.token_id])
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob, abs=1e-4)
    streamed = client.chat.completions.create(
        messages=HI, logprobs=True, stream=True, **GREEDY, **OFF
    )
    choices = [chunk.choices[0] for chunk in streamed]
    tokens = [t.token for choice in choices if choice.logprobs for t in choice.logprobs.content]
    assert tokens == [t.token for t in found]

    old = client.completions.create(prompt=prompt, logprobs=3, **GREEDY).choices[0].logprobs
    assert old.tokens == tokens and [len(top) for top in old.top_logprobs] == [3] * len(tokens)
    assert old.token_logprobs == pytest.approx([t.logprob for t in found], abs=1e-4)
    texts = [tokenizer.decode([t.token_id]) for t in expected]
    assert old.text_offset == [len("".join(texts[:n])) for n in range(len(tokens))]
    none = client.completions.create(prompt=prompt, logprobs=0, **GREEDY).choices[0].logprobs
    assert none.tokens == tokens and none.top_logprobs == [{}] * len(tokens)


def test_stops_end_an_answer(client):
    whole = client.completions.create(prompt="a", **GREEDY).choices[0]
    stop = whole.text[4:6]
    for given in (stop, ["never comes", stop]):
        cut = client.completions.create(prompt="a", stop=given, **GREEDY).choices[0]
        assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.index(stop)]
        assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    last = whole.token_ids[5]
    extra = {"stop_token_ids": [last]}
    cut = client.completions.create(prompt="a", extra_body=extra, **GREEDY).choices[0]
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(last) + 1]
    assert cut.finish_reason == "stop"


def test_vllms_filters_reach_the_engine(client, service, tokenizer):
    greedy = client.completions.create(prompt="a", **GREEDY).choices[0].text
    hot = {"prompt": "a", "model": MODEL, "temperature": 5.0, "max_tokens": 12, "seed": 1}
    assert client.completions.create(**hot).choices[0].text != greedy
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert client.completions.create(**hot, extra_body=extra).choices[0].text == greedy
    assert client.completions.create(**hot, top_p=1e-9).choices[0].text == greedy


def test_a_completion_can_be_restricted_to_choices(client):
    allowed = {"after": 10, "choices": [[11, 12], [13]], "then": [14]}
    greedy = client.completions.create(prompt=[1, 2, 3], **GREEDY).choices[0].token_ids
    allowed["after"] = greedy[2]
    n = greedy.index(greedy[2])  # the first
    ids = client.completions.create(prompt=[1, 2, 3], extra_body={"allowed": allowed}, **GREEDY)
    rest = ids.choices[0].token_ids[n + 1 :]
    assert ids.choices[0].token_ids[: n + 1] == greedy[: n + 1]
    assert rest[:3] == [11, 12, 14] or rest[:2] == [13, 14]


def test_the_debugger_asks_this_server(url, service, tokenizer):
    prompt = [tokenizer.bos_id, *tokenizer.encode("x")]
    ids, _, _ = continued(service, prompt)
    predictor = HttpPredictor(url, tokenizer)
    constraint = ChoicesAfter(ids[0], ((5, 6),), (7,))
    for given, expected in ((None, ids), (constraint, [ids[0], 5, 6, 7])):
        request = PredictionRequest(
            prompt=tuple(prompt),
            max_tokens=12 if given is None else 4,
            temperature=0.0,
            top_p=1.0,
            seed=None,
            stop_token_ids=tuple(tokenizer.stop_ids),
            constraint=given,
        )
        assert predictor.predict(request) == expected


TOOL = {"type": "function", "function": {"name": "get-weather_2", "parameters": {}}}
SHELL = {"type": "function", "function": {"name": "bash"}}
CALL_NAMED = {"type": "function", "function": {"name": "bash"}}


@pytest.mark.parametrize("choice", ["required", CALL_NAMED])
def test_a_call_can_be_demanded(choice, client, tokenizer):
    """A random model writes no end of it: the opening is there, as text."""
    reply = client.chat.completions.create(
        messages=HI,
        tools=[SHELL, TOOL],
        tool_choice=choice,
        model=MODEL,
        max_tokens=40,
        n=3,
        extra_body=OFF,
    )
    names = ["bash"] if choice == CALL_NAMED else ["bash", "get-weather_2"]
    for answer in reply.choices:
        assert answer.message.content.startswith(tuple(f"<tool: {name}>\n" for name in names))


def test_models_and_health(client, url):
    models = client.models.list().data
    assert [model.id for model in models] == [MODEL, "alias"]
    assert client.models.retrieve("alias").max_model_len == MAX_LENGTH
    for path in ("/health", "/v1/health"):
        with urllib.request.urlopen(url + path) as reply:
            assert json.load(reply) == {"status": "ok"}
    with urllib.request.urlopen(f"{url}/models") as reply:  # and without /v1
        assert json.load(reply)["data"][0]["id"] == MODEL


def test_errors_are_the_clients_exceptions(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(messages=HI, model="gpt")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("a/b")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(messages=HI, model=MODEL, temperature=-1)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(prompt=[1] * (MAX_LENGTH + 5), model=MODEL)
    assert long.value.code == "context_length_exceeded" and long.value.param == "prompt"
    assert str(MAX_LENGTH + 5) in long.value.message and str(MAX_LENGTH - 1) in long.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(messages=[HI[0] | {"content": "x" * 3000}], model=MODEL)
    assert long.value.code == "context_length_exceeded" and long.value.param == "messages"


def test_the_asynchronous_client(url):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            stream = await client.chat.completions.create(messages=HI, stream=True, **GREEDY, **OFF)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            whole = await asyncio.gather(
                *(client.chat.completions.create(messages=HI, **GREEDY, **OFF) for _ in range(6))
            )
            return text, {reply.choices[0].message.content for reply in whole}

    text, whole = asyncio.run(ask())
    assert {text} == whole


def test_metrics_count(client, url):
    before = metrics(url)
    client.completions.create(prompt=[1, 2, 3], **GREEDY)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(prompt="x", model="gpt")
    after = metrics(url)

    def gained(name):
        return after[name] - before.get(name, 0.0)

    assert gained("cwm_engine_generated_tokens_total") == 12
    assert gained("cwm_engine_prompt_tokens_total") == 3
    assert gained('cwm_http_responses_total{path="/completions",status="200"}') == 1
    assert gained('cwm_http_responses_total{path="/completions",status="404"}') == 1
    outcome = 'cwm_generations_total{endpoint="completions",outcome="answered"}'
    assert gained(outcome) == gained("cwm_time_to_first_token_seconds_count") == 1
    assert gained("cwm_time_per_output_token_seconds_count") == 1
    assert after["cwm_engine_num_running"] == after["cwm_engine_num_waiting"] == 0
    assert after["cwm_engine_num_free_pages"] == after["cwm_engine_num_pages"] > 0
    assert after["cwm_http_open_requests"] == 1  # this one
