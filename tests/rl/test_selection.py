"""Law: what is learnt from, what it is worth, what is asked."""

import dataclasses
import math
import re

import pytest
from rl.trajectories import trajectory, turn

from cwm_jax.config import (
    CurriculumConfig,
    EnvironmentConfig,
    FilterConfig,
    LengthRewardConfig,
    PolicyLossConfig,
    RLConfig,
)
from cwm_jax.rl.report import why_nothing
from cwm_jax.rl.selection import Curriculum, lessons, rejection, shaped_return

LEAST = -math.log(128_256) - 2  # report: -13.76


def reason(t, *, version=0, **filters):
    return rejection(t, FilterConfig(**filters), version=version, vocab_size=128_256)


def taught(returns, *, skip=True, **loss):
    group = [trajectory([turn([5])], reward=reward, seed=n) for n, reward in enumerate(returns)]
    config = RLConfig(
        environments=(EnvironmentConfig(name="e", kind="math"),),
        filters=FilterConfig(skip_zero_advantage=skip),
        loss=PolicyLossConfig(**loss),
    )
    found, _ = lessons(group, config, version=0, vocab_size=128_256)
    return [learnable.trajectory.seed for learnable in found]


def test_what_has_no_advantage_is_left_out_where_no_divisor_counts_it():
    mixed = [1.0, -1.0, 0.0, 0.0]
    assert taught(mixed) == [0, 1]
    for loss in (dict(normalization="sequence"), dict(normalization="tokens"), dict(kl_weight=0.1)):
        assert taught(mixed, **loss) == [0, 1, 2, 3]
        assert taught([1.0] * 4, **loss) == []
    assert taught(mixed, skip=False) == taught([1.0] * 4, skip=False) == [0, 1, 2, 3]


def test_a_trajectory_is_stale_by_its_most_recent_tokens():
    t = trajectory([turn([5], version=1), turn([6], version=7)])
    assert reason(t, version=7 + 100) is None
    assert reason(t, version=7 + 101) == "stale"
    assert reason(t, version=8, max_staleness_steps=0) == "stale"


@pytest.mark.parametrize(
    ("token", "logprob", "expected"),
    [
        (100_001, LEAST - 0.01, "gibberish"),
        (100_000, LEAST - 0.01, None),  # common text may be unlikely
        (100_001, LEAST + 0.01, None),
    ],
)
def test_one_rare_and_unlikely_token_rejects_the_whole(token, logprob, expected):
    assert round(LEAST, 2) == -13.76
    t = trajectory([turn([5, 6]), turn([token], logprob=logprob), turn([7])])
    assert reason(t) == expected
    assert reason(t, gibberish_min_token_id=None) is None


def test_failures_of_environments_and_empty_episodes_are_never_learnt_from():
    assert reason(trajectory([turn([5])], ending="failed")) == "failed"
    assert reason(trajectory([])) == "empty"


