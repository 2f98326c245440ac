"""The neural debugger: walks a program that is never run, frame by frame as a model predicts it."""

from __future__ import annotations

import ast
import dataclasses
import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cwm_jax.debugger.breakpoints import Breakpoint, check_breakpoint, hit
from cwm_jax.debugger.frame_model import DEFAULT_OPTIONS, DebugOptions, FrameModel, short
from cwm_jax.debugger.prediction import PredictionError, Predictor
from cwm_jax.debugger.program import Program
from cwm_jax.debugger.steps import Step
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.format import UNCHANGED, TraceFormatError
from cwm_jax.trace.frames import TraceEvent, TraceFrame

CALL, LINE, RETURN = TraceEvent.CALL, TraceEvent.LINE, TraceEvent.RETURN


class Why(enum.Enum):
    """Why a command handed back."""

    DONE = "done"
    BREAKPOINT = "breakpoint"
    END = "end"
    PROBLEM = "problem"
    LIMIT = "limit"
    INTERRUPTED = "interrupted"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stop:
    """What came of a command.

    Attributes:
        why: it handed back.
        notes: what the user should know besides, in sentences.
    """

    why: Why = Why.DONE
    notes: tuple[str, ...] = ()


class CommandError(ValueError):
    """A command that does not fit the state; nothing changed."""


