"""Runs a second and start-up of the sandbox's parts, beside a bare `subprocess.run`.

    python -m benchmarks.sandbox [--seconds 3] [--rounds 3] [--workers 1 2 4]

The other side is what has no walls and no limits: `subprocess.run([python, "-c", "pass"])`, with
``-I -S``, too, which is the least that an interpreter takes. Every side does nothing inside, so
what is measured is the way there and back. A pool is called from as many threads as it has
workers. Medians of rounds; every side is measured in every round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cwm_jax.sandbox import Outcome, Pool, Shell, Worker, run
from cwm_jax.sandbox.bubblewrap import interpreter

PROGRAM = "def handle(request):\n    return request\n"


def runs_per_s(one: Callable[[], object], at_least_s: float, threads: int = 1) -> float:
    """How often ``one`` ends in a second, called from so many threads at once."""
    start = time.perf_counter()

    def repeat(_: int) -> int:
        number = 0
        while number == 0 or time.perf_counter() - start < at_least_s:
            one()
            number += 1
        return number

    with ThreadPoolExecutor(threads) as pool:
        number = sum(pool.map(repeat, range(threads)))
    return number / (time.perf_counter() - start)


def bare(*options: str) -> None:
    subprocess.run([interpreter(), *options, "-c", "pass"], check=True)


def cold_run() -> None:
    assert run(["python", "-c", "pass"]).outcome is Outcome.OK


def call(worker: Worker | Pool) -> None:
    assert worker.call(b"1").value == b"1"


def command(shell: Shell) -> None:
    assert shell.run("true").exit_code == 0


def start_shell() -> None:
    Shell().close()


def rows(program: Path, seconds: float, workers: list[int]) -> Iterator[tuple[str, float]]:
    """Runs a second by name."""
    yield "subprocess.run, python -c pass", runs_per_s(bare, seconds)
    yield "the same, -I -S", runs_per_s(lambda: bare("-I", "-S"), seconds)
    yield "run, python -c pass: cold", runs_per_s(cold_run, seconds)
    yield "start and end of a Worker", runs_per_s(lambda: Worker(program).close(), seconds)
    with Worker(program) as worker:
        yield "Worker.call: warm", runs_per_s(lambda: call(worker), seconds)
    for size in workers:
        with Pool(program, size=size) as pool:
            pool.warm_up()
            name = f"Pool.call, workers and threads: {size}"
            yield name, runs_per_s(lambda pool=pool: call(pool), seconds, size)
    yield "start and end of a Shell", runs_per_s(start_shell, seconds)
    with Shell() as shell:
        yield "Shell.run, true", runs_per_s(lambda: command(shell), seconds)
        yield "Shell.run, /bin/true", runs_per_s(lambda: shell.run("/bin/true"), seconds)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each side in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args(argv)
    print(
        f"CPython {platform.python_version()}, {os.cpu_count()} cores, Linux {os.uname().release}"
    )
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")
        program.write_text(PROGRAM)
        cold_run()  # what of the host is to be bound is found once in a process
        found = [dict(rows(program, args.seconds, args.workers)) for _ in range(args.rounds)]
    print("\n| | runs/s | ms | against subprocess.run |\n|---|---|---|---|")
    medians = {name: statistics.median(r[name] for r in found) for name in found[0]}
    other = next(iter(medians.values()))
    for name, value in medians.items():
        print(f"| {name} | {value:,.1f} | {1000 / value:,.2f} | {value / other:,.2f}x |")


if __name__ == "__main__":
    main()
