"""Configurations in Python files."""

from __future__ import annotations

import types
from pathlib import Path

from cwm_jax.config.recipe import Recipe
from cwm_jax.config.run import RunConfig
from cwm_jax.config.sweep import SweepConfig


def load_config(path: str) -> RunConfig:
    """The one run of a config file.

    Raises:
        ValueError: as ``load_recipe``, or the file has several phases.
    """
    found = load_recipe(path)
    if isinstance(found, Recipe):
        names = ", ".join(phase.run_name for phase in found.phases)
        raise ValueError(
            f"--config {path} has the phases {names}; expected one run: name a config of one"
        )
    return found


def load_recipe(path: str) -> RunConfig | Recipe:
    """Calls ``get_config()`` of a Python file.

    Raises:
        ValueError: no such file, or it has no ``get_config`` that returns a RunConfig or a Recipe.
    """
    module = load_module(path)
    config = module.get_config() if hasattr(module, "get_config") else None
    if config is None and hasattr(module, "get_ablation"):
        raise ValueError(
            f"--config {path} is an ablation; expected one run: name its --arm, or run all of it "
            f"by python -m cwm_jax ablate --config {path}"
        )
    if not isinstance(config, RunConfig | Recipe):
        raise ValueError(
            f"--config {path}: expected a function get_config() that returns a RunConfig or a "
            "Recipe"
        )
    return config


def load_sweep(path: str) -> SweepConfig:
    """As ``load_recipe``, for a sweep."""
    module = load_module(path)
    config = module.get_config() if hasattr(module, "get_config") else None
    if not isinstance(config, SweepConfig):
        raise ValueError(
            f"--config {path}: expected a function get_config() that returns a SweepConfig"
        )
    return config


def load_module(path: str) -> types.ModuleType:
    """Runs a Python file.

    Raises:
        ValueError: no such file, or it is not Python.
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
    return module
