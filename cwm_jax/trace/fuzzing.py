"""Inputs for functions where none are given: type-directed fuzzing, without running anything.

What a parameter takes is read from the source: its annotation, else its default, else the literals
that calls in the module and in its docstrings pass. Values are drawn by hypothesis, the same ones
for the same seed in every process.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import doctest
import itertools
import random
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import SearchStrategy

from cwm_jax.trace.episodes import Program, context_of_call, uses_main
from cwm_jax.trace.strategies import literal, strategy_from_annotation, strategy_from_values
from cwm_jax.trace.tracer import PARSE_ERRORS, TraceError

CANDIDATES_PER_INPUT = 8  # assumed: drawn for each input that is kept
_BACKEND = "cwm_jax"
_NO_LITERAL = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)


class _SeedAlone(HypothesisProvider):
    """Draws by the seed alone.

    Hypothesis' own provider also draws constants of all modules that the process has imported, and
    keeps a folder of them in the working directory.
    """

    def _maybe_draw_constant(self, *_: object, **__: object) -> None:
        return None


AVAILABLE_PROVIDERS[_BACKEND] = _SeedAlone


@dataclasses.dataclass(frozen=True)
class FuzzTarget:
    """A function of a module and what it can be called with.

    Attributes:
        function: dotted name in the module.
        lineno: of its ``def``.
        arguments: source text between the brackets of a call; None if it is refused.
        seen: the same of calls in the module and its docstrings.
        refused: why it has no arguments: ``no-types`` (a required parameter of which nothing is
            known), ``keyword-no-types`` (the same of a keyword-only one), ``varargs`` (it takes
            nothing but ``*args`` and ``**kwargs``), ``async`` and ``generator`` (a call runs none
            of its lines), ``main`` (the context's entry takes the place of the module's own, which
            this is or which the module uses).
    """

    function: str
    lineno: int
    arguments: SearchStrategy[str] | None
    seen: tuple[str, ...] = ()
    refused: str | None = None


def fuzzed_programs(
    source: str, *, origin: str, name: str, seed: int, inputs_per_function: int = 4
) -> Iterator[Program]:
    """Programs that call the functions of a module with distinct arguments.

    `fuzz_targets` says which functions have none and why.

    Args:
        source: of the module; it is the context, whole.
        origin: where it comes from, for people.
        name: unique and stable; that of a program is ``NAME-FUNCTION-NUMBER``, its group this.
        seed: programs are a function of it, the source and the name.
        inputs_per_function: at most; a function may have fewer that differ.

    Raises:
        TraceError: the source does not parse.
    """
    for target in fuzz_targets(source):
        if target.arguments is None:
            continue
        inputs = _draw(target, target.arguments, f"{seed} {name}", inputs_per_function)
        for number, arguments in enumerate(inputs):
            yield Program(
                name=f"{name}-{target.function}-{number}".replace("#", "-"),
                context=context_of_call(source, arguments, function=target.function),
                source="function",
                origin=f"{origin}:{target.lineno} {target.function}",
                group=name,
            )


def fuzz_targets(source: str) -> list[FuzzTarget]:
    """The functions of a module, static and class methods among them, in its order.

    Raises:
        TraceError: the source does not parse.
    """
    try:
        tree = ast.parse(source)
    except PARSE_ERRORS as error:
        raise TraceError("syntax", f"no targets: {type(error).__name__}: {error}") from None
    functions = {name: (node, skip) for name, node, skip in _functions(tree.body, "")}
    if uses_main(source):  # the one that the context defines would take its place
        return [
            FuzzTarget(name, node.lineno, None, refused="main")
            for name, (node, _) in functions.items()
        ]
    calls = list(_calls(tree))
    return [_target(name, node, skip, calls) for name, (node, skip) in functions.items()]


def _functions(
    body: Iterable[ast.stmt], prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """(name, node, number of parameters that a call does not pass)."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not prefix:
            yield from _functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {d.id for d in node.decorator_list if isinstance(d, ast.Name)}
            if not prefix or decorators & {"staticmethod", "classmethod"}:
                yield prefix + node.name, node, int("classmethod" in decorators)


