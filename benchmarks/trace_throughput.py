"""Events and functions a core traces in a second, and what tracing costs over taking ``repr``s.

    python -m benchmarks.trace_throughput [--rounds 5] [--unsafe]

The limit is CPython's: a trace function must read ``f_locals`` and call ``repr`` on each local once
an event. The first table measures, in one process and in turns, a trace function that does only
that and ours, on a loop with five small locals, and what ours costs after the run. The second goes
through a warm sandbox, a process for each function, from source to text. Medians of rounds; every
side is measured in every round.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time

from cwm_jax.trace import recorder
from cwm_jax.trace.format import START_MARKER
from cwm_jax.trace.tracer import TraceLimits, Tracer

NUM_ITERATIONS = 3000
LIMITS = {"max_events": 10**9, "max_bytes": 10**9, "max_repr_chars": 10**4, "max_depth": 100}
SMALL = f"""
def f(text, n):
    out = ''
    for c in text:
        if c.isdigit():
            n += int(c)
        else:
            out += c
    return out, n
def main():{START_MARKER}
    return f('a1b2c%d', 3)
"""


def program(n):
    """Five small locals: ints, a string, a list, a bool."""
    total = 0
    text = "text"
    values = [1, 2, 3]
    for i in range(n):
        total = (total + i) % 97
        text = text[1:] + text[0]
    return values and total


def reprs_alone(frame, event, arg):
    """Takes what a trace shows and keeps it for the event alone."""
    [repr(value) for value in frame.f_locals.values()]
    return reprs_alone


def seconds(trace_function) -> float:
    before = sys.gettrace()
    start = time.perf_counter()
    sys.settrace(trace_function)
    program(NUM_ITERATIONS)
    sys.settrace(before)
    return time.perf_counter() - start


def callback_round() -> dict[str, float]:
    """Microseconds per event of each side."""
    num_events = 3 * NUM_ITERATIONS
    made = recorder.Recorder(LIMITS, lambda status, message: None)

    def record(frame, event, arg):
        return made.call(frame) if frame.f_code is program.__code__ else None

    result = {"untraced": seconds(None), "reprs alone": seconds(reprs_alone)}
    result["ours, recording"] = seconds(record)
    start = time.perf_counter()
    answer = made.answer("finished", "")
    result["ours, answer in the sandbox"] = time.perf_counter() - start
    assert len(json.loads(answer)["events"]) > num_events
    return {name: value / num_events * 1e6 for name, value in result.items()}


def sandbox_round(tracer: Tracer, num_functions: int) -> dict[str, float]:
    """Functions and events per second, small functions; microseconds per event, a long one."""
    contexts = [SMALL % number for number in range(num_functions)]
    start = time.perf_counter()
    events = sum(len(tracer.trace(context).frames) for context in contexts)
    elapsed = time.perf_counter() - start
    long = (
        f"def main():{START_MARKER}\n    total = 0\n    text = 'text'\n    values = [1, 2, 3]\n"
        f"    for i in range({NUM_ITERATIONS}):\n        total = (total + i) % 97\n"
        "        text = text[1:] + text[0]\n    return total\n"
    )
    start = time.perf_counter()
    num_events = len(tracer.trace(long).frames)
    long_elapsed = time.perf_counter() - start
    return {
        "small functions/s": num_functions / elapsed,
        "events/s of small functions": events / elapsed,
        "us per event of a long one, text included": long_elapsed / num_events * 1e6,
    }


def print_medians(title: str, rounds: list[dict[str, float]]) -> dict[str, float]:
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"\n{title}")
    for name, value in medians.items():
        print(f"  {name:<42} {value:10.2f}")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--functions", type=int, default=300)
    parser.add_argument("--unsafe", action="store_true")
    args = parser.parse_args()
    print(f"CPython {platform.python_version()}, one core of {platform.processor() or 'this CPU'}")
    medians = print_medians(
        "us per event, five small locals", [callback_round() for _ in range(args.rounds)]
    )
    ratio = medians["ours, recording"] / medians["reprs alone"]
    print(f"  {'recording / reprs alone (target 1.3)':<42} {ratio:10.2f}")
    with Tracer(TraceLimits(max_events=10**6), unsafe=args.unsafe) as tracer:
        start = time.perf_counter()
        tracer.trace(SMALL % 0)
        print(f"\nstart of a sandbox, first trace: {time.perf_counter() - start:.3f} s")
        rounds = [sandbox_round(tracer, args.functions) for _ in range(args.rounds)]
    print_medians("through a warm sandbox (targets: 200 functions/s, 10 us per event)", rounds)


if __name__ == "__main__":
    main()
