"""The debugger's command line, as pdb's users expect it."""

from __future__ import annotations

import cmd
import sys
from collections.abc import Callable, Sequence
from typing import IO

from cwm_jax.debugger import comparison
from cwm_jax.debugger.breakpoints import Breakpoint
from cwm_jax.debugger.comparison import Compared, Verdict
from cwm_jax.debugger.expressions import ExpressionError, evaluate
from cwm_jax.debugger.prediction import PredictionError
from cwm_jax.debugger.session import CommandError, Session, Stop, Why
from cwm_jax.debugger.steps import Step
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.format import UNCHANGED
from cwm_jax.trace.frames import TraceEvent
from cwm_jax.trace.table import format_table
from cwm_jax.trace.tracer import Trace

_AROUND = 5  # lines that `list` shows on each side, as pdb's
_COLOURS = {"green": "32", "red": "31", "yellow": "33", "bold": "1"}
_VERDICTS = {
    Verdict.SAME: ("=", "green"),
    Verdict.DIFFERENT: ("x", "red"),
    Verdict.UNKNOWN: ("?", "yellow"),
}
_ABBREVIATIONS = {
    "s": "step",
    "n": "next",
    "o": "out",
    "r": "return",
    "c": "continue",
    "cont": "continue",
    "b": "break",
    "cl": "clear",
    "p": "print",
    "pp": "print",
    "l": "list",
    "w": "where",
    "bt": "where",
    "a": "locals",
    "args": "locals",
    "restart": "reset",
    "run": "reset",
    "history": "frames",
    "h": "help",
    "q": "quit",
    "exit": "quit",
}


