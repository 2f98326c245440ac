"""``python -m cwm_jax forage documents``: code data as JSONL that a mixture reads."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cwm_jax.evals.contamination import training_texts
from cwm_jax.forager.decontamination import SWE_BENCH, Exclusions, KnownTexts
from cwm_jax.forager.documents.collection import MAX_CHARS, Document, Dropped, write_documents
from cwm_jax.forager.documents.pull_requests import (
    PullRequestOptions,
    pull_requests,
    read_issues,
)
from cwm_jax.sandbox import SandboxError


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("documents", help="write code data of other kinds as JSONL")
    parts = parser.add_subparsers(required=True, metavar="KIND")
    _add_pull_requests(parts)


def _add_pull_requests(parts: Any) -> None:
    options = PullRequestOptions()
    part = _part(parts, "pull-requests", _pull_requests, "changes of git repositories")
    part.add_argument("repositories", nargs="+", help="git checkouts, or bare repositories")
    part.add_argument("--name", help="OWNER/NAME of the repository (default: of its origin)")
    part.add_argument("--issues", help="of the repository: JSONL with number, title and body")
    part.add_argument("--exclude", nargs="*", default=[], metavar="NAME", help="repositories")
    part.add_argument(
        "--allow-swe-bench", action="store_true", help="do not leave out SWE-bench's repositories"
    )
    for name in ("max_files", "max_lines", "unchanged_files", "seed"):
        default = getattr(options, name)
        part.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"(default {default})"
        )


def _part(parts: Any, name: str, found: Callable[..., Any], help: str) -> argparse.ArgumentParser:
    part = parts.add_parser(name, help=help)
    part.add_argument("--out", required=True, help="JSONL file; one that is there is replaced")
    part.add_argument(
        "--max-chars", type=int, default=MAX_CHARS, help=f"of a document (default {MAX_CHARS})"
    )
    part.add_argument(
        "--decontaminate", nargs="+", default=[], metavar="PATH", help="texts to stay away from"
    )
    part.set_defaults(main=functools.partial(_guarded, found))
    return part


def _guarded(
    found: Callable[[argparse.Namespace], Iterator[Document | Dropped]], args: argparse.Namespace
) -> int:
    """2 for what a user has caused."""
    try:
        texts = {
            f"{path}:{name}": text
            for path in args.decontaminate
            for name, text in training_texts(Path(path), None)
        }
        counts = write_documents(
            Path(args.out),
            found(args),
            known=KnownTexts(texts) if texts else None,
            max_chars=args.max_chars,
        )
    except (ValueError, OSError, SandboxError) as error:
        print(f"cwm_jax forage documents: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {counts}")
    return 0


def _pull_requests(args: argparse.Namespace) -> Iterator[Document | Dropped]:
    if len(args.repositories) > 1 and (args.name or args.issues):
        raise ValueError(
            f"--name and --issues are of one repository and {len(args.repositories)} are given: "
            "run the command for each"
        )
    known = () if args.allow_swe_bench else SWE_BENCH
    options = PullRequestOptions(
        max_files=args.max_files,
        max_lines=args.max_lines,
        unchanged_files=args.unchanged_files,
        seed=args.seed,
        exclusions=Exclusions((*known, *args.exclude)),
    )
    issues = read_issues(Path(args.issues)) if args.issues else None
    for repository in args.repositories:
        yield from pull_requests(Path(repository), options, name=args.name, issues=issues)
