"""Answers written in advance, through the official client: reasoning, tools, and what was asked."""

import json

import pytest
from serving import MODEL

from cwm_jax.data.chat import REASONING_SYSTEM_PROMPT

HI = [{"role": "user", "content": "hi"}]
SHELL = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "In the repository.",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    },
}
WEATHER = {"type": "function", "function": {"name": "get-weather_2", "parameters": {"a": [1]}}}
BOTH = (
    'hm\n</think>\nSo.\n<tool: bash>\nls\n</tool>\n<tool: get-weather_2>\n{"city": "Ulm"}\n</tool>'
)


def added_up(chunks) -> dict:
    """The message that chunks make, as clients put it together."""
    message: dict = {"content": "", "reasoning": "", "calls": {}, "reason": None}
    for chunk in chunks:
        (choice,) = chunk.choices
        message["content"] += choice.delta.content or ""
        message["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            known = message["calls"].setdefault(call.index, ["", "", ""])
            known[0] += call.id or ""
            known[1] += call.function.name or ""
            known[2] += call.function.arguments or ""
        message["reason"] = choice.finish_reason or message["reason"]
    return message


def prompt_text(fake, tokenizer) -> str:
    return tokenizer.decode(fake.asked[-1][0])


def test_reasoning_and_calls(fake, fake_client, tokenizer):
    fake.answer = BOTH
    asked = {"messages": HI, "model": MODEL, "tools": [SHELL, WEATHER]}
    choice = fake_client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == "So."
    assert choice.message.reasoning_content == "hm"
    calls = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls]
    assert calls == [("bash", {"command": "ls"}), ("get-weather_2", {"city": "Ulm"})]
    assert len({c.id for c in choice.message.tool_calls}) == 2

    streamed = added_up(fake_client.chat.completions.create(**asked, stream=True))
    assert (streamed["content"], streamed["reasoning"]) == ("So.", "hm")
    assert [call[1:] for call in streamed["calls"].values()] == [
        [c.function.name, c.function.arguments] for c in choice.message.tool_calls
    ]
    assert streamed["reason"] == "tool_calls"

    prompt = prompt_text(fake, tokenizer)
    assert prompt.count(REASONING_SYSTEM_PROMPT) == 1 and prompt.endswith("<think>\n")
    assert prompt.index("# Tools") > prompt.index(REASONING_SYSTEM_PROMPT)
    assert "## bash" in prompt and "In the repository." in prompt and '{"a": [1]}' in prompt


def test_the_answer_goes_back_with_what_the_tools_gave(fake, fake_client, tokenizer):
    fake.answer = BOTH
    asked = {"model": MODEL, "tools": [SHELL, WEATHER]}
    answer = fake_client.chat.completions.create(messages=HI, **asked).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": f" {n}\n"}
        for n, call in enumerate(answer.tool_calls)
    ]
    fake_client.chat.completions.create(messages=[*HI, answer, *results], **asked)
    end = "<|eot_id|><|start_header_id|>"
    assert (
        f"{end}assistant<|end_header_id|>\n\n<think>\nhm\n</think>\nSo.\n<tool: bash>\nls\n</tool>"
        f'\n<tool: get-weather_2>\n{{"city": "Ulm"}}\n</tool>'
        f"{end}tool: bash<|end_header_id|>\n\n 0\n"
        f"{end}tool: get-weather_2<|end_header_id|>\n\n 1\n{end}assistant"
    ) in prompt_text(fake, tokenizer)


@pytest.mark.parametrize("choice", ["auto", "none"])
@pytest.mark.parametrize(
    ("name", "properties", "is_text"),
    [
        ("bash", {"command": {"type": "string"}}, True),
        ("bash", {"command": {"type": "string"}, "timeout": {"type": "integer"}}, False),
        ("edit", {"lines": {"type": "array"}}, False),
        ("other", {"command": {"type": "string"}}, False),
    ],
)
def test_earlier_calls_are_spelled_as_the_requests_tool_is_called(
    name, properties, is_text, choice, fake, fake_client, tokenizer
):
    parameters = {"type": "object", "properties": properties}
    arguments = '{"command": "ls"}'
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        *HI,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    fake_client.chat.completions.create(
        messages=messages,
        model=MODEL,
        tools=[{"type": "function", "function": {"name": name, "parameters": parameters}}],
        tool_choice=choice,
    )
    content = "ls" if is_text else arguments
    assert f"<tool: {name}>\n{content}\n</tool>" in prompt_text(fake, tokenizer)
    fake_client.chat.completions.create(messages=messages, model=MODEL)  # no tools: CWM's own
    content = arguments if name == "other" else "ls"
    assert f"<tool: {name}>\n{content}\n</tool>" in prompt_text(fake, tokenizer)


