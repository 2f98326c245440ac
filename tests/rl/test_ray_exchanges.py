"""What the trainer and its workers on Ray exchange, whichever is faster and whoever fails."""

import itertools
import sys

import numpy as np
import pytest
from rl.fake_ray import FakeRay, exceptions
from tiny import tiny_run

from cwm_jax.config import DataConfig, EnvironmentConfig, RLConfig
from cwm_jax.rl.environment import Task
from cwm_jax.rl.playing.on_ray import OnRay
from cwm_jax.rl.playing.players import Deal

WORKERS, AT_ONCE, READY = 3, 4, 5
PARAMS = {"scale": np.ones(2, np.float32)}


class CountingDealer:
    """Deals one task for ever."""

    def __init__(self):
        self.numbers = itertools.count()
        self.dealt = 0

    def deal(self):
        self.dealt += 1
        task = Task(name="one", data={})
        return Deal(number=next(self.numbers), environment="math", task=task)


@pytest.fixture
def make_players(monkeypatch, tmp_path):
    def make(ray, **changes):
        monkeypatch.setitem(sys.modules, "ray", ray)
        values = dict(
            environments=(EnvironmentConfig(name="math", kind="math"),),
            mode="asynchronous",
            rollout_workers=WORKERS,
            groups_at_once=AT_ONCE,
            ready_groups=READY,
        )
        rl = RLConfig(**{**values, **changes})
        config = tiny_run(tmp_path, data=DataConfig(sources=()), rl=rl)
        dealer = CountingDealer()
        return OnRay(config, dealer, PARAMS, 0), dealer

    return make


@pytest.mark.parametrize("speed", [1, 3, 100])
def test_a_slow_trainer_leaves_no_more_than_its_share_of_groups_waiting(make_players, speed):
    ray = FakeRay(speed)
    players, dealer = make_players(ray)
    players.next_group(None)
    for given in range(1, 40):
        for _ in range(5):  # several updates for one group
            players.update_weights(PARAMS, given)
        assert dealer.dealt - given < READY + WORKERS * AT_ONCE
        assert len(players.ready()) < READY + WORKERS * min(READY, AT_ONCE)
        assert players.next_group(0.0) is not None  # it never has to wait


def test_weights_go_without_tasks_where_enough_groups_wait(make_players):
    ray = FakeRay()
    players, dealer = make_players(ray)
    players.next_group(None)
    players.update_weights(PARAMS, 1)
    players.update_weights(PARAMS, 2)
    assert len(players.ready()) >= READY
    dealt = dealer.dealt
    players.update_weights(PARAMS, 3)
    last = [worker.exchanges[-1] for worker in ray.workers]
    assert all(one.weights is not None and not one.deals and not one.most for one in last)
    assert [worker.version for worker in ray.workers] == [3] * WORKERS
    while len(players.ready()) >= READY:
        assert dealer.dealt == dealt
        players.next_group(None)
    assert dealer.dealt > dealt


def test_workers_have_full_hands_while_the_trainer_waits_and_while_it_trains(make_players):
    ray = FakeRay(speed=1)
    players, dealer = make_players(ray)
    for given in range(1, 50):
        players.next_group(None)
        for worker in ray.workers:  # what is answered and not taken yet is no longer in hands
            assert len(worker.hand) == AT_ONCE - 1
        assert dealer.dealt - given == WORKERS * (AT_ONCE - 1) + _undelivered(players)


def _undelivered(players):
    """Groups that have left their workers and were not given out."""
    under_way = sum(len(players._ray.get(seat.answer)) for seat in players._workers if seat.answer)
    return under_way + len(players.ready())


def test_every_worker_has_its_turn(make_players):
    ray = FakeRay(speed=1)
    players, _ = make_players(ray)
    for _ in range(30):
        players.next_group(None)
    assert all(9 <= len(worker.exchanges) <= 12 for worker in ray.workers)


def test_a_worker_that_has_not_answered_is_left_alone(make_players):
    ray = FakeRay()
    players, _ = make_players(ray)
    ray.workers[1].held = True
    for version in range(1, 5):
        players.next_group(None)
        players.update_weights(PARAMS, version)
    assert len(ray.workers[1].exchanges) == 1
    ray.workers[1].held = False
    players.update_weights(PARAMS, 5)
    assert ray.workers[1].version == 5


