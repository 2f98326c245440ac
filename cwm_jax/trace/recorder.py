"""Runs one program under ``sys.settrace``; loaded inside the sandbox, where only it can be read.

Self-contained: it imports the standard library alone. ``handle`` gets a request and answers with
events in JSON; `cwm_jax.trace.tracer` makes frames of them. What the program prints goes nowhere.

A program is traced in a process of its own, so the answer is given from inside the trace function
the moment the trace is complete, and the process ends there: a program cannot outlive its trace.
"""

import _posixsubprocess
import _thread
import builtins
import io
import json
import linecache
import opcode
import os
import random
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

Done = Callable[[str, str], NoReturn]
# This module's own: a program may put others in their place.
globals().update({name: own for name, own in vars(builtins).items() if not name.startswith("_")})
reply: Callable[[bytes], NoReturn]  # from the sandbox: answers and ends the process
CALL, LINE, RETURN, EXCEPTION = range(4)
FILE_NAME = "main.py"  # of the program, in tracebacks
CHECK_EVENTS = 61  # between checks of the limits; prime, so that a loop's events take turns there
CHECK_MARKS = 2 * CHECK_EVENTS
MAX_NOTED_CHARS = 8_000_000  # of reprs before they are numbered: bounds the memory
MAX_TAKEN_CHARS = 30  # of reprs for each of max_bytes, cut and repeated ones too (assumed)

# An address, or a literal that may hold the like of one
_LITERAL_OR_ADDRESS = re.compile(
    r"""('(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")| at 0x[0-9a-fA-F]{4,}""", re.DOTALL
)
_SUSPENDABLE = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
_YIELD_VALUE = opcode.opmap["YIELD_VALUE"]
_RETURNS = {opcode.opmap[name] for name in ("RETURN_VALUE", "RETURN_CONST") if name in opcode.opmap}
_PYTHON = sys.version.split()[0]  # before a program can change it

