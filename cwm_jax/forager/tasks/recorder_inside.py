"""Inside a sandbox: which functions of a repository each of its tests runs.

A plug-in of pytest, or, loaded by `sitecustomize`, a part of unittest. Standard library alone, for
every Python from 3.11 on. What a test's fixtures run belongs to the test that first needs them.
"""

import atexit
import json
import os
import sys
import threading

_TOOL = 4  # a free number of sys.monitoring. Source: its documentation, 0 to 2 and 5 are taken
_monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
_ROOT = os.environ.pop("RECORDER_ROOT", "") + os.sep
_OUTPUT = os.environ.pop("RECORDER_OUTPUT", "")
os.environ.pop("PYTEST_ADDOPTS", None)  # not for processes that the tests start

_places = {}  # code -> number of its function, or None for code of others
_functions = {}  # (path, name) -> number
_tests = {}
_now = None


def begin(test):
    """From here on functions are the test's."""
    global _now
    _now = _tests.setdefault(test, set())
    if _monitoring is not None:
        _monitoring.restart_events()
    else:
        threading.settrace(_traced)
        sys.settrace(_traced)


def end():
    """The test has ended."""
    global _now
    _now = None
    if not _monitoring is not None:
        sys.settrace(None)
        threading.settrace(None)


def pytest_runtest_logstart(nodeid, location):
    """Of pytest."""
    begin(nodeid)


def pytest_runtest_logfinish(nodeid, location):
    """Of pytest."""
    end()


def follow_unittest():
    """Has `unittest` tell of each test; for a `sitecustomize`."""
    import unittest

    run = unittest.TestCase.run

    def followed(self, result=None):
        begin(self.id())
        try:
            return run(self, result)
        finally:
            end()

    unittest.TestCase.run = followed


def _started(code, *_):
    now = _now
    if now is not None:
        try:
            place = _places[code]
        except KeyError:
            place = _places[code] = _place(code)
        if place is not None:
            now.add(place)
    return _monitoring.DISABLE if _monitoring is not None else None


def _traced(frame, event, _):
    _started(frame.f_code)


def _place(code):
    path = os.path.abspath(code.co_filename)
    name = code.co_qualname.partition(".<locals>")[0]
    if not path.startswith(_ROOT) or "<" in name:
        return None
    key = (path[len(_ROOT) :].replace(os.sep, "/"), name)
    return _functions.setdefault(key, len(_functions))


def _write():
    if _tests:
        tests = {test: sorted(places) for test, places in _tests.items()}
        with open(_OUTPUT, "w") as file:
            json.dump({"functions": list(_functions), "tests": tests}, file)


if _OUTPUT:
    atexit.register(_write)
    if _monitoring is not None:
        _monitoring.use_tool_id(_TOOL, "recorder")
        _monitoring.register_callback(_TOOL, _monitoring.events.PY_START, _started)
        _monitoring.set_events(_TOOL, _monitoring.events.PY_START)
