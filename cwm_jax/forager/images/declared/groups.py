"""Groups of requirements in pyproject.toml: the standard's, and those of poetry, pdm and uv."""

from __future__ import annotations

from itertools import islice
from typing import Any

from packaging.utils import canonicalize_name

from cwm_jax.forager.images.declared.needs import index_requirements
from cwm_jax.forager.images.declared.project import Project, strings, table

MAX_NAMES = 100  # assumed: of groups, and of groups in a group


def groups(project: Project) -> dict[str, tuple[str, ...]]:
    """Requirements by group, of the first `MAX_NAMES`; names as indices spell theirs."""
    return project.once("groups", _groups)


def default_groups(project: Project) -> list[str]:
    """Groups that uv installs unasked."""
    settings = table(project.toml("pyproject.toml"), "tool", "uv")
    return strings(settings.get("default-groups", "dev"))


def poetry_requirements(dependencies: Any) -> tuple[str, ...]:
    """Requirements of a table of poetry's; those of paths and repositories are left out."""
    found = []
    for name, value in table({"all": dependencies}, "all").items():
        if name.lower() != "python":
            for one in value if isinstance(value, list) else [value]:
                found += _poetry_requirement(name, one)
    return index_requirements(found)


def _groups(project: Project) -> dict[str, tuple[str, ...]]:
    document = project.toml("pyproject.toml")
    tool = table(document, "tool")
    standard = table(document, "dependency-groups")
    found: dict[str, tuple[str, ...]] = {}
    by_name: dict[str, Any] = {}
    by_name |= {canonicalize_name(name): value for name, value in standard.items()}
    found |= {name: _expanded(by_name, name) for name in islice(by_name, MAX_NAMES)}
    for name, texts in islice(table(tool, "pdm", "dev-dependencies").items(), MAX_NAMES):
        found.setdefault(canonicalize_name(name), index_requirements(strings(texts)))
    if texts := strings(table(tool, "uv").get("dev-dependencies")):
        found.setdefault("dev", index_requirements(texts))
    poetry = table(tool, "poetry")
    listed = {"dev": poetry.get("dev-dependencies")}
    listed |= {name: table(group, "dependencies") for name, group in table(poetry, "group").items()}
    for name, dependencies in islice(listed.items(), MAX_NAMES):
        if texts := poetry_requirements(dependencies):
            found.setdefault(canonicalize_name(name), texts)
    return found


def _expanded(by_name: dict[str, Any], name: str) -> tuple[str, ...]:
    """With the groups that it includes, each once, so that cycles end."""
    waiting, texts = [name], []
    for current in waiting:  # grows
        items = by_name.get(current)
        for item in items if isinstance(items, list) else []:
            if isinstance(item, str):
                texts.append(item)
            elif isinstance(item, dict) and isinstance(item.get("include-group"), str):
                inner = canonicalize_name(item["include-group"])
                if inner not in waiting and len(waiting) < MAX_NAMES:
                    waiting.append(inner)
    return index_requirements(texts)


def _poetry_requirement(name: str, value: Any) -> list[str]:
    extras = ""
    if isinstance(value, dict):
        if not isinstance(value.get("version"), str):
            return []
        extras = f"[{','.join(strings(value.get('extras')))}]" if value.get("extras") else ""
        marker = value.get("markers")
        marker = f"; {marker}" if isinstance(marker, str) else _python_marker(value.get("python"))
        value = value["version"]
    else:
        marker = ""
    if not isinstance(value, str):
        return []
    return [f"{name}{extras}{_specifiers(value)}{marker}"]


def _python_marker(value: Any) -> str:
    if not isinstance(value, str) or not _specifiers(value):
        return ""
    clauses = [part.strip() for part in _specifiers(value).split(",")]
    pairs = [(part.rstrip("0123456789.*"), part.lstrip("<>=!~")) for part in clauses]
    return "; " + " and ".join(f'python_version {op} "{version}"' for op, version in pairs)


def _specifiers(value: str) -> str:
    """Poetry's ``^1.2`` is ``>=1.2,<2``, its ``~1.2`` ``>=1.2,<1.3``; of alternatives the last."""
    found = []
    for part in value.split("||")[-1].split(","):
        part = part.strip()
        if part[:1] in ("^", "~") and part[:2] != "~=":
            found.append(_range(part))
        elif part[:1].isdigit():
            found.append(f"=={part}")
        elif part != "*":
            found.append(part)
    return ",".join(found)


def _range(part: str) -> str:
    least = part[1:].strip()
    numbers = [int(n) if n.isdecimal() and len(n) < 9 else 0 for n in least.split(".")]
    if part[0] == "~":
        fixed = min(2, len(numbers))
    else:  # up to the first number that is not 0
        fixed = next((i for i, n in enumerate(numbers) if n), len(numbers) - 1) + 1
    upper = [*numbers[: fixed - 1], numbers[fixed - 1] + 1]
    return f">={least},<{'.'.join(map(str, upper))}"