# Audit events of what makes a run depend on more than its source, by the name of the refusal.
REFUSED = {
    "_thread.start_new_thread": "threads",
    "sys.settrace": "settrace",
    "sys.setprofile": "settrace",
    "ctypes.dlopen": "ctypes",
    "os.exec": "processes",
    "os.fork": "processes",
    "os.forkpty": "processes",
    "os.posix_spawn": "processes",
    "os.spawn": "processes",
    "os.system": "processes",
    "pty.spawn": "processes",
    "subprocess.Popen": "processes",
    "os.kill": "signals",
    "os.killpg": "signals",
    "signal.pthread_kill": "signals",
    "socket.__new__": "sockets",
    "socket.connect": "sockets",
    "socket.bind": "sockets",
    "socket.sendto": "sockets",
    "socket.sendmsg": "sockets",
    "socket.getaddrinfo": "sockets",
}
_AF_UNIX = 1  # of the pair of sockets within the process that every event loop of asyncio has
# Audit events of paths, the first of their arguments: outside the scratch folder they are refused.
REFUSED_OUTSIDE = ("os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "shutil.rmtree")


class Recorder:
    """The events of one trace, within limits, each ``repr`` kept once.

    Events are noted as they come and numbered later, in stretches: the trace function does little
    more than take the reprs. What is noted is flat, since every list or tuple that is kept is work
    for the garbage collector: names and as many reprs (or one repr alone) in one list, where they
    end and 4 * line + kind in another.

    Args:
        limits: ``max_events``, ``max_bytes`` (characters of distinct reprs), ``max_repr_chars``,
            ``max_depth``.
        done: called with (status, message) when the trace ends. If it returns, the program goes on
            and this trace gets no more: it has taken the local trace functions from the frames.
        suspended: called when the entry scope yields.
    """

    def __init__(self, limits, done, suspended=lambda: None):
        self.depth = 0
        self.entered = False
        self.entry_frame = None
        self.lost = False  # whether an event could not be noted
        self.raised = False  # whether an exception left the entry scope
        self._raised_at = None  # instruction of the last exception
        self._limits = limits
        self._done, self._suspended = done, suspended
        self._texts = []  # of the events noted, one after the other
        self._marks = []  # of each event: the end of its texts, 4 * line + kind
        self._noted_chars = 0  # of these: an estimate, from one event in CHECK_EVENTS
        self._taken_chars = 0  # of those before, numbered already
        self._events = []  # (4 * line + kind, number of its names or -1, numbers of its reprs)
        self._names, self._reprs = {}, {}  # to their numbers, which are their places in the tables
        self._table = []
        self._chars = self._cut_reprs = self._failed_reprs = 0
        self.line_event = self._make_line_event()  # the local trace function

    def call(self, frame):
        """Records that a scope is entered; returns the frame's local trace function.

        Or None, if a limit is passed and ``done`` returned.
        """
        self.entered = True
        self.depth += 1
        try:
            if self.depth > self._limits["max_depth"]:
                self._done("depth", f"{self._limits['max_depth']} scopes are open at once")
                return None
            self._note_locals(CALL, frame)
            return self.line_event if self._may_go_on() else None
        except RecursionError:
            self.lost = True
        except BaseException as error:
            self._fail(error)
        return None

    def answer(self, status, message, *, hidden=()):
        """The JSON that the tracer reads.

        Args:
            status: ``finished``, or the name of what ended the run.
            message: its details.
            hidden: names that are left out of the entry scope's own locals.
        """
        self._number_events()
        if self.lost:
            status, message = "recursion", "the program uses up the stack: an event was not noted"
        elif status == "finished":
            status, message = self._exceeded() or (status, message)
        answer = {
            "status": status,
            "message": message,
            "events": self._events[: self._limits["max_events"]],
            "names": self._shown_names(hidden),
            "reprs": self._table,
            "cut_reprs": self._cut_reprs,
            "failed_reprs": self._failed_reprs,
            "raised": self.raised,
            "python": _PYTHON,
        }
        return json.dumps(answer).encode()

    def _make_line_event(self):
        """The hot path, once per event: all it needs is in local variables."""
        marks, texts = self._marks, self._texts
        mark, extend = marks.append, texts.extend

        def line_event(frame, event, arg):
            try:
                if event == "line":
                    middle = None
                    try:
                        local_vars = frame.f_locals
                        extend(local_vars)
                        middle = len(texts)
                        extend(map(repr, local_vars.values()))
                        mark(len(texts))
                        mark(4 * frame.f_lineno + LINE)
                    except BaseException as error:  # a program's own __repr__ may raise anything
                        self._note_locals(LINE, frame, *self._take_back(middle), error)
                    if not len(marks) % CHECK_MARKS and not self._check():
                        return None
                elif event == "return":
                    self._leave(frame, arg)
                elif event == "exception":
                    if issubclass(arg[0], MemoryError):
                        self._done("memory", "the program ran out of the memory it may have")
                        return None
                    self._raised_at = frame.f_lasti
                    self._note(EXCEPTION, frame, [self._repr(arg[1])])
                    if not self._may_go_on():
                        return None
            except RecursionError:  # in the program's last frames; raised here it would end tracing
                self.lost = True
            except BaseException as error:  # raised here it would be taken for a settrace()
                self._fail(error)
                return None
            return line_event

        return line_event

    def _fail(self, error):
        self._done("error", f"the recorder raised {type(error).__name__}: {describe(error)}")

    def _leave(self, frame, value):
        before = self._marks[-1] if self._marks else self._events[-1][0]
        self._note(RETURN, frame, [self._repr(value)])
        self.depth -= 1
        if self.depth:
            self._may_go_on()
        elif is_suspended(frame) and not (
            # what is thrown into a yield leaves from there
            value is None and before & 3 == EXCEPTION and self._raised_at == frame.f_lasti
        ):
            self._suspended()
        else:
            self.raised = not is_returning(frame)
            self._done("finished", "")

    def _note(self, kind, frame, texts):
        self._texts += texts
        self._marks += (len(self._texts), 4 * line_of(frame) + kind)

    def _note_locals(self, kind, frame, names=(), reprs=(), error=None):
        """Notes an event, or one of which there are ``reprs`` of the first names already.

        They are not taken again. ``error`` is what came of the next.
        """
        try:
            local_vars = dict(frame.f_locals)
        except BaseException as unread:  # the namespace of a class body may be anything
            self._failed(None, unread)
            self._note(kind, frame, ())
            return
        shown = dict(zip(names, reprs, strict=False))
        if error is not None and not is_of_iteration(error):
            for name in names[len(reprs) : len(reprs) + 1]:
                shown[name] = self._failed(local_vars.get(name), error)
        texts = [shown[n] if n in shown else self._repr(v) for n, v in local_vars.items()]
        self._note(kind, frame, (*local_vars, *texts))

    def _take_back(self, middle=None):
        """(names, reprs) of an event that did not come to its end; its names end at ``middle``."""
        if len(self._marks) % 2:
            self._marks.pop()
        start = self._marks[-2] if self._marks else 0
        taken = ((), ()) if middle is None else (self._texts[start:middle], self._texts[middle:])
        del self._texts[start:]
        return taken

    def _repr(self, value):
        try:
            return repr(value)
        except BaseException as error:
            return self._failed(value, error)

    def _failed(self, value, error):
        if isinstance(error, MemoryError):
            self._done("memory", "a repr needs more memory than the run may have")
        self._failed_reprs += 1
        return f"<{type(value).__name__} object, repr raised {type(error).__name__}>"

    def _may_go_on(self):
        # At every kind of event: the line events alone may miss all multiples of CHECK_EVENTS.
        return len(self._marks) % CHECK_MARKS != 0 or self._check()

    def _check(self):
        """Whether the limits hold; numbers the noted events before they take much memory."""
        last = self._texts[self._marks[-4] if len(self._marks) > 2 else 0 :]
        self._noted_chars += CHECK_EVENTS * num_chars(last)
        if self._noted_chars > MAX_NOTED_CHARS or self._noted_chars > self._left_to_take():
            self._number_events()
        exceeded = self._exceeded()
        if exceeded is not None:
            self._done(*exceeded)
        return exceeded is None

    def _exceeded(self):
        """(status, message) of the limit that the trace has passed, or None."""
        if len(self._events) + len(self._marks) // 2 > self._limits["max_events"]:
            return "events", f"more than {self._limits['max_events']} events"
        if self._chars > self._limits["max_bytes"]:
            return "bytes", f"more than {self._limits['max_bytes']} characters of reprs"
        if self._left_to_take() < 0:
            return "bytes", f"reprs of {self._taken_chars} characters, cut and repeated ones too"
        return None

    def _left_to_take(self):
        return MAX_TAKEN_CHARS * self._limits["max_bytes"] - self._taken_chars

    def _number_events(self):
        self._take_back()
        noted, marks, start = self._texts, self._marks, 0
        names, known, number = self._names, self._reprs.get, self._number
        are_exact = {*map(type, noted)} <= {str}
        self._taken_chars += sum(map(len, noted)) if are_exact else num_chars(noted)
        for end, line_and_kind in zip(marks[::2], marks[1::2], strict=True):
            texts = noted[start:end]
            start = end
            if not are_exact:
                texts = exact_texts(texts)
            if line_and_kind & 3 > LINE:
                self._events.append((line_and_kind, -1, number(texts[0])))
                continue
            middle = len(texts) // 2
            at = names.setdefault((*texts[:middle],), len(names))
            reprs = texts[middle:]
            numbers = [*map(known, reprs)]
            if None in numbers:
                numbers = [number(text) for text in reprs]
            self._events.append((line_and_kind, at, numbers))
        noted.clear()
        marks.clear()
        self._noted_chars = 0

    def _shown_names(self, hidden):
        own, depth = set(), 0  # own: numbers of the names in the entry scope's events
        for line_and_kind, at, _ in self._events if hidden else ():
            depth += line_and_kind & 3 == CALL
            if depth == 1:
                own.add(at)
            depth -= line_and_kind & 3 == RETURN
        return [
            [None if at in own and name in hidden else name for name in names]
            for at, names in enumerate(self._names)
        ]

    def _number(self, text):
        longest = self._limits["max_repr_chars"]
        shown = text if len(text) <= longest else text[:longest] + "..."
        known = self._reprs.setdefault(shown, len(self._table))
        if known == len(self._table):
            self._table.append(plain(shown))
            self._chars += len(shown)
            self._cut_reprs += shown is not text
        return known


def is_of_iteration(error):
    """Whether the locals changed in size while they were read: a repr did that, but none raised."""
    trace = error.__traceback__
    return type(error) is RuntimeError and trace is not None and trace.tb_next is None


def line_of(frame):
    """A frame's line; of an instruction without one, as ``except*`` has, the line before it."""
    if frame.f_lineno is not None:
        return frame.f_lineno
    code = frame.f_code
    before = [line for start, _, line in code.co_lines() if line and start <= frame.f_lasti]
    return before[-1] if before else code.co_firstlineno


def is_suspended(frame):
    """Whether a frame that reports a return will go on: it yields or awaits."""
    code = frame.f_code
    return bool(code.co_flags & _SUSPENDABLE) and code.co_code[frame.f_lasti] == _YIELD_VALUE


def is_returning(frame):
    """Whether a frame that reports a return and is no suspension ends so, not by an exception.

    CPython reports a return of None then, and no second ``exception`` where one is raised again.
    """
    return frame.f_code.co_code[frame.f_lasti] in _RETURNS


def is_text(value):
    return issubclass(type(value), str)  # whatever its __class__ says


def num_chars(texts):
    # among them names that are no text, in the module's globals
    return sum(map(str.__len__, filter(is_text, texts)))


def exact_texts(texts):
    """Names and reprs as exact ``str``: subclasses have methods of their own; other names go."""
    middle = len(texts) // 2
    pairs = zip(texts[:middle], texts[middle:], strict=len(texts) > 1)
    named = [(name, text) for name, text in pairs if is_text(name)]
    kept = [*(name for name, _ in named), *(text for _, text in named)] if middle else texts
    return ["".join([text]) for text in kept]


def plain(text):
    """A repr as it is shown: without memory addresses, but for what strings within it say."""
    if " at 0x" in text and text[0] not in "'\"":
        text = _LITERAL_OR_ADDRESS.sub(r"\1", text)
    return "'..'" if text == ".." else text  # the format keeps ".." for "unchanged"


def trace_program(request):
    """Runs a program and replies with the trace of the first entry of its marked scope.

    Args:
        request: ``source``, ``entry`` ([first line, name] of the marked function; None traces the
            module itself), ``limits`` of a `Recorder`.
    """
    source, entry, limits = request["source"], request["entry"], request["limits"]
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=builtins, __file__=FILE_NAME)
    hidden = {*module.__dict__, "__annotations__"} if entry is None else ()

    def done(status: str, message: str) -> NoReturn:
        reply(recorder.answer(status, message, hidden=hidden))

    recorder = Recorder(limits, done)
    code = compile_program(source, done)
    sys.modules["__main__"], sys.argv = module, [FILE_NAME]
    random.seed(0)  # assumed: programs that do not seed see one fixed sequence
    sys.setrecursionlimit(2 * limits["max_depth"] + 1000)  # the limit on depth comes first
    sys.settrace(make_trace_call(recorder, code, entry))
    sys.addaudithook(make_audit_hook(done))
    refuse_unaudited(done)
    try:
        exec(code, module.__dict__)
        if not recorder.entered and entry is not None:
            call_without_arguments(module.__dict__.get(entry[1]), entry, done)
    except BaseException as error:
        if not recorder.entered:
            done("raised", f"{type(error).__name__}: {describe(error)}")
    if not recorder.entered:
        done("not-entered", "nothing calls the marked scope")
    done("incomplete", "the marked scope was entered but not seen to end")


