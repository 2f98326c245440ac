"""C sources and what compilers make of them, as documents of two parts.

A part is a C source, or one form of the compiler's output at the levels that are named: gcc's
optimised GIMPLE or assembly, clang's LLVM IR. A source is paired with the output of every level,
and the output without optimisation with the optimised one; which part comes first is drawn. CWM is
trained on compilers' intermediate forms (its report, of the data of mid-training), which ones and
how they were written is not said: this form is assumed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.forager.documents.c_programs import c_program
from cwm_jax.forager.documents.collection import Document, Dropped
from cwm_jax.forager.documents.toolchain import LEVELS, CompilationError, Compiler, compiled

_PLAIN, _OPTIMISED = "O0", "O2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompilerOptions:
    """Which pairs become documents; the limits are assumed.

    Attributes:
        levels: of optimisation.
        max_source_chars: of a source.
        max_output_chars: of each form of its output.
        timeout_s: of a compiler for a level.
        workers: sources at a time; they change no byte.
        seed: of which part is first.
    """

    levels: tuple[str, ...] = LEVELS
    max_source_chars: int = 20_000
    max_output_chars: int = 60_000
    timeout_s: float = 20.0
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "max_source_chars", "max_output_chars", "timeout_s", "workers")
        unknown = [level for level in self.levels if level not in LEVELS]
        if unknown or not self.levels:
            raise ValueError(f"levels are {self.levels}; expected some of {', '.join(LEVELS)}")


@dataclasses.dataclass(frozen=True)
class Source:
    """A C source; ``name`` is unique, ``origin`` as of a `Document`."""

    name: str
    content: bytes
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_sources(paths: Sequence[Path]) -> Iterator[Source]:
    """C files, of folders all below them in the order of their paths; links are not followed.

    Raises:
        ValueError: there is no such file or folder, or two have one name.
    """
    names: set[str] = set()
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; expected C sources: name another")
        root = path.resolve()
        files = sorted(root.rglob("*.c")) if path.is_dir() else [root]
        for file in files:
            name = f"{root.name}/{file.relative_to(root)}" if path.is_dir() else root.name
            if name in names:
                raise ValueError(f"{path}: {name} is there twice; give the folder above both")
            if file.is_file() and not (path.is_dir() and file.is_symlink()):
                names.add(name)
                yield Source(name, file.read_bytes(), {"file": name})


def generated_sources(count: int, seed: int) -> Iterator[Source]:
    """So many programs of `c_program`."""
    for number in range(count):
        program = c_program(seed, number)
        origin = {"generator": "c_programs", "seed": seed, "shapes": list(program.shapes)}
        yield Source(f"generated-{seed}-{number}", program.source.encode(), origin)


def compiler_pairs(
    sources: Iterable[Source],
    compilers: Sequence[Compiler],
    options: CompilerOptions,
    *,
    unsafe: bool = False,
) -> Iterator[Document | Dropped]:
    """Documents of each source, in the sources' order, and why others are none.

    Args:
        sources: what is compiled, each in sandboxes of its own.
        compilers: of `find_compiler`.
        options: the filters.
        unsafe: without bubblewrap.

    Raises:
        SandboxError: the sandbox cannot be had.
    """
    work = functools.partial(_of_source, compilers=compilers, options=options, unsafe=unsafe)
    for found in _in_order(work, sources, options.workers):
        yield from found


def _in_order(
    work: Callable[[Source], list[Document | Dropped]], sources: Iterable[Source], workers: int
) -> Iterator[list[Document | Dropped]]:
    """Results in the sources' order; few wait at a time."""
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    waiting: collections.deque[concurrent.futures.Future[list[Document | Dropped]]]
    waiting = collections.deque()
    try:
        for source in sources:
            waiting.append(pool.submit(work, source))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _of_source(
    source: Source, *, compilers: Sequence[Compiler], options: CompilerOptions, unsafe: bool
) -> list[Document | Dropped]:
    try:
        text = source.content.decode()
    except UnicodeDecodeError:
        return [Dropped("not UTF-8")]
    if "\0" in text or not text.strip():
        return [Dropped("no text")]
    if len(text) > options.max_source_chars:
        return [Dropped("too long a source")]
    found: list[Document | Dropped] = []
    for compiler in compilers:
        try:
            forms = compiled(
                source.content,
                compiler,
                options.levels,
                timeout_s=options.timeout_s,
                unsafe=unsafe,
            )
        except CompilationError as error:
            found.append(Dropped(f"{error} ({compiler.name})"))
            continue
        for form, texts in forms.items():
            found += _of_form(_Maker(source, text, compiler, form, options), texts)
    return found


@dataclasses.dataclass(frozen=True)
class _Part:
    title: str
    text: str
    levels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Makes the documents of one form."""

    source: Source
    text: str
    compiler: Compiler
    form: str
    options: CompilerOptions

    def part(self, levels: Sequence[str], text: str) -> _Part:
        form = f"{self.compiler.machine} {self.form}" if self.form == "assembly" else self.form
        flags = ", ".join(f"-{level}" for level in levels)
        return _Part(f"{form} of {self.compiler.name} {flags}", text, tuple(levels))

    def document(self, *parts: _Part) -> Document:
        levels = [level for part in parts for level in part.levels]
        of = "source" if len(parts[0].levels) == 0 else "levels"
        name = f"{self.source.name}:{self.compiler.name}:{self.form}:{of}:{'+'.join(levels)}"
        draw = random.Random(f"{self.options.seed} {name}")
        shown = parts if draw.random() < 0.5 else parts[::-1]
        text = "\n\n".join(f"{part.title}:\n{part.text}" for part in shown) + "\n"
        origin = {
            **self.source.origin,
            "compiler": f"{self.compiler.name} {self.compiler.version}",
            "form": self.form,
            "levels": levels,
        }
        return Document(name, text, origin)


def _of_form(maker: _Maker, texts: Mapping[str, str]) -> list[Document | Dropped]:
    found: list[Document | Dropped] = []
    levels_of: dict[str, list[str]] = {}
    for level, text in texts.items():
        if not text:
            found.append(Dropped("no code"))
        elif len(text) > maker.options.max_output_chars:
            found.append(Dropped("too long an output"))
        elif text in levels_of:
            found.append(Dropped("same at another level"))
            levels_of[text].append(level)
        else:
            levels_of[text] = [level]
    parts = [maker.part(levels, text) for text, levels in levels_of.items()]
    source = _Part("C source", maker.text.strip("\n"))
    found += [maker.document(source, part) for part in parts]
    at = {level: part for part in parts for level in part.levels}
    if _PLAIN in at and _OPTIMISED in at:
        plain, optimised = at[_PLAIN], at[_OPTIMISED]
        if plain is optimised:
            return [*found, Dropped("same at both levels")]
        found.append(maker.document(plain, optimised))
    return found
