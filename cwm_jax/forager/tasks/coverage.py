"""Which tests of a repository run which of its functions, from one run of its suite."""

from __future__ import annotations

import dataclasses
import json
import posixpath
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cwm_jax.rl.envs.swe.suite import Suite, SuiteFailed, suite_results
from cwm_jax.rl.envs.swe.workspaces.protocol import Workspace

_RECORDER = Path(__file__).with_name("recorder_inside.py")
_FOLDER = "recorder"  # beside the checkout, so that it is no part of it
_SITE = b"import recorder_inside\n\nrecorder_inside.follow_unittest()\n"
_MOST_BYTES = 256 << 20  # assumed: of what is recorded

Place = tuple[str, str]  # (path, name); the name is "function" or "Class.method"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
    """What was recorded.

    Attributes:
        tests: that run a function, sorted, by its place; places are sorted too.
    """

    tests: Mapping[Place, tuple[str, ...]]

    def of_file(self, path: str) -> tuple[str, ...]:
        """Tests that run anything of a file."""
        of_places = (tests for place, tests in self.tests.items() if place[0] == path)
        return tuple(sorted({test for tests in of_places for test in tests}))

    def to_json(self) -> dict[str, Any]:
        """For a file; `coverage_from_json` reads it."""
        names = sorted({test for tests in self.tests.values() for test in tests})
        number = {test: n for n, test in enumerate(names)}
        rows = [[*place, [number[t] for t in tests]] for place, tests in self.tests.items()]
        return {"names": names, "places": rows}


def coverage_from_json(value: Mapping[str, Any]) -> Coverage:
    """The inverse of `Coverage.to_json`."""
    names = value["names"]
    places = {(path, name): tuple(names[n] for n in own) for path, name, own in value["places"]}
    return Coverage(tests=places)


def record_coverage(
    workspace: Workspace, suite: Suite, passed: Collection[str], *, timeout_s: float
) -> Coverage:
    """Runs the suite once under a recorder.

    Args:
        workspace: with the repository as it is; the recorder lies beside it afterwards.
        suite: whose command is run, with a canary.
        passed: tests that count: those that are known to pass.
        timeout_s: of the run, which is slower than one without a recorder.

    Raises:
        SuiteFailed: nothing can be said: the run did not end, or nothing was recorded.
        EnvironmentFailure: of the workspace.
    """
    folder = posixpath.join(posixpath.dirname(workspace.root), _FOLDER)
    output = posixpath.join(folder, "recorded.json")
    workspace.write(posixpath.join(folder, _RECORDER.name), _RECORDER.read_bytes())
    if suite.format == "unittest":
        workspace.write(posixpath.join(folder, "sitecustomize.py"), _SITE)
    recorded = dataclasses.replace(
        suite, command=_recording(suite, folder, workspace.root, output=output)
    )
    suite_results(workspace, recorded, timeout_s=timeout_s)
    try:
        content = workspace.read(output, _MOST_BYTES)
    except OSError as error:
        raise SuiteFailed(f"the run of the tests recorded nothing: {error}") from error
    return _read(content, passed)


def _recording(suite: Suite, folder: str, root: str, *, output: str) -> str:
    settings = {"RECORDER_ROOT": root, "RECORDER_OUTPUT": output}
    if suite.format != "unittest":
        settings["PYTEST_ADDOPTS"] = f"-p {_RECORDER.stem}"
    exports = " ".join(f"{key}={shlex.quote(value)}" for key, value in settings.items())
    path = f'PYTHONPATH={shlex.quote(folder)}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return f"(export {exports} {path}\n{suite.command}\n)"


def _read(content: bytes, passed: Collection[str]) -> Coverage:
    """What is inside could have written anything: it is data, and its form is checked."""
    known, tests = frozenset(passed), dict[Place, set[str]]()
    try:
        value = json.loads(content)
        functions = [(str(path), str(name)) for path, name in value["functions"]]
        for test, places in value["tests"].items():
            for number in places if test in known else ():
                tests.setdefault(functions[int(number)], set()).add(test)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SuiteFailed(f"what the run of the tests recorded cannot be read: {error}") from error
    if not tests:
        raise SuiteFailed(
            f"none of {len(functions)} functions of the checkout is run by a test that passes; "
            "expected at least one: is an installed copy of the project tested?"
        )
    return Coverage(tests={place: tuple(sorted(tests[place])) for place in sorted(tests)})