@pytest.mark.parametrize(
    ("length", "step", "expected"),
    [
        (8_192, 0, 1.0),
        (65_536, 0, -1.0),
        ((8_192 + 65_536) // 2, 0, 0.0),
        (36_864, 5_000, 1.0),  # the soft limit is half-way
        ((36_864 + 65_536) // 2, 5_000, 0.0),
        (65_536, 10_000, 1.0),
        (65_537, 20_000, -1.0),
    ],
)
def test_the_length_reward_falls_from_a_limit_that_grows(length, step, expected):
    t = trajectory([turn([5] * length)], reward=1.0, passed=True)
    assert shaped_return(t, LengthRewardConfig(), step=step) == pytest.approx(expected)


def test_length_changes_no_wrong_answer():
    t = trajectory([turn([5] * 60_000)], reward=-1.0, passed=False)
    assert shaped_return(t, LengthRewardConfig(), step=0) == -1.0
    right = trajectory([turn([5] * 60_000)], reward=1.0, passed=True)
    assert shaped_return(right, None, step=0) == 1.0


def curriculum(passes, **changes):
    config = CurriculumConfig(min_episodes=4, memory_episodes=10, **changes)
    made = Curriculum(config, seed=0)
    for passed in passes:
        made.note(trajectory([turn([5])], passed=passed, task="t"))
    return made


def share_asked(made, count=4000):
    return sum(made.asks("e", "t", n) for n in range(count)) / count


def test_a_task_is_asked_until_its_rate_is_known_then_by_its_rate():
    assert share_asked(curriculum([True] * 3)) == 1
    assert share_asked(curriculum([True, False] * 2)) == 1
    assert share_asked(curriculum([True] * 4)) == pytest.approx(0.05, abs=0.01)
    assert share_asked(curriculum([False] * 4)) == pytest.approx(0.05, abs=0.01)


def test_harder_tasks_come_more_often():
    solved = [True] * 6 + [False] * 4
    assert share_asked(curriculum(solved, harder_first=True)) == pytest.approx(0.4, abs=0.03)
    hard = [True] * 2 + [False] * 8
    assert share_asked(curriculum(hard, harder_first=True)) == pytest.approx(0.8, abs=0.03)


def test_only_the_newest_outcomes_count_and_failures_of_environments_do_not():
    made = curriculum([False] * 20 + [True] * 5)
    assert made.solve_rate("e", "t") == 0.5
    made.note(trajectory([], ending="failed", task="t"))
    assert made.solve_rate("e", "t") == 0.5
    assert made.solve_rate("e", "another") is None


def test_rates_survive_a_checkpoint():
    made, other = curriculum([True, False, False, True]), curriculum([])
    other.restore(made.state())
    assert other.solve_rate("e", "t") == 0.5


def test_harder_tasks_are_told_apart_by_tenths():
    """Rates of 0.75 are asked as those of 0.7 are: above the limit, which is lifted here."""
    for solved, of, expected in ((3, 4, 0.3), (7, 10, 0.3), (6, 9, 0.4), (5, 8, 0.4)):
        made = curriculum(
            [True] * solved + [False] * (of - solved), harder_first=True, max_solve_rate=1.0
        )
        assert share_asked(made) == pytest.approx(expected, abs=0.025)


def test_what_is_asked_depends_on_seed_rates_and_number_alone():
    """So that a resumed run asks what the other would have asked, and forgets when it would."""
    outcomes = [True] * 6 + [False] * 4
    made, resumed = curriculum(outcomes, harder_first=True), curriculum([], harder_first=True)
    resumed.restore(made.state())
    asked = [made.asks("e", "t", n) for n in range(200)]
    assert [resumed.asks("e", "t", n) for n in reversed(range(200))] == asked[::-1]
    other = Curriculum(CurriculumConfig(harder_first=True, min_episodes=4), seed=1)
    other.restore(made.state())
    assert [other.asks("e", "t", n) for n in range(200)] != asked
    for one in (made, resumed):
        one.note(trajectory([turn([5])], passed=False, task="t"))
    assert made.solve_rate("e", "t") == resumed.solve_rate("e", "t") == 0.5


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (PolicyLossConfig, {"clip_low": 0.0}),
        (PolicyLossConfig, {"clip_high": -0.1}),
        (PolicyLossConfig, {"baseline": "median"}),
        (PolicyLossConfig, {"normalization_tokens": 0}),
        (PolicyLossConfig, {"kl_weight": -1.0}),
        (PolicyLossConfig, {"kl_weight": math.nan}),
        (PolicyLossConfig, {"importance_cap": 0.0}),
        (FilterConfig, {"max_staleness_steps": -1}),
        (FilterConfig, {"gibberish_min_token_id": -1}),
        (FilterConfig, {"gibberish_margin": -0.5}),
        (LengthRewardConfig, {"growth_steps": 0}),
        (LengthRewardConfig, {"first_soft_tokens": 70_000}),
        (LengthRewardConfig, {"hard_tokens": 65_535}),
        (CurriculumConfig, {"min_solve_rate": 0.8}),
        (CurriculumConfig, {"max_solve_rate": 1.1}),
        (CurriculumConfig, {"retry_fraction": 0.0}),
        (CurriculumConfig, {"min_episodes": 33}),
    ],
)
def test_settings_that_mean_nothing_are_refused(kind, values):
    (name,) = values
    with pytest.raises(ValueError, match=f"{name}|solve rates|soft limits") as error:
        kind(**values)
    assert "expected" in str(error.value)


@pytest.mark.parametrize(
    ("passed", "rejected", "expected"),
    [
        (False, {}, "0 of 4 episodes solved .* easier tasks"),
        (True, {}, "4 of 4 episodes solved .* harder tasks"),
        (False, {"empty": 3, "stale": 1}, "3 of 4 episodes are empty: .*max_target_length"),
        (False, {"failed": 2, "stale": 1}, "0 of 4 episodes solved"),
        (False, {"failed": 4}, "4 of 4 episodes are failed: .* first: no sandbox"),
    ],
)
def test_a_run_that_learns_nothing_says_why(passed, rejected, expected):
    made = [trajectory([turn([5])], passed=passed) for _ in range(4)]
    if "failed" in rejected:
        made = [dataclasses.replace(t, failure="no sandbox", ending="failed") for t in made]
    assert re.match(expected, why_nothing(made, rejected))
