"""SWE-bench-style sets: mend a repository in an episode of tools, or write a test of its issue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from cwm_jax.evals.problem import EvalSet, Problem, SetEntry, SetOptions
from cwm_jax.evals.swe.attempt import EpisodeAttempt, patch_answer
from cwm_jax.evals.swe.rows import load_tasks
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.issue_tests import TEST_S, IssueTest
from cwm_jax.rl.envs.swe.profiles import PROFILES, SWEProfile
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.tokenizer import Tokenizer

_MODES = ("eval", "small")
# Of SWE-bench Verified, one try each. Source: cwm_report section 10 (model card).
_PUBLISHED = {"CWM": 53.9, "Devstral-1.1-24B": 53.6, "Qwen3-Coder": 51.6, "gpt-oss-20B high": 60.7}
_ABOUT = """\
Episodes of `cwm_jax.rl.envs.swe`: a shell, edit, create and submit; the hidden tests are run on
the submitted patch in a new workspace without network. The form of the calls is Meta's, the
prompt's words are the project's own. Mode eval has the limits of the released evaluation."""
_ABOUT_TESTS = """\
Episodes of the same tools whose answer is a stand-alone test of the issue. It passes where it
prints the phrase for a reproduced issue, and no other, on the original repository."""
_Kind = type[SoftwareEngineering]


def _load_file(kind: _Kind, path: Path | None, options: SetOptions) -> EvalSet:
    assert path is not None
    tasks, form = load_tasks(path)
    published = _PUBLISHED if form == "rows" and kind is SoftwareEngineering else {}
    name = "swe" if kind is SoftwareEngineering else "swe_tests"
    return _set(name, tasks, kind, options, published)


def _load_shipped(kind: _Kind, path: Path | None, options: SetOptions) -> EvalSet:
    seed, count = (
        _number(options, name, default) for name, default in (("seed", 0), ("count", 20))
    )
    tasks = shipped_tasks(seed, count, unsafe=options.unsafe)
    name = "swe_shipped" if kind is SoftwareEngineering else "swe_shipped_tests"
    return _set(name, tasks, kind, options, {})


def _set(
    name: str,
    tasks: Sequence[Task],
    kind: _Kind,
    options: SetOptions,
    published: Mapping[str, float],
) -> EvalSet:
    profile, tokenizer = _profile(kind, options), options.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"{name} writes its prompts in the model's tokens, and no tokenizer is given; expected "
            "the model's: name it with --tokenizer, or evaluate a model from its folder"
        )
    return EvalSet(
        name=f"{name}/{options.mode}",
        problems=[
            _problem(task, kind, tokenizer, profile, unsafe=options.unsafe) for task in tasks
        ],
        temperature=1.0,  # report
        top_p=0.95,  # report
        about=_ABOUT if kind is SoftwareEngineering else _ABOUT_TESTS,
        published=published,
    )


def _profile(kind: _Kind, options: SetOptions) -> SWEProfile:
    if options.mode not in _MODES:
        raise ValueError(f"mode is {options.mode!r}; expected {' or '.join(_MODES)}")
    profile = PROFILES[options.mode]
    if kind is IssueTest:
        limit_s = min(profile.test_timeout_s, TEST_S)
        profile = dataclasses.replace(profile, test_timeout_s=limit_s)
    if options.max_tokens is not None:
        profile = dataclasses.replace(profile, action_tokens=options.max_tokens)
    return profile


def _problem(
    task: Task, kind: _Kind, tokenizer: Tokenizer, profile: SWEProfile, *, unsafe: bool
) -> Problem:
    is_test = kind is IssueTest
    read = (
        (lambda text: None) if is_test else functools.partial(patch_answer, task.data["repository"])
    )

    def attempt() -> EpisodeAttempt:
        return EpisodeAttempt(
            lambda: kind(task, tokenizer, profile, unsafe=unsafe),
            tokenizer,
            submitted="test" if is_test else "patch",
            read_answer=read,
        )

    fault = task.data.get("fault", {})
    labels = {"fault": str(fault["kind"])} if "kind" in fault else {}
    if not fault and task.group:
        labels = {"repository": task.group}
    return Problem(name=task.name, attempt=attempt, text=task.data["issue"], labels=labels)


def _number(options: SetOptions, name: str, default: int) -> int:
    value = options.values.get(name, str(default))
    if not value.isascii() or not value.isdigit():
        raise ValueError(f"option {name} is {value!r}; expected a whole number: --option {name}=20")
    return int(value)


def _entry(kind: _Kind, what: str, *, shipped: bool) -> SetEntry:
    if shipped:
        return SetEntry(
            load=functools.partial(_load_shipped, kind),
            modes=_MODES[::-1],
            summary=f"{what}: the project's small repository with faults",
            needs_path=False,
            options={"seed": "of the faults (default 0)", "count": "of the tasks (default 20)"},
        )
    summary = f"{what}: rows of SWE-bench with eval_script, or a task file of rl's kind swe"
    return SetEntry(load=functools.partial(_load_file, kind), modes=_MODES, summary=summary)


ENTRIES: dict[str, SetEntry] = {
    "swe": _entry(SoftwareEngineering, "patches of repositories", shipped=False),
    "swe_shipped": _entry(SoftwareEngineering, "patches of repositories", shipped=True),
    "swe_tests": _entry(IssueTest, "tests of issues", shipped=False),
    "swe_shipped_tests": _entry(IssueTest, "tests of issues", shipped=True),
}