def compile_program(source: str, done: Done) -> types.CodeType:
    """The module's code; linecache knows its lines, for tracebacks and ``inspect``."""
    lines = list(io.StringIO(source, newline=""))  # as Python counts them: no form feed ends one
    linecache.cache[FILE_NAME] = (len(source), None, lines, FILE_NAME)
    try:
        return compile(source, FILE_NAME, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        done("syntax", f"{type(error).__name__}: {error}")


def codes_of(code):
    """A source's code objects: what else names its file has lines of its own."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [code, *(found for each in inner for found in codes_of(each))]


def identity(code):
    """What a copy keeps, such as `types.coroutine` makes."""
    return code.co_firstlineno, code.co_qualname, code.co_code, code.co_linetable


def make_trace_call(recorder, module_code, entry):
    """The global trace function: decides which calls are recorded."""
    codes = codes_of(module_code)
    program, identities = {*map(id, codes)}, {*map(identity, codes)}

    def is_entry(code):
        if entry is None:
            return code is module_code
        return entry == [code.co_firstlineno, code.co_name]

    def is_copy(code):
        return code.co_filename == FILE_NAME and identity(code) in identities

    def enter(frame):
        code = frame.f_code
        if id(code) not in program and not is_copy(code):
            return None
        if recorder.depth or frame is recorder.entry_frame:
            return recorder.call(frame)
        if recorder.entered:  # the entry is suspended: only its own resumption goes on
            frame.f_trace = None  # of a generator that the entry has begun
            return None
        if is_entry(code):
            recorder.entry_frame = frame
            return recorder.call(frame)
        return None

    def trace_call(frame, event, arg):
        try:
            return enter(frame)
        except RecursionError:
            recorder.lost = recorder.entered
            return None

    return trace_call


def call_without_arguments(function: Any, entry: Sequence[Any], done: Done) -> None:
    """Enters a marked function that the module defines but does not call."""
    if function is None:
        done("not-entered", f"nothing calls {entry[1]}, and it is no function of the module")
    code = getattr(function, "__code__", None)
    if code is not None:
        given = len(function.__defaults__ or ())
        missing = list(code.co_varnames[: code.co_argcount - given])
        keywords = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
        missing += [name for name in keywords if name not in (function.__kwdefaults__ or {})]
        if missing:
            done("missing-arguments", f"{entry[1]}() lacks {', '.join(missing)}")
        if code.co_flags & _SUSPENDABLE:
            done(
                "not-entered",
                f"a call of {entry[1]} runs none of its lines: iterate or await it in the module",
            )
    function()


def make_audit_hook(done: Done) -> Callable[[str, tuple], None]:
    """Ends the run at what is refused; the checks are of names, the sandbox is what holds."""

    scratch = os.getcwd()

    def refuse(event, args):
        reason = REFUSED.get(event)
        if reason is not None and not (event == "socket.__new__" and args[1] == _AF_UNIX):
            done("refused", f"{reason}: {event}")
        if event in REFUSED_OUTSIDE:  # of two paths or one: what is no path passes
            for path in args[:2]:
                if not is_below(scratch, path):
                    done("refused", f"files: {event} of {path!r}")

    return refuse


def refuse_unaudited(done):
    """What raises no audit event: before CPython 3.12 a thread, in any version fork_exec alone."""

    def fork_exec(*arguments):
        done("refused", "processes: _posixsubprocess.fork_exec")

    def start_new_thread(*arguments, **options):
        done("refused", "threads: _thread.start_new_thread")

    _posixsubprocess.fork_exec = fork_exec
    _thread.start_new_thread = _thread.start_new = start_new_thread
    if "threading" in sys.modules:
        vars(sys.modules["threading"])["_start_new_thread"] = start_new_thread


def is_below(folder, path):
    try:
        return os.path.abspath(os.fsdecode(path)).startswith(folder + os.sep)
    except TypeError:  # a file descriptor: open() has had its say
        return True


def describe(error):
    try:
        return str(error)
    except BaseException:
        return "(no description)"


def handle(request: bytes) -> NoReturn:
    """The sandbox's entry: traces the program of one JSON request."""
    trace_program(json.loads(request))
    raise AssertionError("a reply ends the process")
