"""Graders against the official files: what is right passes, what is wrong does not.

    python -m benchmarks.grader_checks --humaneval F --mbpp F --cruxeval F --math500 F --gsm8k F

Any of the files may be left out. Of each problem of HumanEval and MBPP the reference solution is
graded, and a mutant of it (one change of the syntax tree, drawn by ``--seed``), which is also run
directly: solution, tests and call in one module, in a sandbox of its own. Of CruxEval every output
is judged as a prediction, so are every input, the value at the end of the true trace, and another
line's output. Of the gold answers of MATH-500 and GSM8K every spelling and every near miss by the
rules of `cwm_jax.evals.answer_rules` is compared. A line of the table is a check; what went
otherwise than expected is listed by name below it. The exit status is 1 if anything did.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cwm_jax.evals.answer_rules import near_misses, rewrites
from cwm_jax.evals.sets.code.cruxeval import Judge, read_rows
from cwm_jax.evals.sets.code.rows import Row, read_humaneval, read_mbpp
from cwm_jax.evals.sets.code_problems import grade, make_grader
from cwm_jax.evals.sets.math_problems import read_gsm8k, read_math500
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.code.tests import AssertTests
from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.verifying import MathVerifier
from cwm_jax.rl.envs.swe.shipped.mutations import mutations
from cwm_jax.sandbox import Limits, Outcome, run

_DIRECT = Limits(cpu_s=10.0, wall_s=30.0, memory_bytes=2_000_000_000)


@dataclasses.dataclass(frozen=True)
class Check:
    """A line of the table.

    Attributes:
        name: what is checked.
        count: of cases.
        wrong: cases that went otherwise than expected, by name.
        seconds: it took.
    """

    name: str
    count: int
    wrong: tuple[str, ...]
    seconds: float


def code_checks(set_name: str, rows: list[Row], seed: int, threads: int) -> Iterator[Check]:
    """Reference solutions and mutants of HumanEval or MBPP."""
    grader = make_grader()

    def passes(row: Row, code: str) -> str:
        try:
            verdict = grade(grader, row, code)
        except EnvironmentFailure as error:
            return f"environment failure: {error}"
        return "" if verdict.passed else verdict.reason or "failed"

    def both(row: Row) -> tuple[str, bool]:
        mutant = mutant_of(row, seed)
        return passes(row, mutant), passes_directly(row, mutant)

    try:
        start = time.perf_counter()
        found = each(rows, lambda row: passes(row, row.reference), threads)
        wrong = [f"{row.name}: {why}" for row, why in zip(rows, found, strict=True) if why]
        yield Check(f"{set_name}: reference solutions pass", len(rows), tuple(wrong), since(start))
        start = time.perf_counter()
        pairs = [*zip(rows, each(rows, both, threads), strict=True)]
        seconds = since(start)
        failing = [(row, why) for row, (why, direct) in pairs if not direct]
        passing = [(row, why) for row, (why, direct) in pairs if direct]
        yield Check(
            f"{set_name}: mutants that fail directly fail",
            len(failing),
            tuple(f"{row.name}: the mutant passes" for row, why in failing if not why),
            seconds,
        )
        yield Check(
            f"{set_name}: mutants that pass directly pass",
            len(passing),
            tuple(f"{row.name}: {why}" for row, why in passing if why),
            0.0,
        )
    finally:
        grader.close()


def mutant_of(row: Row, seed: int) -> str:
    """The reference with one change, drawn; within the called function if there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        every = [m for m in mutations(row.reference) if m.kind != "functions"]
    chosen = [m for m in every if m.function == row.entry] or every
    if not chosen:
        return f"{row.reference}\n\n{row.entry} = None\n"
    return random.Random(f"{seed} {row.name}").choice(chosen).source


def passes_directly(row: Row, code: str) -> bool:
    """Whether the tests hold in one module with the code, as the official graders run them."""
    tests = row.tests
    assert isinstance(tests, AssertTests)
    call = f"check({row.entry})" if "def check(" in tests.code else ""
    setup = "" if row.prompt in code else tests.setup
    module = "\n\n".join([code, setup, tests.code, call])
    done = run(["python", "module.py"], files={"module.py": module.encode()}, limits=_DIRECT)
    return done.outcome is Outcome.OK and done.returncode == 0


