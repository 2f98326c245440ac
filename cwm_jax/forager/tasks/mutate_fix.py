"""Faults in functions that tests run: a task is to find and mend one.

A fault is kept if tests fail with it, and all that fail run the function that has it. Kinds are
drawn by the report's shares (see `choice`), over all images; a draw is a trial, and one run of the
tests.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import KnownTexts
from cwm_jax.forager.tasks.choice import SHARES, Draws
from cwm_jax.forager.tasks.coverage import Coverage, coverage_from_json, record_coverage
from cwm_jax.forager.tasks.statement import Failure, statement
from cwm_jax.forager.tasks.tested import Tested, failure_of, tested, tests_data, write_files
from cwm_jax.forager.tasks.trials import TASK, Trial, run_trials
from cwm_jax.rl.envs.mutations import Mutation, candidates, functions, is_mutation
from cwm_jax.rl.envs.swe.grading import is_of_tests
from cwm_jax.rl.envs.swe.patches import diff_of_file
from cwm_jax.rl.envs.swe.suite import SuiteFailed
from cwm_jax.storage import write_json
from cwm_jax.trace.corpus.engines import Engine

_RECORDING = 10.0  # times that a run under the recorder may take of one without; assumed
# Of a run with a fault: so many times what the recorder took, and so many seconds at least. Faults
# that loop for ever are a few of a hundred; assumed.
_SLOWER, _LEAST_S = 2.0, 15.0
_MOST_FAILING = 0.5  # of an image's tests: with more, the project as a whole is broken; assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MutateFixSettings:
    """What the tasks depend on besides the images.

    Attributes:
        seed: of the draws.
        shares: weights of the kinds of faults.
        timeout_s: of a run of the tests with a fault, at most.
        per_function: trials of one function, at most.
    """

    seed: int = 0
    shares: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(SHARES))
    timeout_s: float = 60.0
    per_function: int = 4


@dataclasses.dataclass(frozen=True)
class _Place:
    """A function of an image; the module's own imports have the name ""."""

    image: str
    path: str
    name: str


@dataclasses.dataclass(frozen=True)
class _Item:
    number: int
    kind: str
    place: _Place
    index: int


def mutate_fix(
    images: Sequence[Path],
    folder: Path,
    settings: MutateFixSettings,
    *,
    count: int | None,
    engine: Engine,
    known: KnownTexts | None = None,
) -> list[Trial]:
    """Trials until ``count`` are tasks; see `run_trials` for the folder, results and errors.

    Args:
        images: folders of images; their order is part of the draws.
        folder: of the run; what tests cover is kept there, too.
        settings: of the tasks.
        count: of tasks; None tries every fault.
        engine: where.
        known: texts that tasks may not be near to.

    Raises:
        ValueError: none of the images has a function that a test runs.
    """
    covers = folder / "coverage"
    covers.mkdir(parents=True, exist_ok=True)
    _cover(images, covers, settings, engine)
    places = {path.name: _places(path, covers) for path in images}
    if not any(places.values()):
        raise ValueError(
            f"no test of {', '.join(path.name for path in images) or 'no image'} runs a function; "
            "expected images whose tests import the checkout: build others"
        )
    named = {path.name: path for path in images}
    values = dataclasses.asdict(settings) | {"images": [str(path) for path in images]}
    return run_trials(
        folder,
        _items(places, named, settings),
        functools.partial(_tried, named, covers, settings),
        settings=values,
        died=_died,
        engine=engine,
        count=count,
        known=known,
    )


def _cover(
    images: Sequence[Path], folder: Path, settings: MutateFixSettings, engine: Engine
) -> None:
    """Records what is not recorded yet; an image of which nothing can be said has no places."""
    missing = [path for path in images if not _coverage_path(folder, path.name).is_file()]
    chunks = ([path] for path in missing)
    function = functools.partial(_recorded, settings.timeout_s)
    for line in engine.map_chunks(function, chunks, _nothing_recorded):
        name, values = json.loads(line)
        write_json(_coverage_path(folder, name), values)


def _recorded(timeout_s: float, paths: Sequence[Path]) -> bytes:
    lines = []
    for path in paths:
        image = tested(path, timeout_s)
        workspace = image.workspace()
        try:
            began = time.monotonic()
            found = record_coverage(
                workspace, image.suite, image.passing, timeout_s=_RECORDING * timeout_s
            )
            values = found.to_json() | {"seconds": round(time.monotonic() - began, 1)}
        except SuiteFailed as error:
            values = Coverage(tests={}).to_json() | {"failure": str(error)}
        finally:
            workspace.close()
        lines.append(json.dumps([path.name, values]).encode() + b"\n")
    return b"".join(lines)


def _nothing_recorded(path: Path) -> bytes:
    values = Coverage(tests={}).to_json() | {"failure": "the process ended twice"}
    return json.dumps([path.name, values]).encode() + b"\n"


def _coverage_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


@functools.cache
def _coverage(path: Path) -> Coverage:
    return coverage_from_json(json.loads(path.read_bytes()))


@functools.cache
def _timeout_s(path: Path, most_s: float) -> float:
    """Of a run of the tests, of what was recorded there."""
    took_s = json.loads(path.read_bytes()).get("seconds", most_s)
    return min(most_s, max(_LEAST_S, _SLOWER * took_s))


