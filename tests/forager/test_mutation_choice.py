"""Draws of faults: all once, by shares, the same whoever asks."""

import collections

import pytest

from cwm_jax.forager.tasks.choice import SHARES, Draws

PLACES = {"one": ["f", "g"], "two": ["h"], "none": []}


def draws(seed=0, num=lambda kind, place: 3, **options):
    return list(Draws(PLACES, num, seed=seed, **options))


def test_every_mutation_is_drawn_once():
    found = [drawn[1:] for drawn in draws()]
    assert len(found) == len({*found}) == len(SHARES) * 3 * 3
    assert [drawn[0] for drawn in draws()] == list(range(len(found)))


def test_the_same_seed_draws_the_same_and_another_seed_another_order():
    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
    assert sorted(d[1:] for d in draws(1)) == sorted(d[1:] for d in draws(2))


def test_kinds_come_by_the_shares_of_the_report():
    iterator = iter(Draws(PLACES, lambda kind, place: 10_000))
    first = [next(iterator)[1] for _ in range(4500)]
    counted = collections.Counter(first)
    for kind, share in SHARES.items():
        assert abs(counted[kind] - 100 * share) < 150


def test_a_kind_without_mutations_leaves_its_share_to_the_others():
    found = draws(num=lambda kind, place: 2 if kind == "operators" else 0)
    assert {drawn[1] for drawn in found} == {"operators"}
    assert len(found) == 6


def test_repositories_come_as_often_however_many_functions_they_have():
    places = {"small": ["f"], "large": [f"g{n}" for n in range(50)]}
    iterator = iter(Draws(places, lambda kind, place: 10_000))
    found = [next(iterator)[2] == "f" for _ in range(1000)]
    assert 400 < sum(found) < 600


@pytest.mark.parametrize("shares", [{"operators": -1, "functions": 2}, {"operators": 0}, {}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="expected weights"):
        Draws(PLACES, lambda kind, place: 1, shares=shares)
