"""``python -m cwm_jax trace corpus``: traces programs from several sources into one corpus."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.decontamination import load_benchmarks
from cwm_jax.trace.corpus.deduplication import NearDuplicates
from cwm_jax.trace.corpus.engine_arguments import add_engine, engine_of
from cwm_jax.trace.corpus.functions import functions
from cwm_jax.trace.corpus.scripts import script_paths, scripts, stdin_path
from cwm_jax.trace.corpus.settings import CorpusSettings
from cwm_jax.trace.corpus.worker import Work
from cwm_jax.trace.corpus.writer import write_corpus
from cwm_jax.trace.episodes import generated_programs, jsonl_programs
from cwm_jax.trace.suites import EpisodeRules, PytestSuite, doctest_suites, own_site


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sources:
    """The work that the options name, in one order."""

    generate: int
    difficulties: tuple[int, ...]
    seed: int
    jsonl: tuple[Path, ...]
    scripts: tuple[Path, ...]
    functions: tuple[Path, ...]
    doctests: tuple[str, ...]
    pytest: tuple[Path, ...]

    def __iter__(self) -> Iterator[Work]:
        rules = EpisodeRules(seed=self.seed)
        yield from generated_programs(self.seed, self.generate, difficulties=self.difficulties)
        for prefix, path in _prefixed(self.jsonl):
            yield from jsonl_programs(path, prefix=prefix)
        for prefix, folder in _prefixed(self.scripts):
            yield from scripts(folder, prefix=prefix)
        for prefix, folder in _prefixed(self.functions):
            yield from functions(folder, seed=self.seed, prefix=prefix)
        for package in self.doctests:
            yield from doctest_suites(package, site=own_site(), rules=rules)
        for prefix, root in _prefixed(self.pytest):
            root = root.absolute()
            yield PytestSuite(root=root, label=f"{prefix}{root.name}", rules=rules)

    def check(self) -> None:
        """Raises ValueError for what would be refused only after other work was done."""
        for package in self.doctests:
            next(doctest_suites(package, site=own_site()), None)
        for path in self.jsonl:
            for _ in jsonl_programs(path):
                pass

    def files(self) -> dict[str, str]:
        """Digests of what is read, by the option, its value's number and name."""
        read = {
            f"jsonl {n} {path.name}": _sha256(path.parent, [path])
            for n, path in enumerate(self.jsonl)
        }
        folders = {"scripts": self.scripts, "functions": self.functions, "pytest": self.pytest}
        for option, chosen in folders.items():
            for number, folder in enumerate(chosen):
                paths = script_paths(folder)
                if option == "scripts":
                    paths += [path for path in map(stdin_path, paths) if path.exists()]
                read[f"{option} {number} {folder.name}"] = _sha256(folder, paths)
        return read

    def describe(self) -> dict[str, Any]:
        """For the manifest, and to go on with the same work only."""
        generated = {"seed": self.seed, "difficulties": list(self.difficulties)}
        return {
            "generate": {"count": self.generate} | (generated if self.generate else {}),
            "doctests": list(self.doctests),
            "files": self.files(),
        }


def add_parser(subparsers: Any) -> None:
    """Adds ``corpus`` to the subcommands of ``trace``; its ``main`` default is `main`."""
    parser = subparsers.add_parser(
        "corpus",
        help="trace many programs into a corpus",
        description="Traces programs in parallel and writes what is worth keeping as ArrayRecord "
        "shards. A run that was stopped goes on when it is called again.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="new folder")
    add("--generate", type=_count, default=0, metavar="N", help="generated programs")
    add("--difficulty", type=_difficulties, default="1-5", metavar="A-B", help="of those (1-5)")
    add("--seed", type=int, default=0, help="of those (0)")
    add("--jsonl", type=Path, nargs="+", default=[], metavar="FILE", help="code and input per line")
    add(
        "--scripts",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="*.py below it, NAME.in beside NAME.py is its standard input",
    )
    add(
        "--functions",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="*.py below it, whose functions are called with fuzzed arguments",
    )
    add(
        "--doctests",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="modules and packages, installed or of the standard library, whose examples are run",
    )
    add("--pytest", type=Path, nargs="+", default=[], metavar="REPO", help="whose tests are run")
    add_engine(parser)
    add(
        "--decontaminate",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="JSONL of benchmark programs, whose functions are left out",
    )
    add("--repeats", type=int, default=2, help="traces of each program that must agree (2)")
    add("--jaccard", type=float, default=0.8, help="near-duplicates from here on (0.8); 0: none")
    add("--keep-truncated", action="store_true", help="keep what a limit cut, marked")
    add("--unsafe", action="store_true", help="without bubblewrap: programs can do what you can")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Writes the corpus, prints the report; returns 0, or 2 if it is refused."""
    try:
        sources = _Sources(
            generate=args.generate,
            difficulties=args.difficulty,
            seed=args.seed,
            jsonl=tuple(args.jsonl),
            scripts=tuple(args.scripts),
            functions=tuple(args.functions),
            doctests=tuple(args.doctests),
            pytest=tuple(args.pytest),
        )
        sources.check()
        described = sources.describe()
        if not (sources.generate or described["files"] or sources.doctests):
            raise ValueError(
                "no programs; expected some: give --generate, --jsonl, --scripts, --functions, "
                "--doctests or --pytest"
            )
        settings = CorpusSettings(
            repeats=args.repeats,
            keep_truncated=args.keep_truncated,
            near_duplicates=NearDuplicates(jaccard=args.jaccard) if args.jaccard else None,
            unsafe=args.unsafe,
            description=described,
        )
        report = write_corpus(
            sources,
            args.out,
            settings=settings,
            engine=engine_of(args),
            benchmarks=load_benchmarks(args.decontaminate),
        )
    except (ValueError, OSError, ImportError, SandboxError) as error:
        print(f"trace corpus: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"trace corpus: stopped; the same call goes on from {args.out}.partial", file=sys.stderr
        )
        return 130
    print(f"{args.out}: {report.total.kept} episodes of {report.num_items} programs")
    print(report)
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number of programs, 0 or more")
    return int(text)


def _difficulties(text: str) -> tuple[int, ...]:
    """``1-5`` or ``3``."""
    first, _, last = text.partition("-")
    ends = (first, last or first)
    if not all(end in "12345" and len(end) == 1 for end in ends) or ends[0] > ends[1]:
        raise argparse.ArgumentTypeError(f"{text!r}; expected one of 1 to 5, or a range as 2-4")
    return tuple(range(int(ends[0]), int(ends[1]) + 1))


def _prefixed(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Each with what begins the names of its work, as several may hold files of one name."""
    for number, path in enumerate(paths):
        yield (f"{number}-" if len(paths) > 1 else ""), path


def _sha256(root: Path, paths: Sequence[Path]) -> str:
    """Of files below a folder, with their places in it."""
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        name = path.relative_to(root).as_posix()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
