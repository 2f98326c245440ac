"""A model that is always right: it continues a prompt with the true trace, token by token."""

import dataclasses
import threading

from cwm_jax.debugger.prediction import PredictionRequest
from cwm_jax.tokenizer import END_OF_TEXT, Tokenizer
from cwm_jax.trace import TraceEvent, TraceFrame
from cwm_jax.trace.format import SEPARATORS, parse_frame, render_frame, scope_locals, split_prompt

DOUBLES = """\
def double(n):
    m = n * 2
    return m

def main():
    x = double(1)
    y = double(x)
    return x + y
"""
CALL, LINE, RETURN = TraceEvent.CALL, TraceEvent.LINE, TraceEvent.RETURN


@dataclasses.dataclass
class Oracle:
    """A `Predictor` over the true frames of one context.

    Attributes:
        lies: texts in place of true frames, by the frame's number in the true trace.
        prompts: of every request, as texts.
        requests: likewise, as they came.
    """

    tokenizer: Tokenizer
    frames: list[TraceFrame]
    lies: dict[int, str] = dataclasses.field(default_factory=dict)
    prompts: list[str] = dataclasses.field(default_factory=list)
    requests: list[PredictionRequest] = dataclasses.field(default_factory=list)

    def predict(self, request: PredictionRequest) -> list[int]:
        prompt = self.tokenizer.decode(request.prompt)
        self.prompts.append(prompt)
        self.requests.append(request)
        text = self._continuation(split_prompt(prompt)[1])
        ids = self.tokenizer.encode_with_special_tokens(text)[: request.max_tokens]
        self._check_allowed(request, ids)
        return ids

    def _continuation(self, written: str) -> str:
        chunks = written.split("<|frame_sep|>")
        forced = next((e for e, s in SEPARATORS.items() if s == chunks[-1]), None)
        assert forced is not None or not chunks[-1], f"a prompt ends inside a frame: {chunks[-1]!r}"
        at, known, is_after_call = -1, None, False
        for chunk in chunks[:-1]:
            frame, _ = parse_frame(chunk + "<|frame_sep|>", known)
            assert frame is not None
            at = self._after(at, frame.event if is_after_call else None)
            known, is_after_call = scope_locals(frame, known), frame.event is CALL
        at = self._after(at, forced if is_after_call else None)
        if at in self.lies:
            text = self.lies[at]
        elif at >= len(self.frames):
            text = END_OF_TEXT
        else:
            text = render_frame(self.frames[at], known)
        if forced is not None:
            assert text.startswith(SEPARATORS[forced]), f"{forced} is forced, truly it is {text}"
            text = text.removeprefix(SEPARATORS[forced])
        return text

    def _after(self, at: int, event: TraceEvent | None) -> int:
        """The number after ``at``; that of a call's return, where the return comes at once."""
        if event is not RETURN or self.frames[at + 1].event is RETURN:
            return at + 1
        depth = 0
        for number in range(at, len(self.frames)):
            depth += (self.frames[number].event is CALL) - (self.frames[number].event is RETURN)
            if not depth:
                return number
        raise AssertionError("the true trace is cut inside a function that is stepped over")

    def _check_allowed(self, request: PredictionRequest, ids: list[int]) -> None:
        """The truth keeps to the constraint, from its first token on."""
        for number, token in enumerate(ids if request.constraint and not self.lies else []):
            allowed = request.constraint(ids[:number])
            assert allowed is None or token in allowed, self.tokenizer.decode(ids[: number + 1])


class Gate:
    """A model that answers when it is let."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle, self.entered, self.opened = oracle, threading.Event(), threading.Event()

    def predict(self, request):
        self.entered.set()
        assert self.opened.wait(10)
        return self.oracle.predict(request)
