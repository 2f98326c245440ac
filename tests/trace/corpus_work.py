"""Work for corpora: programs that trace, and items that misbehave; other processes import it."""

import dataclasses
import os
from pathlib import Path

from cwm_jax.trace.episodes import Program
from cwm_jax.trace.generator import generate_programs

CALL = "def main():  # << START_OF_TRACE\n    return f({})\n"


def program(name, body, *arguments):
    """A program that calls ``f`` of that body."""
    context = f"\n{body.strip()}\n{CALL.format(', '.join(map(repr, arguments)))}"
    return Program(name=name, context=context, source="function", origin=name)


def generated(count, seed=5):
    return [
        Program(
            name=made.name,
            context=made.source,
            source="generated",
            origin=f"seed {seed}",
            difficulty=made.difficulty,
            kinds=made.kinds,
        )
        for made in generate_programs(seed, count, difficulties=(1, 2))
    ]


@dataclasses.dataclass
class Raises:
    name: str

    def episodes(self, tracer):
        raise KeyError("no such thing")


@dataclasses.dataclass
class LeavesPython:
    name: str

    def episodes(self, tracer):
        raise SystemExit(3)


@dataclasses.dataclass
class Exits:
    name: str

    def episodes(self, tracer):
        os._exit(3)


@dataclasses.dataclass
class Hangs:
    name: str

    def episodes(self, tracer):
        while True:
            pass


@dataclasses.dataclass
class ExitsOnce:
    """Ends its process unless the file is there, which it leaves."""

    name: str
    flag: str

    def episodes(self, tracer):
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            os._exit(3)
        return program(self.name, "def f(x):\n    return x * 12345", 6789).episodes(tracer)


def mixed(flag):
    """Ten good programs, and three items that misbehave, one of them once."""
    good = generated(10)
    first = [*good[:5], Raises("raises"), Exits("exits")]
    return [*first, *good[5:], ExitsOnce("exits once", str(flag))]
