"""When two patches are the same: by what they make of the repository's files.

Formatting, comments and docstrings of Python do not count, nor how a diff cuts its hunks. What
does not apply is no patch. Tests, and what runners load, are left out, as when a patch is judged.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Mapping

from cwm_jax.rl.envs.swe.grading import without_tests
from cwm_jax.rl.envs.swe.patches import ENCODING, FilePatch, apply_patch, parse_patch

_SCOPES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchForm:
    """A patch that applies.

    Attributes:
        key: the same for patches that are the same.
        patches: its parts that count.
        content: hash of the files as they are after it, letter by letter.
    """

    key: str
    patches: tuple[FilePatch, ...]
    content: str


def form_of(text: str, read: Callable[[str], bytes | None]) -> PatchForm | None:
    """What a patch comes to; None for one that does not apply, or changes nothing that counts.

    Args:
        text: a diff.
        read: the original repository's file, None where there is none. ValueError is of one that
            cannot be read; the patch does not apply.
    """
    try:
        patches = without_tests(parse_patch(text))
        after = apply_patch(patches, read)
        before = {path: read(path) for path in after}
    except ValueError:
        return None
    changed = {path: content for path, content in after.items() if content != before[path]}
    normal = {path: normal_text(path, content) for path, content in changed.items()}
    if all(normal[path] == normal_text(path, before[path]) for path in changed):
        return None
    whole = {path: None if new is None else new.decode(**ENCODING) for path, new in changed.items()}
    return PatchForm(key=_hash(normal), patches=tuple(patches), content=_hash(whole))


def normal_text(path: str, content: bytes | None) -> str | None:
    """A file's text; of Python its syntax tree, without docstrings. None where there is none."""
    if content is None:
        return None
    if path.endswith(".py"):
        try:
            with warnings.catch_warnings():  # of escapes that Python does not know
                warnings.simplefilter("ignore")
                tree = ast.parse(content)
            for node in ast.walk(tree):
                if isinstance(node, _SCOPES) and ast.get_docstring(node, clean=False) is not None:
                    node.body = node.body[1:] or [ast.Pass()]
            return ast.dump(tree)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            pass  # compared as it is written
    return content.decode(**ENCODING)


def _hash(files: Mapping[str, str | None]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:32]
