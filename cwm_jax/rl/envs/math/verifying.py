"""The verdict on an answer: our comparer's, and where that leaves it open, math-verify's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cwm_jax.rl.envs.math.comparison import Comparison, compare
from cwm_jax.rl.envs.math.latex import tidy
from cwm_jax.rl.envs.sandboxes import Sandboxes
from cwm_jax.sandbox import Limits, Outcome

_PROGRAM = Path(__file__).with_name("verify_inside.py")
_PACKAGES = (
    "math-verify",
    "latex2sympy2_extended",
    "antlr4-python3-runtime",
    "sympy",
    "mpmath",
)
_MEMORY_BYTES = 2 << 30  # assumed


@dataclasses.dataclass(frozen=True, kw_only=True)
class MathVerdict:
    """What came of comparing an answer with the gold answer.

    Attributes:
        passed: ours says so; or ours does not know, and math-verify says so of each scalar that is
            open. Where ours knows that the answers differ, math-verify is not believed.
        ours: of our comparer alone.
        math_verify: of math-verify alone, asked about the whole answers; None if it is not used.
        reason: why math-verify gave no verdict of its own.
    """

    passed: bool
    ours: Comparison
    math_verify: bool | None
    reason: str = ""

    def info(self) -> dict[str, Any]:
        """The outcomes, as in ``Step.info``."""
        ours_pass = self.ours is Comparison.SAME
        disagree = self.math_verify is not None and self.math_verify != ours_pass
        return {
            "pass": self.passed,
            "ours_pass": ours_pass,
            "ours": self.ours.value,
            "math_verify_pass": self.math_verify,
            "disagree": disagree,
            "vetoed": disagree and self.ours is Comparison.DIFFERENT,
        }


class MathVerifier:
    """Compares answers, for any number of episodes and threads.

    Args:
        use_math_verify: without it, what ours does not know is not passed.
        time_s: processor time of math-verify for an answer; it may wait as long again.
        unsafe: without bubblewrap.

    Raises:
        ValueError: if math-verify is not installed.
    """

    def __init__(self, *, use_math_verify: bool, time_s: float, unsafe: bool = False):
        self._sandboxes = None
        if use_math_verify:
            limits = Limits(cpu_s=time_s, wall_s=2 * time_s, memory_bytes=_MEMORY_BYTES)
            self._sandboxes = Sandboxes(_PROGRAM, limits=limits, packages=_PACKAGES, unsafe=unsafe)

    def verdict(self, gold: str, answer: str, *, ordered: bool = True) -> MathVerdict:
        """The verdict on an answer; ``ordered``: as in `compare`.

        Raises:
            EnvironmentFailure: if there is no sandbox.
        """
        open_pairs: list[tuple[str, str]] = []

        def note(gold: str, answer: str) -> None:
            open_pairs.append((gold, answer))

        ours = compare(gold, answer, ordered=ordered, decide=note)
        if self._sandboxes is None:
            return MathVerdict(passed=ours is Comparison.SAME, ours=ours, math_verify=None)
        whole = (tidy(gold), tidy(answer))
        known, reason = self._asked(dict.fromkeys([whole, *open_pairs]))
        decided = ours
        if ours is Comparison.UNKNOWN:
            decided = compare(
                gold, answer, ordered=ordered, decide=lambda a, b: known.get((a, b), False)
            )
        passed = decided is Comparison.SAME
        return MathVerdict(passed=passed, ours=ours, math_verify=known[whole], reason=reason)

    def close(self) -> None:
        """Ends the sandboxes; a later answer starts them again."""
        if self._sandboxes:
            self._sandboxes.close()

    def _asked(self, pairs: Iterable[tuple[str, str]]) -> tuple[dict[tuple[str, str], bool], str]:
        """(verdicts, why there are none): what takes too long, or crashes, is not equal."""
        assert self._sandboxes
        pairs = list(pairs)
        reply = self._sandboxes.call(pairs)
        if reply.outcome is not Outcome.OK:
            return dict.fromkeys(pairs, False), f"math-verify: {reply.outcome.value}"
        return dict(zip(pairs, json.loads(reply.value or b""), strict=True)), ""
