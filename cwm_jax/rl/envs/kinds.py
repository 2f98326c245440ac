"""What the kinds of ``EnvironmentConfig`` are made of."""

from __future__ import annotations

import collections
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
from cwm_jax.rl.envs.swe import data as swe_data
from cwm_jax.rl.envs.swe import profiles as swe_profiles
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.rl.envs.task_files import read_tasks
from cwm_jax.tokenizer import Tokenizer
from cwm_jax.trace.corpus import read_corpus

# What reads the data of a task, and refuses what the kind cannot use; environments do the same.
_READERS: dict[str, Callable[[Task], object]] = {
    "code": code.read_data,
    "math": math.read_data,
    "math_python": math.read_data,
    "swe": swe_data.read_data,
}


def load_tasks(config: EnvironmentConfig) -> list[Task]:
    """All tasks of an environment, those to be held out among them.

    Tasks of files are checked, each by its kind, without a sandbox.

    Raises:
        ValueError: no path where one is needed, a file that is none, a line that is no task of the
            kind, two tasks of one name.
    """
    owner = f"rl environment {config.name!r} ({config.kind})"
    if config.kind == "swe" and config.path is None:
        return list(shipped_tasks(unsafe=config.unsafe))
    path = _path(config)
    if config.kind in _READERS:
        return read_tasks(Path(path), _READERS[config.kind], owner=owner)
    try:
        return _of_corpus(config.kind, path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{owner}: {error}") from error


def make_environments(
    configs: Sequence[EnvironmentConfig], tokenizer: Tokenizer
) -> Callable[[str, Task], Environment]:
    """A function of an environment's name and a task.

    Raises:
        ValueError: a profile that its kind does not have.
    """
    makers = {config.name: _maker(config, tokenizer) for config in configs}
    return lambda name, task: makers[name](task)


def _of_corpus(kind: str, path: str) -> list[Task]:
    made = {
        "output_prediction": prediction.output_tasks,
        "trace_prediction": prediction.trace_tasks,
    }
    tasks = list(made[kind](read_corpus(path)))
    if not tasks:
        wanted = "that returned from main()" if kind == "output_prediction" else "that ended"
        raise ValueError(
            f"no episode of {path} makes a task; expected some {wanted}: trace other programs"
        )
    twice = [name for name, n in collections.Counter(t.name for t in tasks).items() if n > 1]
    if twice:
        raise ValueError(
            f"two episodes of {path} have one name, {twice[0]!r}; expected each its own: make the "
            "corpus again"
        )
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
