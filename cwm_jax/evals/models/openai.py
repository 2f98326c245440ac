"""A model behind any OpenAI-compatible server; without JAX."""

from __future__ import annotations

import dataclasses
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from cwm_jax.data.chat import THINK_CLOSING, Message
from cwm_jax.debugger.http import (
    JsonServer,
    RefusalError,
    ServerError,
    error_message,
    optional_field,
)
from cwm_jax.evals.models.model import (
    ModelFailure,
    PromptTooLongError,
    begins_in_reasoning,
    is_begun,
    prompt_ids,
    split_reasoning,
    split_stops,
    text_of_ids,
)
from cwm_jax.evals.problem import Answer, Forced, Likelihood, Prompt
from cwm_jax.tokenizer import BEGIN_OF_TEXT, Tokenizer, split_at_special_tokens

_PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which another try may succeed
_MAX_WAIT_S = 60.0  # assumed: between two tries, unless the server asks for more
_MAX_ASKED_WAIT_S = 600.0  # assumed: of a Retry-After
# Extensions (vLLM's, SGLang's, this project's), and what some servers do not have; one that a
# server refuses is left out from then on, and the report says so.
_OPTIONAL = (
    "return_token_ids",
    "skip_special_tokens",
    "stop_token_ids",
    "chat_template_kwargs",
    "seed",
)
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|maximum (model|input|sequence) length|max_model_len"
    r"|prompt is too long|(prompt|input) has \d+ tokens",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a server is asked.

    Attributes:
        model: name to ask for; None takes the first that the server lists.
        api_key: sent as a bearer token.
        completions: dialogs, too, go to ``/completions``, as tokens.
        timeout_s: of one answer.
        retries: after the first try, for what may pass: 429, 5xx, connections that fail.
        retry_wait_s: before the first of them; doubled each time, and drawn from its upper half.
    """

    model: str | None = None
    api_key: str | None = None
    completions: bool = False
    timeout_s: float = 1800.0  # assumed: an answer of 64k tokens on a busy server
    retries: int = 7
    retry_wait_s: float = 1.0


class ServerModel:
    """Asks ``/chat/completions`` for dialogs, ``/completions`` for text and tokens.

    Args:
        url: of the server, with or without ``/v1``.
        tokenizer: the model's; without, text goes out as text and tokens cannot be asked for.
        options: how it is asked.
        say: told once of each setting that the server does not take.

    Raises:
        ModelFailure: the server is not there, or does not let this user in.
        ValueError: the URL is none; completions without a tokenizer.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer | None,
        options: ServerOptions,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        if options.completions and tokenizer is None:
            raise ValueError(
                "--completions is given without --tokenizer; expected the model's: dialogs go out "
                "as its tokens: name a tokenizer.json, tokenizer.model, or a folder with either"
            )
        self.tokenizer, self._options, self._say = tokenizer, options, say
        self._server = JsonServer(url, api_key=options.api_key, timeout_s=options.timeout_s)
        self._url = url
        self._left_out: dict[str, str] = {}
        self._limit_field = "max_tokens"
        self._closed = threading.Event()
        self._model, self.max_length = self._listed(options.model)
        self.name = self._model or url

    @property
    def gives_likelihoods(self) -> bool:
        return False

    def identity(self) -> Mapping[str, Any]:
        tokenizer = self.tokenizer.fingerprint if self.tokenizer else None
        return {"completions": self._options.completions, "tokenizer": tokenizer}

    def notes(self) -> Sequence[str]:
        return [f"the server took no {name} ({why})" for name, why in self._left_out.items()]

    def close(self) -> None:
        self._closed.set()

    def answer(self, prompt: Prompt, *, temperature: float, top_p: float, seed: int) -> Answer:
        """As `Model.answer`; 400, 401, 403 and 404 are failures at once."""
        sampling = {"temperature": temperature, "top_p": top_p, "seed": seed}
        as_tokens = self._options.completions or is_begun(prompt)
        if prompt.messages is not None and not as_tokens:
            return self._chat(prompt, sampling)
        return self._complete(prompt, sampling)

    def likelihood(self, forced: Forced) -> Likelihood:
        """As `Model.likelihood`: no API that all servers have tells it."""
        raise ModelFailure(
            f"{self._url} is a server, which is asked for no likelihood of a given text; expected "
            "a model folder, or a mode of the set that asks for answers alone"
        )

    # ------------------------------------------------------------ chat

    def _chat(self, prompt: Prompt, sampling: Mapping[str, Any]) -> Answer:
        assert prompt.messages is not None
        body = {
            **sampling,
            "messages": _messages(prompt.messages),
            self._limit_field: prompt.max_tokens,
            "chat_template_kwargs": {"enable_thinking": prompt.think},
            **({"stop": [*prompt.stop]} if prompt.stop else {}),
        }
        try:
            reply = self._ask("/chat/completions", body)
        except PromptTooLongError:
            # Together with the answer, maybe: without a limit it is as long as there is room for,
            # and that is less than was allowed.
            body = {k: v for k, v in body.items() if k != self._limit_field}
            reply = self._ask("/chat/completions", body)
        return self._chat_answer(reply, prompt)

    def _chat_answer(self, reply: Any, prompt: Prompt) -> Answer:
        choice = _choice(reply, "message")
        message = choice["message"]
        text = message.get("content") or ""
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        if not reasoning and prompt.think and (THINK_CLOSING in text or _opens(text)):
            opened = text.lstrip().removeprefix("<think>").removeprefix("\n")
            reasoning, text = split_reasoning(opened, is_reasoning=True)
        return Answer(
            text=text, reasoning=reasoning, finish_reason=_reason(choice), **_usage(reply)
        )

    # ------------------------------------------------------------ completions

    def _complete(self, prompt: Prompt, sampling: Mapping[str, Any]) -> Answer:
        sent = self._sent(prompt)
        room = prompt.max_tokens
        if self.max_length is not None and not isinstance(sent, str):
            room = min(room, self.max_length - len(sent))
            if room < 1:
                raise PromptTooLongError(
                    f"the prompt has {len(sent):,} tokens; the server's model reads "
                    f"{self.max_length:,}"
                )
        stop_ids, strings = self._stops(prompt)
        body = {
            **sampling,
            "prompt": sent,
            "max_tokens": room,
            "return_token_ids": True,
            "skip_special_tokens": False,
            **({"stop_token_ids": [*stop_ids]} if stop_ids else {}),
            **({"stop": strings} if strings else {}),
        }
        choice = _choice(reply := self._ask("/completions", body), "text")
        ids = _ids(choice)
        text = choice["text"]
        if ids is not None and self.tokenizer is not None:
            text = text_of_ids(ids, stop_ids, prompt.stop, self.tokenizer)
        reasoning, text = split_reasoning(text, is_reasoning=begins_in_reasoning(prompt))
        usage = _usage(reply)
        if ids is not None:
            usage["num_tokens"] = len(ids)
        return Answer(
            text=text, reasoning=reasoning, finish_reason=_reason(choice), token_ids=ids, **usage
        )

    def _sent(self, prompt: Prompt) -> str | list[int]:
        if self.tokenizer is not None:
            return prompt_ids(prompt, self.tokenizer)
        if prompt.text is None:
            kind = "a dialog whose answer has begun" if prompt.messages else "tokens"
            raise ModelFailure(
                f"a prompt of this set is {kind}, which goes out as tokens; expected --tokenizer "
                "with the path of the model's"
            )
        text = prompt.text.removeprefix(BEGIN_OF_TEXT)  # which servers put before a text
        if len(split_at_special_tokens(text)) > 1:
            raise ModelFailure(
                "a prompt of this set has special tokens, which a server may read as ordinary "
                "text; expected --tokenizer with the path of the model's, so that ids are sent"
            )
        return text

    def _stops(self, prompt: Prompt) -> tuple[tuple[int, ...], list[str]]:
        if self.tokenizer is None:
            return (), [*prompt.stop]
        ids, strings = split_stops(prompt.stop, self.tokenizer)
        if "stop_token_ids" not in self._left_out:
            return ids, strings
        return ids, [*prompt.stop]  # by their names, as far as the server spells them

    # ------------------------------------------------------------ requests

    def _listed(self, wanted: str | None) -> tuple[str | None, int | None]:
        """The model's name, and how much it reads if the server tells."""
        try:
            listed = self._patiently(self._server.models)
        except RefusalError as refusal:
            raise ModelFailure(self._refused(refusal)) from None
        model = next((m for m in listed if wanted in (None, m["id"])), None)
        if wanted is not None and listed and model is None:
            names = ", ".join(str(m["id"]) for m in listed[:8])
            raise ModelFailure(
                f"{self._url} has no model {wanted!r}; expected one that it lists: {names}"
            )
        if model is None:
            return wanted, None
        longest = model.get("max_model_len")
        return model["id"], longest if type(longest) is int else None

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        if self._model is not None:
            body = {"model": self._model, **body}
        while True:
            sent = {name: value for name, value in body.items() if name not in self._left_out}
            try:
                return self._patiently(lambda sent=sent: self._server.post(path, sent))
            except RefusalError as refusal:
                if _is_too_long(refusal):
                    raise PromptTooLongError(error_message(refusal.text)) from None
                if "max_completion_tokens" in refusal.text and self._limit_field in sent:
                    limit = sent[self._limit_field]
                    body = {k: v for k, v in body.items() if k != self._limit_field}
                    self._limit_field = "max_completion_tokens"
                    body[self._limit_field] = limit
                    continue
                field = optional_field(refusal, [name for name in _OPTIONAL if name in sent])
                if field is None:
                    raise ModelFailure(self._refused(refusal)) from None
                self._leave_out(field, refusal)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Again after what may pass; raises RefusalError for what will not."""
        for tried in range(1, self._options.retries + 2):
            try:
                return ask()
            except RefusalError as refusal:
                if refusal.status not in _PASSING:
                    raise
                problem, asked = str(refusal), _asked_wait_s(refusal.retry_after)
            except ServerError as error:
                problem, asked = str(error), None
            if tried <= self._options.retries:
                self._wait(tried, asked)
        raise ModelFailure(f"{problem}; gave up after {self._options.retries + 1} tries")

    def _wait(self, tried: int, asked_s: float | None) -> None:
        longest = min(_MAX_WAIT_S, self._options.retry_wait_s * 2 ** (tried - 1))
        wait_s = max(asked_s or 0.0, random.uniform(longest / 2, longest))
        if self._closed.wait(wait_s):
            raise ModelFailure("the run is being stopped")

    def _leave_out(self, field: str, refusal: RefusalError) -> None:
        if field not in self._left_out:
            self._left_out[field] = error_message(refusal.text)[:100]
            self._say(f"the server takes no {field}: asked without")

    def _refused(self, refusal: RefusalError) -> str:
        """A status that no further try will change, with the next step."""
        said = f"{self._url}: {refusal}"
        if refusal.status in (401, 403):
            return f"{said}; expected a key that it knows: give --api-key-file"
        if refusal.status == 404:
            return (
                f"{said}; expected an OpenAI-compatible server with this model and path below "
                f"{self._server.base}: is the address right, and --model-name?"
            )
        return f"{said}; expected it to take what was asked: change the setting that it names"


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    sent = []
    for number, message in enumerate(messages):
        entry: dict[str, Any] = {"role": message.role.strip(), "content": message.content or ""}
        if message.is_tool:
            name = message.header.removeprefix("tool: ")
            entry |= {"role": "tool", "name": name, "tool_call_id": f"call-{number}"}
        if message.is_assistant and message.reasoning:
            entry["reasoning_content"] = message.reasoning
        sent.append(entry)
    return sent


def _choice(reply: Any, part: str) -> Any:
    try:
        choice = reply["choices"][0]
        assert isinstance(choice[part], dict if part == "message" else str)
    except (LookupError, TypeError, AssertionError) as error:
        raise ModelFailure(
            f"the server's answer lacks what a completion has ({error!r}): {str(reply)[:200]}; "
            f"expected choices[0].{part} of an OpenAI-compatible server"
        ) from None
    return choice


def _reason(choice: Mapping[str, Any]) -> Literal["stop", "length"]:
    return "length" if choice.get("finish_reason") == "length" else "stop"


def _usage(reply: Mapping[str, Any]) -> dict[str, Any]:
    usage = reply.get("usage") or {}
    return {
        "num_prompt_tokens": usage.get("prompt_tokens"),
        "num_tokens": usage.get("completion_tokens"),
    }


def _ids(choice: Mapping[str, Any]) -> list[int] | None:
    for name in ("token_ids", "tokens"):
        ids = choice.get(name)
        if isinstance(ids, list) and all(type(i) is int for i in ids):
            return ids
    return None


def _opens(text: str) -> bool:
    return text.lstrip().startswith("<think>")


def _is_too_long(refusal: RefusalError) -> bool:
    if refusal.status not in (400, 413, 422):
        return False
    return bool(_TOO_LONG.search(refusal.text)) or "context_length_exceeded" in refusal.text


def read_api_key(key: str | None, file: Path | None) -> str | None:
    """The key, or a file's first line where there is one; raises ValueError if that is empty."""
    if file is None:
        return key
    found = file.read_text(encoding="utf-8").split("\n")[0].strip()
    if not found:
        raise ValueError(f"{file} has no key; expected it in the first line")
    return found


def _asked_wait_s(retry_after: str | None) -> float | None:
    """Of the header: seconds, or a date."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(0.0, seconds), _MAX_ASKED_WAIT_S) if seconds == seconds else None
