"""A model as a source of frames: prompts of tokens go in, steps come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from cwm_jax.debugger.prediction import PredictionError, PredictionRequest, Predictor
from cwm_jax.debugger.program import Program
from cwm_jax.debugger.steps import Origin, Step, make_step
from cwm_jax.inference.constraints import ChoicesAfter
from cwm_jax.tokenizer import ACTION_SEP, ARG_SEP, FRAME_SEP, Tokenizer
from cwm_jax.trace.format import (
    SEPARATORS,
    UNCHANGED,
    parse_frame,
    render_frame,
    render_prompt,
)
from cwm_jax.trace.frames import TraceEvent, TraceFrame

_NO_VALUE = "\0"  # stands for a value that is not known while its frame is rendered


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebugOptions:
    """How a session predicts.

    Attributes:
        temperature, top_p: of the draws; temperature 0 takes the most likely tokens.
        seed: makes a session's draws reproducible.
        constrain: allow no action that is not a line of the program.
        max_frame_tokens: of one predicted frame (2048: the released demo's).
        max_command_frames: that one command predicts before it hands back (assumed).
    """

    temperature: float = 0.0
    top_p: float = 0.95
    seed: int | None = None
    constrain: bool = True
    max_frame_tokens: int = 2048
    max_command_frames: int = 1000

    def __post_init__(self) -> None:
        for name in ("max_frame_tokens", "max_command_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected above 0 and at most 1")


DEFAULT_OPTIONS = DebugOptions()


class FrameModel:
    """Frames of one program, predicted or rendered.

    The prompt is made of the steps' tokens each time, so whatever they are now is what the model
    reads. Steps that it wrote keep its tokens, which is what a prefix cache knows.
    """

    def __init__(
        self, program: Program, predictor: Predictor, tokenizer: Tokenizer, options: DebugOptions
    ) -> None:
        self._program, self._options = program, options
        self._predictor, self._tokenizer = predictor, tokenizer
        self._context_ids = tokenizer.encode_with_special_tokens(render_prompt(program.context))
        self._constraint = _constraint(program, tokenizer) if options.constrain else None
        self._num_requests = 0

    def predict(self, steps: Sequence[Step], forced: TraceEvent | None) -> Step | None:
        """The step after ``steps``; None where the trace ends.

        Args:
            steps: so far; none: the entry's call is predicted.
            forced: the event that it is to have; None leaves it to the model.

        Raises:
            PredictionError: no answer, or none that can be read.
        """
        ids = self._continuation(steps, forced)
        if ids == [self._tokenizer.eos_id]:
            if steps and not steps[-1].depth:
                return None
            raise PredictionError(
                f"the model ends the trace, but {steps[-1].depth if steps else 0} functions have "
                "not returned; expected a frame: `step` asks again, `back` goes back"
            )
        text = self._tokenizer.decode(ids)
        self._check_end(ids, text)
        frame, problems = parse_frame(text, _known(steps))
        if frame is None:
            raise PredictionError(
                f"the model wrote no frame: {short(text)}; expected one of "
                f"{', '.join(SEPARATORS.values())} first: `step` asks again"
            )
        return make_step(
            self._program,
            steps[-1] if steps else None,
            frame,
            token_ids=tuple(ids),
            forced=forced,
            problems=tuple(problem.message for problem in problems),
        )

    def render(
        self,
        steps: Sequence[Step],
        frame: TraceFrame,
        *,
        origin: Origin,
        forced: TraceEvent | None = None,
    ) -> Step:
        """The step of a frame that is not the model's; values that nobody knows stay ``".."``.

        Raises:
            TraceFormatError: it has no text in the format.
        """
        unknown = {k: _NO_VALUE for k, v in frame.local_vars.items() if v == UNCHANGED}
        spelled, known = frame, _known(steps)
        if unknown:
            spelled = dataclasses.replace(frame, local_vars={**frame.local_vars, **unknown})
            known = {**(known or {}), **unknown}
        text = render_frame(spelled, known)
        return make_step(
            self._program,
            steps[-1] if steps else None,
            frame,
            token_ids=tuple(self._tokenizer.encode_with_special_tokens(text)),
            origin=origin,
            forced=forced,
            problems=(f"no frame says what {', '.join(unknown)} is",) if unknown else (),
        )

    def _continuation(self, steps: Sequence[Step], forced: TraceEvent | None) -> list[int]:
        """The tokens of the next frame, those of its forced event included."""
        special, options = self._tokenizer.special_tokens, self._options
        first = [] if forced is None else [special[SEPARATORS[forced]]]
        prompt = [*self._context_ids]
        for step in steps:
            prompt += step.token_ids
        seed = None if options.seed is None else options.seed + self._num_requests
        self._num_requests += 1
        request = PredictionRequest(
            prompt=prompt + first,
            max_tokens=options.max_frame_tokens,
            stop_token_ids=(special[FRAME_SEP], self._tokenizer.eos_id),
            temperature=options.temperature,
            top_p=options.top_p,
            seed=seed,
            constraint=self._constraint,
        )
        predicted = self._predictor.predict(request)
        wrong = [i for i in predicted if not 0 <= i < self._tokenizer.vocab_size]
        if wrong or not predicted:
            raise PredictionError(
                f"the model answered {'token ' + str(wrong[0]) if wrong else 'no token'}; expected "
                f"ids below {self._tokenizer.vocab_size}: is the tokenizer the model's?"
            )
        return first + predicted

    def _check_end(self, ids: Sequence[int], text: str) -> None:
        """Raises PredictionError unless a frame ends there."""
        if ids[-1] == self._tokenizer.special_tokens[FRAME_SEP]:
            return
        if ids[-1] == self._tokenizer.eos_id:
            found = f"the model ends the trace inside a frame: {short(text)}"
        else:
            found = f"{len(ids)} tokens, and no end of a frame among them: {short(text)}"
        raise PredictionError(
            f"{found}; expected {FRAME_SEP} within {self._options.max_frame_tokens} tokens: "
            "`step` asks again, --max-frame-tokens allows more"
        )


def _known(steps: Sequence[Step]) -> Mapping[str, str] | None:
    return steps[-1].known if steps else None


def _constraint(program: Program, tokenizer: Tokenizer) -> ChoicesAfter:
    """Actions are lines of the program, spelled as in training, then the frame's end or a value."""
    special = tokenizer.special_tokens
    lines = dict.fromkeys(line for line in program.lines if line.strip())
    return ChoicesAfter(
        after=special[ACTION_SEP],
        choices=tuple(tuple(tokenizer.encode(line)) for line in lines),
        then=(special[FRAME_SEP], special[ARG_SEP]),
    )


def short(text: str) -> str:
    """A text as it stands in messages."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
