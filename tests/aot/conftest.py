"""What compiling for devices that are not there needs."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

os.environ.setdefault(
    "TPU_SKIP_MDS_QUERY", "1"
)  # no metadata server is asked where there is no TPU
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # workers of pytest-xdist


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """Without its device a compiled program cannot be read back."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
