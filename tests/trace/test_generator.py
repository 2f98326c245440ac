"""Generated programs: valid, bounded, varied and the same everywhere; each is run here."""

import ast
import hashlib
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest

from cwm_jax.trace.generator import (
    ESCAPE_FRACTION,
    FROM_DIFFICULTY,
    KINDS,
    LEVELS,
    GeneratedProgram,
    generate_program,
    generate_programs,
)

NUM_PROGRAMS = 2000
FILE = "<generated>"
# SHA-256 of the first 50 sources of seed 1234, equal on CPython 3.11.7, 3.12.1 and 3.13.0.
GOLDEN = "d71ec8b13072ca9750f1da592aaf9bbab59d0ae51eba32fd011f59c725c774c5"
# What shows that a kind is in a program; the kinds of data show in its parameters alone.
NODES = {
    "branches": (ast.If, ast.IfExp),
    "loops": (ast.For, ast.While),
    "comprehensions": (ast.ListComp, ast.DictComp, ast.GeneratorExp),
    "exceptions": (ast.Try, ast.Raise, ast.Assert),
}
EVERY_NODE = """
    Add And Assert Assign Attribute AugAssign BinOp BitAnd BitOr BitXor BoolOp Break Call
    Compare Constant Continue Delete Dict DictComp Eq ExceptHandler Expr FloorDiv For FormattedValue
    FunctionDef GeneratorExp Gt GtE If IfExp In Invert JoinedStr LShift Lambda List ListComp Lt LtE
    Mod Mult Name Not NotEq NotIn Or Pow RShift Raise Return Set Slice Starred Sub Subscript Try
    Tuple USub UnaryOp While
"""


@dataclass(frozen=True)
class Run:
    """What came of a program: events, result, exception, greatest int, longest text, container."""

    events: int
    output: object
    error: Exception | None
    magnitude: int
    text: int
    items: int


class TooManyEvents(BaseException):
    """More events than the table allows; no handler of a program catches it."""


def run(program: GeneratedProgram) -> Run:
    """Execute the program under ``sys.settrace``; only ever for our own, bounded programs."""
    limit = LEVELS[program.difficulty].events
    names, counts = {}, Counter()
    exec(compile(program.source, FILE, "exec"), names)

    def trace(frame, event, arg):
        if frame.f_code.co_filename != FILE:
            return None
        counts["events"] += 1
        if counts["events"] > limit:
            raise TooManyEvents(program.source)
        for value in frame.f_locals.values():
            measure(value, counts)
        return trace

    output = error = None
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        output = names["main"]()
    except Exception as caught:
        error = caught
    finally:
        sys.settrace(before)
    sizes = (counts["magnitude"], counts["text"], counts["items"])
    return Run(counts["events"], output, error, *sizes)


def measure(value: object, counts: Counter) -> None:
    if isinstance(value, int):
        counts["magnitude"] = max(counts["magnitude"], abs(value))
    elif isinstance(value, str):
        counts["text"] = max(counts["text"], len(value))
    elif isinstance(value, list | tuple | set | dict):
        counts["items"] = max(counts["items"], len(value))
        for item in value.values() if isinstance(value, dict) else value:
            measure(item, counts)


@pytest.fixture(scope="module")
def programs() -> list[GeneratedProgram]:
    return list(generate_programs(11, NUM_PROGRAMS))


@pytest.fixture(scope="module")
def runs(programs) -> list[Run]:
    return [run(program) for program in programs]


@pytest.fixture(scope="module")
def trees(programs) -> list[ast.Module]:
    return [ast.parse(program.source) for program in programs]


def test_every_program_stays_within_the_bounds_of_its_difficulty(programs, runs):
    for program, done in zip(programs, runs, strict=True):
        level = LEVELS[program.difficulty]
        assert done.magnitude <= level.magnitude, program.source
        assert done.text <= 6 * level.string, program.source
        assert done.items <= 3 * level.items, program.source


def test_only_programs_about_exceptions_let_one_escape_and_one_in_eight_of_them(programs, runs):
    about = escaped = 0
    for program, done in zip(programs, runs, strict=True):
        about += "exceptions" in program.kinds
        escaped += done.error is not None
        assert done.error is None or "exceptions" in program.kinds, program.source
    assert about > 200
    assert ESCAPE_FRACTION * 0.6 < escaped / about < ESCAPE_FRACTION * 1.5


def test_a_second_run_without_a_tracer_gives_the_same(programs, runs):
    for program, done in zip(programs, runs, strict=True):
        names = {}
        exec(compile(program.source, FILE, "exec"), names)
        if done.error is None:
            assert repr(names["main"]()) == repr(done.output)
        else:
            with pytest.raises(type(done.error)):
                names["main"]()


def test_no_set_that_a_reader_cannot_order_is_shown(programs, runs):
    def sets(value):
        if isinstance(value, set):
            yield value
        elif isinstance(value, list | tuple):
            for item in value:
                yield from sets(item)

    shown = [s for done in runs for s in sets(done.output)]
    assert len(shown) > 50
    assert all(type(item) is int and item >= 0 for s in shown for item in s)


