"""``python -m cwm_jax serve``: an OpenAI-compatible server of a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_MAX_LENGTH = 32_768  # assumed: more is asked for, as the cache of all rows grows with it


def add_parser(subparsers) -> None:
    """Adds ``serve``; what it needs is imported when it runs."""
    parser = subparsers.add_parser("serve", help="answer OpenAI's API over HTTP")
    parser.add_argument("model", type=Path, metavar="FOLDER", help="weights and tokenizer")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="by default the folder's"
    )
    _add_engine(parser.add_argument_group("engine"))
    _add_limits(parser.add_argument_group("requests"))
    parser.set_defaults(main=_serve)


def _add_engine(group) -> None:
    group.add_argument("--max-length", type=int, help="tokens of a prompt and its continuation")
    group.add_argument("--max-rows", type=int, default=16, help="requests that run at once")
    group.add_argument("--max-waiting", type=int, default=256, help="more are refused with 429")
    group.add_argument("--num-pages", type=int, help="of the cache; by default enough for all rows")
    group.add_argument("--kv-dtype", choices=("int8",), help="by default the weights'")
    group.add_argument("--dtype", help="of the weights; by default the stored one")
    group.add_argument(
        "--scan-layers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compile a group of layers instead of all: starts sooner, decodes more slowly",
    )
    group.add_argument(
        "--warm-up",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile everything before the first request",
    )


def _add_limits(group) -> None:
    group.add_argument("--api-key", action="append", metavar="KEY", help="others see it in `ps`")
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="one key a line")
    group.add_argument(
        "--reasoning",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="chats that do not say reason before they answer",
    )
    group.add_argument("--request-timeout-s", type=float, default=600, metavar="S")
    group.add_argument("--body-timeout-s", type=float, default=30, metavar="S")
    group.add_argument("--drain-timeout-s", type=float, default=60, metavar="S")
    group.add_argument("--max-body-bytes", type=int, default=8 * 2**20, metavar="N")
    group.add_argument(
        "--debugger",
        choices=("run", "predict", "off"),
        help="the page at /debugger; `run` also runs programs in the sandbox, to compare. By "
        "default `run` where only this machine reaches the server, else `predict`",
    )


def _serve(args: argparse.Namespace) -> int:
    """Serves until a signal; 0: drained, 2: it could not begin."""
    try:
        options = _options(args)
        service = _service(args)
    except (ValueError, OSError) as error:
        print(f"serve: {args.model}: {error}", file=sys.stderr)
        return 2
    from cwm_jax.serve.app import create_app
    from cwm_jax.serve.shutdown import DrainingServer

    app = create_app(service, options, routers=_routers(args, service))
    server = DrainingServer(
        app, service, host=args.host, port=args.port, drain_timeout_s=args.drain_timeout_s
    )
    try:
        server.run()
    finally:
        service.close(drain=False)
    return 0


def _options(args: argparse.Namespace):
    from cwm_jax.serve.options import ServeOptions

    keys = [*(args.api_key or [])]
    if args.api_key_file is not None:
        keys += [
            line.strip() for line in args.api_key_file.read_text().splitlines() if line.strip()
        ]
        if not keys:
            raise ValueError(f"{args.api_key_file} has no key; expected one a line")
    return ServeOptions(
        model_names=tuple(args.served_model_name or [args.model.resolve().name]),
        api_keys=tuple(keys),
        reasoning=args.reasoning,
        request_timeout_s=args.request_timeout_s,
        body_timeout_s=args.body_timeout_s,
        max_body_bytes=args.max_body_bytes,
        max_sequences=max(1, args.max_waiting),
    )


def _service(args: argparse.Namespace):
    from cwm_jax.inference.engine import Engine, EngineOptions
    from cwm_jax.inference.pretrained import load_pretrained
    from cwm_jax.inference.service import EngineService

    loaded = load_pretrained(args.model, dtype=args.dtype, scan_layers=args.scan_layers)
    longest = loaded.model_config.max_position_embeddings
    options = EngineOptions(
        max_length=args.max_length or min(longest, _MAX_LENGTH),
        max_rows=args.max_rows,
        max_waiting=args.max_waiting,
        num_pages=args.num_pages,
        kv_dtype=args.kv_dtype,
    )
    engine = Engine(loaded.params, loaded.model_config, loaded.tokenizer, options)
    if args.warm_up:
        print(f"compiled {engine.warm_up()} programs", flush=True)
    return EngineService(engine)


def _routers(args: argparse.Namespace, service) -> list:
    if args.debugger == "off":
        return []
    from fastapi import Depends

    from cwm_jax.debugger.in_process import EnginePredictor
    from cwm_jax.debugger.web import check_local_name, is_local, make_router

    predictor, local = EnginePredictor(service), is_local(args.host)
    may_run = local if args.debugger is None else args.debugger == "run"
    return [
        make_router(
            lambda: predictor,
            service.tokenizer,
            api_dependencies=[Depends(check_local_name)] if may_run and local else [],
            may_run=may_run,
        )
    ]
