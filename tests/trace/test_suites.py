"""Doctests and pytest runs, cut into episodes of functions."""

import ast
import dataclasses
import textwrap
from pathlib import Path

import pytest

from cwm_jax.trace import TraceError, TraceEvent, TraceLimits, Tracer, render_frames
from cwm_jax.trace.episodes import Episode
from cwm_jax.trace.suites import DoctestSuite, EpisodeRules, PytestSuite, SuiteRun, doctest_suites

MARK = "  # << START_OF_TRACE"
SHAPES = '''
"""Shapes."""

import math
from functools import (
    lru_cache,
    wraps,
)

UNIT: int = 2
UNUSED = 3
first, second = 5, 6


class Square:
    """A square."""

    # what follows is no part of its header
    SIDES = 4

    def __init__(self, side):
        self.side = side

    @property
    def area(self):
        total = 0
        for part in self.parts():
            total += part
        return total

    def parts(self):
        for _ in range(2):
            yield math.floor(self.side)


@lru_cache
def scale(value):
    return UNIT * value


def area(width, height):
    total = scale(width) + scale(height)
    return total


def descend(n):
    return 1 if n == 0 else 1 + descend(n - 1)


def count(n):
    total = 0
    for i in range(n):
        total += i
    return total
'''
TESTS = """
import pytest
import shapes


def test_area():
    assert shapes.area(3, 4) == 14


def test_square():
    assert shapes.Square(3).area == 6


def test_that_fails():
    assert shapes.scale(100) == 1
"""


@pytest.fixture(scope="module")
def tracer():
    with Tracer(TraceLimits(max_events=500)) as tracer:
        yield tracer


def repository(folder: Path, tests: str = TESTS, shapes: str = SHAPES) -> Path:
    root = folder / "repository"
    root.mkdir()
    (root / "shapes.py").write_text(textwrap.dedent(shapes).lstrip("\n"))
    (root / "test_shapes.py").write_text(textwrap.dedent(tests).lstrip("\n"))
    return root


def run(
    root: Path, tracer: Tracer, *, scope: tuple[str, ...] = ("shapes.py",), **rules
) -> SuiteRun:
    suite = PytestSuite(
        root=root,
        scope=tuple(map(Path, scope)),
        label="r",
        rules=EpisodeRules(wall_s=30.0, **rules),
    )
    return suite.run(tracer)


def entries(found: SuiteRun) -> list[str]:
    return [episode.origin.rpartition(" ")[2] for episode in found.episodes]


def calls(episode: Episode) -> list[str]:
    """The lines at which scopes are entered."""
    frames = episode.parse().frames
    return [f.source_line.strip() for f in frames if f.event is TraceEvent.CALL]


def check(episode: Episode) -> None:
    """What holds for every episode."""
    parsed = episode.parse()
    assert not parsed.problems and parsed.finished == episode.finished
    assert render_frames(parsed.frames, finished=episode.finished) == episode.frames
    assert len(parsed.frames) == episode.num_events
    ast.parse(episode.context)
    assert episode.context.count(MARK) == 1
    lines = set(episode.context.replace(MARK, "").splitlines(keepends=True))
    assert {frame.source_line for frame in parsed.frames} <= lines
    marked = next(line for line in episode.context.splitlines() if line.endswith(MARK))
    assert f"{marked.removesuffix(MARK)}\n" in lines and marked.lstrip().startswith(
        ("def", "async")
    )