class Shell(cmd.Cmd):
    """Reads commands and says what came of them.

    Args:
        session: what they are for.
        name: of the program.
        run_truly: runs it in the sandbox, for `compare`.
        trace: of the real run, if there is one already.
        colour: whether to use the terminal's.
        stdin, stdout: as of ``cmd.Cmd``.
    """

    prompt = "(cwm) "

    def __init__(
        self,
        session: Session,
        *,
        name: str,
        run_truly: Callable[[], Trace],
        trace: Trace | None = None,
        colour: bool = False,
        stdin: IO[str] | None = None,
        stdout: IO[str] | None = None,
    ) -> None:
        super().__init__(stdin=stdin, stdout=stdout)
        self.use_rawinput = stdin is None
        self._session, self._name = session, name
        self._run_truly, self._trace = run_truly, trace
        self._colour = colour
        self._listed: int | None = None  # line after the last that `list` has shown
        self._divergence_said = False

    # The loop -----------------------------------------------------------------------------------

    def preloop(self) -> None:
        self._do(self._session.reset)

    def cmdloop(self, intro: str | None = None) -> None:
        """Until `quit` or the end of the input; Ctrl-C ends a prediction or clears the line."""
        while True:
            try:
                super().cmdloop(intro)
                return
            except KeyboardInterrupt:
                self._say("\ninterrupted; `quit` leaves")
                self.preloop, intro = lambda: None, None

    def precmd(self, line: str) -> str:
        if line == "EOF" or not line.strip():
            return line
        word, _, rest = line.strip().partition(" ")
        return f"{_ABBREVIATIONS.get(word, word)} {rest}".strip()

    def onecmd(self, line: str) -> bool:
        if line.partition(" ")[0] != "list":
            self._listed = None if line.strip() else self._listed
        try:
            return bool(super().onecmd(line))
        except (ValueError, PredictionError, SandboxError) as error:
            self._say(f"*** {error}")
        except KeyboardInterrupt:
            self._say("\ninterrupted: the prediction is dropped, the frames before it are kept")
            self._where()
        return False

    def default(self, line: str) -> None:
        self._say(f"*** {line.partition(' ')[0]!r} is no command; `help` lists them")

    # Commands that predict ----------------------------------------------------------------------

    def do_step(self, _: str) -> None:
        """s(tep): the next frame; from a call into the function."""
        self._do(self._session.step)

    def do_next(self, _: str) -> None:
        """n(ext): to the next line of this function; of calls only the return is predicted."""
        self._do(self._session.next)

    def do_return(self, _: str) -> None:
        """r(eturn): to the return of this function."""
        self._do(self._session.until_return)

    def do_out(self, _: str) -> None:
        """o(ut): to the return of this function, and back into its caller."""
        self._do(self._session.out)

    def do_continue(self, _: str) -> None:
        """c(ontinue): to the next breakpoint, or the end."""
        self._do(self._session.resume)

    def do_back(self, _: str) -> None:
        """back: takes back the last command that changed the frames, a `set` too."""
        self._do(self._session.back)

    def do_reset(self, _: str) -> None:
        """reset, restart: begins again at the entry's call."""
        self._do(self._session.reset)

    def do_retry(self, _: str) -> None:
        """retry: predicts the last frame again."""
        self._do(self._session.retry)

    def do_set(self, argument: str) -> None:
        """set NAME=VALUE: gives a local another value; the model goes on from it."""
        name, equals, value = argument.partition("=")
        if not equals:
            raise CommandError(f"set {argument!r}; expected NAME=VALUE, as in `set x=[1, 2]`")
        self._do(lambda: self._session.set(name.strip(), value))

    # Breakpoints --------------------------------------------------------------------------------

    def do_break(self, argument: str) -> None:
        """b(reak) [LINE[, CONDITION]]: stops `continue` there; alone it lists the breakpoints.

        The condition is an expression on the predicted locals, as in `b 4, n > 2`."""
        if argument:
            self._break(argument, temporary=False)
            return
        for point in self._session.breakpoints.values():
            self._say(_described(point))
        if not self._session.breakpoints:
            self._say("no breakpoints")

    def do_tbreak(self, argument: str) -> None:
        """tbreak LINE[, CONDITION]: a breakpoint that is gone once it has stopped."""
        self._break(argument, temporary=True)

    def do_clear(self, argument: str) -> None:
        """cl(ear) [LINE]: takes a breakpoint away, or all."""
        for point in self._session.clear(_line(argument) if argument else None):
            self._say(f"cleared: {_described(point)}")

    # Commands that show -------------------------------------------------------------------------

    def do_print(self, argument: str) -> None:
        """p(rint) [NAME or EXPRESSION]: predicted values; alone, all of them."""
        step = self._session.current
        if not argument:
            self.do_locals("")
        elif argument in step.local_vars:
            self._say(self._value(step, argument))
        elif argument.isidentifier():
            there = ", ".join(step.local_vars) or "none"
            raise ExpressionError(f"{argument!r} is no local here; there are: {there}")
        else:
            self._say(repr(evaluate(argument, step.local_vars)))

    def do_locals(self, _: str) -> None:
        """locals: all predicted locals of this function."""
        step = self._session.current
        for name in step.local_vars:
            self._say(f"{name} = {self._value(step, name)}")
        if not step.local_vars:
            self._say("no locals")

    def do_list(self, argument: str) -> None:
        """l(ist) [LINE | .]: source around the line, or further on; -> is here, B a breakpoint."""
        step, lines = self._session.current, self._session.program.lines
        if argument and argument != ".":
            first = _line(argument) - _AROUND
        elif self._listed is not None and argument != ".":
            first = self._listed
        else:
            first = (step.lines or [self._session.program.marked])[0] - _AROUND
        first = max(first, 1)
        last = min(first + 2 * _AROUND, len(lines))
        for number in range(first, last + 1):
            mark = "B" if number in self._session.breakpoints else " "
            arrow = ("->" if len(step.lines) == 1 else "?>") if number in step.lines else "  "
            self._say(f"{number:4} {mark}{arrow} {lines[number - 1].rstrip()}")
        self._listed = last + 1
        if first > len(lines):
            self._say("[EOF]")

    def do_where(self, _: str) -> None:
        """w(here): the functions that are open, the innermost last."""
        for scope in self._session.current.scopes:
            lines = sorted({place.line for place in scope.places})
            line = _lines(lines)
            text = self._session.program.lines[lines[0] - 1].strip() if lines else ""
            self._say(f"  {self._name}({line}){scope.name}()  {text}")

    def do_frames(self, _: str) -> None:
        """frames, history: all frames so far, with what changed."""
        self._say(format_table(step.frame for step in self._session.steps))

    def do_compare(self, _: str) -> None:
        """compare: runs the program in the sandbox; predicted frames beside the real ones."""
        if self._trace is None:
            self._trace = self._run_truly()
        self._divergence_said = True
        compared = comparison.compare(self._session.steps, self._trace)
        for number, (step, one) in enumerate(zip(self._session.steps, compared, strict=True)):
            self._say_compared(number, step, one)
        first = comparison.first_difference(compared)
        same = sum(one.verdict is Verdict.SAME for one in compared)
        if first is None:
            self._say(f"{same} of {len(compared)} frames are those of the real run, none differs")
        else:
            self._say(f"the first difference is at frame {first}")

    def do_quit(self, _: str) -> bool:
        """q(uit): leaves."""
        return True

    def do_EOF(self, _: str) -> bool:  # noqa: N802 (cmd's own name)
        """The end of the input: leaves."""
        self._say("")
        return True

    def do_help(self, arg: str) -> None:
        """h(elp) [COMMAND]"""
        arg = _ABBREVIATIONS.get(arg, arg)
        if arg:
            super().do_help(arg)
            return
        names = [n[3:] for n in self.get_names() if n.startswith("do_") and n != "do_EOF"]
        for name in names:
            self._say((getattr(self, f"do_{name}").__doc__ or "").partition("\n")[0])
        self._say("An empty line repeats the last command.")

    # What is said -------------------------------------------------------------------------------

    def _do(self, command: Callable[[], Stop]) -> None:
        try:
            stop = command()
        except PredictionError as error:
            self._say(f"*** {error}", "red")
            return
        for note in stop.notes:
            self._say(f"[{note}]")
        if stop.why is Why.END:
            self._say("[the trace is at its end: the entry has returned]")
        elif stop.why is Why.BREAKPOINT:
            self._say("[breakpoint]")
        elif stop.why is Why.INTERRUPTED:
            self._say("[interrupted]")
        self._where()

    def _where(self) -> None:
        if not self._session.steps:
            return
        step = self._session.current
        frame, scope = step.frame, step.scopes[-1]
        self._say(f"> {self._name}({_lines(step.lines)}){scope.name}()")
        if frame.event is not TraceEvent.LINE:
            arg = "" if frame.arg is None else f" {frame.arg}"
            arrow = " ->" if frame.event is TraceEvent.RETURN else ""
            said = f"--{frame.event.value.capitalize()}--{arrow}{arg}"
            self._say(said, "yellow" if arg else "bold")
        self._say(f"-> {frame.source_line.rstrip()}")
        changed = [name for name in step.local_vars if name in step.changed]
        for name in changed:
            self._say(f"   {name} = {self._value(step, name)}")
        for problem in step.problems:
            self._say(f"problem: {problem}", "red")
        self._say_divergence()

    def _say_divergence(self) -> None:
        """Once, when the frames first part from the real run's."""
        if self._trace is None:
            return
        compared = comparison.compare(self._session.steps, self._trace)
        first = comparison.first_difference(compared)
        if first is not None and not self._divergence_said:
            self._say_compared(first, self._session.steps[first], compared[first])
        self._divergence_said = first is not None

    def _say_compared(self, number: int, step: Step, one: Compared) -> None:
        """One frame beside the real one: a mark, and below it what is truly there."""
        mark, colour = _VERDICTS[one.verdict]
        event, lines = step.frame.event.value, _lines(step.lines)
        text = f"{mark} {number:4}  {event:9} {lines:>4}  {step.frame.source_line.strip()}"
        text += _shown(step)
        text += "   <- first difference" if one.is_first else ""
        self._say(text + (f"   ({one.why_unknown})" if one.why_unknown else ""), colour)
        if one.true is None:
            return
        for name in one.wrong_locals:
            ours, theirs = step.frame.local_vars.get(name), one.true.local_vars.get(name)
            self._say(
                f"         {name} is predicted {ours or 'unbound'}, truly {theirs or 'unbound'}"
            )
        if {"event", "line", "value"} & {*one.wrong}:
            arg = "" if one.true.arg is None else f" -> {one.true.arg}"
            place = f"{one.true.event.value} {one.true.lineno}"
            self._say(f"         truly {place}  {one.true.source_line.strip()}{arg}")

    def _value(self, step: Step, name: str) -> str:
        value = step.local_vars[name]
        return (
            "? (unchanged, says the model, but no frame says from what)"
            if (value == UNCHANGED)
            else value
        )

    def _break(self, argument: str, *, temporary: bool) -> None:
        line, _, condition = argument.partition(",")
        point = Breakpoint(
            line=_line(line), condition=condition.strip() or None, temporary=temporary
        )
        self._session.add_breakpoint(point)
        self._say(_described(point))

    def _say(self, text: str, colour: str | None = None) -> None:
        shown = _printable(text)
        if colour is not None and self._colour:
            shown = f"\x1b[{_COLOURS[colour]}m{shown}\x1b[0m"
        print(shown, file=self.stdout)


