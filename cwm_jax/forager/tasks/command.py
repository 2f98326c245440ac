"""``python -m cwm_jax forage tasks``: images in, tasks out."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import known_texts
from cwm_jax.forager.documents.pull_requests import read_issues
from cwm_jax.forager.images.store import Store
from cwm_jax.forager.tasks.issue_fix import IssueFixSettings, issue_fix
from cwm_jax.forager.tasks.mutate_fix import MutateFixSettings, mutate_fix
from cwm_jax.forager.tasks.trials import Trial, table, write_tasks
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.engine_arguments import add_engine, engine_of

Maker = Callable[[argparse.Namespace, Sequence[Path]], list[Trial]]


def add_parser(parts: Any) -> None:
    """Adds the part ``tasks`` to ``forage``, with its kinds."""
    parser = parts.add_parser("tasks", help="make tasks of images that `forage images` has built")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    faults = _kind(kinds, "mutate-fix", _mutate_fix, "faults that tests notice")
    faults.add_argument("--seed", type=int, default=0)
    faults.add_argument("--timeout", type=float, default=MutateFixSettings.timeout_s, metavar="S")
    faults.add_argument("--per-function", type=int, default=MutateFixSettings.per_function)
    commits = _kind(kinds, "issue-fix", _issue_fix, "commits of histories that mended something")
    commits.add_argument("--issues", type=Path, help="JSONL with number, title and body")
    commits.add_argument("--timeout", type=float, default=IssueFixSettings.timeout_s, metavar="S")


def _kind(kinds: Any, name: str, make: Maker, help: str) -> argparse.ArgumentParser:
    kind = kinds.add_parser(name, help=help)
    kind.add_argument("--images", type=Path, required=True, help="a store of images")
    kind.add_argument("--only", nargs="+", metavar="NAME", help="of the images")
    kind.add_argument("--out", type=Path, required=True, help="folder, gone on with if it is there")
    kind.add_argument("--count", type=int, help="of tasks (default all that there are)")
    kind.add_argument(
        "--decontaminate", nargs="+", default=[], metavar="PATH", help="texts to stay away from"
    )
    add_engine(kind)
    kind.set_defaults(main=functools.partial(_guarded, make, f"forage tasks {name}"))
    return kind


def _guarded(make: Maker, what: str, args: argparse.Namespace) -> int:
    """2 for what a user has caused."""
    try:
        with contextlib.ExitStack() as stack:
            trials = make(args, _images(args, stack))
        statistics = write_tasks(args.out, trials)
    except (ValueError, OSError, RuntimeError, EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax {what}: {error}", file=sys.stderr)
        return 2
    print(table(statistics))
    print(f"{args.out / 'tasks.jsonl'}: {statistics['tasks']} tasks")
    return 0


def _images(args: argparse.Namespace, stack: contextlib.ExitStack) -> list[Path]:
    """Nobody removes them as long as the stack lasts."""
    store = Store(args.images)
    images = store.images()
    wanted = {*(args.only or [])}
    found = [image for image in images if not wanted or image.manifest.name in wanted]
    if missing := wanted - {image.manifest.name for image in found}:
        known = ", ".join(sorted(image.manifest.name for image in images)) or "none"
        raise ValueError(f"{args.images} has no image of {sorted(missing)}, but of {known}")
    if not found:
        raise ValueError(f"{args.images} has no images; make some with `forage images`")
    return [stack.enter_context(store.use(image)).path for image in found]


def _mutate_fix(args: argparse.Namespace, images: Sequence[Path]) -> list[Trial]:
    settings = MutateFixSettings(
        seed=args.seed, timeout_s=args.timeout, per_function=args.per_function
    )
    engine, known = engine_of(args), known_texts(args.decontaminate)
    return mutate_fix(images, args.out, settings, count=args.count, engine=engine, known=known)


def _issue_fix(args: argparse.Namespace, images: Sequence[Path]) -> list[Trial]:
    issues = read_issues(args.issues) if args.issues else {}
    settings = IssueFixSettings(timeout_s=args.timeout, issues=issues)
    engine, known = engine_of(args), known_texts(args.decontaminate)
    return issue_fix(images, args.out, settings, count=args.count, engine=engine, known=known)
