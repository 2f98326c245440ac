"""``python -m cwm_jax forage images``: projects in, executable environments out."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cwm_jax.forager.decontamination import SWE_BENCH, Exclusions
from cwm_jax.forager.images.builds import BuildLimits
from cwm_jax.forager.images.index_access import configured_index
from cwm_jax.forager.images.making import ImageSettings, make_images
from cwm_jax.forager.images.oci import add_to_engine, write_layout
from cwm_jax.forager.images.report import render
from cwm_jax.forager.images.store import Image, Store
from cwm_jax.rl.environment import EnvironmentFailure
from cwm_jax.rl.envs.swe.workspaces.engine import find_engine
from cwm_jax.sandbox import SandboxError
from cwm_jax.trace.corpus.engine_arguments import add_engine, engine_of

_GIB = 1 << 30


def add_parser(parts: Any) -> None:
    """Adds the part ``images`` to ``forage``."""
    parser = parts.add_parser("images", help="make environments in which a project's tests run")
    parser.add_argument(
        "sources",
        nargs="*",
        help="git checkouts (PATH or PATH@COMMIT) and URLs, source distributions, NAME==VERSION",
    )
    parser.add_argument("--store", type=Path, required=True, help="folder of images")
    parser.add_argument("--earlier", type=int, default=0, metavar="N", help="commits to try, too")
    parser.add_argument(
        "--share", type=float, default=BuildLimits.least_share, help="of tests that have to pass"
    )
    parser.add_argument("--retry", action="store_true", help="try again what has failed")
    parser.add_argument("--index-host", nargs="*", default=[], metavar="HOST", help="of files")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="NAME", help="repositories")
    parser.add_argument("--allow-swe-bench", action="store_true", help="leave none of them out")
    parser.add_argument("--keep", type=float, metavar="GIB", help="remove what is used least above")
    _add_oci(parser.add_argument_group("of containers: the images of these sources, too"))
    add_engine(parser)
    parser.set_defaults(main=_main)


def _add_oci(group: Any) -> None:
    group.add_argument("--oci", type=Path, metavar="FOLDER", help="written as OCI archives")
    group.add_argument("--oci-base", type=Path, metavar="FILE", help="an OCI archive below them")
    group.add_argument("--container-base", metavar="IMAGE", help="put into Docker or Podman on it")
    group.add_argument(
        "--oci-link",
        nargs="*",
        default=[],
        metavar="PATH=TARGET",
        help="links for what a base has elsewhere: /sandbox/bin/python=/usr/local/bin/python3.11",
    )


def _main(args: argparse.Namespace) -> int:
    """2 for what a user has caused; 1 where a source gave no image."""
    try:
        return _images(args)
    except (ValueError, OSError, RuntimeError, EnvironmentFailure, SandboxError) as error:
        print(f"cwm_jax forage images: {error}", file=sys.stderr)
        return 2


def _images(args: argparse.Namespace) -> int:
    limits = dataclasses.replace(BuildLimits(), least_share=args.share)
    excluded = (() if args.allow_swe_bench else SWE_BENCH) + tuple(args.exclude)
    settings = ImageSettings(
        earlier=args.earlier,
        limits=limits,
        exclusions=Exclusions(repositories=excluded),
        retry=args.retry,
    )
    index = configured_index(args.index_host)
    rows = make_images(args.sources, args.store, settings, index=index, engine=engine_of(args))
    store = Store(args.store)
    if args.keep is not None:
        store.reclaim(int(args.keep * _GIB))
    print(render(rows))
    images = store.images()
    print(f"{args.store}: {len(images)} images, {store.num_bytes() / _GIB:.2f} GiB")
    _write_oci([image for image in images if image.name in {row.image for row in rows}], args)
    return int(any(row.failure for row in rows))


def _write_oci(images: Sequence[Image], args: argparse.Namespace) -> None:
    pairs = [link.partition("=") for link in args.oci_link]
    links = {path: target for path, _, target in pairs}
    if args.oci is not None:
        args.oci.mkdir(parents=True, exist_ok=True)
        for image in images:
            out = args.oci / f"{image.name}.tar"
            needs = write_layout(image, out, base=args.oci_base, links=links)
            wanted = f"; a base has to bring {', '.join(needs)}" if needs else ""
            print(f"{out}: written{wanted}")
    if args.container_base is not None:
        engine = find_engine()
        for image in images:
            print(add_to_engine(image, engine, base=args.container_base, links=links))
