"""What compiling for devices that are not there needs."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


def pytest_configure(config):
    config.addinivalue_line("markers", "aot: compiles for a GPU with jax's CUDA plugin")


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """Without its device a compiled program cannot be read back."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()
