"""Plays test-time scaling from end to end, with a script in place of a model.

The script knows the faults of the shipped tasks. By lot it mends a fault, mends half of it or the
call of the issue alone, breaks the module or changes nothing, and writes tests of the issue:
thorough ones, weak ones that make the issue's call, and ones that say the same of any code. The
sandboxes, the records and the choice are the real ones. It shows what the machinery does, and
measures no model.

    python -m benchmarks.test_time_scaling --out runs/tts
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.swe_episode import small_tokenizer
from cwm_jax.__main__ import main as cwm_jax_main
from cwm_jax.evals.problem import Answer, Prompt, SetOptions
from cwm_jax.evals.runs.records import RecordFile
from cwm_jax.evals.runs.runner import RunLimits, RunSettings, attempt_seed, run
from cwm_jax.evals.sets.swe import ENTRIES
from cwm_jax.rl.environment import Task
from cwm_jax.rl.envs.swe.patches import apply_patch, parse_patch
from cwm_jax.rl.envs.swe.prompts import OTHER, REPRODUCED, RESOLVED
from cwm_jax.rl.envs.swe.shipped.tasks import diff_of, half_mended, shipped_tasks
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

# In percent. Most patches are wrong, and most tests cannot tell a patch for the call alone.
PATCHES = {"right": 20, "commented": 5, "half": 25, "shown": 25, "breaking": 10, "nothing": 15}
TESTS = {"thorough": 15, "weak": 45, "always": 20, "never": 20}
_MOST_TURNS = 4
_MOST_CALLS = 8  # of a thorough test
_TEST = f"""\
import importlib

CASES = {{cases!r}}


def is_right(names, call, expected, raises):
    try:
        value = eval(call, dict(names))
    except Exception as error:
        return type(error).__name__ == raises
    return expected is not None and repr(value) == expected


try:
    names = vars(importlib.import_module({{module!r}}))
except Exception:
    print("{OTHER}")
else:
    right = all(is_right(names, *case) for case in CASES)
    print("{RESOLVED}" if right else "{REPRODUCED}")
"""
_SAME = f'# prints "{REPRODUCED}" or "{RESOLVED}"\nprint("{{phrase}}")\n'
Script = Callable[[Task, int], Sequence[str]]


class ScriptedModel:
    """A `cwm_jax.evals.models.Model` that plays a script; it knows an attempt by its seed.

    Args:
        tokenizer: of the prompts.
        tasks: that are asked.
        script: the turns of a task's sample.
        samples: of each task.
    """

    name = "script"

    def __init__(
        self, tokenizer: Tokenizer, tasks: Sequence[Task], script: Script, samples: int
    ) -> None:
        self.tokenizer = tokenizer
        self._script = script
        self._turns = {
            (attempt_seed(0, task.name, sample) + turn) % 2**31: (task, sample, turn)
            for task in tasks
            for sample in range(samples)
            for turn in range(_MOST_TURNS)
        }

    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def notes(self) -> Sequence[str]:
        return ()

    def answer(self, prompt: Prompt, *, temperature: float, top_p: float, seed: int) -> Answer:
        task, sample, turn = self._turns[seed]
        assert self.tokenizer is not None and prompt.tokens is not None
        text = self._script(task, sample)[turn]
        end = self.tokenizer.special_tokens[END_OF_TURN]
        tokens = [*self.tokenizer.encode(text), end]
        return Answer(
            text=text,
            finish_reason="stop",
            token_ids=tokens,
            num_prompt_tokens=len(prompt.tokens),
            num_tokens=len(tokens),
        )

    def close(self) -> None:
        pass


def evaluate(
    name: str, script: Script, folder: Path, *, count: int, samples: int, parallel: int = 2
) -> None:
    """A run of one of the shipped sets, recorded in a folder."""
    tokenizer = small_tokenizer()
    evaluated = ENTRIES[name].load(
        None, SetOptions(mode="small", tokenizer=tokenizer, values={"count": str(count)})
    )
    model = ScriptedModel(tokenizer, shipped_tasks(0, count), script, samples)
    settings = RunSettings(samples=samples, temperature=1.0, top_p=0.95)
    about = {"set": evaluated.name, "model": model.identity(), "settings": {"samples": samples}}
    with evaluated.opened() as problems, RecordFile(folder, about) as file:
        limits = RunLimits(parallel=parallel)
        outcome = run(problems, model, file, settings, limits, progress=None)
    assert not outcome.num_left and not outcome.num_void and not outcome.failure, outcome


def patch_turns(task: Task, kind: str) -> list[str]:
    """An episode that submits a patch of a kind; ``none`` submits none and ends out of format."""
    if kind == "none":
        return ["I give up."]
    return _submitting("changes.diff", patch_of(task, kind))


def test_turns(task: Task, kind: str) -> list[str]:
    """An episode that submits a test of a kind."""
    return _submitting("test_issue.py", test_of(task, kind))


def patch_of(task: Task, kind: str) -> str:
    """A diff that mends the task's fault, or not."""
    before = dict(task.data["repository"]["files"])
    after = apply_patch(parse_patch(task.data["patch"]), lambda path: before[path].encode())
    whole = {path: content.decode() for path, content in after.items() if content is not None}
    made = {
        "right": whole,
        "commented": {path: f"# Mended.\n{text}" for path, text in whole.items()},
        "half": {path: half_mended(before[path], text) for path, text in whole.items()},
        "shown": {path: before[path] + _for_the_call(task) for path in whole},
        "breaking": {path: before[path] + "\nraise RuntimeError\n" for path in whole},
        "nothing": {"README.md": before["README.md"] + "\nMended.\n"},
    }
    return diff_of(before, {**before, **made[kind]})


