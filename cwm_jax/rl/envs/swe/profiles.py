"""Limits of an episode, by name."""

from __future__ import annotations

import dataclasses

from cwm_jax.rl.envs.swe.actions import TOOLS
from cwm_jax.sandbox import ShellLimits

_MIB = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SWEProfile:
    """Limits, form and rewards of an episode.

    Attributes:
        max_turns: of the policy, the final answer included.
        context_tokens: of the whole episode.
        action_tokens: of a turn.
        prompt_tokens: of the issue's message with its header; a longer one loses its beginning.
        tool_message_tokens: of a tool's message with its header; longer output loses its end.
        session_timeout_s: of each command.
        sandbox_s: of all tools of an episode together. Other than in Meta's, whose sandbox lives
            by the clock, time that a policy waits for its own turn does not count.
        test_timeout_s: of the hidden tests.
        tools: that there are; without edit and create they are those of Meta's "noplugins".
        strict_format: an answer out of format ends the episode as failed; else it is told what is
            wrong with it, and goes on.
        think: every turn reasons first.
        similarity_threshold: a patch that fails gets the middle reward from this similarity to the
            gold patch on; None never gives it.
        reward_scale: 2 makes rewards +1, 2 * threshold - 1, -1; 1 makes them 0, threshold - 1, -1.
        limits: of the local sandbox.
    """

    max_turns: int
    context_tokens: int
    action_tokens: int
    prompt_tokens: int
    tool_message_tokens: int
    session_timeout_s: float
    sandbox_s: float
    test_timeout_s: float
    tools: tuple[str, ...] = TOOLS
    strict_format: bool = True
    think: bool = True
    similarity_threshold: float | None = 0.5  # report
    reward_scale: float = 2.0  # report: "similarities_2"
    limits: ShellLimits = dataclasses.field(default_factory=ShellLimits)


# The defaults of the released code, which the report describes for training.
_RELEASED = SWEProfile(
    max_turns=128,
    context_tokens=131_072,
    action_tokens=65_536,
    prompt_tokens=8_192,
    tool_message_tokens=32_768,
    session_timeout_s=120.0,
    sandbox_s=2_400.0,
    test_timeout_s=300.0,
    limits=ShellLimits(memory_bytes=12_288 * _MIB, scratch_bytes=4_096 * _MIB),
)
PROFILES = {
    "released": _RELEASED,
    # Of the released evaluations, whose reward is of the tests alone.
    "eval": dataclasses.replace(
        _RELEASED,
        sandbox_s=7_200.0,
        test_timeout_s=600.0,
        strict_format=False,
        similarity_threshold=None,
    ),
    "small": SWEProfile(
        max_turns=12,
        context_tokens=16_384,
        action_tokens=2_048,
        prompt_tokens=2_048,
        tool_message_tokens=2_048,
        session_timeout_s=20.0,
        sandbox_s=60.0,
        test_timeout_s=20.0,
        limits=ShellLimits(memory_bytes=512 * _MIB, scratch_bytes=64 * _MIB, processes=32),
    ),
}