def test_a_call_that_is_stepped_over_has_no_frames_and_an_episode_of_its_own(tmp_path, tracer):
    found = run(repository(tmp_path), tracer, step_in_probability=0.0)
    assert (found.passed, found.failed, found.dropped, found.full) == (2, 1, {}, False)
    assert entries(found) == ["area", "scale", "scale", "Square.__init__", "Square.area", "scale"]
    area, scale, _, _, square, _ = found.episodes
    assert area.name == "pytest-r#0" and area.source == "pytest"
    assert area.origin == "shapes.py:40 area"
    assert area.context == (
        f"def area(width, height):{MARK}\n"
        "    total = scale(width) + scale(height)\n    return total\n"
    )
    assert area.frames == (
        '<|call_sep|>{"width": "3", "height": "4"}<|action_sep|>def area(width, height):\n'
        '<|frame_sep|><|line_sep|>{"width": "..", "height": ".."}<|action_sep|>'
        "    total = scale(width) + scale(height)\n"
        '<|frame_sep|><|line_sep|>{"width": "..", "height": "..", "total": "14"}<|action_sep|>'
        "    return total\n"
        '<|frame_sep|><|return_sep|><|action_sep|>    return total\n<|arg_sep|>"14"<|frame_sep|>'
        "<|end_of_text|>"
    )
    assert scale.context == (
        "from functools import (\n    lru_cache,\n    wraps,\n)\nUNIT: int = 2\n"
        f"@lru_cache\ndef scale(value):{MARK}\n    return UNIT * value\n"
    )
    # a generator that is run inside belongs to the episode
    assert calls(square) == ["@property", "def parts(self):"] + 2 * ["yield math.floor(self.side)"]
    assert square.context.startswith(
        "import math\nclass Square:\n    @property\n    def area(self):"
    )
    for episode in found.episodes:
        check(episode)


def test_a_call_that_is_stepped_into_is_part_of_the_episode_that_calls_it(tmp_path, tracer):
    found = run(repository(tmp_path), tracer, step_in_probability=1.0)
    assert entries(found) == ["area", "Square.__init__", "Square.area", "scale"]
    area = found.episodes[0]
    assert calls(area) == ["def area(width, height):", "@lru_cache", "@lru_cache"]
    assert "@lru_cache\ndef scale(value):\n    return" in area.context
    assert f"def area(width, height):{MARK}\n" in area.context
    for episode in found.episodes:
        check(episode)


def test_several_files_are_named_in_the_context_the_entrys_last(tmp_path, tracer):
    found = run(repository(tmp_path), tracer, scope=(".",), step_in_probability=1.0)
    assert entries(found) == ["test_area", "test_square", "test_that_fails"]
    assert found.dropped == {}  # nothing of <frozen os> and the like
    context = found.episodes[0].context
    assert context.startswith("# shapes.py\nfrom functools import (\n")
    assert context.endswith(
        f"# test_shapes.py\nimport shapes\ndef test_area():{MARK}\n"
        "    assert shapes.area(3, 4) == 14\n"
    )
    failed = found.episodes[2].parse().frames
    assert failed[-2].event is TraceEvent.EXCEPTION and failed[-2].arg == "AssertionError()"
    for episode in found.episodes:
        check(episode)


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_scopes_are_stepped_into_down_to_the_depth(tmp_path, tracer, depth):
    tests = "import shapes\n\ndef test_it():\n    assert shapes.descend(3) == 4\n"
    root = repository(tmp_path, tests)
    found = run(root, tracer, step_in_probability=1.0, max_step_in_depth=depth)
    sizes = [len(calls(episode)) for episode in found.episodes]
    assert sizes == {0: [1, 1, 1, 1], 1: [2, 2], 2: [3, 1], 5: [4]}[depth]