def test_traces_grow_with_difficulty(programs, runs):
    means = []
    for difficulty in LEVELS:
        events = [
            r.events for p, r in zip(programs, runs, strict=True) if p.difficulty == difficulty
        ]
        means.append(sum(events) / len(events))
    assert all(b > 1.25 * a for a, b in pairwise(means)), means


def test_results_are_diverse_at_every_difficulty(programs, runs):
    for difficulty in LEVELS:
        outputs = Counter(
            repr(r.output)
            for p, r in zip(programs, runs, strict=True)
            if p.difficulty == difficulty and r.error is None
        )
        value, count = outputs.most_common(1)[0]
        assert count < 0.05 * outputs.total(), (difficulty, value)


def test_almost_no_two_programs_are_equal(trees):
    assert len({ast.dump(tree) for tree in trees}) > 0.995 * NUM_PROGRAMS


def test_almost_no_two_straight_line_programs_are_equal():
    found = generate_programs(5, NUM_PROGRAMS, difficulties=[1])
    assert len({ast.dump(ast.parse(p.source)) for p in found}) > 0.99 * NUM_PROGRAMS


def test_kinds_are_in_the_program_that_names_them(programs, runs, trees):
    seen = Counter()
    for program, done, tree in zip(programs, runs, trees, strict=True):
        seen.update(program.kinds)
        for kind in set(NODES) & set(program.kinds):
            found = any(isinstance(node, NODES[kind]) for node in ast.walk(tree))
            assert found or (kind == "exceptions" and done.error), (kind, program.source)
        assert "recursion" not in program.kinds or recurses(tree), program.source
        if "calls" in program.kinds:
            assert len(tree.body) > 2 or "key=lambda" in program.source, program.source
    assert set(seen) == set(KINDS)
    assert min(seen.values()) > NUM_PROGRAMS / 20, seen


def recurses(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Call) and getattr(node.func, "id", "") == function.name
        for function in tree.body
        for node in ast.walk(function)
    )


def test_every_construct_occurs(trees):
    nodes = {type(node).__name__ for tree in trees for node in ast.walk(tree)}
    assert not set(EVERY_NODE.split()) - nodes


def test_few_variables_are_never_read(trees):
    stored = unread = 0
    for tree in trees:
        for function in tree.body:
            names = [n for n in ast.walk(function) if isinstance(n, ast.Name)]
            loaded = {n.id for n in names if isinstance(n.ctx, ast.Load)}
            made = {n.id for n in names if isinstance(n.ctx, ast.Store)}
            stored, unread = stored + len(made), unread + len(made - loaded)
    assert unread < 0.06 * stored


def test_a_source_is_a_trace_context(programs):
    for program in programs:
        head, start, end = program.source.rpartition("\ndef main():  # << START_OF_TRACE\n")
        assert head.startswith("\ndef ") and start and "\ndef f(" in head
        assert end.startswith("    return f(") and end.endswith(")\n") and end.count("\n") == 1
        assert [ast.literal_eval(a) for a in ast.parse(end.strip()[7:], mode="eval").body.args]
        assert all(len(line) == len(line.rstrip()) for line in program.source.splitlines())
        assert program.source.isascii()


def test_a_kind_that_was_not_asked_for_does_not_occur():
    for left_out, nodes in NODES.items():
        kinds = [kind for kind in KINDS if kind != left_out and kind != "exceptions"]
        kinds = [kind for kind in kinds if kind != "recursion"]  # a recursion needs its branch
        for program in generate_programs(2, 60, difficulties=[4, 5], kinds=kinds):
            assert left_out not in program.kinds
            tree = ast.parse(program.source)
            assert not any(isinstance(node, nodes) for node in ast.walk(tree)), program.source


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_kind_makes_programs_at_each_of_its_difficulties(kind):
    for difficulty in range(FROM_DIFFICULTY[kind], 6):
        for index in range(10):
            program = generate_program(3, index, difficulty=difficulty, kinds=[kind])
            assert program.kinds == (kind,)
            assert run(program).error is None or kind == "exceptions"


def test_a_program_depends_on_its_arguments_alone():
    some = list(generate_programs(8, 20))
    again = [generate_program(8, i, difficulty=p.difficulty) for i, p in enumerate(some)]
    assert some == again
    assert generate_program(9, 0, difficulty=1) != some[0]
    assert {generate_program(8, i).difficulty for i in range(60)} == set(LEVELS)


def test_the_first_fifty_sources_of_a_seed_never_change_unnoticed():
    text = "".join(program.source for program in generate_programs(1234, 50))
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"kinds": ["loop"]}, "unknown kinds"),
        ({"kinds": []}, "no kinds"),
        ({"difficulty": 6}, "got difficulty 6"),
        ({"difficulty": 2, "kinds": ["recursion"]}, "do not occur at difficulty 2; expected 5"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        generate_program(1, 1, **arguments)


def test_no_difficulties_are_refused():
    with pytest.raises(ValueError, match="difficulties is empty"):
        next(generate_programs(1, 1, difficulties=[]))