def uses_colour(stream: IO[str], environment: Sequence[str]) -> bool:
    """On a terminal, unless ``NO_COLOR`` is among the environment's names."""
    return stream.isatty() and "NO_COLOR" not in environment


def has_readline() -> bool:
    """Loads it, where it is: ``input`` then edits lines and knows those before."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return False
    return sys.stdin.isatty()


def _line(text: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise CommandError(
            f"{text.strip()!r} is no line; expected its number: `list` shows them"
        ) from None


def _lines(lines: Sequence[int]) -> str:
    """``4``; ``4|9?`` where it may be either; ``?`` where it is no line of the program."""
    if not lines:
        return "?"
    return str(lines[0]) if len(lines) == 1 else f"{'|'.join(map(str, lines))}?"


def _shown(step: Step) -> str:
    if step.frame.arg is not None:
        return f"  -> {step.frame.arg}"
    shown = [f"{name}={step.local_vars[name]}" for name in step.local_vars if name in step.changed]
    return f"  {' '.join(shown)}" if shown else ""


def _described(point: Breakpoint) -> str:
    kind = "temporary breakpoint" if point.temporary else "breakpoint"
    return f"{kind} at line {point.line}{f', if {point.condition}' if point.condition else ''}"


def _printable(text: str) -> str:
    """What a model wrote may hold control characters: none reaches the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
