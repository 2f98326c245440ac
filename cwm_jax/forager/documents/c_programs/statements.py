"""Statements in C that end, of what a scope has."""

from __future__ import annotations

from collections.abc import Sequence

from cwm_jax.forager.documents.c_programs.expressions import Expressions
from cwm_jax.forager.documents.c_programs.scope import BYTE, Array, Scope, Variable
from cwm_jax.forager.documents.c_programs.values import (
    BITS,
    INT_MAX,
    KINDS,
    SUFFIX,
    Kind,
    constant,
    converted,
)

INDENT = "    "
_BOUNDS = ((-1000, 1000), (-30_000, 30_000), (0, 255), (0, 65_535), (-1_000_000, 1_000_000))
_LETTERS = {"int": "xyzbk", "unsigned": "uvhm", "unsigned long long": "wqz", "double": "rst"}
_RETURNED = 4  # variables
_DEEP = 2  # blocks in blocks, and expressions


class Statements:
    """Draws statements, as lines without the indentation of where they come to stand.

    Args:
        scope: of the block; declarations are added to it.
        result: what the function returns.
        deep: how many blocks may stand in one another from here on.
        in_loop: ``continue`` and ``break`` are of a loop here.
    """

    def __init__(
        self, scope: Scope, result: Kind, *, deep: int = _DEEP, in_loop: bool = False
    ) -> None:
        self._scope, self._draw, self._result = scope, scope.draw, result
        self._deep, self._in_loop = deep, in_loop
        self._expressions = Expressions(scope)

    def of_plan(self, words: Sequence[str]) -> list[str]:
        """Statements of the kinds that are named: those of `_PLAN`."""
        return [line for word in words for line in _PLAN[word](self)]

    def returned(self) -> list[str]:
        """The end of the function: something of the last variables, so that they are needed."""
        known = [v.value for v in self._scope.variables if not v.fixed][-_RETURNED:]
        last = self._expressions.value(self._result, _DEEP)
        values = [*(converted(value, self._result) for value in known), last]
        if self._result == "int":  # what does not fit is cut off where that is defined
            mixed = " ^ ".join(f"(unsigned){value.operand}" for value in values)
            return [f"return (int)(({mixed}) & 0x7fffffffu);"]
        sign = " + " if self._result == "double" else self._draw.choice((" ^ ", " + "))
        return [f"return {sign.join(value.operand for value in values)};"]

    def declared(self) -> list[str]:
        kind = self._draw.choice(KINDS[:3]) if self._draw.random() < 0.9 else "double"
        return self._declared(kind)

    def declared_array(self) -> list[str]:
        """With a value for every element."""
        element = self._draw.choice(("int", "unsigned", BYTE))
        length, name = self._draw.choice((4, 8)), self._scope.name("lpt")
        values = ", ".join(str(self._draw.randrange(200)) for _ in range(length))
        self._scope.arrays.append(Array(name=name, element=element, length=length))
        return [f"{element} {name}[{length}] = {{{values}}};"]

    def assigned(self) -> list[str]:
        kinds = [kind for kind in KINDS if self._scope.of_kind(kind, assignable=True)]
        if not kinds:
            return self.declared()
        variable = self._draw.choice(self._scope.of_kind(self._draw.choice(kinds), assignable=True))
        return [self._assignment(variable)]

    def stored(self) -> list[str]:
        """An element of an array, or where there is none a variable."""
        arrays = [array for array in self._scope.arrays if not array.fixed]
        array = self._draw.choice(arrays) if arrays else None
        place = self._expressions.element(array) if array else None
        if array is None or place is None:
            return self.assigned()
        value = self._expressions.value(place.kind, _DEEP)
        if array.element == BYTE:
            return [f"{place.text} = ({BYTE}){value.operand};"]
        if place.kind != "int" and self._draw.random() < 0.5:
            return [f"{place.text} {self._sign(place.kind)}= {value.text};"]
        return [f"{place.text} = {value.text};"]

    def branched(self) -> list[str]:
        test = self._expressions.condition(_DEEP)
        lines = [f"if ({test.text}) {{", *self._block()]
        if self._draw.random() < 0.5:
            lines += ["} else {", *self._block()]
        return [*lines, "}"]

    def switched(self) -> list[str]:
        """On what has as many values as there are cases, or more."""
        count = self._draw.choice((3, 4, 5, 8))
        by = self._expressions.value("unsigned", 1).operand
        text = f"{by} & 7u" if count == 8 else f"{by} % {count}u"
        lines = [f"switch ({text}) {{"]
        for case in range(count - 1):
            if self._draw.random() < 0.15:
                continue
            lines.append(f"case {case}:")
            lines += [INDENT + line for line in self._simple()]
            ends = self._draw.random() < 0.8
            lines.append(INDENT + ("break;" if ends else "/* fall through */"))
        lines += ["default:", *(INDENT + line for line in self._simple()), f"{INDENT}break;"]
        return [*lines, "}"]

    def counted(self) -> list[str]:
        """A loop with a constant number of rounds."""
        length = self._draw.choice((4, 8, 16))
        return self._loop(length, backwards=self._draw.random() < 0.2)

    def over(self) -> list[str]:
        """A loop over an array whose length is a parameter."""
        lengths = [a.length for a in self._scope.arrays if isinstance(a.length, str)]
        return self._loop(self._draw.choice(lengths)) if lengths else self.counted()

    def searched(self) -> list[str]:
        """A loop over an array that is left at what is looked for."""
        lengths = [a.length for a in self._scope.arrays if isinstance(a.length, str)]
        if not lengths:
            return self.counted()
        return self._loop(self._draw.choice(lengths), leave=True)

    def shifted(self) -> list[str]:
        """A loop over the bits of a number; the shift is first, so that ``continue`` ends too."""
        kind = self._draw.choice(("unsigned", "unsigned long long"))
        start = self._expressions.value(kind, 1)
        name, by = self._scope.name("b"), self._draw.choice((1, 1, 2, 4))
        inner = self._inner(in_loop=True)
        inner._scope.variables.append(Variable(name=name, kind=kind, fixed=True))
        bit, one = inner._scope.name("d"), f"1{SUFFIX[kind]}"
        lines = [f"{kind} {bit} = {name} & {one};", f"{name} >>= {by};"]
        inner._scope.variables.append(Variable(name=bit, kind=kind))
        body = [*lines, *inner.of_plan(self._words())]
        return [f"{kind} {name} = {start.text};", f"while ({name}) {{", *_indented(body), "}"]

    def downwards(self) -> list[str]:
        """A loop that comes round at least once."""
        name, rounds = self._scope.name("j"), self._draw.randrange(2, 12)
        inner = self._inner(in_loop=True)
        inner._scope.variables.append(
            Variable(name=name, kind="int", low=0, high=rounds, fixed=True)
        )
        body = _indented(inner.of_plan(self._words()))
        return [f"int {name} = {rounds};", "do {", *body, f"}} while (--{name} > 0);"]

    def counted_up(self) -> list[str]:
        """An int goes up by one under a condition that keeps it in its bounds."""
        known = [v for v in self._scope.of_kind("int", assignable=True) if v.high < INT_MAX]
        if not known:
            return self.assigned()
        variable = self._draw.choice(known)
        test = self._expressions.condition(1)
        return [
            f"if ({test.operand} && {variable.name} < {variable.high})",
            f"{INDENT}{variable.name}++;",
        ]

    def left(self) -> list[str]:
        """The function, or a round of the loop, ends under a condition."""
        test = self._expressions.condition(_DEEP)
        words = ["continue;", "break;"] if self._in_loop else []
        if self._draw.random() < 0.4 or not words:
            words = [f"return {self._expressions.value(self._result, 1).text};"]
        return [f"if ({test.text})", INDENT + self._draw.choice(words)]

    def _declared(self, kind: Kind) -> list[str]:
        low, high = self._draw.choice(_BOUNDS)
        if kind == "int":
            value = self._expressions.within(low, high, _DEEP)
            known = Variable(name=self._scope.name(_LETTERS[kind]), kind=kind, low=low, high=high)
        else:
            value = self._expressions.value(kind, _DEEP)
            known = Variable(name=self._scope.name(_LETTERS[kind]), kind=kind)
        self._scope.variables.append(known)
        return [f"{kind} {known.name} = {value.text};"]

    def _assignment(self, variable: Variable) -> str:
        if variable.kind == "int":
            value = self._expressions.within(variable.low, variable.high, _DEEP + 1)
            if value.text == variable.name:
                value = constant(self._draw.randrange(100), "int")
            return f"{variable.name} = {value.text};"
        if variable.kind in BITS and self._draw.random() < 0.2:
            return (
                f"{variable.name} {self._draw.choice(('<<', '>>'))}= {self._draw.choice((1, 3))};"
            )
        value = self._expressions.value(variable.kind, _DEEP)
        sign = self._sign(variable.kind) if self._draw.random() < 0.6 else ""
        if value.text == variable.name:
            sign, value = "+", constant(self._draw.randrange(1, 100), variable.kind)
        return f"{variable.name} {sign}= {value.text};"

    def _sign(self, kind: Kind) -> str:
        return self._draw.choice("+-*" if kind == "double" else "+-*^|&")

    def _loop(
        self, length: int | str, *, backwards: bool = False, leave: bool = False
    ) -> list[str]:
        name = self._scope.name("ijk")
        inner = self._inner(in_loop=True)
        high = length - 1 if isinstance(length, int) else INT_MAX - 1
        counter = Variable(name=name, kind="int", low=0, high=high, fixed=True)
        inner._scope.variables.append(counter)
        inner._scope.counters[name] = length
        head = f"for (int {name} = 0; {name} < {length}; {name}++) {{"
        if backwards:
            head = f"for (int {name} = {length} - 1; {name} >= 0; {name}--) {{"
        body = inner.of_plan((*self._words(), "leave") if leave else self._words())
        return [head, *_indented(body), "}"]

    def _inner(self, *, in_loop: bool = False) -> Statements:
        return Statements(
            self._scope.inner(),
            self._result,
            deep=self._deep - 1,
            in_loop=in_loop or self._in_loop,
        )

    def _block(self) -> list[str]:
        words = self._words()[: self._draw.randrange(1, 3)]
        return _indented(self._inner().of_plan(words))

    def _words(self) -> list[str]:
        """What stands in a block: at the deepest, no more blocks."""
        words = ["assign", "assign", "store", "count up", "leave", "declare"]
        if self._deep > 1:
            words += ["if", "if", "for", "while", "switch", "over"]
        return ["store", *self._draw.sample(words, self._draw.randrange(1, 4))]

    def _simple(self) -> list[str]:
        """Without declarations: labels may not stand before them."""
        kinds = [kind for kind in KINDS if self._scope.of_kind(kind, assignable=True)]
        if not kinds:
            return [";"]
        variables = self._scope.of_kind(self._draw.choice(kinds), assignable=True)
        return [self._assignment(self._draw.choice(variables))]


def _indented(lines: Sequence[str]) -> list[str]:
    return [INDENT + line for line in lines]


_PLAN = {
    "declare": Statements.declared,
    "array": Statements.declared_array,
    "assign": Statements.assigned,
    "store": Statements.stored,
    "count up": Statements.counted_up,
    "if": Statements.branched,
    "switch": Statements.switched,
    "for": Statements.counted,
    "over": Statements.over,
    "search": Statements.searched,
    "while": Statements.shifted,
    "do": Statements.downwards,
    "leave": Statements.left,
}
