"""Records doctests and pytest runs as episodes of functions; loaded inside the sandbox.

Self-contained but for `recorder.py`, whose path is in the request. Each call of a function of the
files in scope is an episode, or part of the episode that calls it: a draw decides which. Episodes
nest as the calls do, and each has a `Recorder` of its own.
"""

import collections
import contextlib
import doctest
import hashlib
import heapq
import importlib
import io
import json
import opcode
import os
import random
import sys
import types
from collections.abc import Callable
from typing import NoReturn

reply: Callable[[bytes], NoReturn]  # from the sandbox: answers and ends the process
_OPTIMIZED, _SUSPENDABLE = 0x1, 0x20 | 0x80 | 0x200  # flags of code objects
_READY = "ready"
_FULL = "full"
_MAX_KEPT_BYTES = 100_000_000  # of episodes: what a reply may be, with room to spare
_INSTALLED = {"site-packages", "dist-packages"}  # never in scope below a folder that is
# A suite may put others in their place.
_set_trace, _blake2b, _opname, _absolute = (
    sys.settrace,
    hashlib.blake2b,
    opcode.opname,
    os.path.abspath,
)


class Episode:
    """A call of a function in scope, and of what is stepped into from there."""

    def __init__(self, number, of_function, frame, make_recorder):
        self.number, self.of_function = number, of_function
        self.entry_frame = frame
        self.recorder = make_recorder(self)
        self.calls = 0  # of functions in scope, stepped into or over
        self.codes = {}  # of the scopes entered, to their numbers
        self.entered = []  # number of the code, for each call event

    def call(self, frame):
        code = frame.f_code
        key = (code.co_filename, code.co_firstlineno, code.co_qualname)
        self.entered.append(self.codes.setdefault(key, len(self.codes)))
        frame.f_trace_lines = True  # not so in a generator whose own episode was cut
        return self.recorder.call(frame)

    def as_json(self, status, message):
        head = {"number": self.number, "codes": [*self.codes], "entered": self.entered}
        answer = self.recorder.answer(status, message)
        return b'%b, "answer": %b}' % (json.dumps(head).encode()[:-1], answer)


