"""C functions that a seed writes: they compile, end, and have no undefined behaviour.

That holds by construction. Signed results are known to fit, by the bounds of what they are made
of; shifts, divisors and indices are in range; loops count or shift towards an end; every variable
has a value before it is read. values.py says what is known of an expression and scope.py of names;
expressions.py and statements.py write from that; shapes.py has what functions look like, and
program.py puts them together. It is written for gcc and clang where int has 32 bits.
"""

from cwm_jax.forager.documents.c_programs.program import CProgram, c_program

__all__ = ["CProgram", "c_program"]