def test_no_group_comes_in_time_if_no_worker_answers(make_players):
    ray = FakeRay()
    players, _ = make_players(ray)
    for worker in ray.workers:
        worker.held = True
    assert players.next_group(0.01) is None


def test_who_does_not_wait_makes_workers_begin_all_the_same(make_players):
    players, dealer = make_players(FakeRay())
    assert players.next_group(0.0) is None
    assert dealer.dealt == WORKERS * AT_ONCE
    assert players.next_group(0.0) is not None


@pytest.mark.parametrize("kind", ["RayActorError", "RayTaskError", "ObjectLostError"])
def test_a_failing_worker_costs_its_groups_alone_and_is_replaced(make_players, kind):
    ray = FakeRay(speed=1)
    players, _ = make_players(ray)
    numbers = [players.next_group(None).number for _ in range(5)]
    failing = ray.workers[0]
    lost = {deal.number for deal in failing.hand}
    failing.error = getattr(exceptions, kind)("its own")
    numbers += [players.next_group(None).number for _ in range(60)]
    assert failing.killed and len(ray.living) == WORKERS and len(ray.workers) == WORKERS + 1
    lost |= {deal.number for deal in failing.exchanges[-1].deals}
    assert len(lost) == AT_ONCE == players.num_lost_groups and not lost & set(numbers)
    assert len(set(numbers)) == len(numbers)
    assert len(ray.workers[-1].exchanges) > 1


def test_a_replaced_worker_is_dealt_to_in_the_same_update(make_players):
    ray = FakeRay(speed=1)
    players, dealer = make_players(ray, ready_groups=100)
    players.next_group(None)
    failing = ray.workers[0]
    failing.error = exceptions.RayActorError("killed")
    players.update_weights(PARAMS, 1)  # sends what fails
    exchanges, before = len(failing.exchanges), dealer.dealt
    players.update_weights(PARAMS, 2)  # learns of it
    assert players.num_lost_groups == AT_ONCE
    assert len(failing.exchanges) == exchanges and len(ray.workers) == WORKERS + 1
    assert len(ray.workers[-1].exchanges[0].deals) == AT_ONCE
    assert ray.workers[-1].version == 2
    assert dealer.dealt - before == AT_ONCE + 2  # and one to each of the others


def test_failures_in_a_row_end_the_run_and_say_why(make_players):
    ray = FakeRay()
    ray.errors = [exceptions.RayTaskError(f"cause {n}") for n in range(3 * WORKERS)]
    players, _ = make_players(ray)
    with pytest.raises(RuntimeError, match=rf"failed {3 * WORKERS} times.*cause {3 * WORKERS - 1}"):
        players.next_group(None)
    assert not ray.living[WORKERS:]


def test_a_group_between_them_forgives_failures(make_players):
    ray = FakeRay(speed=1)
    players, _ = make_players(ray, rollout_workers=1)
    for _ in range(5):
        ray.living[0].error = exceptions.RayTaskError("once")
        ray.errors = [exceptions.RayTaskError("its successor, too")]
        made = len(ray.workers)
        while len(ray.workers) < made + 2:
            players.next_group(None)
    assert len(ray.workers) == 11


@pytest.mark.parametrize("kind", ["LocalRayletDiedError", "ActorUnschedulableError"])
def test_failures_of_the_cluster_end_the_run_at_once(make_players, kind):
    ray = FakeRay()
    ray.errors = [getattr(exceptions, kind)("no node")]
    players, _ = make_players(ray)
    with pytest.raises(getattr(exceptions, kind), match="no node"):
        players.next_group(None)
    assert len(ray.workers) == WORKERS


def test_a_fault_of_the_trainers_own_is_not_taken_for_a_workers(make_players):
    ray = FakeRay()
    players, _ = make_players(ray)
    ray.workers[0].error = TypeError("a bug")
    with pytest.raises(TypeError, match="a bug"):
        players.next_group(None)
    assert players.num_lost_groups == 0
