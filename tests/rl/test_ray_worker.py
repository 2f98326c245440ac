"""A worker's own half of the exchanges, without Ray: where its weights lie, and when they come."""

import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rl import small_runs
from tiny import sharp_params

import cwm_jax.rl.envs.kinds as kinds
from cwm_jax.config.schema import to_json
from cwm_jax.rl.playing.on_ray import Worker, shipped
from cwm_jax.rl.playing.players import Deal

NUM_DEVICES = 2


@pytest.fixture
def config(tmp_path, monkeypatch):
    devices = jax.devices()[:NUM_DEVICES]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(kinds, "make_environments", small_runs.make_environments)
    small_runs.write_tokenizer(tmp_path / "tokenizer")
    return small_runs.rl_run(tmp_path, tmp_path / "tokenizer", rl={"mode": "asynchronous"})


@pytest.fixture
def make_worker(config):
    workers = []

    def make(params):
        workers.append(Worker(to_json(config), shipped(params), 0))
        return workers[-1]

    yield make
    for worker in workers:
        worker._players.close()


def engine_of(worker):
    return worker._players._rollouts._engine


def assert_lie_in_parts(params, like):
    """Equal to ``like``, and each device holds its part of what ``tensor`` cuts."""
    jax.tree.map(np.testing.assert_array_equal, params, like)
    for leaf in jax.tree.leaves(params):
        assert len(leaf.sharding.device_set) == NUM_DEVICES
    projection = params["layers"]["0"]["mlp"]["up_proj"]["kernel"]
    assert "tensor" in projection.sharding.spec
    held = [shard.data.size for shard in projection.addressable_shards]
    assert held == [projection.size // NUM_DEVICES] * NUM_DEVICES


def test_weights_lie_in_parts_at_the_start_and_after_an_update(config, make_worker):
    params = sharp_params(config.model)
    worker = make_worker(params)
    assert_lie_in_parts(engine_of(worker)._params, params)
    newer = sharp_params(config.model, seed=1)
    worker.exchange([], shipped(newer), 7, 0)
    wait_for_version(worker, 7)
    assert_lie_in_parts(engine_of(worker)._params, newer)


def wait_until(condition):
    ticks = threading.Event()
    for _ in range(6000):
        if condition():
            return
        ticks.wait(0.01)
    raise AssertionError("it did not come")


def wait_for_version(worker, version):
    wait_until(lambda: worker._players._rollouts.version == version)


def test_weights_that_wait_are_on_no_device(config, make_worker, monkeypatch):
    worker = make_worker(sharp_params(config.model))
    rollouts = worker._players._rollouts
    busy, go_on = threading.Event(), threading.Event()

    def step():
        busy.set()
        go_on.wait(30)
        return []

    monkeypatch.setattr(rollouts._rollouts, "step", step)
    worker.exchange([], None, 0, 0)
    assert busy.wait(30)
    before = num_on_devices(config)
    try:
        for version in (1, 2, 3):
            worker.exchange([], shipped(sharp_params(config.model, seed=version)), version, 0)
            assert num_on_devices(config) == before
    finally:
        go_on.set()
    wait_for_version(worker, 3)
    assert num_on_devices(config) == before  # those before them are gone


def num_on_devices(config):
    """Arrays as large as the embeddings on the worker's devices, of which a copy has one."""
    shape = (config.model.vocab_size, config.model.hidden_size)
    found = [x for x in jax.live_arrays() if x.shape == shape]
    return len([x for x in found if len(x.sharding.device_set) == NUM_DEVICES])


def test_a_trainer_without_room_gets_its_answer_at_once_and_its_groups_later(
    config, make_worker, monkeypatch
):
    worker = make_worker(sharp_params(config.model))
    waits, take = [], worker._players.take

    def noting(most, timeout_s):
        waits.append(timeout_s)
        return take(most, timeout_s)

    monkeypatch.setattr(worker._players, "take", noting)
    task = small_runs.load_tasks(config.rl.environments[0])[0]
    deals = [Deal(number=n, environment="output_prediction", task=task) for n in range(3)]
    assert worker.exchange(deals, None, 0, 0) == []
    assert waits == [0.0]
    wait_until(lambda: len(worker._players.ready()) == 3)
    assert worker.exchange([], None, 0, 0) == []
    groups = worker.exchange([], None, 0, 1)
    assert len(groups) == 1
    groups += worker.exchange([], None, 0, 2)
    assert sorted(group.number for group in groups) == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_travel_beside_the_pickle_and_come_back_bit_for_bit(dtype):
    params = {"scale": jnp.linspace(-3, 3, 1000).astype(dtype), "one": jnp.ones((), dtype)}
    buffers = []
    message = pickle.dumps(shipped(params), protocol=5, buffer_callback=buffers.append)
    assert len(message) < params["scale"].nbytes and len(buffers) == 2
    back = jax.tree.map(lambda x: x.array(), pickle.loads(message, buffers=buffers))
    assert back["scale"].dtype == params["scale"].dtype
    jax.tree.map(np.testing.assert_array_equal, back, params)