def _places(path: Path, covers: Path) -> list[_Place]:
    """Functions that tests run, with those inside of them, and modules; not the tests' own."""
    coverage = _coverage(_coverage_path(covers, path.name))
    found = []
    for file in sorted({file for file, _ in coverage.tests}):
        source = _source(path, file)
        if source is None or is_of_tests(file):
            continue
        names = ["", *(function.name for function in functions(source))]
        covered = [name for name in names if not name or _tests(coverage, file, name)]
        found += [_Place(path.name, file, name) for name in covered]
    return found


def _tests(coverage: Coverage, file: str, name: str) -> tuple[str, ...]:
    if not name:
        return coverage.of_file(file)
    return coverage.tests.get((file, name.partition(".<locals>")[0]), ())


@functools.lru_cache(maxsize=64)
def _source(path: Path, file: str) -> str | None:
    """None for what is no Python that can be changed."""
    content = tested(path, 0.0).files().get(file)
    try:
        source = (content or b"").decode()
        functions(source)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return source or None


@functools.lru_cache(maxsize=256)
def _candidates(path: Path, file: str, name: str) -> Mapping[str, list[Mutation]]:
    """By kind; a trial looks at whether one is a mutation."""
    source = _source(path, file)
    assert source is not None
    found: dict[str, list[Mutation]] = {}
    for mutation in candidates(source, function=name):
        found.setdefault(mutation.kind, []).append(mutation)
    return found


def _items(
    places: Mapping[str, Sequence[_Place]], named: Mapping[str, Path], settings: MutateFixSettings
) -> Iterator[_Item]:
    def number_of(kind: str, place: _Place) -> int:
        found = _candidates(named[place.image], place.path, place.name)
        return len(found.get(kind, []))

    tried: dict[_Place, int] = {}
    draws = Draws(places, number_of, shares=settings.shares, seed=settings.seed)
    number = 0
    for _, kind, place, index in draws:
        # By trials, not tasks: what is drawn may not depend on what came of draws before.
        if tried.setdefault(place, 0) < settings.per_function:
            tried[place] += 1
            yield _Item(number, kind, place, index)
            number += 1


def _tried(
    named: Mapping[str, Path], covers: Path, settings: MutateFixSettings, items: Sequence[_Item]
) -> bytes:
    return b"".join(_trial(item, named, covers, settings).to_line() for item in items)


def _trial(
    item: _Item, named: Mapping[str, Path], covers: Path, settings: MutateFixSettings
) -> Trial:
    place, path = item.place, named[item.place.image]
    source = _source(path, place.path)
    assert source is not None
    fault = _candidates(path, place.path, place.name)[item.kind][item.index]
    recorded = _coverage_path(covers, place.image)
    image = tested(path, _timeout_s(recorded, settings.timeout_s))
    coverage = _coverage(recorded)
    seen = _Seen(outcome="no change")
    if is_mutation(fault, source):
        running = {*_tests(coverage, place.path, place.name)}
        seen = _look(image, place.path, fault.source, running)
    task = None
    if seen.failure is not None:
        data = _data(item, image, fault, source, seen)
        name = f"mutate-fix/{place.image}/{settings.seed}-{item.number}"
        task = {"name": name, "data": data, "group": place.image}
    return Trial(
        number=item.number,
        image=place.image,
        kind=item.kind,
        what=f"{_words(place)}: {fault.what}",
        outcome=seen.outcome,
        num_failing=len(seen.failing),
        task=task,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Seen:
    """What tests show of a fault; there is a failure to tell of only in a task."""

    outcome: str
    failing: Sequence[str] = ()
    failure: Failure | None = None


def _look(image: Tested, file: str, changed: str, running: set[str]) -> _Seen:
    workspace = image.workspace()
    try:
        write_files(workspace, {file: changed})
        failing = image.failing(workspace)
        outcome = _outcome(failing, running, len(image.passing))
        if outcome != TASK:
            return _Seen(outcome=outcome, failing=failing)
        failure = failure_of(failing[0], workspace, image.suite.format, timeout_s=image.timeout_s)
        return _Seen(
            outcome=TASK if failure else "no error shown", failing=failing, failure=failure
        )
    except SuiteFailed as error:
        return _Seen(outcome="broken" if error.ended else "no end")
    finally:
        workspace.close()


def _data(item: _Item, image: Tested, fault: Mutation, source: str, seen: _Seen) -> dict[str, Any]:
    """Of a task."""
    file, failing = item.place.path, [*seen.failing]
    gold = diff_of_file(file, fault.source, source)
    assert seen.failure is not None
    issue = statement(
        seen.failure,
        kind=item.kind,
        num_failing=len(failing),
        mended=[line[1:] for line in gold.splitlines()[3:] if line.startswith("+")],
        seed=f"{item.place}/{item.kind}/{item.index}",
    )
    lost = {*failing}
    kept = [name for name in image.passing if name not in lost]
    return {
        "issue": issue,
        "repository": {**image.repository, "change": diff_of_file(file, source, fault.source)},
        "patch": gold,
        "tests": tests_data(image.suite, failing, kept, {}),
        "fault": {"kind": fault.kind, "place": _words(item.place), "what": fault.what},
    }


def _words(place: _Place) -> str:
    return f"{place.path}:{place.name or '(module)'}"


def _outcome(failing: Sequence[str], running: set[str], num_passing: int) -> str:
    if not failing:
        return "not noticed"
    if not running >= {*failing}:
        return "other tests fail"
    if len(failing) > _MOST_FAILING * num_passing:
        return "most tests fail"
    return TASK


def _died(item: _Item) -> bytes:
    return Trial(
        number=item.number,
        image=item.place.image,
        kind=item.kind,
        what=_words(item.place),
        outcome="process died",
    ).to_line()
