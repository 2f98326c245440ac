"""``python -m cwm_jax trace``: trace a program, look at a trace."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cwm_jax.sandbox import SandboxError
from cwm_jax.tokenizer import BEGIN_OF_TEXT
from cwm_jax.trace.contexts import context_of_program
from cwm_jax.trace.corpus import command as corpus_command
from cwm_jax.trace.corpus import read_corpus
from cwm_jax.trace.episodes import decode_source, episode_from_json, episode_from_trace
from cwm_jax.trace.format import START_MARKER, parse_trace, render_prompt, split_prompt
from cwm_jax.trace.frames import TraceFrame
from cwm_jax.trace.table import format_table
from cwm_jax.trace.tracer import TraceLimits, Tracer, source_lines

_TRACE_FILE = (
    "the text of one trace, or episodes as JSON lines, as `trace run --format text` or `--format "
    "json` write them"
)


def add_parser(subparsers) -> None:
    """Adds ``trace`` and its own subcommands."""
    parser = subparsers.add_parser("trace", help="trace programs, look at traces, write corpora")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    _add_run(actions)
    _add_show(actions)
    corpus_command.add_parser(actions)


def _add_run(actions) -> None:
    parser = actions.add_parser("run", help="trace a Python program in the sandbox")
    parser.add_argument("program", type=Path, help=f"a script; a line may end with{START_MARKER!r}")
    parser.add_argument("--call", metavar="'F(ARGS)'", help="trace this call of its functions")
    parser.add_argument("--stdin", type=Path, metavar="FILE", help="what the script reads")
    parser.add_argument("--format", choices=("table", "text", "json"), default="table")
    parser.add_argument("--all-locals", action="store_true", help="in a table: also unchanged ones")
    parser.add_argument("--max-events", type=int, default=TraceLimits.max_events)
    parser.add_argument("--unsafe", action="store_true", help="run without bubblewrap's isolation")
    parser.set_defaults(main=_run)


def _add_show(actions) -> None:
    parser = actions.add_parser("show", help="show a trace as a table")
    parser.add_argument(
        "file", type=Path, help="of `trace run` (text, JSON lines) or `trace corpus`"
    )
    parser.add_argument("--episode", type=int, default=0, metavar="N", help="0-based; 0 by default")
    parser.add_argument("--all-locals", action="store_true", help="also those that did not change")
    parser.set_defaults(main=_show)


def _run(args: argparse.Namespace) -> int:
    """Prints the trace; 0: finished, 1: cut by a limit, 2: there is none."""
    try:
        source = decode_source(args.program.read_bytes())
        context = context_of_program(source, args.call, args.stdin and args.stdin.read_bytes())
        limits = TraceLimits(max_events=args.max_events)
        with Tracer(limits, unsafe=args.unsafe) as tracer:
            trace = tracer.trace(context)
    except (ValueError, SandboxError, OSError) as error:
        print(f"trace run: {args.program}: {error}", file=sys.stderr)
        return 2
    if args.format == "table":
        print(_table(trace.context, trace.frames, args.all_locals))
    elif args.format == "text":
        sys.stdout.write(render_prompt(trace.context) + trace.text)
    else:
        episode = episode_from_trace(
            trace,
            name=f"{args.program.stem.replace('#', '-')}#0",
            source="script" if args.call is None else "function",
            origin=args.program.name,
            limits=limits,
        )
        print(json.dumps(episode.to_json()))
    if not trace.finished:
        print(f"trace run: cut: {trace.message}", file=sys.stderr)
    return 0 if trace.finished else 1


def _show(args: argparse.Namespace) -> int:
    """Prints one trace of a file; 0: well-formed, 1: malformed, 2: not readable."""
    try:
        context, frames = _nth(_traces(args.file), args.episode, args.file)
    except (ValueError, OSError) as error:
        print(f"trace show: {error}", file=sys.stderr)
        return 2
    parsed = parse_trace(frames)
    print(_table(context, parsed.frames, args.all_locals))
    for problem in parsed.problems:
        print(f"malformed: {problem}", file=sys.stderr)
    return 1 if parsed.problems else 0


def _traces(file: Path) -> Iterator[tuple[str, str]]:
    """(context, frames) of each trace of a file or a corpus."""
    if file.is_dir():
        yield from ((episode.context, episode.frames) for episode in read_corpus(file))
        return
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no text ({error}); expected {_TRACE_FILE}") from error
    if text.startswith(BEGIN_OF_TEXT):
        yield split_prompt(text)
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            episode = episode_from_json(json.loads(line))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}:{number}: {error}; expected {_TRACE_FILE}") from error
        yield episode.context, episode.frames


def _nth(traces: Iterator[tuple[str, str]], number: int, file: Path) -> tuple[str, str]:
    count = 0
    for count, trace in enumerate(traces, 1):
        if count == number + 1:
            return trace
    raise ValueError(f"{file}: has {count} traces; expected more than --episode {number}")


def _table(context: str, frames: Sequence[TraceFrame], all_locals: bool) -> str:
    return f"{_numbered(context)}\n\n{format_table(frames, all_locals=all_locals)}"


def _numbered(context: str) -> str:
    """Its lines with their numbers, as the table has them; not the blank ones around it."""
    lines = source_lines(context.rstrip())
    width = len(str(len(lines)))
    shown = itertools.dropwhile(lambda row: not row[1].strip(), enumerate(lines, 1))
    return "\n".join(f"{number:>{width}}  {line}".rstrip() for number, line in shown)
