"""Source distributions of published packages, as the index has them; nothing of them is run."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from cwm_jax.forager.images.index_access import Index

_ACCEPT = "application/vnd.pypi.simple.v1+json"  # PEP 691
_MOST_BYTES = 64 << 20  # assumed; of a page or a distribution
_TIMEOUT_S = 60.0  # assumed


def download_sdist(requirement: str, index: Index) -> tuple[str, bytes]:
    """The newest source distribution that a requirement admits, as file name and content.

    Pre-releases are taken where the requirement asks for one, or there is nothing else.

    Raises:
        ValueError: it is no requirement, there is no such distribution, or what came is not what
            the index says.
        OSError: the index cannot be reached.
    """
    try:
        wanted = Requirement(requirement)
    except InvalidRequirement as error:
        raise ValueError(
            f"{requirement!r} is no requirement ({error}); expected NAME or NAME==VERSION"
        ) from None
    url = f"{index.options['index-url'].rstrip('/')}/{canonicalize_name(wanted.name)}/"
    try:
        page = json.loads(_get(url, index, _ACCEPT))
    except json.JSONDecodeError:
        raise ValueError(
            f"{url} is no JSON; expected an index with the JSON of PEP 691: give the file of the "
            "source distribution itself"
        ) from None
    found = dict(_sdists(page))
    versions = list(wanted.specifier.filter(found))
    if not versions:
        raise ValueError(
            f"the index has no source distribution of {requirement}, but of "
            f"{', '.join(map(str, sorted(found))) or 'no version'}; name one of these, or a git URL"
        )
    file = found[max(versions)]
    content = _get(urljoin(url, file["url"]), index)
    digest = file.get("hashes", {}).get("sha256")
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{file['filename']} is not what the index says: its SHA-256 is another")
    return file["filename"], content


def _sdists(page: Mapping[str, Any]) -> Iterator[tuple[Version, Mapping[str, Any]]]:
    for file in page["files"]:
        try:
            _, version = parse_sdist_filename(file["filename"])
        except (InvalidSdistFilename, ValueError):
            continue
        if not file.get("yanked"):
            yield version, file


def _get(url: str, index: Index, accept: str = "*/*") -> bytes:
    if not re.match(r"https://", url):
        raise ValueError(f"{url} is asked for; expected a URL of https")
    request = urllib.request.Request(url, headers={"Accept": accept})
    context = ssl.create_default_context(cafile=index.options.get("cert"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as reply:
        content = reply.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"{url} has more than {_MOST_BYTES} bytes; expected fewer")
    return content
