"""Policies that write text and are shown text."""

import dataclasses
import re

from cwm_jax.rl.environment import Step, Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.tokenizer import END_OF_TURN, Tokenizer

MODULE = "def double(x):\n    return x + 2\n\n\ndef same(x):\n    return x\n"
FIXED = MODULE.replace("x + 2", "x * 2")
OLD_TEST = """\
import unittest

from module import double, same


class ModuleTest(unittest.TestCase):
    def test_same(self):
        self.assertEqual(same(3), 3)
"""
NEW_TEST = OLD_TEST + "\n    def test_double(self):\n        self.assertEqual(double(3), 6)\n"
GOLD = """\
diff --git a/module.py b/module.py
--- a/module.py
+++ b/module.py
@@ -1,2 +1,2 @@
 def double(x):
-    return x + 2
+    return x * 2
"""
FINAL = "## Cause\nSee above.\n## Change\nThe patch.\n## Checks\nNone."


def call(tool: str, content: str) -> str:
    """The text of a turn that makes a call."""
    return f"I go on.\n</think>\n<tool: {tool}>\n{content}\n</tool>"


def final(text: str = FINAL) -> str:
    return f"I am done.\n</think>\n{text}"


@dataclasses.dataclass
class Player:
    """An episode, played with texts; ``tokens`` are all that were shown and written."""

    environment: SoftwareEngineering
    tokenizer: Tokenizer
    last: Step | None = None
    tokens: list[int] = dataclasses.field(default_factory=list)
    room: int = 0

    def start(self) -> str:
        return self._note(self.environment.start())

    def say(self, text: str, *, ended: bool = True) -> str:
        """Takes a turn; returns what is shown then, empty at the end."""
        tokens = self.tokenizer.encode(text)
        end = [self.tokenizer.special_tokens[END_OF_TURN]] if ended else []
        self.tokens += [*tokens, *end]
        self.last = self.environment.step([*tokens, *end])
        return "" if self.last.observation is None else self._note(self.last.observation)

    def submit(self, patch: str) -> str:
        """Writes a patch to a file and submits it."""
        self.say(call("create", f"/tmp/changes.diff\n{patch.removesuffix(chr(10))}"))
        return self.say(call("submit", "/tmp/changes.diff"))

    @property
    def read(self) -> str:
        """The episode's text so far, with its marks."""
        return self.tokenizer.decode(self.tokens)

    @property
    def info(self):
        return self.last.info

    def _note(self, observation) -> str:
        self.tokens += observation.tokens
        text = self.tokenizer.decode(observation.tokens)
        self.room = observation.max_action_tokens
        return text


def files_of(task: Task) -> dict[str, str]:
    return dict(task.data["repository"]["files"])


def output(shown: str) -> str:
    """A tool's output in what was shown."""
    found = re.search(r"<output>\n(.*)\n</output>\n\n<budget>", shown, re.S)
    assert found, shown
    return found[1]