def test_two_runs_give_the_same_episodes_and_another_seed_gives_others(tmp_path, tracer):
    tests = "import shapes\n\ndef test_it():\n    assert shapes.descend(12) == 13\n"
    root = repository(tmp_path, tests)
    options = {"max_step_in_depth": 9, "episodes_per_function": 20}
    first, again, other = (run(root, tracer, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again
    assert 1 < len(first.episodes) < 13
    assert first != other


def test_episodes_of_a_function_and_of_a_run_are_limited_distinct_functions_first(tmp_path, tracer):
    tests = """
        import shapes

        def test_it():
            for n in range(9):
                shapes.count(n)
            shapes.descend(0)
            shapes.area(1, 2)
    """
    root = repository(tmp_path, tests)
    never = {"step_in_probability": 0.0}
    assert entries(run(root, tracer, **never)) == 4 * ["count"] + ["descend", "area"] + 2 * [
        "scale"
    ]
    few = run(root, tracer, max_episodes=3, **never)
    assert entries(few) == ["count", "descend", "area"] and few.full
    five = run(root, tracer, max_episodes=5, **never)
    assert entries(five) == ["count", "count", "descend", "area", "scale"]
    assert five.dropped == {"max-episodes": 3} and not five.full


def test_an_episode_beyond_its_limits_is_cut_and_the_run_goes_on(tmp_path, tracer):
    tests = """
        import pytest
        import shapes

        def test_long():
            assert shapes.count(10_000) == 49_995_000
            assert shapes.scale(1) == 2

        def test_endless_recursion():
            with pytest.raises(RecursionError):
                shapes.descend(-1)

        def test_deep():
            assert shapes.descend(400) == 401
            assert shapes.scale(2) == 4
    """
    root = repository(tmp_path, tests)
    found = run(root, tracer, step_in_probability=1.0, max_step_in_depth=1000)
    assert (found.passed, found.failed) == (3, 0)
    states = {(e.origin.rpartition(" ")[2], e.status, e.finished) for e in found.episodes}
    assert {("count", "events", False), ("descend", "depth", False)} <= states
    assert entries(found).count("scale") == 2
    assert found.episodes[0].num_events == 500
    for episode in found.episodes:
        check(episode)


def test_suspended_entries_go_on_as_the_same_episode(tmp_path, tracer):
    tests = """
        import asyncio
        import shapes

        def test_generator():
            parts = shapes.Square(3).parts()
            assert next(parts) == 3
            assert shapes.scale(5) == 10
            assert list(parts) == [3]

        def test_left():
            next(shapes.Square(4).parts())

        def test_coroutine():
            async def both():
                return await asyncio.gather(shapes.wait(1), shapes.wait(2))
            assert asyncio.run(both()) == [1, 2]
    """
    wait = "\n\nimport asyncio\nasync def wait(n):\n    await asyncio.sleep(0)\n    return n\n"
    found = run(repository(tmp_path, tests, SHAPES + wait), tracer)
    assert (found.passed, found.failed, found.dropped) == (3, 0, {})
    names = ["Square.__init__", "Square.parts", "scale", "Square.__init__", "Square.parts"]
    assert entries(found) == [*names, "wait", "wait"]
    assert len(calls(found.episodes[1])) == 3
    left = found.episodes[4].parse().frames
    assert left[-2].arg == "GeneratorExit()" and found.episodes[4].finished
    for episode in found.episodes:
        check(episode)


def test_what_decorators_lambdas_and_nested_functions_run_belongs_to_the_episode(tmp_path, tracer):
    shapes = """
        import functools

        def twice(function):
            @functools.wraps(function)
            def wrapper(n):
                return function(function(n))
            return wrapper

        by_size = lambda text: len(text)

        @twice
        def add(n):
            class Box:
                size = n
            return Box.size + 1

        if True:
            def order(texts):
                return sorted(
                    [t for t in texts],
                    key=by_size,
                )
    """
    tests = """
        import shapes

        def test_it():
            assert shapes.order(["bbb", "a"]) == ["a", "bbb"]
            assert shapes.add(1) == 3
    """
    found = run(repository(tmp_path, tests, shapes), tracer, step_in_probability=0.0)
    assert entries(found) == ["order", "add", "add"]
    order, add, _ = found.episodes
    assert "by_size = lambda text: len(text)\nif True:\n    def order" in order.context
    assert calls(order) == ["def order(texts):", "[t for t in texts],"] + 2 * [
        "by_size = lambda text: len(text)"
    ]
    assert calls(add) == ["@twice", "class Box:"]
    for episode in found.episodes:
        check(episode)


def test_what_an_import_or_a_cut_generator_runs_is_no_part_of_the_episode(tmp_path):
    shapes = """

def chunks():
    total = 0
    for i in range(2000):
        total += i
        if i % 500 == 499:
            yield total


def load():
    import late

    return late.VALUE


def drain(items):
    return sum(items)
"""
    tests = """
        import shapes

        def test_it():
            shapes.held = shapes.chunks()
            assert next(shapes.held) == sum(range(500))
            assert shapes.load() == 14
            assert shapes.drain(shapes.held) > 0
    """
    root = repository(tmp_path, tests, SHAPES + shapes)
    (root / "late.py").write_text("import shapes\n\nnext(shapes.held)\nVALUE = shapes.scale(7)\n")
    with Tracer(TraceLimits(max_events=1200)) as tracer:
        found = run(root, tracer, scope=("shapes.py", "late.py"), step_in_probability=1.0)
    assert (found.passed, found.failed, found.dropped) == (1, 0, {})
    assert entries(found) == ["chunks", "load", "scale", "drain"]
    assert [episode.status for episode in found.episodes] == ["events", *2 * ["finished"], "events"]
    assert calls(found.episodes[1]) == ["def load():"]
    # in an episode that goes on with the generator its lines are there again
    assert calls(found.episodes[3]) == ["def drain(items):", "yield total"]
    assert found.episodes[3].num_events == 1200
    for episode in found.episodes:
        check(episode)


def test_the_last_frames_of_the_stack_cost_an_episode_and_not_the_run(tmp_path):
    shapes = """

class Shy:
    def __repr__(self):
        raise ValueError


def greet(guest):
    name = "guest"
    return name
"""
    tests = """
        import sys
        import shapes

        def go_down(frames):
            return go_down(frames - 1) if frames else shapes.greet(shapes.Shy())

        def attempt(frames):
            try:
                return go_down(frames)
            except RecursionError:
                return None

        def test_it():
            found = [attempt(frames) for frames in range(sys.getrecursionlimit())]
            assert found[0] == "guest" and found[-1] is None
            assert shapes.scale(1) == 2

        def test_one_episode():
            assert attempt(0) == "guest"
            try:
                shapes.descend(-1)
            except RecursionError:
                pass
            assert shapes.scale(2) == 4
    """
    root = repository(tmp_path, tests, SHAPES + shapes)
    rules = {"episodes_per_function": 2000, "max_episodes": 2000, "max_step_in_depth": 2000}
    with Tracer(TraceLimits(max_events=50_000, max_depth=2000)) as tracer:
        found = run(root, tracer, step_in_probability=1.0, **rules)
    assert (found.passed, found.failed) == (2, 0)
    assert [*found.dropped] == ["recursion"]
    names = entries(found)
    assert names[-3:] == ["scale", "greet", "scale"] and {*names[:-3]} == {"greet"}
    assert {episode.num_events for episode in found.episodes} == {3, 4}


HOSTILE = {
    "untraced": ("refused", "import sys\n\ndef test_it():\n    sys.settrace(None)\n"),
    "traced": (
        "refused",
        "import sys\n\ndef test_it():\n    sys.settrace(lambda *arguments: None)\n",
    ),
    "traced for a while": (
        "refused",
        "import sys\n\ndef test_it():\n    before = sys.gettrace()\n"
        "    sys.settrace(None)\n    sys.settrace(before)\n",
    ),
    "exit": ("exit", "import os\n\ndef test_it():\n    os._exit(0)\n"),
    "exit on import": ("exit", "import os\nos._exit(3)\n"),
    "endless": ("cpu", "def test_it():\n    while True:\n        pass\n"),
    "kill": ("signal", "import os\n\ndef test_it():\n    os.kill(os.getpid(), 9)\n"),
    "no import": ("import", "import nothing_of_that_name\n"),
    "no tests": ("no-tests", "x = 1\n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_suite_that_cannot_run_ends_in_a_named_failure(tmp_path, tracer, kind):
    reason, tests = HOSTILE[kind]
    suite = PytestSuite(
        root=repository(tmp_path, tests), rules=EpisodeRules(cpu_s=2.0, wall_s=20.0)
    )
    with pytest.raises(TraceError) as raised:
        suite.run(tracer)
    assert raised.value.reason == reason, raised.value
    assert not list(suite.root.rglob("*.pyc")) and len(list(suite.root.iterdir())) == 2


def test_why_pytest_cannot_begin_is_said(tmp_path, tracer):
    root = repository(tmp_path, "def test_it():\n    pass\n")
    (root / "conftest.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(TraceError, match=r"(?s)exit code 4: .*nothing_of_that_name") as raised:
        PytestSuite(root=root).run(tracer)
    assert raised.value.reason == "pytest"


def test_the_repository_can_only_be_read(tmp_path, tracer):
    tests = """
        import pathlib
        import pytest

        def test_it(tmp_path):
            (tmp_path / "file").write_text("in the scratch folder")
            with pytest.raises(OSError):
                pathlib.Path(__file__).with_name("new").write_text("x")
    """
    found = run(repository(tmp_path, tests), tracer, scope=(".",))
    assert (found.passed, found.failed) == (1, 0)
    assert not (tmp_path / "repository" / "new").exists()


@pytest.mark.parametrize("module", ["textwrap", "difflib", "fractions", "collections", "json"])
def test_doctests_of_the_standard_library_become_episodes(tracer, module):
    suite = DoctestSuite(module=module)
    found = suite.run(tracer)
    assert found.passed > 1 and len(found.episodes) > 5
    assert {episode.source for episode in found.episodes} == {"doctest"}
    assert all(e.origin.startswith(f"{module} ") for e in found.episodes)
    assert len({episode.name for episode in found.episodes}) == len(found.episodes)
    assert all(e.name.startswith(f"doctest-{module}#") for e in found.episodes)
    for episode in found.episodes:
        check(episode)


def test_doctests_of_a_package_step_through_its_modules(tmp_path, tracer):
    package = tmp_path / "site" / "boxes"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        'from boxes.inner import double\n\n\ndef four(n):\n    """\n    >>> four(2)\n    8\n'
        '    >>> four(1)\n    5\n    """\n    return double(double(n))\n'
    )
    (package / "inner.py").write_text("def double(n):\n    return 2 * n\n")
    suite = DoctestSuite(
        module="boxes", site=(package.parent,), rules=EpisodeRules(step_in_probability=1.0)
    )
    found = suite.run(tracer)
    assert (found.passed, found.failed) == (1, 1)
    assert found.episodes == suite.episodes(tracer)
    assert entries(found) == ["four", "four"]
    assert {episode.group for episode in found.episodes} == {"doctest boxes/__init__.py"}
    assert found.episodes[0].context.startswith(
        "# boxes/inner.py\ndef double(n):\n    return 2 * n\n"
        "# boxes/__init__.py\nfrom boxes.inner import double\ndef four(n):"
    )


def test_the_modules_of_a_package_that_hold_examples_are_found(tmp_path):
    for name in ("boxes/__init__.py", "boxes/plain.py", "boxes/inner/deep.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x = 1\n" if name == "boxes/plain.py" else '"""\n>>> 1\n1\n"""\n')
    rules = EpisodeRules(seed=3)
    found = list(doctest_suites("boxes", site=(tmp_path,), rules=rules))
    assert [suite.module for suite in found] == ["boxes", "boxes.inner.deep"]
    assert {(suite.site, suite.rules) for suite in found} == {((tmp_path,), rules)}
    assert [suite.module for suite in doctest_suites("textwrap")] == ["textwrap"]
    with pytest.raises(ValueError, match="name the folder"):
        list(doctest_suites("nothing_of_that_name"))


@pytest.mark.parametrize(
    ("module", "reason"),
    [("nothing_of_that_name", "import"), ("sys", "no-source"), ("bisect", "no-tests")],
)
def test_a_module_without_doctests_is_refused_by_name(tracer, module, reason):
    with pytest.raises(TraceError) as raised:
        DoctestSuite(module=module).run(tracer)
    assert raised.value.reason == reason


def test_names_of_suites_tell_them_apart():
    one = PytestSuite(root=Path("/a/repository"))
    assert one.name == "pytest-repository"
    other = dataclasses.replace(one, arguments=("-k", "x"))
    assert other.name.startswith("pytest-repository-") and other.name != one.name
    assert dataclasses.replace(one, label="a#b").name == "pytest-a-b"


def test_rules_out_of_range_are_refused():
    for wrong in ({"step_in_probability": 1.5}, {"max_episodes": 0}):
        with pytest.raises(ValueError, match="expected"):
            EpisodeRules(**wrong)


def test_statements_that_share_a_line_are_kept_together(tmp_path, tracer):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lines.py").write_text(
        "A = 1; B = (\n    2\n)\n\n"
        'def f(x):\n    """\n    >>> f(1)\n    2\n    """\n    return x + A\n'
    )
    suite = DoctestSuite(module="lines", site=(tmp_path / "site",))
    (episode,) = suite.run(tracer).episodes
    assert episode.context.startswith("A = 1; B = (\n    2\n)\ndef f(x):")
    ast.parse(episode.context)
