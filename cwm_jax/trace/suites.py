"""Suites: doctests of a module and pytest runs of a repository, cut into episodes of functions."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from cwm_jax.sandbox import Limits, Outcome, Worker
from cwm_jax.trace.episodes import Episode, episode_from_trace
from cwm_jax.trace.excerpt import Scope, SourceFile, make_excerpt
from cwm_jax.trace.tracer import (
    RecorderAnswer,
    TraceError,
    Tracer,
    answer_from_json,
    trace_from_answer,
)

_PROGRAM = Path(__file__).with_name("suite_recorder.py")
_RECORDER = Path(__file__).with_name("recorder.py")
_WHOLE = ("ready", "full")
_CALL, _RETURN = 0, 2  # kinds of events, as in recorder.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRules:
    """How a run is cut into episodes, and what the run may use.

    Attributes:
        seed: of the draws.
        step_in_probability: of a call in scope to be part of the episode that calls it; else it is
            stepped over there and an episode of its own (report: stochastic; the value is assumed).
        max_step_in_depth: of scopes that are open in an episode, besides its entry's, after it has
            stepped into a call (report: configurable; the value is assumed).
        episodes_per_function: that begin with it, at most (assumed).
        max_episodes: of a run; those of distinct functions first (assumed).
        cpu_s, wall_s, memory_bytes: of the run (assumed).
    """

    seed: int = 0
    step_in_probability: float = 0.5
    max_step_in_depth: int = 3
    episodes_per_function: int = 4
    max_episodes: int = 1000
    cpu_s: float = 60.0
    wall_s: float = 120.0
    memory_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if not 0 <= self.step_in_probability <= 1:
            raise ValueError(f"step_in_probability is {self.step_in_probability}; expected 0 to 1")
        for name in ("episodes_per_function", "max_episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What a suite left.

    Attributes:
        episodes: in the order in which they began.
        passed, failed: tests, and files that do not import; examples of doctests.
        dropped: episodes that were not kept, by reason: ``incomplete``, ``recursion`` (the
            program's, to its limit), ``max-episodes``, ``source`` (its lines are not in the file),
            ``marker``, ``format``, ``error``.
        full: whether the run was ended because ``max_episodes`` functions had an episode.
    """

    episodes: list[Episode]
    passed: int
    failed: int
    dropped: Mapping[str, int]
    full: bool


def own_site() -> tuple[Path, ...]:
    """The folders of the packages that this interpreter has installed."""
    paths = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return tuple(path for path in dict.fromkeys(paths) if path.is_dir())


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctestSuite:
    """The doctests of one module; in scope is its file, or its whole package.

    Attributes:
        module: dotted name, of the standard library or of what ``site`` holds.
        site: folders of importable packages.
        rules: how the run is cut.
    """

    module: str
    site: tuple[Path, ...] = ()
    rules: EpisodeRules = EpisodeRules()
    source: ClassVar[str] = "doctest"

    @property
    def name(self) -> str:
        return f"doctest-{self.module}"

    def run(self, tracer: Tracer) -> SuiteRun:
        """Runs the doctests in a sandbox of their own, with the tracer's limits on each episode.

        Raises:
            TraceError: ``reason`` is ``import``, ``no-source``, ``no-tests``, ``refused``
                (something else traces), or how the sandbox ended the run.
            SandboxError: no sandbox can be had.
        """
        request = {"module": self.module, "site": _absolute(self.site)}
        roots = [*map(Path, request["site"]), *_library()]
        answer = _run(request, self.rules, tracer, readable=self.site)
        return _Reader(self.name, self.source, self.module, roots, tracer).read(answer)

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Those of `run`."""
        return self.run(tracer).episodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PytestSuite:
    """The tests of a repository, run by pytest in one process that can only read it.

    Plugins are loaded only if the arguments or the repository's settings name them.

    Attributes:
        root: of the repository.
        arguments: for pytest, from the root.
        scope: folders and files whose functions are recorded; by default the whole repository.
        site: folders of importable packages, pytest among them; by default this interpreter's.
        label: names the suite; by default the root's name, with a digest of arguments and scope.
        rules: how the run is cut.
    """

    root: Path
    arguments: tuple[str, ...] = ()
    scope: tuple[Path, ...] = ()
    site: tuple[Path, ...] = dataclasses.field(default_factory=own_site)
    label: str | None = None
    rules: EpisodeRules = EpisodeRules()
    source: ClassVar[str] = "pytest"

    @property
    def name(self) -> str:
        asked = json.dumps([self.arguments, [str(path) for path in self.scope]])
        digest = "-" + hashlib.sha256(asked.encode()).hexdigest()[:8]
        default = self.root.absolute().name + (digest if self.arguments or self.scope else "")
        return f"pytest-{default if self.label is None else self.label}".replace("#", "-")

    def run(self, tracer: Tracer) -> SuiteRun:
        """Runs the tests in a sandbox of their own, with the tracer's limits on each episode.

        Raises:
            TraceError: ``reason`` is ``import``, ``no-tests``, ``pytest`` (it ends otherwise than
                after its tests), ``refused`` (something else traces), or how the sandbox ended the
                run.
            SandboxError: no sandbox can be had.
        """
        root = self.root.absolute()
        scope = [root / path for path in self.scope] or [root]
        request = {
            "root": str(root),
            "arguments": list(self.arguments),
            "scope": _absolute(scope),
            "site": _absolute(self.site),
        }
        answer = _run(request, self.rules, tracer, readable=[*self.site, root])
        return _Reader(self.name, self.source, "", [root], tracer).read(answer)

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Those of `run`."""
        return self.run(tracer).episodes


