"""What an ablation is, and the runs it stands for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cwm_jax.config import Recipe, RunConfig, TokenizerConfig, schema
from cwm_jax.config.files import load_module
from cwm_jax.sweeps.ablation.measures import Measure
from cwm_jax.training.goodput import GOODPUT_FILE, is_finished

Config: TypeAlias = RunConfig | Recipe
Arm: TypeAlias = Mapping[str, Any] | Callable[[Any], Config]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ablation:
    """A question asked by changing one thing at a time.

    Attributes:
        name: of its folder below ``output_directory``.
        question: heads the report.
        base: the run, or the phases, that the arms change.
        arms: by name: dotted keys and their new values, as ``--set`` takes them, or a function of
            the base.
        baseline: the arm that the others are compared with.
        measures: what is compared.
        seeds: each arm is run with each.
        tokenizer_of: the arm on whose sources one tokenizer for all arms is trained; None leaves
            each its own, which is the same where the sources are.
        output_directory: of all ablations.
    """

    name: str
    question: str
    base: Config
    arms: Mapping[str, Arm]
    baseline: str
    measures: Sequence[Measure]
    seeds: Sequence[int] = (0, 1, 2)
    tokenizer_of: str | None = None
    output_directory: str = "runs/ablations"

    def __post_init__(self) -> None:
        for what, name in (("name", self.name), *(("arm", arm) for arm in self.arms)):
            if not name or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(f"{what} {name!r}: expected letters, digits, '-' and '_' alone")
        for what, name in (("baseline", self.baseline), ("tokenizer_of", self.tokenizer_of)):
            if name is not None:
                self.check_arm(name, what)
        measures = [measure.name for measure in self.measures]
        for what, found in (("seeds", list(self.seeds)), ("measures", measures)):
            if not found or len(set(found)) != len(found):
                raise ValueError(
                    f"ablation {self.name}: {what} are {found}; expected one or more, none twice"
                )
        self._check_arms_differ()

    @property
    def folder(self) -> Path:
        return Path(self.output_directory) / self.name

    @property
    def tokenizer_path(self) -> Path:
        """Of the one for all arms, if there is to be one."""
        return self.folder / "tokenizer"

    def check_arm(self, arm: str, what: str = "--arm") -> None:
        """Raises ValueError if there is no arm of that name."""
        if arm not in self.arms:
            raise ValueError(
                f"{what} {arm!r}: no such arm{schema.nearest_hint(arm, self.arms)}; arms of "
                f"{self.name} are {', '.join(self.arms)}"
            )

    def config(self, arm: str, seed: int) -> Config:
        """What train.py runs for an arm and a seed.

        Raises:
            ValueError: no such arm, or it cannot be: a wrong key, a wrong value.
        """
        self.check_arm(arm)
        changed = self.changed_base(arm)
        if isinstance(changed, Recipe):
            return _recipe_of(changed, self.folder / f"{arm}-{seed}", seed)
        config = dataclasses.replace(
            changed, run_name=f"{arm}-{seed}", base_output_directory=str(self.folder), seed=seed
        )
        if self.tokenizer_of is None:
            return config
        return dataclasses.replace(
            config, tokenizer=TokenizerConfig(path=str(self.tokenizer_path), vocab_size=None)
        )

    def changed_base(self, arm: str) -> Config:
        """The base as the arm changes it, before names, seeds and the shared tokenizer."""
        change = self.arms[arm]
        try:
            if callable(change):
                changed = change(self.base)
            else:
                changed = schema.override(self.base, *(_assignment(*kv) for kv in change.items()))
        except ValueError as error:
            raise ValueError(f"arm {arm!r} of {self.name}: {error}") from error
        if type(changed) is not type(self.base):
            raise ValueError(
                f"arm {arm!r} of {self.name} makes {type(changed).__name__}; expected "
                f"{type(self.base).__name__}, what the base is: return a changed copy of it"
            )
        if _places(changed) != _places(self.base):
            raise ValueError(
                f"arm {arm!r} of {self.name} changes run_name, base_output_directory or seed; the "
                "grid sets them: drop that"
            )
        return changed

    def _check_arms_differ(self) -> None:
        seen: dict[str, str] = {}
        for arm in self.arms:
            text = json.dumps(schema.to_json(self.changed_base(arm)), sort_keys=True)
            if text in seen:
                raise ValueError(
                    f"ablation {self.name}: the arms {seen[text]} and {arm} are one run; expected "
                    "each to change something else: drop one"
                )
            seen[text] = arm
        trains_one = isinstance(self.base, RunConfig) and self.base.tokenizer.path is None
        if self.tokenizer_of is not None and not trains_one:
            raise ValueError(
                f"ablation {self.name}: tokenizer_of is set; expected a base that is one run and "
                "trains a tokenizer: drop tokenizer_of"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One arm with one seed.

    Attributes:
        config: with the settings of the command line.
        arguments: of train.py, which make this run alone.
    """

    arm: str
    seed: int
    config: Config
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def phases(self) -> tuple[RunConfig, ...]:
        return phases_of(self.config)

    @property
    def folder(self) -> Path:
        """Of the run; of phases: the last one's."""
        return _folder(self.phases[-1])

    @property
    def parent(self) -> Path:
        """The folder that all runs of the grid are in."""
        return self.folder.parents[1 if isinstance(self.config, Recipe) else 0]

    def is_finished(self) -> bool:
        """Whether all that this very config leaves is there, predicted traces and export too."""
        return all(_is_finished(phase) for phase in self.phases)


