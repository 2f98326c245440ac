"""``python -m cwm_jax forage documents``: code data as JSONL that a mixture reads."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import (
    KERNEL_BENCHMARKS,
    LEAN_BENCHMARKS,
    SWE_BENCH,
    Exclusions,
    known_texts,
)
from cwm_jax.forager.documents.collection import MAX_CHARS, Document, Dropped, write_documents
from cwm_jax.forager.documents.compiler import (
    CompilerOptions,
    compiler_pairs,
    generated_sources,
    read_sources,
)
from cwm_jax.forager.documents.kernels import PERMISSIVE, KernelOptions, kernels
from cwm_jax.forager.documents.lean import LeanOptions, theorem_names, theorems
from cwm_jax.forager.documents.pull_requests import (
    PullRequestOptions,
    pull_requests,
    read_issues,
)
from cwm_jax.forager.documents.toolchain import (
    COMPILERS,
    LEVELS,
    Compiler,
    check_compiler,
    find_compiler,
)
from cwm_jax.sandbox import SandboxError

Found = Iterator[Document | Dropped]


def add_parser(subparsers: Any) -> None:
    """Adds the command with its parts."""
    parser = subparsers.add_parser("documents", help="write code data of other kinds as JSONL")
    parts = parser.add_subparsers(required=True, metavar="KIND")
    _add_pull_requests(parts)
    _add_compiler(parts)
    _add_kernels(parts)
    _add_lean(parts)


def _add_pull_requests(parts: Any) -> None:
    part = _part(parts, "pull-requests", _pull_requests, "changes of git repositories")
    part.add_argument("repositories", nargs="+", help="git checkouts, or bare repositories")
    part.add_argument("--name", help="OWNER/NAME of the repository (default: of its origin)")
    part.add_argument("--issues", help="of the repository: JSONL with number, title and body")
    _add_exclusions(part)
    _add_numbers(part, PullRequestOptions(), "max_files", "max_lines", "unchanged_files", "seed")


def _add_compiler(parts: Any) -> None:
    part = _part(parts, "compiler", _compiler, "C sources and what compilers make of them")
    part.add_argument("--sources", nargs="+", default=[], metavar="PATH", help="C files, folders")
    part.add_argument(
        "--generate", type=int, default=0, metavar="COUNT", help="C programs that a seed writes"
    )
    part.add_argument(
        "--compilers", nargs="+", choices=COMPILERS, default=COMPILERS, help="(default: all)"
    )
    part.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS, help="(default: all)")
    part.add_argument(
        "--readable", nargs="+", default=[], metavar="PATH", help="what the compilers need besides"
    )
    part.add_argument("--unsafe", action="store_true", help="compile without bubblewrap")
    _add_numbers(part, CompilerOptions(), "max_source_chars", "max_output_chars", "workers", "seed")


def _add_kernels(parts: Any) -> None:
    part = _part(parts, "kernels", _kernels, "PyTorch modules and Triton kernels of KernelBook")
    part.add_argument("files", nargs="+", help="JSONL or Parquet with KernelBook's columns")
    part.add_argument(
        "--licenses",
        nargs="+",
        default=PERMISSIVE,
        metavar="SPDX",
        help=f"that a row may have (default: {' '.join(PERMISSIVE)})",
    )
    _add_exclusions(part)
    _add_numbers(part, KernelOptions(), "max_side_chars")


def _add_lean(parts: Any) -> None:
    part = _part(parts, "lean", _lean, "proofs of LeanDojo's benchmarks, state by state")
    part.add_argument("files", nargs="+", help="JSON lists of theorems, as random/train.json")
    part.add_argument(
        "--held-out", nargs="+", default=[], metavar="FILE", help="whose theorems are left out"
    )
    _add_exclusions(part)
    _add_numbers(part, LeanOptions(), "max_tactics", "max_state_chars")


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


def _add_exclusions(part: argparse.ArgumentParser) -> None:
    part.add_argument("--exclude", nargs="*", default=[], metavar="NAME", help="repositories")
    part.add_argument(
        "--allow-swe-bench", action="store_true", help="do not leave out SWE-bench's repositories"
    )


def _exclusions(args: argparse.Namespace, *benchmarks: str) -> Exclusions:
    known = () if args.allow_swe_bench else SWE_BENCH
    return Exclusions((*known, *benchmarks, *args.exclude))


def _add_numbers(part: argparse.ArgumentParser, options: Any, *names: str) -> None:
    """Whole numbers of a part's options, under their names."""
    for name in names:
        default = getattr(options, name)
        part.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"(default {default})"
        )


