"""An image among those of a container engine, put on top of one that the engine has."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cwm_jax.forager.images.oci.layers import (
    MANIFEST_LABEL,
    configuration,
    reference,
    write_checkout_layer,
    write_root_layer,
)
from cwm_jax.forager.images.store import Image
from cwm_jax.rl.envs.swe.workspaces.engine import Engine, EngineError


def add_to_engine(
    image: Image, engine: Engine, *, base: str, links: Mapping[str, str] | None = None
) -> str:
    """Makes an image of the engine's; nothing of it is run.

    Args:
        image: of a store.
        engine: Docker's or Podman's.
        base: reference of an image that the engine has; none is pulled.
        links: as of `write_layout`.

    Returns:
        The reference of the new image.

    Raises:
        EngineError: the engine refuses, or has no such base.
        ValueError: as of `write_layout`.
    """
    links, name = dict(links or {}), reference(image)
    environment = engine.image_settings(base).get("Env") or ()
    # A base's entry point would be given our command.
    made = {**configuration(image, links, environment=environment), "Entrypoint": []}
    with tempfile.TemporaryDirectory(prefix="layers-") as folder:
        work = Path(folder)
        layers = [work / "root.tar", work / "checkout.tar"]
        write_root_layer(image, layers[0], links)
        write_checkout_layer(image, layers[1], work / "checkout")
        container = engine.create({"Image": base, "Cmd": ["true"], "NetworkDisabled": True})
        try:
            for layer in layers:
                with layer.open("rb") as file:
                    engine.put_archive(container, "/", file)
            engine.commit(container, name, made)
        finally:
            with contextlib.suppress(EngineError):  # it never ran
                engine.remove(container)
    if MANIFEST_LABEL not in (engine.image_settings(name).get("Labels") or {}):
        raise EngineError(
            f"the engine has made {name} without the settings that it was given; load what "
            "`write_layout` writes instead"
        )
    return name
