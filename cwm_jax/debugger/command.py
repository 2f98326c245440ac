"""``python -m cwm_jax debug``: debugs a program without running it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cwm_jax.debugger.prediction import Predictor
    from cwm_jax.tokenizer import Tokenizer

_MAX_LENGTH = 32_768  # assumed: bounds the cache of an engine for one person


def add_parser(subparsers) -> None:
    """Adds ``debug``; what it needs is imported when it runs."""
    parser = subparsers.add_parser(
        "debug", help="step through a program as a model predicts it, without running it"
    )
    parser.add_argument("program", type=Path, help="a script; a line may carry the start marker")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", metavar="FOLDER", help="an export, run in this process")
    model.add_argument("--server", metavar="URL", help="of an OpenAI-compatible server")
    parser.add_argument("--tokenizer", metavar="PATH", help="of the server's model")
    parser.add_argument("--model-name", metavar="NAME", help="to ask the server for")
    parser.add_argument("--api-key", metavar="KEY", help="of the server")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="S", help="of an answer")
    parser.add_argument("--call", metavar="'F(ARGS)'", help="debug this call of its functions")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--constrain",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="allow only lines of the program as actions",
    )
    parser.add_argument(
        "--compare", action="store_true", help="also run it in the sandbox and mark what differs"
    )
    parser.add_argument("--max-frame-tokens", type=int, default=2048)
    parser.set_defaults(main=_debug)


def _debug(args: argparse.Namespace) -> int:
    """The session; 0: left, 2: it could not begin."""
    from cwm_jax.debugger.comparison import run_for_comparison
    from cwm_jax.debugger.entry import added_lines, program_of_source
    from cwm_jax.debugger.frame_model import DebugOptions
    from cwm_jax.debugger.session import Session
    from cwm_jax.debugger.shell import Shell, has_readline, uses_colour
    from cwm_jax.sandbox import SandboxError
    from cwm_jax.trace.episodes import decode_source

    try:
        source = decode_source(args.program.read_bytes())
        program = program_of_source(source, args.call)
        options = DebugOptions(
            temperature=args.temperature,
            top_p=args.top_p,
            seed=args.seed,
            constrain=args.constrain,
            max_frame_tokens=args.max_frame_tokens,
        )
        trace = run_for_comparison(program) if args.compare else None
        with _predictor(args) as (predictor, tokenizer):
            session = Session(
                program,
                predictor,
                tokenizer,
                options=options,
                entry_frame=trace.frames[0] if trace else None,
            )
            has_readline()
            if added := added_lines(source, program):
                said = f"the model reads {added} line before the file's first: lines are counted so"
                print(f"[{said}, as `list` shows]")
            Shell(
                session,
                name=args.program.name,
                run_truly=functools.partial(run_for_comparison, program),
                trace=trace,
                colour=uses_colour(sys.stdout, [*os.environ]),
            ).cmdloop()
    except (ValueError, SandboxError, OSError) as error:
        print(f"debug: {args.program}: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _predictor(args: argparse.Namespace) -> Iterator[tuple[Predictor, Tokenizer]]:
    """The model and its tokenizer; raises ValueError for what cannot be loaded."""
    if args.server is not None:
        yield _of_server(args)
        return
    from cwm_jax.debugger.in_process import EnginePredictor
    from cwm_jax.inference.engine import Engine, EngineOptions
    from cwm_jax.inference.pretrained import load_pretrained
    from cwm_jax.inference.service import EngineService

    loaded = load_pretrained(args.model)
    longest = min(loaded.model_config.max_position_embeddings, _MAX_LENGTH)
    options = EngineOptions(max_length=longest, max_rows=1)
    engine = Engine(loaded.params, loaded.model_config, loaded.tokenizer, options)
    service = EngineService(engine)
    try:
        yield EnginePredictor(service), loaded.tokenizer
    finally:
        service.close(drain=False)


def _of_server(args: argparse.Namespace) -> tuple[Predictor, Tokenizer]:
    from cwm_jax.debugger.http import HttpPredictor
    from cwm_jax.tokenizer import load_tokenizer

    if args.tokenizer is None:
        raise ValueError(
            "--server is given without --tokenizer; expected its model's, as prompts go out as ids "
            "of it: name a tokenizer.json, tokenizer.model, or a folder with either"
        )
    tokenizer = load_tokenizer(args.tokenizer)
    predictor = HttpPredictor(
        args.server,
        tokenizer,
        api_key=args.api_key,
        model=args.model_name,
        timeout_s=args.timeout,
    )
    return predictor, tokenizer