def _guarded(found: Callable[[argparse.Namespace], Found], args: argparse.Namespace) -> int:
    """2 for what a user has caused."""
    try:
        counts = write_documents(
            Path(args.out),
            found(args),
            known=known_texts(args.decontaminate),
            max_chars=args.max_chars,
        )
    except (ValueError, OSError, SandboxError) as error:
        _say(str(error))
        return 2
    print(f"{args.out}: {counts}")
    return 0


def _say(text: str) -> None:
    print(f"cwm_jax forage documents: {text}", file=sys.stderr)


def _pull_requests(args: argparse.Namespace) -> Found:
    if len(args.repositories) > 1 and (args.name or args.issues):
        raise ValueError(
            f"--name and --issues are of one repository and {len(args.repositories)} are given: "
            "run the command for each"
        )
    options = PullRequestOptions(
        max_files=args.max_files,
        max_lines=args.max_lines,
        unchanged_files=args.unchanged_files,
        seed=args.seed,
        exclusions=_exclusions(args),
    )
    issues = read_issues(Path(args.issues)) if args.issues else None
    for repository in args.repositories:
        yield from pull_requests(Path(repository), options, name=args.name, issues=issues)


def _compiler(args: argparse.Namespace) -> Found:
    options = CompilerOptions(
        levels=tuple(args.levels),
        max_source_chars=args.max_source_chars,
        max_output_chars=args.max_output_chars,
        workers=args.workers,
        seed=args.seed,
    )
    if args.generate < 0 or not (args.sources or args.generate):
        raise ValueError(
            f"--generate is {args.generate} and --sources are {args.sources}; expected C sources: "
            "give --sources, --generate with a number above 0, or both"
        )
    sources = itertools.chain(
        read_sources([Path(path) for path in args.sources]),
        generated_sources(args.generate, args.seed),
    )
    compilers = _compilers(args.compilers, [Path(path) for path in args.readable], args.unsafe)
    yield from compiler_pairs(sources, compilers, options, unsafe=args.unsafe)


def _compilers(names: Sequence[str], readable: Sequence[Path], unsafe: bool) -> list[Compiler]:
    """Those that are there; of the others it is said that they are not."""
    found = []
    for name in dict.fromkeys(names):
        compiler = find_compiler(name, readable)
        if compiler is None:
            _say(f"no {name} on PATH: there are no documents of it")
            continue
        check_compiler(compiler, unsafe=unsafe)
        found.append(compiler)
    if not found:
        raise ValueError(f"none of {', '.join(names)} is on PATH; expected one: install gcc")
    return found


def _kernels(args: argparse.Namespace) -> Found:
    options = KernelOptions(
        licenses=tuple(args.licenses),
        max_side_chars=args.max_side_chars,
        exclusions=_exclusions(args, *KERNEL_BENCHMARKS),
    )
    for file in args.files:
        yield from kernels(Path(file), options)


def _lean(args: argparse.Namespace) -> Found:
    options = LeanOptions(
        max_tactics=args.max_tactics,
        max_state_chars=args.max_state_chars,
        exclusions=_exclusions(args, *LEAN_BENCHMARKS),
    )
    held_out = {name for file in args.held_out for name in theorem_names(Path(file))}
    for file in args.files:
        yield from theorems(Path(file), options, held_out=held_out)
