"""``python -m cwm_jax plan``: whether a model fits a device that serves it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cwm_jax.config import ModelConfig
from cwm_jax.config.files import load_config


def add_parser(subparsers) -> None:
    """Adds ``plan``."""
    parser = subparsers.add_parser("plan", help="memory that serving a model takes on one device")
    parser.add_argument(
        "--model", required=True, type=Path, help="a model's folder, or a file of configs/"
    )
    parser.add_argument("--device", default="h100", help="h100, h200, a100, v5e, v5p, v6e ...")
    parser.add_argument("--weights", default="bfloat16", help="bfloat16, float32, int8, int4, fp8")
    parser.add_argument("--group-size", type=int, help="of int4 weights")
    parser.add_argument("--kv", help="of the cache: bfloat16, float32, int8 (default: as weights)")
    parser.add_argument("--max-length", type=int, help="tokens of a row (default: the model's)")
    parser.add_argument("--rows", type=int, default=1, help="that decode together")
    parser.set_defaults(main=_main)


def _main(args: argparse.Namespace) -> int:
    """0: it fits; 1: it does not; 2: bad input."""
    from cwm_jax.planning.serving import serving_plan  # imports jax
    from cwm_jax.training.hardware import accelerator

    try:
        plan = serving_plan(
            _model_config(args.model),
            accelerator=accelerator(args.device),
            weights=args.weights,
            kv=args.kv,
            max_length=args.max_length,
            max_rows=args.rows,
            group_size=args.group_size,
        )
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    print(plan.report())
    return 0 if plan.fits else 1


def _model_config(path: Path) -> ModelConfig:
    """Of a config.json in a folder, of quantized weights too, or of a run's configuration."""
    if path.suffix == ".py":
        return load_config(str(path)).model
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"--model {path}: expected a model's folder, or a file of configs/")
    values = json.loads(file.read_text())
    return ModelConfig.from_hf({k: v for k, v in values.items() if k != "quantization_config"})
