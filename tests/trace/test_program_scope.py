"""The bookkeeping under generated programs: what a loop may change is paid for in advance."""

from random import Random

import pytest

from cwm_jax.trace.generator import LEVELS
from cwm_jax.trace.programs.scope import Scope, Unfit
from cwm_jax.trace.programs.values import Bounds


def scope_and_total() -> tuple:
    scope = Scope(Random(0), LEVELS[3], frozenset(), 100, {})
    total = scope.declare("total", Bounds("int", 0, 0))
    scope.widen(total)
    return scope, total


def test_changes_in_a_loop_add_up_to_the_bounds_that_readers_trust():
    scope, total = scope_and_total()
    most = total.bounds.high // 5
    with scope.indented(times=5):
        scope.change(total, high=most)
        with pytest.raises(Unfit):
            scope.change(total, high=1)


def test_a_loop_cannot_assign_beyond_the_bounds():
    scope, total = scope_and_total()
    with scope.indented(times=5), pytest.raises(Unfit):
        scope.assign(total, Bounds("int", 0, total.bounds.high + 1))


def test_a_line_costs_its_events_each_time_that_its_block_runs():
    scope, _ = scope_and_total()
    with scope.indented(times=7):
        scope.emit("pass")
        assert scope.left == 93
        with pytest.raises(Unfit):
            scope.charge(14)


def test_what_was_unfit_is_undone_in_the_variables_themselves():
    scope, total = scope_and_total()
    saved, bounds = scope.save(), total.bounds
    scope.assign(total, Bounds("int", 7, 7))
    scope.declare("other", Bounds("int"))
    scope.emit("pass")
    scope.restore(saved)
    assert (total.bounds, list(scope.variables), scope.lines) == (bounds, ["total"], [])
