"""Versions that a build would take from tags of git, which a checkout of one commit has not."""

from __future__ import annotations

import re

from packaging.version import InvalidVersion, Version

from cwm_jax.forager.images.declared.needs import names_of
from cwm_jax.forager.images.declared.project import Project, strings, table
from cwm_jax.forager.images.declared.setup_files import setup_literal

# Of builders, the variable that tells them the version. Source: their documentation.
_VARIABLES = {
    "setuptools-scm": "SETUPTOOLS_SCM_PRETEND_VERSION",
    "hatch-vcs": "SETUPTOOLS_SCM_PRETEND_VERSION",  # which asks setuptools-scm
    "vcs-versioning": "SETUPTOOLS_SCM_PRETEND_VERSION",
    "pbr": "PBR_VERSION",
    "pdm-backend": "PDM_BUILD_SCM_VERSION",
}
# What setuptools-scm itself makes of no tag. Another project may ask for a newer version of this
# one, and pip would then put the index's into its place: so it is the last resort.
_NO_TAG = "0.1.dev1"


def told_version(project: Project) -> tuple[str, str] | None:
    """The variable that has to be set when the project is installed, and its value; or None."""
    builders = _builders(project)
    variable = next((value for name, value in _VARIABLES.items() if name in builders), None)
    return (variable, _version(project)) if variable else None


def _builders(project: Project) -> set[str]:
    document = project.toml("pyproject.toml")
    found = names_of(strings(table(document, "build-system").get("requires")))
    source = table(document, "tool", "pdm", "version").get("source")
    if source != "scm":
        found.discard("pdm-backend")
    setup = project.text("setup.py") or ""
    # setup.py may name it in requirements of its own, or call it by an argument.
    if "use_scm_version" in setup or "setuptools_scm" in setup:
        found.add("setuptools-scm")
    if re.search(r"\bpbr\s*=\s*True", setup):
        found.add("pbr")
    return found


def _version(project: Project) -> str:
    settings = table(project.toml("pyproject.toml"), "tool", "setuptools_scm")
    candidates = [
        _field(project, "PKG-INFO", r"Version:"),
        _field(project, ".git_archival.txt", r"describe-name:"),
        settings.get("fallback_version"),
        setup_literal(project, "version"),
    ]
    for text in candidates:
        # "v1.2.0-3-gabc" of git describe is 1.2.0
        text = re.sub(r"-\d+-g[0-9a-f]+$", "", text) if isinstance(text, str) else ""
        try:
            return str(Version(text))
        except InvalidVersion:
            continue
    return _NO_TAG


def _field(project: Project, path: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*(\S{{1,100}})[ \t]*$", project.text(path) or "", re.M)
    return match[1] if match else ""
