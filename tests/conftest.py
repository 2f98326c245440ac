"""Eight virtual CPU devices, and shapes checked by beartype wherever a signature states them."""

import collections
import gc
import importlib.metadata
import os
import pathlib
import tempfile

# Workers, subprocesses and later runs share compiled programs.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", f"{tempfile.gettempdir()}/cwm-jax-tests-{os.getuid()}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling: XLA is asked for little optimisation.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # of small programs no part is worth a thread
        *(  # 0.11 has no such flag
            ["--xla_cpu_use_fusion_emitters=false"]
            if importlib.metadata.version("jaxlib").startswith("0.10.")
            else []
        ),
    ]
)

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

install_import_hook(
    [
        "cwm_jax.inference.cache",
        "cwm_jax.inference.rows",
        "cwm_jax.inference.scoring",
        "cwm_jax.kernels",
        "cwm_jax.model",
        "cwm_jax.rl.objective",
        "cwm_jax.training.losses",
    ],
    "beartype.beartype",
)


# Staging makes many objects and little garbage; what was imported is never any.
gc.set_threshold(50_000, 20, 20)


def pytest_configure(config):
    config.option.loadscopereorder = False  # of xdist, which would begin with the other end


def pytest_collection_modifyitems(items):
    """Files of few tests first: theirs are the long ones, and one begun last is waited for.

    Measured: of 774 s one of two workers was idle for 160 (2026-11-27).
    """
    sizes = collections.Counter(item.path for item in items)
    items.sort(key=lambda item: sizes[item.path])  # stable: files stay whole, and in their order


def pytest_collection_finish():
    gc.freeze()


# A process may have 65,530 memory maps on most Linux systems, and XLA:CPU takes several for each
# program: the whole suite in two processes came to 39,000 (measured, 2026-11-26). Past the limit it
# dies inside the compiler.
_MAX_MAPS = 10_000


@pytest.fixture(scope="module", autouse=True)
def few_compiled_programs():
    """Drops those of earlier files when there are many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > _MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def unchecked_types():
    """Lets wrong shapes reach the project's own checks, as they do outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
