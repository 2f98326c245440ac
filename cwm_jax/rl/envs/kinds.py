"""What the kinds of ``EnvironmentConfig`` are made of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config import EnvironmentConfig
from cwm_jax.rl.environment import Environment, Task
from cwm_jax.rl.envs import prediction
from cwm_jax.rl.envs.code import environment as code
from cwm_jax.rl.envs.code.grading import Grader
from cwm_jax.rl.envs.math import environment as math
from cwm_jax.rl.envs.math.python_tool import PythonTool
from cwm_jax.rl.envs.math.verifying import MathVerifier
from cwm_jax.rl.envs.swe import profiles as swe_profiles
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.corpus import read_corpus


def load_tasks(config: EnvironmentConfig) -> list[Task]:
    """All tasks of an environment, those to be held out among them.

    Raises:
        ValueError: no path where one is needed, a line that is no task, two of one name.
    """
    if config.kind == "output_prediction":
        tasks = list(prediction.output_tasks(read_corpus(_path(config))))
    elif config.kind == "trace_prediction":
        tasks = list(prediction.trace_tasks(read_corpus(_path(config))))
    elif config.kind == "swe" and config.path is None:
        tasks = list(shipped_tasks(unsafe=config.unsafe))
    else:
        tasks = read_tasks(Path(_path(config)))
    names = {task.name for task in tasks}
    if len(names) != len(tasks):
        raise ValueError(
            f"rl environment {config.name!r}: two of its {len(tasks)} tasks have one name; "
            "expected each its own: rename one"
        )
    return tasks


def make_environments(
    configs: Sequence[EnvironmentConfig], tokenizer: Tokenizer
) -> Callable[[str, Task], Environment]:
    """A function of an environment's name and a task.

    Raises:
        ValueError: a profile that its kind does not have.
    """
    makers = {config.name: _maker(config, tokenizer) for config in configs}
    return lambda name, task: makers[name](task)


def read_tasks(path: Path) -> list[Task]:
    """Tasks of a JSONL file: ``name``, ``data``, and perhaps ``group``, in each line."""
    tasks = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                task = Task(**record)
                if not isinstance(task.name, str) or not isinstance(task.data, dict):
                    raise TypeError("name is text, and data an object")
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number} is no task ({error}); expected an object with name, data and "
                    "perhaps group"
                ) from None
            tasks.append(task)
    return tasks


def _maker(config: EnvironmentConfig, tokenizer: Tokenizer) -> Callable[[Task], Environment]:
    if config.kind == "output_prediction":
        profile = _profile(config, prediction.PROFILES)
        return lambda task: prediction.OutputPrediction(task, tokenizer, profile)
    if config.kind == "trace_prediction":
        profile = _profile(config, prediction.PROFILES)
        return lambda task: prediction.TracePrediction(task, tokenizer, profile)
    if config.kind == "swe":
        limits = _profile(config, swe_profiles.PROFILES)
        return lambda task: SoftwareEngineering(task, tokenizer, limits, unsafe=config.unsafe)
    if config.kind == "code":
        code_profile = _profile(config, code.PROFILES)
        grader = Grader(code_profile.grading, unsafe=config.unsafe)
        return lambda task: code.Code(task, tokenizer, code_profile, grader)
    if config.kind in ("math", "math_python"):
        return _math_maker(config, tokenizer)
    raise AssertionError(config.kind)


def _math_maker(config: EnvironmentConfig, tokenizer: Tokenizer) -> Callable[[Task], Environment]:
    profile = _profile(config, math.PROFILES)
    verifier = MathVerifier(
        use_math_verify=profile.math_verify, time_s=profile.verify_s, unsafe=config.unsafe
    )
    if config.kind == "math":
        return lambda task: math.Math(task, tokenizer, profile, verifier)
    tool = PythonTool(call_s=profile.call_s, packages=profile.packages, unsafe=config.unsafe)
    return lambda task: math.MathPython(task, tokenizer, profile, verifier, tool=tool)


def _profile(config: EnvironmentConfig, profiles: Mapping[str, Any]) -> Any:
    if config.profile not in profiles:
        raise ValueError(
            f"rl environment {config.name!r}: profile is {config.profile!r}; those of kind "
            f"{config.kind!r} are {', '.join(sorted(profiles))}"
        )
    return profiles[config.profile]


def _path(config: EnvironmentConfig) -> str:
    if config.path is None:
        raise ValueError(
            f"rl environment {config.name!r}: kind {config.kind!r} takes its tasks from a path, "
            "and there is none; set it"
        )
    return config.path
