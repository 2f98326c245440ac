"""PyTorch modules with the Triton kernels that do the same, as documents.

The rows are those of KernelBook: a module of a repository, and what PyTorch's compiler has made of
it, tidied. They are read from a file that is there; nothing in them is run. Source of the fields:
the data set's columns, and create_dataset.py and create_triton_data.py of its pipeline.
"""

from __future__ import annotations

import ast
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

from cwm_jax.config.schema import check_positive, check_types
from cwm_jax.forager.decontamination import KERNEL_BENCHMARKS, SWE_BENCH, Exclusions
from cwm_jax.forager.documents.collection import Document, Dropped
from cwm_jax.forager.documents.rows import Row, read_rows
from cwm_jax.trace.tracer import PARSE_ERRORS

# Licences that ask for no more than that their text goes with copies, by SPDX name. Assumed: the
# list is a reader's of the licences, not a lawyer's.
PERMISSIVE = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unlicense",
    "Zlib",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Which rows become documents; the limit is assumed.

    Attributes:
        licenses: SPDX names; all of a row's are to be among them, in any case, and it has one.
        max_side_chars: of the module and of the kernel, each.
        exclusions: repositories that are left out.
    """

    licenses: tuple[str, ...] = PERMISSIVE
    max_side_chars: int = 50_000
    exclusions: Exclusions = dataclasses.field(
        default_factory=lambda: Exclusions((*SWE_BENCH, *KERNEL_BENCHMARKS))
    )

    def __post_init__(self) -> None:
        check_types(self)
        check_positive(self, "max_side_chars")


def kernels(path: Path, options: KernelOptions) -> Iterator[Document | Dropped]:
    """A document of each row, in the file's order, or why it is none.

    Args:
        path: JSONL or Parquet with ``python_code``, ``triton_code``, ``entry_point``,
            ``repo_name`` and ``licenses``.
        options: the filters.

    Raises:
        ValueError: a row without one of these, or with one of another type.
    """
    allowed = {name.lower() for name in options.licenses}
    for number, row in enumerate(read_rows(path), 1):
        yield _document(_pair(row), options, allowed, name=f"{path.stem}:{number}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    module: str
    kernel: str
    entry_point: str
    repository: str
    licenses: tuple[str, ...]


def _pair(row: Row) -> _Pair:
    return _Pair(
        module=row.text("python_code"),
        kernel=row.text("triton_code"),
        entry_point=row.text("entry_point"),
        repository=row.text("repo_name", null=""),
        licenses=tuple(row.texts("licenses")),
    )


def _document(
    pair: _Pair, options: KernelOptions, allowed: set[str], *, name: str
) -> Document | Dropped:
    reason = _reason(pair, options, allowed)
    if reason is not None:
        return Dropped(reason)
    # Without the repository: forks would be no duplicates.
    text = (
        f"PyTorch module: {pair.entry_point}\n{pair.module.strip()}\n\n"
        f"Triton kernel:\n{pair.kernel.strip()}\n"
    )
    origin = {
        "repository": pair.repository,
        "entry_point": pair.entry_point,
        "licenses": sorted(pair.licenses),
    }
    return Document(name, text, origin)


def _reason(pair: _Pair, options: KernelOptions, allowed: set[str]) -> str | None:
    if not pair.licenses:
        return "no licence"
    if not {name.lower() for name in pair.licenses} <= allowed:
        return "licence not allowed"
    if not pair.repository:  # it cannot be told from those that are left out
        return "no repository"
    if options.exclusions.find(pair.repository):
        return "excluded repository"
    if max(len(pair.module), len(pair.kernel)) > options.max_side_chars:
        return "too long a side"
    return _reason_of_code(pair)


def _reason_of_code(pair: _Pair) -> str | None:
    module, kernel = _tree(pair.module), _tree(pair.kernel)
    if module is None:
        return "module does not parse"
    if kernel is None:
        return "kernel does not parse"
    defined = {node.name for node in module.body if isinstance(node, _DEFINITIONS)}
    if pair.entry_point not in defined:
        return "no entry point"
    return None if any(map(_is_kernel, ast.walk(kernel))) else "no kernel"


_DEFINITIONS = (ast.ClassDef, ast.FunctionDef)


def _is_kernel(node: ast.AST) -> bool:
    """Whether it is a function with a decorator of Triton's: ``@triton.jit``, bare or called."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    called = [item.func if isinstance(item, ast.Call) else item for item in decorators]
    return any(ast.unparse(item) in ("triton.jit", "jit") for item in called)


def _tree(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except PARSE_ERRORS:
        return None