def cruxeval_checks(path: Path, threads: int) -> Iterator[Check]:
    """Every line's own output and input, the traces' outputs, and other lines' outputs."""
    rows, judge = read_rows(path), Judge()
    others = [*rows[1:], rows[0]]

    def traced(index: int) -> bool:
        return judge.output(rows[index], judge.trace(rows[index]).output or "").passed

    cases: list[tuple[str, Callable[[int], bool]]] = [
        ("outputs verify", lambda i: judge.output(rows[i], rows[i].output).passed),
        ("inputs verify", lambda i: judge.input(rows[i], f"f({rows[i].input})").passed),
        ("values that true traces return verify", traced),
        (
            "other lines' outputs do not verify",
            lambda i: (
                judge.output(rows[i], others[i].output).passed
                == same_literal(rows[i].output, others[i].output)
            ),
        ),
    ]
    try:
        for name, holds in cases:
            start = time.perf_counter()
            found = each(range(len(rows)), holds, threads)
            wrong = tuple(row.name for row, right in zip(rows, found, strict=True) if not right)
            yield Check(f"cruxeval: {name}", len(rows), wrong, since(start))
    finally:
        judge.close()


def same_literal(a: str, b: str) -> bool:
    return ast.literal_eval(a) == ast.literal_eval(b)


def math_checks(set_name: str, golds: Iterable[str], threads: int) -> Iterator[Check]:
    """Spellings and near misses of gold answers."""
    golds = list(dict.fromkeys(golds))
    verifier = MathVerifier(use_math_verify=True, time_s=5.0)

    def is_same(gold: str, answer: str) -> bool:
        """The verifier's verdict; it is our comparer's alone where that knows."""
        ours = compare(gold, answer)
        if ours is not Comparison.UNKNOWN:
            return ours is Comparison.SAME
        return verifier.verdict(gold, answer).passed

    same = [(rule, gold, made) for gold in golds for rule, made in rewrites(gold)]
    near = [case for gold in golds for case in near_misses(gold)]
    try:
        for name, cases, expected in (
            (f"{len(golds)} gold answers in other spellings match", same, True),
            ("near misses do not match", near, False),
        ):
            start = time.perf_counter()
            found = each(cases, lambda case: is_same(case[1], case[2]), threads)
            wrong = tuple(
                f"{rule}: {gold} and {made}"
                for (rule, gold, made), same in zip(cases, found, strict=True)
                if same is not expected
            )
            yield Check(f"{set_name}: {name}", len(cases), wrong, since(start))
    finally:
        verifier.close()


def each(items, work, threads: int) -> list:
    with ThreadPoolExecutor(threads) as pool:
        return [*pool.map(work, items)]


def since(start: float) -> float:
    return time.perf_counter() - start


def checks(options: argparse.Namespace) -> Iterator[Check]:
    threads = options.threads
    if options.humaneval:
        rows = read_humaneval(options.humaneval)
        yield from code_checks("humaneval", rows, options.seed, threads)
    if options.mbpp:
        yield from code_checks("mbpp", read_mbpp(options.mbpp), options.seed, threads)
    if options.cruxeval:
        yield from cruxeval_checks(options.cruxeval, threads)
    for name, read in (("math500", read_math500), ("gsm8k", read_gsm8k)):
        if path := getattr(options, name):
            yield from math_checks(name, (row.answer for row in read(path)), threads)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("humaneval", "mbpp", "cruxeval", "math500", "gsm8k"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options, failed = parser.parse_args(), 0
    print(f"{'check':<62}{'cases':>7}{'right':>7}{'seconds':>9}")
    for check in checks(options):
        right = check.count - len(check.wrong)
        print(f"{check.name:<62}{check.count:>7}{right:>7}{check.seconds:>9.1f}", flush=True)
        for text in check.wrong:
            print(f"    {' '.join(text.split())[:200]}")
        failed += len(check.wrong)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