def _target(
    name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, skip: int, calls: list[ast.Call]
) -> FuzzTarget:
    parameters = _parameters(node, skip)
    refused = _refusal(name, node, parameters)
    if refused is not None:
        return FuzzTarget(name, node.lineno, None, refused=refused)
    rows = [row for call in calls if (row := _row(call, node.name, parameters)) is not None]
    strategies: dict[str, SearchStrategy[Any]] = {}
    for parameter in parameters:
        strategy = _strategy(
            parameter, [row[parameter.name] for row in rows if parameter.name in row]
        )
        if strategy is not None:
            strategies[parameter.name] = strategy
        elif parameter.required:
            refused = "keyword-no-types" if parameter.keyword_only else "no-types"
            return FuzzTarget(name, node.lineno, None, refused=refused)
    required = {parameter.name for parameter in parameters if parameter.required}
    whole = [row for row in rows if row and required <= set(row)]
    seen = tuple(dict.fromkeys(_text(row, parameters) for row in whole))
    drawn = st.fixed_dictionaries(strategies).map(lambda values: _text(values, parameters))
    return FuzzTarget(name, node.lineno, drawn, seen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Parameter:
    name: str
    annotation: ast.expr | None
    default: ast.expr | None
    keyword_only: bool
    positional_only: bool

    @property
    def required(self) -> bool:
        return self.default is None


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, skip: int) -> list[_Parameter]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults, *arguments.kw_defaults]
    found = [
        _Parameter(
            name=argument.arg,
            annotation=argument.annotation,
            default=default,
            keyword_only=number >= len(positional),
            positional_only=number < len(arguments.posonlyargs),
        )
        for number, (argument, default) in enumerate(
            zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
        )
    ]
    return found[skip:]


def _refusal(
    name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, parameters: list[_Parameter]
) -> str | None:
    if name == "main":
        return "main"
    if isinstance(node, ast.AsyncFunctionDef):
        return "async"
    if any(isinstance(inner, ast.Yield | ast.YieldFrom) for inner in _own_nodes(node)):
        return "generator"
    return "varargs" if not parameters and (node.args.vararg or node.args.kwarg) else None


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of its body, without those of functions and classes inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            pending += ast.iter_child_nodes(node)


def _strategy(parameter: _Parameter, seen: list[Any]) -> SearchStrategy[Any] | None:
    strategy = strategy_from_annotation(parameter.annotation)
    if strategy is not None:
        return st.one_of(strategy, strategy_from_values(seen)) if seen else strategy
    values = list(seen)
    if parameter.default is not None:
        with contextlib.suppress(*_NO_LITERAL):
            values.append(ast.literal_eval(parameter.default))
    # None alone tells nothing: a parameter with that default is left to it.
    return strategy_from_values(values) if any(v is not None for v in values) else None


def _calls(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls in the module, and in the examples of its docstrings."""
    trees: list[ast.AST] = [tree]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ">>>" in (text := ast.get_docstring(node) or ""):
            try:
                examples = doctest.DocTestParser().get_examples(text)
                trees += [ast.parse(example.source) for example in examples]
            except PARSE_ERRORS:  # no such examples: not this module's fault
                continue
    for each in trees:
        yield from (node for node in ast.walk(each) if isinstance(node, ast.Call))


def _row(call: ast.Call, name: str, parameters: list[_Parameter]) -> dict[str, Any] | None:
    """The literals that a call passes, by parameter; None if it calls something else."""
    called = call.func
    if name != (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)):
        return None
    positional = [parameter.name for parameter in parameters if not parameter.keyword_only]
    before_star = itertools.takewhile(lambda node: not isinstance(node, ast.Starred), call.args)
    passed = [*zip(positional, before_star, strict=False)]
    known = {parameter.name for parameter in parameters if not parameter.positional_only}
    passed += [(k.arg, k.value) for k in call.keywords if k.arg in known and k.arg is not None]
    row = {}
    for parameter, node in passed:
        try:
            row[parameter] = ast.literal_eval(node)
        except _NO_LITERAL:
            continue
    return row


def _text(values: dict[str, Any], parameters: list[_Parameter]) -> str:
    """Source of the arguments: by position as far as they go without a gap, then by name."""
    texts, gap = [], False
    for parameter in parameters:
        if parameter.name not in values:
            gap = True
        elif not (gap or parameter.keyword_only):
            texts.append(literal(values[parameter.name]))
        elif not parameter.positional_only:
            texts.append(f"{parameter.name}={literal(values[parameter.name])}")
    return ", ".join(texts)


def _draw(target: FuzzTarget, arguments: SearchStrategy[str], key: str, count: int) -> list[str]:
    """Distinct inputs, up to half of them seen in calls; fewer than ``count`` if no more differ."""
    key += f" {target.function}"
    found: dict[str, None] = {}

    @hypothesis_seed(zlib.crc32(key.encode()))
    @settings(
        max_examples=CANDIDATES_PER_INPUT * count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        backend=_BACKEND,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.large_base_example,
        ],
    )
    @given(arguments)
    def collect(text: str) -> None:
        found[text] = None

    collect()
    rng = random.Random(key)
    seen = rng.sample(target.seen, min((count + 1) // 2, len(target.seen)))
    others = [text for text in found if text not in seen]
    return seen + rng.sample(others, min(count - len(seen), len(others)))