class SuiteRun:
    """The trace function of a run, and the episodes that it cuts the run into.

    Args:
        request: as `handle` gets it.
        recorder: the module `recorder.py`.
    """

    def __init__(self, request, recorder):
        self.rules, self.limits = request["rules"], request["limits"]
        self.scope = ()
        self.driver_file = None  # name that begins those of the code that the driver runs
        self.passed = self.failed = 0
        self._recorder, self._pid = recorder, os.getpid()
        self._files = {}  # name of a code's file to whether it is in scope
        self._stack = []  # of open episodes, None for a call in scope that is not recorded
        self._suspended = {}  # id of the frame of an entry that yielded, to its episode
        self._started = collections.Counter()  # by function
        self._number = 0
        self._kept, self._kept_bytes = [], 0  # a heap: first goes what is the last to be kept
        self._dropped = collections.Counter(recursion=0)  # there: __missing__ takes stack
        self.trace_call = self._make_trace_call()
        self._pass_by = self._make_pass_by()

    def install(self):
        """From here on, until `remove`, calls are recorded."""
        self._dropped["incomplete"] += sum(episode is not None for episode in self._stack)
        self._stack.clear()
        _set_trace(self.trace_call)

    def remove(self):
        if sys.gettrace() is not self.trace_call:
            self.done("refused", "settrace: the trace function is gone")
        _set_trace(None)

    def done(self, status: str, message: str = "") -> NoReturn:
        """Answers, and ends the process."""
        if os.getpid() != self._pid:
            os._exit(1)
        self._dropped["incomplete"] += len([*filter(None, self._stack), *self._suspended])
        kept = sorted(self._kept, key=lambda entry: -entry[1])
        head = {
            "status": status,
            "message": message,
            "passed": self.passed,
            "failed": self.failed,
            "dropped": self._dropped,
        }
        body = b",\n".join(content for _, _, content in kept)
        reply(b'%b, "episodes": [%b]}' % (json.dumps(head).encode()[:-1], body))

    def refuse(self, event, args):
        """An audit hook: nobody else may trace."""
        if event == "sys.settrace":
            # DocTestRunner.run puts back the trace function that it found
            caller = sys._getframe(1).f_globals
            if caller is not globals() and caller is not vars(doctest):
                self.done("refused", "settrace: the suite sets a trace function itself")

    def _make_trace_call(self):
        files, in_scope, enter = self._files, self._in_scope, self._enter

        def trace_call(frame, event, arg):
            name = frame.f_code.co_filename
            is_in_scope = files.get(name)
            if is_in_scope is None:
                is_in_scope = in_scope(name)
            return enter(frame) if is_in_scope else None

        return trace_call

    def _in_scope(self, name):
        path = _absolute(name)
        below = [path[len(top) :] for top in self.scope if (path + os.sep).startswith(top + os.sep)]
        is_file = not name.startswith("<")  # <string>, <frozen os>
        found = is_file and bool(below) and not _INSTALLED & set(below[0].split(os.sep))
        self._files[name] = found
        return found

    def _enter(self, frame):
        try:
            code = frame.f_code
            top = self._stack[-1] if self._stack else None
            if top is not None and top.recorder.lost:
                top = self._abandon()
            if code.co_flags & _SUSPENDABLE and (suspended := self._suspended.get(id(frame))):
                del self._suspended[id(frame)]
                self._stack.append(suspended)
                return suspended.call(frame)
            if code.co_name == "<module>":
                return self._step_over(frame, top)
            is_inner = "<" in code.co_qualname or not code.co_flags & _OPTIMIZED
            if top is not None and (
                is_inner or code.co_flags & _SUSPENDABLE or self._steps_into(top)
            ):
                return top.call(frame)
            if is_inner or not _is_fresh(frame):
                frame.f_trace = None  # of an episode that has been cut
                return None
            return self._start(frame, top)
        except RecursionError:  # the program's, in its last frame: a trace function must not raise
            if self._stack and self._stack[-1] is not None:
                self._stack[-1].recorder.lost = True
            else:
                self._dropped["recursion"] += 1
            return None

    def _steps_into(self, episode):
        """A function of the seed, the episode and the number of the call alone."""
        episode.calls += 1
        if episode.recorder.depth > self.rules["max_step_in_depth"]:
            return False
        key = b"%d %d %d" % (self.rules["seed"], episode.number, episode.calls)
        drawn = int.from_bytes(_blake2b(key, digest_size=8).digest(), "big")
        return drawn < self.rules["step_in_probability"] * 2**64

    def _start(self, frame, top):
        code = frame.f_code
        function = (code.co_filename, code.co_firstlineno, code.co_qualname)
        of_function = self._started[function]
        if of_function >= self.rules["episodes_per_function"]:
            return self._step_over(frame, top)
        if self.driver_file is not None and not self._is_driven(frame):
            return None
        self._started[function] += 1
        episode = Episode(self._number, of_function, frame, self._make_recorder)
        self._number += 1
        self._stack.append(episode)
        return episode.call(frame)

    def _make_recorder(self, episode):
        return self._recorder.Recorder(
            self.limits,
            lambda status, message: self._close(episode, status, message),
            lambda: self._suspend(episode),
        )

    def _is_driven(self, frame):
        """Whether an example calls, not the driver on its own account."""
        while frame is not None and not frame.f_code.co_filename.startswith(self.driver_file):
            frame = frame.f_back
        return frame is not None

    def _step_over(self, frame, top):
        """No frames of this call; what it calls does not belong to the episode that is open."""
        if top is None:
            return None
        self._stack.append(None)
        frame.f_trace_lines = False
        return self._pass_by

    def _make_pass_by(self):
        stack = self._stack

        def pass_by(frame, event, arg):
            if event == "return" and stack:
                stack.pop()
            return pass_by

        return pass_by

    def _leave(self, episode):
        while self._stack and self._stack.pop() is not episode:
            pass  # a frame from which the program took our local trace function

    def _suspend(self, episode):
        if episode.entry_frame is None:
            return
        self._leave(episode)
        self._suspended[id(episode.entry_frame)] = episode

    def _close(self, episode, status, message):
        """An episode ends, or is cut at a limit."""
        if episode.entry_frame is None:
            return
        if status == "finished":
            self._leave(episode)
        else:
            self._cut(episode)
        episode.entry_frame = None
        if episode.recorder.lost or status in ("memory", "error"):
            self._dropped["recursion" if episode.recorder.lost else status] += 1
        else:
            self._keep(episode, status, message)
        if self._is_full() and not any(self._stack):
            self.done(_FULL)

    def _abandon(self):
        """Gives up the open episodes: which of their frames have ended is not known any more."""
        for episode in filter(None, self._stack):
            episode.recorder.lost, episode.entry_frame = True, None
            self._dropped["recursion"] += 1
        self._stack[:] = [None]

    def _cut(self, episode):
        """Its frames run on untraced, but for the entry's end."""
        self._stack[-1] = None
        frame, entry = sys._getframe(), episode.entry_frame
        while frame is not None and frame is not entry:
            frame.f_trace = None
            frame = frame.f_back
        entry.f_trace, entry.f_trace_lines = self._pass_by, False

    def _keep(self, episode, status, message):
        """Of too many, those stay that are the first of their function, then the earliest."""
        content = episode.as_json(status, message)
        heapq.heappush(self._kept, (-episode.of_function, -episode.number, content))
        self._kept_bytes += len(content)
        while len(self._kept) > self.rules["max_episodes"] or self._kept_bytes > _MAX_KEPT_BYTES:
            self._kept_bytes -= len(heapq.heappop(self._kept)[-1])
            self._dropped["max-episodes"] += 1

    def _is_full(self):
        """Whether each episode that is kept is the first of its function: no later one counts."""
        return len(self._kept) == self.rules["max_episodes"] and not self._kept[0][0]


