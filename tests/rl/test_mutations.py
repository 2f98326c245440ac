"""Mutations: each rule on an example, and laws over modules of the standard library."""

import ast
import bisect
import colorsys
import fnmatch
import itertools
import shlex
import textwrap

import pytest

from cwm_jax.rl.envs.mutations import KINDS, SHARES, functions, mutations

MODULES = (bisect, colorsys, fnmatch, shlex, textwrap)
GOLDEN = {
    "function removed": ("x = 1\n@d\ndef f():\n    pass\ny = 2\n", "x = 1\ny = 2\n"),
    "body removed": ('def f():\n\t"""D."""\n\tg()\n\th()\n', 'def f():\n\t"""D."""\n\tpass\n'),
    "part of body removed": ("def f():\r\n  a()\r\n  b()\r\n", "def f():\r\n  b()\r\n"),
    "compound removed": ("def f(a):\n  x()\n  if a: y()\n  z()\n", "def f(a):\n  x()\n  z()\n"),
    "parameter removed": ("def f(é, *, b: int = 1, c): pass", "def f(é, *, c): pass"),
    "argument dropped": ("def f(): g(é, k=1)", "def f(): g(é)"),
    "arguments exchanged": ("def f(): g(é, [1])", "def f(): g([1], é)"),
    "arguments reversed": ("def f(): g(1, 2, 3)", "def f(): g(3, 2, 1)"),
    "keywords exchanged": ("def f(): g(a=1, b=2)", "def f(): g(a=2, b=1)"),
    "variables swapped": ("def f(a, b): return a - b", "def f(a, b): return b - a"),
    "import dropped": ("import a\nimport b\n", "import b\n"),
    "return dropped": ("async def f():\n  if await g():\n    return 1  # é\n  h()\n",
                       "async def f():\n  if await g():\n    pass  # é\n  h()\n"),
    "statement dropped": ("class A:\n  def f(s):\n    a = 1\n    b = 2\n    c = 3\n",
                          "class A:\n  def f(s):\n    a = 1\n    c = 3\n"),
    "unary operator": ("def f(a): return-a", "def f(a): return a"),
    "binary operator": ("def f(a): a //= 2", "def f(a): a /= 2"),
    "boolean operator": ("def f(a, b): return (a) and b", "def f(a, b): return (a) or b"),
    "comparison operator": ("def f(a, b): return a not  in b", "def f(a, b): return a in b"),
}  # fmt: skip


@pytest.mark.parametrize("rule", GOLDEN)
def test_each_rule_makes_its_example(rule):
    source, expected = GOLDEN[rule]
    assert expected in [m.source for m in mutations(source)]
    assert rule in {m.rule for m in mutations(source)}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_mutations_compile_change_the_tree_and_come_in_the_same_order(module):
    with open(module.__file__, encoding="utf-8", newline="") as file:
        source = file.read()
    found = list(itertools.islice(mutations(source), 200))
    assert found == list(itertools.islice(mutations(source), 200))
    assert found and len({m.source for m in found}) == len(found)
    for mutation in found:
        assert ast.dump(ast.parse(mutation.source)) != ast.dump(ast.parse(source))


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_lines_outside_the_function_stay(module):
    with open(module.__file__, encoding="utf-8", newline="") as file:
        source = file.read()
    lines = source.splitlines(keepends=True)
    for function in functions(source)[:6]:
        head, tail = "".join(lines[: function.first - 1]), "".join(lines[function.last :])
        for mutation in itertools.islice(mutations(source, function=function.name), 40):
            assert mutation.source.startswith(head) and mutation.source.endswith(tail)


def test_functions_have_qualified_names_and_lines_with_decorators():
    source = "class A:\n  @d\n  def f(s):\n    def g(): pass\n    return g\n"
    found = [(f.name, f.first, f.line, f.last) for f in functions(source)]
    assert found == [("A.f", 2, 3, 5), ("A.f.<locals>.g", 4, 4, 4)]


def test_names_in_f_strings_are_not_swapped():
    source = "def f(a, b):\n    return f'{a}' + b\n"
    assert not [m for m in mutations(source) if m.kind == "variables"]


def test_shares_are_the_reports():
    assert [SHARES[kind] for kind in KINDS] == [7, 9, 6, 11, 12]