def expand(
    ablation: Ablation,
    path: str,
    *,
    seeds: Sequence[int] | None = None,
    settings: Sequence[str] = (),
) -> list[Run]:
    """The grid, seed by seed, so that a stopped one has whole comparisons first.

    Args:
        ablation: what is expanded.
        path: of its file, for the arguments.
        seeds: in place of its own.
        settings: ``key=value`` for every run.
    """
    runs = []
    for seed in ablation.seeds if seeds is None else seeds:
        for arm in ablation.arms:
            arguments = ("--config", path, "--arm", arm, "--seed", str(seed))
            arguments += ("--set", *settings) if settings else ()
            config = schema.override(ablation.config(arm, seed), *settings)
            runs.append(Run(arm=arm, seed=seed, config=config, arguments=arguments))
    return runs


def load_ablation(path: str) -> Ablation:
    """Calls ``get_ablation()`` of a Python file.

    Raises:
        ValueError: no such file, or it has no ``get_ablation`` that returns an Ablation.
    """
    module = load_module(path)
    found = module.get_ablation() if hasattr(module, "get_ablation") else None
    if not isinstance(found, Ablation):
        raise ValueError(
            f"--config {path}: expected a function get_ablation() that returns an Ablation: "
            "configs/ablations has such files"
        )
    return found


def phases_of(config: Config) -> tuple[RunConfig, ...]:
    return config.phases if isinstance(config, Recipe) else (config,)


def _folder(config: RunConfig) -> Path:
    return Path(config.base_output_directory) / config.run_name


def _is_finished(config: RunConfig) -> bool:
    folder = _folder(config)
    books, written = folder / GOODPUT_FILE, folder / "config.json"
    if not (written.exists() and is_finished(books)):
        return False
    if json.loads(written.read_text()) != json.loads(json.dumps(schema.to_json(config))):
        return False  # another run's; train.py says whether this one can go on from it
    if config.logging.export is not None and not (folder / config.logging.export).exists():
        return False
    if (predicted := config.trace_evaluation) is None:
        return True
    name = f"traces-{Path(predicted.jsonl).stem}" if predicted.jsonl else "traces"
    traces = folder / f"{name}.json"
    step = json.loads(books.read_text())["step"]  # of an earlier one where a run was lengthened
    return traces.exists() and json.loads(traces.read_text()).get("step") == step


def _places(config: Config) -> list[tuple[str, str, int]]:
    return [(c.run_name, c.base_output_directory, c.seed) for c in phases_of(config)]


def _recipe_of(recipe: Recipe, folder: Path, seed: int) -> Recipe:
    """All phases below a folder; what they read of each other is there, too."""
    moved = {
        f"{phase.base_output_directory}/{phase.run_name}": f"{folder}/{phase.run_name}"
        for phase in recipe.phases
    }

    def in_folder(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: in_folder(item) for key, item in value.items()}
        if isinstance(value, list):
            return [in_folder(item) for item in value]
        for old, new in moved.items():
            if isinstance(value, str) and (value == old or value.startswith(f"{old}/")):
                return new + value.removeprefix(old)
        return value

    found = schema.from_json(Recipe, in_folder(schema.to_json(recipe)))
    return Recipe(
        phases=tuple(
            dataclasses.replace(phase, base_output_directory=str(folder), seed=seed)
            for phase in found.phases
        )
    )


def _assignment(key: str, value: Any) -> str:
    """As ``--set`` has it."""
    if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
        raise ValueError(
            f"{key} is set to {type(value).__name__}; expected a value that --set can write: make "
            "the arm a function of the base"
        )
    if isinstance(value, tuple | list):
        return f"{key}={','.join(map(str, value))}"
    return f"{key}={value}"