def _is_fresh(frame):
    """Whether a call event is the first of its frame: no generator that goes on."""
    code = frame.f_code
    if not code.co_flags & _SUSPENDABLE:
        return True
    at = frame.f_lasti
    return _opname[code.co_code[at]] == "RESUME" and not code.co_code[at + 1] & 3


def run_doctests(run, request):
    """The doctests of one module, in the order of their names."""
    try:
        module = importlib.import_module(request["module"])
    except BaseException as error:
        run.done("import", f"{type(error).__name__}: {error}")
    top = sys.modules[request["module"].partition(".")[0]]
    if not hasattr(top, "__file__"):
        run.done("no-source", f"{request['module']} has no file")
    file = os.path.abspath(str(top.__file__))
    run.scope = (os.path.dirname(file) if hasattr(top, "__path__") else file,)
    # Examples are often written as a user types them, with the name of the module.
    names = {top.__name__: top, **vars(module)}
    tests = [test for test in doctest.DocTestFinder().find(module, globs=names) if test.examples]
    if not tests:
        run.done("no-tests", f"{request['module']} has no doctests")
    run.driver_file = "<doctest "
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        run.install()
        results = runner.run(test, out=io.StringIO().write)
        run.remove()
        run.failed += results.failed
        run.passed += results.attempted - results.failed
    run.done(_READY)


def run_pytest(run, request):
    """The tests of a repository; what tests call is recorded, not what fixtures and imports do."""
    try:
        import pytest
    except ImportError as error:
        run.done("import", f"pytest: {error}")
    run.scope = tuple(request["scope"])
    unread = 0

    class Recording:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_call(self, item):
            run.install()
            try:
                return (yield)
            finally:
                run.remove()

        def pytest_runtest_logreport(self, report):
            run.passed += report.when == "call" and report.passed
            run.failed += report.failed

        def pytest_collectreport(self, report):
            nonlocal unread
            unread += report.failed

    # Asserts that pytest rewrites would show its own variables among the locals.
    flags = ["-p", "no:cacheprovider", "-p", "no:faulthandler", "--assert=plain", "-q"]
    flags += [
        "--continue-on-collection-errors",
        f"--rootdir={request['root']}",
        f"--basetemp={os.path.abspath('basetemp')}",
    ]
    os.chdir(request["root"])
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = int(pytest.main([*flags, *request["arguments"]], plugins=[Recording()]))
    ended = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED)
    if status not in ended:
        run.done("pytest", f"pytest ends with exit code {status}: {said.getvalue()[-400:]}")
    if not run.passed + run.failed:
        run.done("import" if unread else "no-tests", f"no test runs; {unread} files do not import")
    run.failed += unread
    run.done(_READY)


def handle(request: bytes) -> NoReturn:
    """The sandbox's entry: runs one suite.

    Args:
        request: JSON: ``recorder`` (path), ``rules``, ``limits`` of a `Recorder`, ``site`` (folders
            of importable packages), and ``module`` or ``root``, ``scope`` and ``arguments``.
    """
    asked = json.loads(request)
    with open(asked["recorder"], encoding="utf-8") as file:
        code = compile(file.read(), asked["recorder"], "exec", dont_inherit=True)
    recorder = types.ModuleType("recorder")
    exec(code, recorder.__dict__)
    run = SuiteRun(asked, recorder)
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    sys.path += asked["site"]
    os.environ["HOME"] = os.getcwd()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a run depends on what it is told alone
    random.seed(0)
    sys.addaudithook(run.refuse)
    run_doctests(run, asked) if "module" in asked else run_pytest(run, asked)
    raise AssertionError("a reply ends the process")
