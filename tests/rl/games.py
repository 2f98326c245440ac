"""Environments for tests, that a policy of random weights solves now and then."""

import contextlib
import threading

from cwm_jax.rl.environment import EnvironmentFailure, Observation, Step, waiting_for_others

LONGEST = 6


class Parity:
    """One action; +1 if most of its tokens are even."""

    def __init__(self, task, tokenizer):
        self.task, self.bos = task, tokenizer.bos_id

    def start(self):
        return Observation(tokens=[self.bos, *self.task.data["prompt"]], max_action_tokens=LONGEST)

    def step(self, action):
        even = sum(token % 2 == 0 for token in action)
        won = 2 * even > len(action)
        return Step(observation=None, reward=1.0 if won else -1.0, info={"pass": won})

    def close(self):
        pass


class Turns(Parity):
    """Three actions, each followed by a text; the last one's reward counts."""

    num_turns = 3

    def start(self):
        self.turn = 0
        return super().start()

    def step(self, action):
        self.turn += 1
        if self.turn == self.num_turns:
            return super().step(action)
        tokens = [7 + self.turn] * 3
        return Step(
            observation=Observation(tokens=tokens, max_action_tokens=3),
            reward=0.25,
            info={"turn": self.turn},
        )


class Broken(Parity):
    """Fails in the way that its task says."""

    def __init__(self, task, tokenizer):
        super().__init__(task, tokenizer)
        if task.data["fails"] == "made":
            raise EnvironmentFailure("it cannot be made")

    def start(self):
        if self.task.data["fails"] == "start":
            raise EnvironmentFailure("no sandbox")
        return super().start()

    def step(self, action):
        if self.task.data["fails"] == "step":
            raise ZeroDivisionError("a bug")
        if self.task.data["fails"] == "hangs":
            threading.Event().wait(60)
        return super().step(action)

    def close(self):
        if self.task.data["fails"] == "close":
            raise RuntimeError("a bug in close")


class Late(Parity):
    """Opens something late: where its task says, a long while of its clock after that was begun.

    It is so once for each of ``waits``, which say whether it waits for others, and goes on when
    the semaphore ``go`` lets it; ``begun`` says that it is late, and ``log`` what it did.
    """

    def __init__(self, task, tokenizer):
        super().__init__(task, tokenizer)
        self.data = task.data
        self._pass("make")

    def start(self):
        self._pass("start")
        return super().start()

    def step(self, action):
        self._pass("step")
        return super().step(action)

    def close(self):
        self._note("closed")

    def _pass(self, where):
        if self.data["late"] != where:
            return
        for waits in self.data["waits"]:
            with waiting_for_others() if waits else contextlib.nullcontext():
                self.data["clock"].now_s += 1000.0
                self.data["begun"].set()
                self.data["go"].acquire()
        self._note("opened")

    def _note(self, what):
        self.data["log"].append((what, threading.get_ident()))
