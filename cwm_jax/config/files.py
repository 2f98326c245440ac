"""Configurations in Python files."""

from __future__ import annotations

import types
from pathlib import Path

from cwm_jax.config.run import RunConfig


def load_config(path: str) -> RunConfig:
    """Calls ``get_config()`` of a Python file.

    Raises:
        ValueError: no such file, or it has no ``get_config`` that returns a RunConfig.
    """
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py")))
        raise ValueError(f"--config {path}: no such file; configs here: {known or 'none'}")
    # Not imported: Python would take a cached .pyc for a file rewritten within the same second.
    module = types.ModuleType(file.stem)
    try:
        exec(compile(file.read_bytes(), path, "exec"), module.__dict__)
    except SyntaxError as error:
        raise ValueError(f"--config {path}: not a Python file: {error}") from error
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, RunConfig):
        raise ValueError(
            f"--config {path}: expected a function get_config() that returns a RunConfig"
        )
    return config
