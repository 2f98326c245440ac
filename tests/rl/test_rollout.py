"""Contract: episodes on one engine, and that the trainer computes what the sampler did."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rl.games import Broken, Late, Parity, Turns
from tiny import VOCAB_SIZE, sharp_params, tiny_model
from tolerances import SAMPLER_ATOL

from cwm_jax.inference.engine import Engine, EngineOptions
from cwm_jax.rl.batches import Learnable, RowPacker, flatten
from cwm_jax.rl.environment import Task
from cwm_jax.rl.objective import batch_logprobs
from cwm_jax.rl.playing.rollout import Rollouts, Wanted
from cwm_jax.tokenizer import train_tokenizer

MODEL = tiny_model(num_hidden_layers=2)
GAMES = {"parity": Parity, "turns": Turns, "broken": Broken, "late": Late}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["abc def ghi " * 200, *map(str, range(3000))], VOCAB_SIZE)


@pytest.fixture(scope="module")
def params():
    return sharp_params(MODEL)


def make_rollouts(params, tokenizer, *, max_tokens=40, timeout_s=30.0, ordered=True, dtype=None):
    options = EngineOptions(max_length=max_tokens, max_rows=4, page_tokens=8, prefill_tokens=16)
    engine = Engine(params, MODEL, tokenizer, options)
    return Rollouts(
        engine,
        lambda name, task: GAMES[name](task, tokenizer),
        max_tokens=max_tokens,
        ordered=ordered,
        timeout_s=timeout_s,
    )


def play(rollouts, wanted):
    for episode in wanted:
        rollouts.add(episode)
    ended = []
    while rollouts.num_playing:
        ended += rollouts.step()
    return {t.seed: t for t in ended}


def episodes(game, count, **data):
    return [
        Wanted(
            environment=game,
            task=Task(name=f"{game}-{n}", data={"prompt": [3 + n, 4, 5], **data}),
            group=1,
            seed=n,
        )
        for n in range(count)
    ]


def test_turns_alternate_and_rewards_stay_with_their_actions(params, tokenizer):
    played = play(make_rollouts(params, tokenizer), episodes("turns", 5))
    assert len(played) == 5
    for t in played.values():
        assert [turn.info.get("turn") for turn in t.turns] == [1, 2, None]
        assert [turn.reward for turn in t.turns[:2]] == [0.25, 0.25]
        assert t.total_reward in (1.5, -0.5) and t.passed == (t.total_reward > 0)
        assert t.turns[1].observation == (8, 8, 8) and t.turns[2].observation == (9, 9, 9)
        assert all(len(turn.action) == len(turn.logprobs) >= 1 for turn in t.turns)
        assert len(t.turns[1].action) <= 3 and t.ending == "done"


def test_an_episode_does_not_depend_on_what_plays_beside_it(params, tokenizer):
    together = play(make_rollouts(params, tokenizer), episodes("turns", 6))
    for wanted in episodes("turns", 6):
        alone = play(make_rollouts(params, tokenizer), [wanted])[wanted.seed]
        assert [t.action for t in alone.turns] == [t.action for t in together[wanted.seed].turns]
    assert len({t.turns[0].action for t in together.values()}) > 1


@pytest.mark.parametrize("game", ["parity", "turns"])
def test_the_trainer_computes_what_the_sampler_did(params, tokenizer, game):
    """Log-probabilities of packed rows against those of the cached decoding, in float32."""
    played = play(make_rollouts(params, tokenizer), episodes(game, 12))
    packer = RowPacker(16, 64)
    for t in played.values():
        assert packer.add([Learnable(trajectory=t, advantage=1.0)])
    batch = jax.tree.map(jnp.asarray, packer.batch(version=0))
    logprobs, _ = jax.jit(batch_logprobs, static_argnums=1)(params, MODEL, batch)
    off = np.abs(logprobs - batch["behaviour_logprobs"])[np.asarray(batch["action_mask"]) > 0]
    assert len(off) == sum(t.num_action_tokens for t in played.values()) > 20
    assert off.max() <= SAMPLER_ATOL


@pytest.mark.parametrize("fails", ["made", "start", "step", "hangs"])
def test_a_failing_environment_costs_its_own_episode_alone(params, tokenizer, fails):
    bad = [
        Wanted(
            environment="broken",
            task=Task(name="b", data={"prompt": [3], "fails": fails}),
            group=2,
            seed=100,
        )
    ]
    rollouts = make_rollouts(params, tokenizer, timeout_s=1.0 if fails == "hangs" else 30.0)
    played = play(rollouts, [*episodes("parity", 3), *bad, *episodes("turns", 0)])
    assert [played[n].ending for n in (0, 1, 2, 100)] == ["done"] * 3 + [
        "crashed" if fails == "step" else "failed"  # what it does not declare is a bug in it
    ]
    assert not played[100].passed and played[100].total_reward == 0
    expected = {"made": "made", "start": "no sandbox", "step": "a bug", "hangs": "within 1 s"}
    assert expected[fails] in played[100].failure


def test_a_bug_in_close_changes_nothing(params, tokenizer, caplog):
    wanted = episodes("broken", 2, fails="close")
    rollouts = make_rollouts(params, tokenizer)
    assert {t.ending for t in play(rollouts, wanted).values()} == {"done"}
    rollouts.close()
    assert caplog.text.count("Broken could not be closed") == 2


@pytest.fixture
def late(clock):
    """Makes an episode that opens something 1000 s late, when it may ``go`` on; at last it may."""
    data = {"clock": clock, "go": threading.Semaphore(0), "begun": threading.Event(), "log": []}
    yield lambda where, *waits: episodes("late", 1, late=where, waits=waits, **data)[0]
    data["go"].release(9)


@pytest.mark.parametrize("where", ["make", "start", "step"])
def test_what_a_late_environment_opens_is_closed_after_it(params, tokenizer, late, where):
    rollouts = make_rollouts(params, tokenizer)
    wanted = late(where, False)
    (lost,) = play(rollouts, [wanted]).values()
    assert (lost.ending, lost.failure) == ("failed", "no answer within 30 s")
    data = wanted.task.data
    assert data["begun"].is_set() and data["log"] == []
    data["go"].release()
    rollouts.close()
    assert [what for what, _ in data["log"]] == ["opened", "closed"]
    assert len({thread for _, thread in data["log"]}) == 1


def test_closing_waits_for_a_step_under_way_and_closes_after_it(params, tokenizer, late):
    rollouts = make_rollouts(params, tokenizer)
    wanted = late("start", True)
    rollouts.add(wanted)
    wanted.task.data["begun"].wait()
    threading.Timer(0.2, wanted.task.data["go"].release).start()
    rollouts.close()
    assert [what for what, _ in wanted.task.data["log"]] == ["opened", "closed"]


def test_closing_does_not_wait_for_ever(params, tokenizer, late, monkeypatch, caplog):
    monkeypatch.setattr("cwm_jax.rl.playing.rollout._CLOSING_S", 0.05)
    rollouts = make_rollouts(params, tokenizer)
    wanted = late("start", True)
    rollouts.add(wanted)
    wanted.task.data["begun"].wait()
    rollouts.close()
    assert wanted.task.data["log"] == [] and rollouts.num_playing == 0
    assert "1 environments do not close within 0.05 s" in caplog.text


@pytest.mark.parametrize(("waits", "ending"), [((True,), "done"), ((True, False), "failed")])
def test_waiting_for_others_is_no_time_of_a_step(params, tokenizer, late, waits, ending):
    """The loop looks while it waits; where it hangs afterwards it is late all the same."""
    rollouts = make_rollouts(params, tokenizer, ordered=False)
    wanted = late("step", *waits)
    rollouts.add(wanted)
    while not wanted.task.data["begun"].is_set():
        assert rollouts.step() == []
    assert rollouts.step() == [] and rollouts.num_playing == 1
    wanted.task.data["go"].release()
    assert play(rollouts, [])[wanted.seed].ending == ending
    wanted.task.data["go"].release()
    rollouts.close()


def test_an_episode_without_room_fails_within_its_limits(params, tokenizer):
    played = play(make_rollouts(params, tokenizer, max_tokens=12), episodes("turns", 4))
    cut = [t for t in played.values() if t.ending == "length"]
    assert cut and all(t.total_reward == -1 and t.num_tokens <= 12 for t in cut)
    assert all("no room" in str(t.turns[-1].info) for t in cut)


def test_weights_reach_a_running_episode(params, tokenizer):
    rollouts = make_rollouts(params, tokenizer)
    for wanted in episodes("turns", 4):
        rollouts.add(wanted)
    version, ended = 0, []
    while rollouts.num_playing:
        ended += rollouts.step()
        version += 1
        scale = 1 + 0.01 * version
        newer = jax.tree.map(functools.partial(jnp.multiply, scale), params)
        rollouts.update_weights(newer, version)
    assert all(t.turns[0].last_version < t.last_version for t in ended)
    assert any(not t.drawn_with(t.last_version) for t in ended)


def test_closing_ends_what_plays(params, tokenizer):
    rollouts = make_rollouts(params, tokenizer)
    for wanted in episodes("turns", 4):
        rollouts.add(wanted)
    rollouts.step()
    rollouts.close()
    assert rollouts.num_playing == 0 and rollouts.step() == []


def test_flat_tokens_are_the_episodes(params, tokenizer):
    (t,) = play(make_rollouts(params, tokenizer), episodes("turns", 1)).values()
    tokens, is_action, logprobs = flatten(t)
    assert len(tokens) == t.num_tokens and is_action.sum() == t.num_action_tokens
    assert (logprobs[is_action == 0] == 0).all() and (logprobs[is_action == 1] < 0).all()