def test_of(task: Task, kind: str) -> str:
    """The source of a test."""
    if kind in ("always", "never"):
        return _SAME.format(phrase=RESOLVED if kind == "always" else REPRODUCED)
    module, shown = _shown(task)
    calls = [c for c in task.data["tests"]["calls"] if c["module"] == module]
    function = task.data["fault"]["place"].rpartition(".")[2]
    about = [c for c in calls if c["call"] == shown]
    if kind == "thorough":
        about += [c for c in calls if f"{function}(" in c["call"]][:_MOST_CALLS]
    cases = [(c["call"], c.get("expected"), c.get("raises")) for c in about]
    return _TEST.format(cases=cases, module=module)


def by_lot(turns: Callable[[Task, str], list[str]], weights: Mapping[str, int]) -> Script:
    """A script that chooses a kind for each sample, always the same."""

    def script(task: Task, sample: int) -> list[str]:
        rng = random.Random(f"{task.name}/{sample}")
        return turns(task, rng.choices(list(weights), [*weights.values()])[0])

    return script


def _shown(task: Task) -> tuple[str, str]:
    """(module, call) of the issue."""
    found = re.search(r"In the names of `(.+)`,\n\n    (.+)\n", task.data["issue"])
    assert found, task.data["issue"]
    return found[1], found[2]


def _for_the_call(task: Task) -> str:
    """Code that makes the issue's call right, and no other; nothing where it is no plain call."""
    module, shown = _shown(task)
    tree = ast.parse(shown, mode="eval").body
    if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name) or tree.keywords:
        return ""
    name, args = tree.func.id, [ast.unparse(arg) for arg in tree.args]
    (call,) = [
        c for c in task.data["tests"]["calls"] if (c["module"], c["call"]) == (module, shown)
    ]
    if call.get("expected") is None:
        return ""
    return (
        f"\n\n_before = globals().get({name!r})\n\n\ndef {name}(*args, **more):\n"
        f"    if repr(args) == repr(({''.join(f'{arg}, ' for arg in args)})):\n"
        f"        return {call['expected']}\n    return _before(*args, **more)\n"
    )


def _submitting(name: str, text: str) -> list[str]:
    def call(tool: str, content: str) -> str:
        return f"I go on.\n</think>\n<tool: {tool}>\n{content}\n</tool>"

    path = f"/tmp/{name}"
    create = call("create", f"{path}\n{text.removesuffix(chr(10))}")
    return [create, call("submit", path), "I am done.\n</think>\n## Change\nAs submitted."]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.test_time_scaling", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder; goes on where it was")
    parser.add_argument("--count", type=int, default=12, help="tasks (default 12)")
    parser.add_argument("--samples", type=int, default=8, help="patches, and tests (default 8)")
    options = parser.parse_args()
    size = {"count": options.count, "samples": options.samples}
    evaluate("swe_shipped", by_lot(patch_turns, PATCHES), options.out / "patches", **size)
    evaluate("swe_shipped_tests", by_lot(test_turns, TESTS), options.out / "tests", **size)
    runs = [str(options.out / "patches"), "--tests", str(options.out / "tests")]
    line = ["tts", *runs, "--out", str(options.out / "tts"), "--mode", "small"]
    sys.exit(cwm_jax_main([*line, "--count", str(options.count)]))


if __name__ == "__main__":
    main()
