"""An image as one file that ``docker load``, ``podman load`` and skopeo read.

It is an OCI image layout in a tape archive, with the ``manifest.json`` that Docker looked for
before it knew layouts. Source: the OCI Image Format Specification 1.1; docker/docs, "image save".
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import platform
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.images.oci.layers import (
    configuration,
    needs,
    reference,
    write_checkout_layer,
    write_root_layer,
)
from cwm_jax.forager.images.store import Image
from cwm_jax.storage import StorageError, file_sha256

_CONFIG = "application/vnd.oci.image.config.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}  # Go's names, as OCI has them
_EPOCH = "1970-01-01T00:00:00Z"
_PARTS = ("environment", "checkout")  # the layers of an image
_BLOBS = "blobs/sha256"
_TEXT_BYTES = 64 << 20  # assumed: of an index, a manifest or a configuration


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Blob:
    """Content by its hash: a file here, or bytes."""

    media_type: str
    digest: str
    num_bytes: int
    content: Path | bytes

    @property
    def name(self) -> str:
        return f"{_BLOBS}/{self.digest.removeprefix('sha256:')}"

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.num_bytes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Base:
    """What an image is put on top of."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    layers: Sequence[_Blob] = ()


def write_layout(
    image: Image, out: Path, *, base: Path | None = None, links: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Writes an image as a layout, the same bytes each time.

    Args:
        image: of a store.
        out: the file.
        base: a layout of another image, in a tape archive (``skopeo copy ... oci-archive:FILE``),
            that this one is put on top of; None for the image's own layers alone, which nothing can
            run.
        links: absolute paths that are added as links, and where these lead, for what the base has
            at other places; as ``{"/sandbox/bin/python": "/usr/local/bin/python3.11"}``.

    Returns:
        What has to be in the base, as of `needs`.

    Raises:
        StorageError: the base cannot be read, or the image is damaged.
        ValueError: a link is at a place where it cannot be.
    """
    links = dict(links or {})
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder)
        below = _read_base(base, work) if base else _Base()
        write_root_layer(image, work / "root.tar", links)
        write_checkout_layer(image, work / "checkout.tar", work / "checkout")
        own = [_blob(_LAYER, work / name) for name in ("root.tar", "checkout.tar")]
        config = _blob(_CONFIG, _json(_config(image, links, below, own)))
        layers = [*below.layers, *own]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config.descriptor,
            "layers": [layer.descriptor for layer in layers],
        }
        blobs = [*layers, config, _blob(_MANIFEST, _json(manifest))]
        _write(work / "layout.tar", blobs, _texts(image, blobs))
        (work / "layout.tar").rename(out)
    return needs(image, links)


def _config(
    image: Image, links: Mapping[str, str], below: _Base, own: Sequence[_Blob]
) -> dict[str, Any]:
    values = dict(below.config)
    ours = configuration(image, links, environment=values.get("config", {}).get("Env") or ())
    settings = {**values.get("config", {}), **ours}
    settings.pop("Entrypoint", None)  # it would be given our command
    settings["Labels"] = {**(values.get("config", {}).get("Labels") or {}), **ours["Labels"]}
    ids = [*values.get("rootfs", {}).get("diff_ids", []), *(layer.digest for layer in own)]
    made = [{"created": _EPOCH, "created_by": f"forage images: {name}"} for name in _PARTS]
    values |= {
        "created": _EPOCH,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [*values.get("history", []), *made],
    }
    machine = platform.machine()
    return {"architecture": _ARCHITECTURES.get(machine, machine), "os": "linux", **values}


def _texts(image: Image, blobs: Sequence[_Blob]) -> dict[str, bytes]:
    """The files of a layout that are no blobs."""
    *layers, config, manifest = blobs
    name = reference(image)
    annotations = {
        "io.containerd.image.name": f"docker.io/{name}",
        "org.opencontainers.image.ref.name": name.partition(":")[2],
    }
    listed = {**manifest.descriptor, "annotations": annotations}
    names = {
        "Config": config.name,
        "RepoTags": [name],
        "Layers": [layer.name for layer in layers],
    }
    return {
        "index.json": _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [listed]}),
        "manifest.json": _json([names]),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
    }


def _write(path: Path, blobs: Sequence[_Blob], texts: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for folder in ("blobs", _BLOBS):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        named = {blob.name: blob for blob in blobs}  # two layers may be the same
        for name, blob in named.items():
            with contextlib.ExitStack() as stack:
                content = blob.content
                if isinstance(content, bytes):
                    file = io.BytesIO(content)
                else:
                    file = stack.enter_context(content.open("rb"))
                entry = tarfile.TarInfo(name)
                entry.size = blob.num_bytes
                archive.addfile(entry, file)
        for name, text in sorted(texts.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))


def _read_base(path: Path, work: Path) -> _Base:
    """Its layers are copied into ``work``."""
    try:
        with tarfile.open(path, "r:*") as archive:
            index = _text(archive, "index.json", None)
            for _ in range(2):  # an index may list the index of platforms
                (only,) = index["manifests"]
                manifest = _text(archive, _name(only), only["digest"])
                if "manifests" not in manifest:
                    break
                index = manifest
            config = _text(archive, _name(manifest["config"]), manifest["config"]["digest"])
            layers = [_copied(archive, layer, work) for layer in manifest["layers"]]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path}: cannot be read ({error!r}); expected an OCI layout of one image for one "
            "platform: make it with `skopeo copy docker://IMAGE oci-archive:FILE`"
        ) from error
    return _Base(config=config, layers=layers)


def _copied(archive: tarfile.TarFile, descriptor: Mapping[str, Any], work: Path) -> _Blob:
    name = _name(descriptor)
    place = work / f"base-{name.rpartition('/')[2]}"
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    with place.open("wb") as out:
        while chunk := file.read(1 << 20):
            out.write(chunk)
    blob = _blob(descriptor["mediaType"], place)
    if blob.digest != descriptor["digest"]:
        raise ValueError(f"{name} has the digest {blob.digest}")
    return blob


def _text(archive: tarfile.TarFile, name: str, digest: str | None) -> dict[str, Any]:
    file = archive.extractfile(name)
    content = file.read(_TEXT_BYTES) if file else b""
    if digest not in (None, found := f"sha256:{hashlib.sha256(content).hexdigest()}"):
        raise ValueError(f"{name} has the digest {found}")
    values = json.loads(content)
    if not isinstance(values, dict):
        raise ValueError(f"{name} is no object")
    return values


def _name(descriptor: Mapping[str, Any]) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def _blob(media_type: str, content: Path | bytes) -> _Blob:
    if isinstance(content, bytes):
        number, size = hashlib.sha256(content).hexdigest(), len(content)
    else:
        number, size = file_sha256(content), content.stat().st_size
    return _Blob(media_type=media_type, digest=f"sha256:{number}", num_bytes=size, content=content)


def _json(values: Any) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
