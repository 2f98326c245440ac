"""Fixtures of the tests of reinforcement learning."""

import types

import pytest


@pytest.fixture
def clock(monkeypatch) -> types.SimpleNamespace:
    """The clock of environments' calls: ``now_s`` stays as the test sets it."""
    clock = types.SimpleNamespace(now_s=0.0)
    monkeypatch.setattr("cwm_jax.rl.environment.monotonic", lambda: clock.now_s)
    return clock
