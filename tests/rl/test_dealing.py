"""Law: who is asked what, by one process or several; and what of it survives a checkpoint."""

import dataclasses
import json
import threading
import time

import pytest
from rl.trajectories import trajectory, turn

from cwm_jax.config import CurriculumConfig, EnvironmentConfig, RLConfig
from cwm_jax.distributed import Hosts
from cwm_jax.rl.environment import Task
from cwm_jax.rl.playing.players import AllTheTime, Dealer, Group, Nobody
from cwm_jax.rl.playing.tasks import TaskStream, drawn_tasks
from cwm_jax.rl.playing.together import Together
from cwm_jax.rl.selection import Curriculum

WEIGHTS = {"a": 1.0, "b": 3.0}
CONFIGS = [EnvironmentConfig(name=n, kind="math", weight=w) for n, w in WEIGHTS.items()]
TASKS = {name: [Task(name=f"{name}{n}", data={}) for n in range(20)] for name in WEIGHTS}
STRICT = CurriculumConfig(min_episodes=1, memory_episodes=4, retry_fraction=0.01)


def dealer(*, place=0, of=1, curriculum=None):
    return Dealer(TaskStream(CONFIGS, TASKS, 0), Curriculum(curriculum, 0), place=place, of=of)


def test_tasks_that_are_passed_over_do_not_change_the_shares():
    made = dealer(curriculum=STRICT)
    for task in TASKS["b"][:18]:  # never solved
        made.note(dataclasses.replace(trajectory([turn([5])]), environment="b", task=task))
    deals = [made.deal() for _ in range(400)]
    assert sum(deal.environment == "b" for deal in deals) == 300
    asked = [deal.task.name for deal in deals if deal.environment == "b"]
    assert sum(name in ("b18", "b19") for name in asked) > 200


def test_a_curriculum_that_passes_over_everything_says_so(monkeypatch):
    monkeypatch.setattr("cwm_jax.rl.playing.players._MOST_PASSED_OVER", 50)
    made = dealer(curriculum=STRICT)
    made._curriculum.asks = lambda *_: False
    with pytest.raises(RuntimeError, match="passed over 50 tasks of 'b' in a row"):
        made.deal()


@pytest.mark.parametrize("curriculum", [None, STRICT])
@pytest.mark.parametrize("of", [2, 3, 4])  # with four, one process has all turns of "a"
def test_processes_share_out_what_one_would_play(of, curriculum):
    alone = dealer(curriculum=curriculum)
    several = [dealer(place=place, of=of, curriculum=curriculum) for place in range(of)]
    for made in (alone, *several):
        for task in TASKS["b"][:9]:  # never solved
            made.note(dataclasses.replace(trajectory([turn([5])]), environment="b", task=task))
    wanted = [alone.deal() for _ in range(60)]
    dealt = [made.deal() for _ in range(60 // of) for made in several]
    assert dealt == wanted and [deal.number for deal in wanted] == list(range(60))
    for name in WEIGHTS:  # an epoch of each is one of all of them together
        names = [deal.task.name for deal in dealt if deal.environment == name]
        assert len(set(names[:10])) == len(names[:10])


def test_a_run_may_take_some_of_the_tasks():
    some = dataclasses.replace(CONFIGS[0], max_tasks=5)
    taken = drawn_tasks(TASKS["a"], some, seed=0)
    assert len({task.name for task in taken}) == 5
    assert taken == drawn_tasks(TASKS["a"], some, seed=0) != drawn_tasks(TASKS["a"], some, seed=1)
    assert drawn_tasks(TASKS["a"], dataclasses.replace(some, max_tasks=99), 0) == TASKS["a"]


class TwoHosts:
    """One of two processes, as far as sharing goes; the other's part is given."""

    def __init__(self, index, others):
        self.index, self.count, self.others = index, 2, others

    def gather(self, what, make):
        parts = [make(), self.others]
        return parts if self.index == 0 else parts[::-1]


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_two():
    first, second = (dealer(place=p, of=2) for p in range(2))
    done = {d.deal().number for d in (first, second) for _ in range(6)}
    second.deal()  # further ahead
    theirs = json.dumps({"ready": [], "dealer": second.state()}).encode()
    state = Together(Nobody(), first, TwoHosts(0, theirs)).state()
    for index, of in ((0, 2), (1, 2)):
        resumed = dealer(place=index, of=of)
        Together(Nobody(), resumed, TwoHosts(index, b"")).restore(state)
        assert resumed.state() == (first, second)[index].state()
    alone = dealer()
    Together(Nobody(), alone, Hosts()).restore(state)
    assert alone.deal().number > max(done)
    drawn = [d.state()["drawn"] for d in (first, second, alone)]
    assert all(drawn[2][name] >= max(drawn[0][name], drawn[1][name]) for name in WEIGHTS)


class Waiting:
    """``Players`` that give what they are told to."""

    def __init__(self, *groups):
        self.groups = list(groups)

    def next_group(self, timeout_s):
        return self.groups.pop(0) if self.groups else None


def group(number):
    return Group(trajectories=(trajectory([turn([5])], group=number),))


def test_what_was_put_back_comes_first_and_a_stop_ends_the_waiting():
    together = Together(Waiting(group(1), group(2), group(3)), dealer(), Hosts())
    taken = [together.next_group(lambda: False) for _ in range(2)]
    together.put_back(taken)
    numbers = [together.next_group(lambda: False).number for _ in range(3)]
    assert numbers == [1, 2, 3]
    answers = iter([False, False, True])
    assert together.next_group(lambda: next(answers)) is None


class Steps:
    """Rollouts that count the steps under way, and play for ever."""

    def __init__(self):
        self.running, self.seen = False, 0

    def add(self, wanted):
        pass

    def step(self):
        self.running = True
        time.sleep(0.001)
        self.seen += 1
        self.running = False
        return []

    def close(self):
        pass


def test_nothing_is_played_while_the_players_are_paused():
    rollouts = Steps()
    config = RLConfig(environments=tuple(CONFIGS), mode="asynchronous")
    players = AllTheTime(rollouts, dealer(), config, 0)
    assert players.next_group(0.05) is None and rollouts.seen > 3
    with players.paused():
        seen = rollouts.seen
        assert not rollouts.running
        threading.Event().wait(0.05)
        assert rollouts.seen == seen
    players.next_group(0.05)
    assert rollouts.seen > seen
    players.close()