def test_an_answer_that_is_cut_is_all_reasoning(fake, fake_client):
    fake.answer, fake.finish_reason = "so far\n</thi", "length"
    choice = fake_client.chat.completions.create(messages=HI, model=MODEL).choices[0]
    assert choice.message.content is None and choice.finish_reason == "length"
    assert choice.message.reasoning_content == "so far\n</thi"
    streamed = added_up(fake_client.chat.completions.create(messages=HI, model=MODEL, stream=True))
    assert (streamed["reasoning"], streamed["content"]) == ("so far\n</thi", "")


@pytest.mark.parametrize(
    ("extra", "reasons"),
    [
        ({}, True),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning": {"enabled": True}}, True),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"effort": "high", "summary": "auto"}}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}, True),
    ],
)
def test_reasoning_is_switched(extra, reasons, fake, fake_client, tokenizer):
    fake.answer = "a</think>b"
    reply = fake_client.chat.completions.create(messages=HI, model=MODEL, extra_body=extra)
    message = reply.choices[0].message
    expected = ("b", "a") if reasons else ("a</think>b", None)
    assert (message.content, getattr(message, "reasoning_content", None)) == expected
    assert prompt_text(fake, tokenizer).endswith("<think>\n") == reasons


def test_a_begun_answer_is_continued(fake, fake_client, tokenizer):
    fake.answer = "a</think>b"
    for begun, reasoning in (("Well, ", None), ("<think>\nhm", "a"), ("<think>x</think> ", None)):
        messages = [*HI, {"role": "assistant", "content": begun}]
        reply = fake_client.chat.completions.create(messages=messages, model=MODEL)
        assert prompt_text(fake, tokenizer).endswith(begun)
        assert getattr(reply.choices[0].message, "reasoning_content", None) == reasoning


def test_earlier_reasoning_can_be_left_out(fake, fake_client, tokenizer):
    messages = [*HI, {"role": "assistant", "content": "yes", "reasoning_content": "secret"}, *HI]
    for keep in (True, False):
        extra = {"chat_template_kwargs": {"preserve_previous_think": keep}}
        fake_client.chat.completions.create(messages=messages, model=MODEL, extra_body=extra)
        assert ("<think>\nsecret\n</think>\nyes" in prompt_text(fake, tokenizer)) == keep


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_tools_are_offered_unless_none_is_chosen(choice, fake, fake_client, tokenizer):
    fake.answer = "<tool: bash>\nls\n</tool>"
    reply = fake_client.chat.completions.create(
        messages=[{"role": "developer", "content": "first"}, *HI],
        model=MODEL,
        tools=[SHELL],
        tool_choice=choice,
        extra_body={"reasoning_effort": "none"},
    )
    message = reply.choices[0].message
    assert (message.content == fake.answer) == (choice == "none")
    assert bool(message.tool_calls) == (choice == "auto")
    assert ("# Tools" in prompt_text(fake, tokenizer)) == (choice == "auto")


def test_special_tokens_in_a_message_are_text(fake, fake_client, tokenizer):
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|eot_id|>"}] * 2}]
    fake_client.chat.completions.create(messages=messages, model=MODEL)
    ids = fake.asked[-1][0]
    assert ids.count(tokenizer.special_tokens["<|eot_id|>"]) == 2  # of system and user
    assert tokenizer.decode(ids).count("<|eot_id|><|eot_id|><|eot_id|>") == 1


def test_defaults_are_openais(fake, fake_client, tokenizer):
    fake_client.completions.create(prompt="x", model=MODEL)
    sampling = fake.asked[-1][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    assert sampling.max_tokens == 16 and sampling.seed is None
    assert sampling.stop_token_ids == tokenizer.stop_ids
    fake_client.chat.completions.create(messages=HI, model=MODEL, extra_body={"ignore_eos": True})
    sampling = fake.asked[-1][1]
    assert sampling.max_tokens == fake.max_length and sampling.stop_token_ids == ()
    fake_client.chat.completions.create(messages=HI, model=MODEL, max_completion_tokens=7)
    assert fake.asked[-1][1].max_tokens == 7


def test_cached_tokens_and_unlikely_ones_are_told(fake, fake_client):
    reply = fake_client.completions.create(prompt=["x", "y"], n=2, logprobs=2, model=MODEL)
    assert reply.usage.prompt_tokens_details.cached_tokens == 6  # 3 of each prompt
    assert -9999.0 in reply.choices[0].logprobs.top_logprobs[0].values()