class Session:
    """A program and the frames predicted so far.

    Its state is a tuple of steps; a command makes another one, and `back` takes the one before.

    Args:
        program: to be debugged.
        predictor: the model.
        tokenizer: the model's.
        options: how to predict.
        entry_frame: the entry's call; None takes the program's own if it is known, else the model
            predicts it and invents what is bound.
        interrupted: asked before each frame; true makes the command hand back.

    Attributes:
        steps: frames so far, from the entry's call on; empty before `reset`.
        finished: whether the trace is at its end.
        breakpoints: by line.
    """

    def __init__(
        self,
        program: Program,
        predictor: Predictor,
        tokenizer: Tokenizer,
        *,
        options: DebugOptions = DEFAULT_OPTIONS,
        entry_frame: TraceFrame | None = None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.program, self.options = program, options
        self.steps: tuple[Step, ...] = ()
        self.finished = False
        self.breakpoints: dict[int, Breakpoint] = {}
        self.entry_frame = entry_frame or program.entry_frame
        self._model = FrameModel(program, predictor, tokenizer, options)
        self._interrupted = interrupted
        self._undo: list[tuple[tuple[Step, ...], bool]] = []

    @property
    def current(self) -> Step:
        """The last frame.

        Raises:
            CommandError: there is none.
        """
        if not self.steps:
            raise CommandError("there is no frame yet; expected one: `reset` predicts the first")
        return self.steps[-1]

    # Commands -----------------------------------------------------------------------------------

    def reset(self) -> Stop:
        """Starts again at the entry's call: as it is known, or as the model invents it."""
        with self._undoable():
            self.steps, self.finished = (), False
            if self.entry_frame is not None:
                self.steps = (self._model.render((), self.entry_frame, origin="given"),)
                return Stop()
            step = self._predict(CALL)
            notes = () if not step.local_vars else ("the model invented the arguments",)
            return Stop(why=_why(step), notes=notes)

    def step(self) -> Stop:
        """One frame; from a call into the function's first line."""
        with self._undoable():
            step = self._advance()
            return Stop(why=Why.END) if step is None else Stop(why=_why(step))

    def next(self) -> Stop:
        """To the next line, exception or return of the scope; over what it calls."""
        with self._undoable():
            return self._next()

    def until_return(self) -> Stop:
        """To the return of the function that is being executed, as pdb's ``return``."""
        with self._undoable():
            if self.current.frame.event is RETURN:
                return self._next()
            return self._to_return(self.current.depth)

    def out(self) -> Stop:
        """Like `until_return`, and one frame more: back in the caller."""
        with self._undoable():
            notes: tuple[str, ...] = ()
            if self.current.frame.event is not RETURN:
                stop = self._to_return(self.current.depth)
                if stop.why is not Why.DONE:
                    return stop
                notes = stop.notes
            if self._is_over():
                self.finished = True
                return Stop(why=Why.END, notes=notes)
            stop = self._next()
            return dataclasses.replace(stop, notes=(*notes, *stop.notes))

    def resume(self) -> Stop:
        """To the next breakpoint, or the end: pdb's ``continue``. Predicts callees in full."""
        with self._undoable():
            for _ in range(self.options.max_command_frames):
                step = self._advance()
                if step is None:
                    return Stop(why=Why.END)
                if step.problems:
                    return Stop(why=Why.PROBLEM)
                stop = self._hit(step)
                if stop is not None:
                    return stop
                if self._interrupted():
                    return Stop(why=Why.INTERRUPTED)
            return self._limit()

    def back(self) -> Stop:
        """Takes back what the last command did that changed the frames."""
        if not self._undo:
            raise CommandError("there is nothing to take back: this is where the session began")
        self.steps, self.finished = self._undo.pop()
        return Stop()

    def rewind(self, number: int) -> Stop:
        """Drops the frames after a 0-based number."""
        if not 0 <= number < len(self.steps):
            raise CommandError(f"frame {number}; expected 0 to {len(self.steps) - 1}")
        with self._undoable():
            self.steps, self.finished = self.steps[: number + 1], False
        return Stop()

    def retry(self) -> Stop:
        """Predicts the last frame again; it stays as it is where that fails."""
        last, before = self.current, (self.steps, self.finished)
        is_first = len(self.steps) == 1
        if is_first and self.entry_frame is not None:  # whether or not it was set since
            raise CommandError(
                "the first frame is given, not predicted; `step` predicts the next, `reset` brings "
                "back what was given"
            )
        with self._undoable():
            self.steps, self.finished = self.steps[:-1], False
            try:
                step = self._predict(CALL if is_first else last.forced)
            except BaseException:  # also an interrupt
                self.steps, self.finished = before
                raise
            notes = ()
            if step.token_ids == last.token_ids:
                greedy = self.options.temperature == 0
                notes = ("the model says the same" + (": it is greedy" if greedy else ""),)
            return Stop(why=_why(step), notes=notes)

    def set(self, name: str, value: str) -> Stop:
        """Gives a local of the current frame another value: the model goes on from there.

        Args:
            name: of the variable; a new one comes last.
            value: source of a literal, or any ``repr``.

        Raises:
            CommandError: the frame shows no locals, or the value has no text in the format.
        """
        step = self.current
        if not step.frame.event.has_locals:
            raise CommandError(
                f"this is a {step.frame.event.value} frame, which shows no locals; expected a call "
                "or line frame: `step` to one, or go `back`"
            )
        if not name.isidentifier():
            raise CommandError(f"{name!r} is no name of a variable; expected NAME=VALUE")
        shown, notes = _repr_of(value)
        if name not in step.local_vars:
            notes = (*notes, f"{name} is new here")
        frame = dataclasses.replace(step.frame, local_vars={**step.local_vars, name: shown})
        try:
            changed = self._model.render(
                self.steps[:-1], frame, origin="edited", forced=step.forced
            )
        except TraceFormatError as error:
            raise CommandError(str(error)) from None
        with self._undoable():
            self.steps, self.finished = (*self.steps[:-1], changed), False
        return Stop(notes=notes)

    def add_breakpoint(self, breakpoint: Breakpoint) -> None:
        """Sets it in place of another at its line; raises ValueError as `check_breakpoint`."""
        check_breakpoint(self.program, breakpoint)
        self.breakpoints[breakpoint.line] = breakpoint

    def clear(self, line: int | None = None) -> list[Breakpoint]:
        """Takes breakpoints away: one, or all; returns them.

        Raises:
            CommandError: there is none at that line.
        """
        if line is not None and line not in self.breakpoints:
            raise CommandError(
                f"no breakpoint at line {line}; there are: {sorted(self.breakpoints) or 'none'}"
            )
        lines = [*self.breakpoints] if line is None else [line]
        return [self.breakpoints.pop(number) for number in lines]

    # Ways through a trace -----------------------------------------------------------------------

    def _next(self) -> Stop:
        notes: list[str] = []
        base = self.current.depth
        for _ in range(self.options.max_command_frames):
            step = self._advance()
            if step is None:
                return Stop(why=Why.END, notes=tuple(notes))
            # A generator that is the entry itself goes on, there is no caller to stay in.
            if base and step.frame.event is CALL and not step.problems:
                step = self._jump(notes)
            if step.problems:
                return Stop(why=Why.PROBLEM, notes=tuple(notes))
            if step.depth < base or step.frame.event is not RETURN:
                return Stop(notes=tuple(notes))
            if self._interrupted():
                return Stop(why=Why.INTERRUPTED, notes=tuple(notes))
        return self._limit(notes)

    def _to_return(self, base: int) -> Stop:
        """To the return that leaves ``base - 1`` scopes open; over calls."""
        notes: list[str] = []
        for _ in range(self.options.max_command_frames):
            step = self._advance()
            if step is None:
                return Stop(why=Why.END, notes=tuple(notes))
            if step.frame.event is CALL and not step.problems:
                step = self._jump(notes)
            if step.problems:
                return Stop(why=Why.PROBLEM, notes=tuple(notes))
            if step.depth < base:
                return Stop(notes=tuple(notes))
            stop = self._hit(step)
            if stop is not None:
                return dataclasses.replace(stop, notes=(*notes, *stop.notes))
            if self._interrupted():
                return Stop(why=Why.INTERRUPTED, notes=tuple(notes))
        return self._limit(notes)

    def _jump(self, notes: list[str]) -> Step:
        """Asks for the return of a function that was just called."""
        name = self.current.scopes[-1].name
        step = self._predict(RETURN)
        notes.append(f"stepped over {name}(): its return was asked for, its lines were not")
        return step

    def _advance(self) -> Step | None:
        """One frame; None at the end of the trace."""
        step = self.current
        if self.finished or self._is_over():
            self.finished = True
            return None
        # After a call the model may step over by itself. Only a generator that goes on may meet
        # an exception before a line.
        return self._predict_or_end(LINE if step.frame.event is CALL and not step.resumes else None)

    def _is_over(self) -> bool:
        """Whether the entry has returned for good."""
        return not self.current.depth and not self.program.entry_suspends

    def _hit(self, step: Step) -> Stop | None:
        for breakpoint in [*self.breakpoints.values()]:
            found = hit(self.program, breakpoint, step)
            if found is not None:
                if breakpoint.temporary:
                    del self.breakpoints[breakpoint.line]
                return Stop(why=Why.BREAKPOINT, notes=(found.note,) if found.note else ())
        return None

    def _limit(self, notes: Sequence[str] = ()) -> Stop:
        said = f"{self.options.max_command_frames} frames were predicted; the same command goes on"
        return Stop(why=Why.LIMIT, notes=(*notes, said))

    # Changes of the frames ----------------------------------------------------------------------

    @contextmanager
    def _undoable(self) -> Iterator[None]:
        """What the block does to the frames is one thing for `back`, however it ends."""
        before = self.steps, self.finished
        try:
            yield
        except BaseException:
            if not self.steps:  # a first frame that did not come
                self.steps, self.finished = before
            raise
        finally:
            if before[0] and (self.steps, self.finished) != before:
                self._undo.append(before)

    def _predict(self, forced: TraceEvent | None) -> Step:
        step = self._predict_or_end(forced)
        if step is None:
            raise PredictionError("the model ends the trace; expected a frame: `retry`, or `back`")
        return step

    def _predict_or_end(self, forced: TraceEvent | None) -> Step | None:
        """The next frame, appended; None where the trace ends."""
        step = self._model.predict(self.steps, forced)
        if step is None:
            self.finished = True
        else:
            self.steps = (*self.steps, step)
        return step


def _why(step: Step) -> Why:
    return Why.PROBLEM if step.problems else Why.DONE


def _repr_of(value: str) -> tuple[str, tuple[str, ...]]:
    """The ``repr`` that a text stands for, and what to say of it."""
    text = value.strip()
    if not text:
        raise CommandError("the value is empty; expected a literal, as in `set x=[1, 2]`")
    if text == UNCHANGED:
        raise CommandError(
            "the value is .., which the format keeps for unchanged; expected another"
        )
    try:
        return repr(ast.literal_eval(text)), ()
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text, (f"{short(text)} is no literal; it is taken as the repr",)
