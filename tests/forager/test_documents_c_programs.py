"""C programs that a seed writes: they compile, end, and have no undefined behaviour."""

import random
import re
import shutil
import subprocess

import pytest

from cwm_jax.forager.documents.c_programs import c_program
from cwm_jax.forager.documents.c_programs.expressions import Expressions
from cwm_jax.forager.documents.c_programs.scope import Array, Scope, Variable
from cwm_jax.forager.documents.c_programs.shapes import SHAPES
from cwm_jax.forager.documents.c_programs.values import INT_MAX, INT_MIN, Value, converted, fitted

PROGRAMS = 6
CHECKED = (
    "-O1",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
    "-Werror=return-type",
)
GCC = shutil.which("gcc")


def compiled(source, program, *flags):
    """With a driver whose program's last line is its output."""
    assert GCC is not None
    line = [GCC, "-w", *flags, "-o", program, "-x", "c", "-"]
    subprocess.run(line, input=source.encode(), check=True, timeout=60)
    done = subprocess.run([program], capture_output=True, timeout=20)
    assert done.returncode == 0, f"{flags}: {done.returncode}\n{source}"
    return done.stdout


@pytest.mark.skipif(GCC is None, reason="no gcc on PATH")
def test_programs_end_without_undefined_behaviour_and_optimisation_changes_nothing(tmp_path):
    for number in range(PROGRAMS):
        program = c_program(5, number)
        whole = program.source + program.driver
        checked = compiled(whole, tmp_path / "checked", *CHECKED)
        assert checked == compiled(whole, tmp_path / "fast", "-O2", "-ffp-contract=off")
        assert checked.strip().isdigit()


@pytest.mark.skipif(GCC is None, reason="no gcc on PATH")
def test_the_check_sees_undefined_behaviour(tmp_path):
    wrong = "int main(void) { volatile int x = 2147483647; x = x + 1; return 0; }\n"
    with pytest.raises(AssertionError, match="-fsanitize"):
        compiled(wrong, tmp_path / "wrong", *CHECKED)


def test_a_program_is_the_same_again_and_another_for_another_number():
    sources = [c_program(0, number).source for number in range(40)]
    assert sources == [c_program(0, number).source for number in range(40)]
    assert len(set(sources)) == 40
    assert c_program(1, 0).source != sources[0]


def test_programs_have_every_shape_and_construct():
    programs = [c_program(0, number) for number in range(200)]
    assert {shape for program in programs for shape in program.shapes} == set(SHAPES)
    text = "\n".join(program.source for program in programs)
    wanted = ("for (", "while (", "do {", "switch (", "struct ", "[", "<<", "->", "continue;")
    wanted += (
        "break;",
        "double ",
        "unsigned long long",
        "static const",
        "/* fall through */",
        "++;",
    )
    assert [word for word in wanted if word not in text] == []


class CInt(int):
    """An int whose arithmetic is C's; what does not fit is an error."""

    def _of(self, value):
        assert INT_MIN <= value <= INT_MAX, f"{value} does not fit"
        return CInt(value)

    def __add__(self, other):
        return self._of(int(self) + int(other))

    def __sub__(self, other):
        return self._of(int(self) - int(other))

    def __mul__(self, other):
        return self._of(int(self) * int(other))

    def __neg__(self):
        return self._of(-int(self))

    def __invert__(self):
        return self._of(~int(self))

    def __and__(self, other):
        return self._of(int(self) & int(other))

    def __or__(self, other):
        return self._of(int(self) | int(other))

    def __xor__(self, other):
        return self._of(int(self) ^ int(other))

    def __lshift__(self, other):
        assert int(self) >= 0 and 0 <= int(other) < 32
        return self._of(int(self) << int(other))

    def __rshift__(self, other):
        assert int(self) >= 0 and 0 <= int(other) < 32
        return self._of(int(self) >> int(other))

    def __truediv__(self, other):
        quotient = abs(int(self)) // abs(int(other))
        return self._of(quotient if (int(self) < 0) == (int(other) < 0) else -quotient)

    def __mod__(self, other):
        return self._of(int(self) - int(self / other) * int(other))


WRITERS = ("_sum", "_product", "_quotient", "_bits", "_shift")


@pytest.mark.parametrize("writer", WRITERS)
def test_bounds_of_an_int_hold_at_the_ends_of_its_operands(writer):
    """Every operator of ints, evaluated as C would, for operands at the ends of their ranges."""
    ends = [
        (INT_MIN, INT_MAX),
        (0, 255),
        (-1000, 1000),
        (0, 1),
        (-5, 3),
        (INT_MIN, -7),
        (9, INT_MAX),
    ]
    for seed in range(300):
        draw = random.Random(seed)
        names = {name: draw.choice(ends) for name in ("x", "y", "z")}
        variables = [
            Variable(name=name, kind="int", low=low, high=high)
            for name, (low, high) in names.items()
        ]
        expressions = Expressions(Scope(draw=draw, variables=variables))
        value = getattr(expressions, writer)(variables[0].value, 1)
        text = re.sub(r"\b(\d+)\b", r"CInt(\1)", value.text)
        for _ in range(12):
            values = {
                name: CInt(draw.choice((low, high, draw.randint(low, high))))
                for name, (low, high) in names.items()
            }
            found = eval(text, {"CInt": CInt}, values)
            assert value.low <= found <= value.high, f"{value} of {values} is {int(found)}"


def test_an_int_is_brought_within_bounds_and_left_where_it_is():
    x = Value(text="x", kind="int", low=-5, high=5, atom=True)
    assert fitted(x, -5, 5) is x
    masked, reduced = fitted(x, 0, 200), fitted(x, -3, 5)
    assert (masked.text, masked.low, masked.high) == ("x & 127", 0, 127)
    assert (reduced.text, reduced.low, reduced.high) == ("x % 4", -3, 3)


def test_a_double_becomes_an_integer_by_its_sign_alone():
    r = Value(text="r", kind="double", atom=True)
    assert converted(r, "int").text == "r > 0.0"
    assert converted(r, "unsigned").text == "r > 0.0 ? 1u : 0u"


def test_indices_are_within_an_array():
    scope = Scope(draw=random.Random(0), variables=[Variable(name="x", kind="int")])
    scope.counters |= {"i": 4, "j": 16, "k": "n"}
    array = Array(name="a", element="int", length=8)
    found = {scope.index(array) for _ in range(200)}
    assert {"i", "x & 7"} <= found and not {"j", "k"} & found
    numbers = [int(index) for index in found if index and index.isdigit()]
    assert numbers and max(numbers) < 8
    assert {scope.index(Array(name="b", element="int", length="n")) for _ in range(20)} == {"k"}
    assert scope.index(Array(name="c", element="int", length="m")) is None