def doctest_suites(
    package: str, *, site: tuple[Path, ...] = (), rules: EpisodeRules = EpisodeRules()
) -> Iterator[DoctestSuite]:
    """A suite for each module of a package that holds examples; found without importing any.

    Args:
        package: of ``site`` or of the standard library; a module alone is one, too.
        site: folders of importable packages.
        rules: how the runs are cut.

    Raises:
        ValueError: there is no such package in these folders.
    """
    for folder in [*site, *_library()]:
        files = [folder / f"{package}.py", *sorted((folder / package).rglob("*.py"))]
        names = {_module_name(file, folder): file for file in files if file.is_file()}
        for name, file in names.items():
            if ">>>" in file.read_text(encoding="utf-8", errors="replace"):
                yield DoctestSuite(module=name, site=site, rules=rules)
        if names:
            return
    raise ValueError(
        f"no package {package!r} in {[str(folder) for folder in site]} or the standard library; "
        "expected its name as in an import: name the folder that holds it in `site`"
    )


def _module_name(file: Path, folder: Path) -> str:
    return ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")


def _library() -> list[Path]:
    return [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]


def _absolute(paths: Sequence[Path]) -> list[str]:
    return [str(path.absolute()) for path in paths]


def _run(
    request: dict[str, Any], rules: EpisodeRules, tracer: Tracer, *, readable: Sequence[Path]
) -> dict[str, Any]:
    """What `suite_recorder.handle` answers.

    Raises:
        TraceError: it did not run to its end.
    """
    request |= {
        "recorder": str(_RECORDER),
        "rules": dataclasses.asdict(rules),
        "limits": tracer.limits.of_recorder(),
    }
    limits = Limits(cpu_s=rules.cpu_s, wall_s=rules.wall_s, memory_bytes=rules.memory_bytes)
    paths = [_RECORDER, *(path.absolute() for path in readable)]
    worker = Worker(_PROGRAM, readable=paths, limits=limits, unsafe=tracer.unsafe, age=tracer.age)
    try:
        reply = worker.call(json.dumps(request).encode())
    finally:
        worker.close()
    if reply.outcome is not Outcome.OK:
        raise TraceError(reply.outcome.value, f"no episodes: the run ended: {reply.detail}")
    try:
        answer = json.loads(reply.value or b"")
        status, message = str(answer["status"]), answer["message"]
    except (ValueError, KeyError, TypeError):
        raise TraceError("error", "the run answered what no recorder writes") from None
    if status not in _WHOLE:
        raise TraceError(status, f"no episodes: {status}: {message}")
    return answer


class _Reader:
    """Makes episodes of an answer, which a process wrote that ran untrusted code.

    Only files below the roots are read.
    """

    def __init__(
        self, name: str, source: str, module: str, roots: Sequence[Path], tracer: Tracer
    ) -> None:
        self._name, self._source, self._module = name, source, module
        self._roots, self._limits = roots, tracer.limits
        self._files: dict[str, SourceFile] = {}
        self._names: dict[str, str] = {}

    def read(self, answer: dict[str, Any]) -> SuiteRun:
        episodes = []
        try:
            dropped = collections.Counter({k: int(v) for k, v in answer["dropped"].items() if v})
            for record in answer["episodes"]:
                try:
                    episodes.append(self._episode(record))
                except TraceError as error:
                    dropped[error.reason] += 1
            return SuiteRun(
                episodes=episodes,
                passed=int(answer["passed"]),
                failed=int(answer["failed"]),
                dropped=dict(sorted(dropped.items())),
                full=answer["status"] == "full",
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise TraceError(
                "error", f"the run answered what no recorder writes: {error}"
            ) from None

    def _episode(self, record: dict[str, Any]) -> Episode:
        scopes = [Scope(str(file), int(line), str(name)) for file, line, name in record["codes"]]
        for scope in scopes:
            self._open(scope.file)
        excerpt = make_excerpt(self._files, scopes, self._names)
        answer = answer_from_json(record["answer"])
        entered = [scopes[number].file for number in record["entered"]]
        answer = _in_context(answer, entered, excerpt.lines)
        trace = trace_from_answer(excerpt.context, answer, is_module=False, limits=self._limits)
        where = self._module or f"{self._names[scopes[0].file]}:{scopes[0].first_line}"
        return episode_from_trace(
            trace,
            name=f"{self._name}#{int(record['number'])}",
            source=self._source,
            origin=f"{where} {scopes[0].name}",
            # Suites of one package meet in its files.
            group=f"{'doctest' if self._module else self._name} {self._names[scopes[0].file]}",
            limits=self._limits,
        )

    def _open(self, file: str) -> None:
        if file in self._files:
            return
        path = Path(file).resolve()
        for root in self._roots:
            if path.is_relative_to(root.resolve()):
                self._files[file] = SourceFile(path)
                self._names[file] = path.relative_to(root.resolve()).as_posix()
                return
        raise TraceError("source", f"{file} is not in scope")


def _in_context(
    answer: RecorderAnswer, entered: Sequence[str], lines: Mapping[tuple[str, int], int]
) -> RecorderAnswer:
    """The same events at lines of the context.

    Calls and returns nest, so the file of each event follows from that of each call.

    Raises:
        TraceError: a line is not in the context.
    """
    events, stack, files = [], [], iter(entered)
    for line_and_kind, *rest in answer.events:
        line, kind = divmod(line_and_kind, 4)
        if kind == _CALL:
            stack.append(next(files))
        place = lines.get((stack[-1], line))
        if place is None:
            raise TraceError("source", f"{stack[-1]}:{line} is not among the lines of the episode")
        events.append([4 * place + kind, *rest])
        if kind == _RETURN:
            stack.pop()
    return dataclasses.replace(answer, events=events)
