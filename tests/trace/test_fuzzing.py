"""Fuzzed inputs: literals of the right types, the same for the same seed, or a named reason."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwm_jax.trace.fuzzing import fuzz_targets, fuzzed_programs
from cwm_jax.trace.tracer import TraceError, Tracer

ROOT = Path(__file__).parent.parent.parent

# name of a function, its parameters, and what each argument must be
ANNOTATED = {
    "whole": ("n: int", lambda n: type(n) is int),
    "real": ("x: float", lambda x: type(x) is float),
    "flag": ("x: bool", lambda x: type(x) is bool),
    "text": ("s: str", lambda s: type(s) is str),
    "raw": ("b: bytes", lambda b: type(b) is bytes),
    "nothing": ("x: None", lambda x: x is None),
    "anything": ("x: typing.Any", lambda x: True),
    "bare_list": ("x: list", lambda x: type(x) is list),
    "ints": ("x: list[int]", lambda x: all(type(i) is int for i in x) and len(x) <= 6),
    "typing_list": ("x: typing.List[str]", lambda x: all(type(i) is str for i in x)),
    "nested": ("x: list[list[bool]]", lambda x: all(type(i) is bool for y in x for i in y)),
    "table": (
        "x: dict[str, list[int]]",
        lambda x: all(type(k) is str and type(v) is list for k, v in x.items()),
    ),
    "keyed": ("x: Dict[Tuple[int, str], int]", lambda x: all(len(k) == 2 for k in x)),
    "unique": ("x: set[int]", lambda x: type(x) is set and all(type(i) is int for i in x)),
    "frozen": ("x: frozenset[str]", lambda x: type(x) is set and all(type(i) is str for i in x)),
    "pair": ("x: tuple[int, str]", lambda x: type(x[0]) is int and type(x[1]) is str),
    "many": ("x: Tuple[int, ...]", lambda x: type(x) is tuple and all(type(i) is int for i in x)),
    "maybe": ("x: Optional[int]", lambda x: x is None or type(x) is int),
    "either": ("x: Union[int, str]", lambda x: type(x) in (int, str)),
    "bar": ("x: int | None", lambda x: x is None or type(x) is int),
    "quoted": ("x: 'list[int]'", lambda x: all(type(i) is int for i in x)),
    "mode": ("x: Literal['r', 'w']", lambda x: x in ("r", "w")),
    "sequence": ("x: collections.abc.Sequence[int]", lambda x: type(x) is list),
    "iterable": ("x: Iterable[str]", lambda x: type(x) is list),
    "mapping": ("x: Mapping[str, int]", lambda x: all(type(v) is int for v in x.values())),
    "default_int": ("x=3", lambda x: type(x) is int),
    "default_text": ("x='abc'", lambda x: type(x) is str),
    "default_list": ("x=[1, 2]", lambda x: all(type(i) is int for i in x)),
    "default_table": ("x={'a': 1}", lambda x: all(type(v) is int for v in x.values())),
}
REFUSED = {
    "def f(x): return x": "no-types",
    "def f(x: Callable[[int], int]): return x": "no-types",
    "def f(x: set[list[int]]): return x": "no-types",
    "def f(x: Counter[List[int]]): return x": "no-types",
    f"def f(x: '{'-' * 5000}int'): return x": "no-types",
    "def f(*args, **kwargs): return args": "varargs",
    "def f(*, key): return key": "keyword-no-types",
    "def f(n: int):\n    yield n": "generator",
    "async def f(n: int): return n": "async",
    "def main(n: int): return n": "main",
}


def arguments_of(source: str, **options) -> list[str]:
    """What the last line of each program passes."""
    programs = fuzzed_programs(source, origin="m.py", name="m", **{"seed": 0, **options})
    last = [program.context.splitlines()[-1] for program in programs]
    return [line.partition("(")[2].removesuffix(")") for line in last]


@pytest.mark.parametrize("name", ANNOTATED)
def test_arguments_are_literals_of_the_type(name):
    parameters, fits = ANNOTATED[name]
    found = arguments_of(f"def {name}({parameters}):\n    return 1\n", inputs_per_function=8)
    assert found
    for text in found:
        assert fits(ast.literal_eval(text)), text


def test_inputs_differ_and_are_as_many_as_asked_where_there_are_so_many():
    found = arguments_of("def f(a: int, b: str): return a\n", inputs_per_function=20)
    assert len(found) == len(set(found)) == 20
    assert len(arguments_of("def f(a: bool): return a\n", inputs_per_function=20)) == 2
    assert arguments_of("def f(): return 1\n") == [""]


@pytest.mark.parametrize("source", REFUSED)
def test_what_has_no_inputs_is_refused_by_name(source):
    assert arguments_of(source) == []
    assert [target.refused for target in fuzz_targets(source)] == [REFUSED[source]]


def test_functions_of_a_module_that_needs_its_own_main_are_refused():
    source = "def main(n: int): return n\ndef f(n: int): return {}(n)\n"
    assert [target.refused for target in fuzz_targets(source.format("main"))] == ["main", "main"]
    run = "if __name__ == '__main__':\n    main(1)\n"
    assert [t.refused for t in fuzz_targets(source.format("abs") + run)] == ["main", None]


@pytest.mark.parametrize("default", ["1e999", "-1e999", "1e999j", "[1e999]"])
def test_infinite_values_are_literals_too(default):
    found = arguments_of(f"def f(x={default}): return x\n", inputs_per_function=8)
    given = [ast.literal_eval(text) for text in found if text]
    assert ast.literal_eval(default) in given


def test_a_source_that_does_not_parse_is_refused():
    with pytest.raises(TraceError, match="SyntaxError") as raised:
        arguments_of("def f(:")
    assert raised.value.reason == "syntax"


def test_calls_and_doctests_give_types_and_values_that_belong_together():
    source = '''
def repeat(word, times, *, sep=None):
    """Joins.

    >>> repeat("ab", 3)
    'ababab'
    """
    return word * times

def test_pick():
    assert pick([5, 6], 1) == 6

def pick(items, at):
    return items[at]
'''
    found = [ast.literal_eval(f"({text})") for text in arguments_of(source) if text]
    assert {tuple(map(type, values)) for values in found} == {(str, int), (list, int)}
    assert arguments_of(source, inputs_per_function=1) == ["'ab', 3", "", "[5, 6], 1"]


def test_parameters_without_types_keep_their_defaults_and_what_follows_is_passed_by_name():
    source = "def f(a: int, b=None, c: int = 3, /, d=print, e: int = 4, *, g: int = 5): return a\n"
    for text in arguments_of(source):
        first, *rest = ast.parse(f"f({text})", mode="eval").body.args  # type: ignore[attr-defined]
        assert isinstance(ast.literal_eval(first), int) and not rest
        keywords = ast.parse(f"f({text})", mode="eval").body.keywords  # type: ignore[attr-defined]
        assert [keyword.arg for keyword in keywords] == ["e", "g"]


def test_static_and_class_methods_are_called_by_their_class():
    source = (
        "class A:\n    @staticmethod\n    def s(n: int): return n\n"
        "    @classmethod\n    def c(cls, n: int): return n\n    def m(self, n: int): return n\n"
    )
    assert [target.function for target in fuzz_targets(source)] == ["A.s", "A.c"]
    programs = list(fuzzed_programs(source, origin="a.py", name="a", seed=1))
    assert len(programs) == 8
    with Tracer() as tracer:
        (episode,) = programs[-1].episodes(tracer)
    assert episode.name == "a-A.c-3#0" and episode.origin == "a.py:5 A.c"
    assert episode.source == "function" and episode.finished


def test_sets_are_spelled_in_one_order():
    for text in arguments_of("def f(x: set[str]): return x\n", inputs_per_function=10):
        items = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        assert items == sorted(items, key=repr)


def test_programs_are_the_same_in_every_process_whatever_it_has_imported(tmp_path):
    parameters = "a: int, b: float, c: str, d: set[str], e: dict[str, int], f=17, g='abc'"
    source = f"def f({parameters}): return a\n"
    (tmp_path / "local_constants.py").write_text("A, B, C = 12345, 'a constant', 7.125\n" * 3)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "if sys.argv[1] == '1': import local_constants\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from cwm_jax.trace.fuzzing import fuzzed_programs\n"
        f"programs = fuzzed_programs({source!r}, origin='o', name='n', seed=5,"
        " inputs_per_function=60)\n"
        "print(*(program.context for program in programs))"
    )
    texts = []
    for number in "01":
        line = [sys.executable, "-W", "error", "-c", code, number]
        env = {**os.environ, "PYTHONHASHSEED": number, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            line, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        texts.append(done.stdout)
    assert texts[0].count("START_OF_TRACE") == 60
    assert texts[0] == texts[1]
    assert [path.name for path in tmp_path.iterdir()] == ["local_constants.py"]
    assert arguments_of(source, seed=5) != arguments_of(source, seed=6)
