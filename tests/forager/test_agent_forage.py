"""Episodes on the shipped tasks, and the files that they are kept in."""

from pathlib import Path

import pytest

from cwm_jax.data.trajectories import read_trajectories
from cwm_jax.forager.agent.forage import ForageSettings, forage
from cwm_jax.forager.agent.loop import EpisodeLimits
from cwm_jax.rl.envs.swe.shipped.tasks import shipped_tasks
from cwm_jax.storage import StorageError
from cwm_jax.trace.corpus.engines import LocalEngine

TASKS = 4


def _run(out: Path, policy: str, *, workers: int = 1, num: int = TASKS, turns: int = 128) -> list:
    settings = ForageSettings(policy=policy, limits=EpisodeLimits(turns=turns))
    forage(shipped_tasks(0, TASKS)[:num], out, settings, engine=LocalEngine(workers))
    return list(read_trajectories(out))


def test_the_oracle_solves_all_in_the_same_bytes_for_any_number_of_workers(tmp_path):
    one, two = tmp_path / "new/one.jsonl", tmp_path / "new/two.jsonl"
    rows = _run(one, "oracle")
    _run(two, "oracle", workers=2)
    assert [row.outcome for row in rows] == ["finished"] * TASKS
    assert all(row.solved and not row.reason for row in rows)
    assert one.read_bytes() == two.read_bytes()


def test_the_explorer_solves_none_and_a_limit_of_turns_ends_it(tmp_path):
    rows = _run(tmp_path / "rows.jsonl", "explorer", num=2)
    assert [(row.outcome, row.solved) for row in rows] == [("finished", False)] * 2
    (row,) = _run(tmp_path / "short.jsonl", "explorer", num=1, turns=1)
    assert (row.outcome, len(row.messages)) == ("turns", 3)


def test_a_torn_line_loses_only_its_episode(tmp_path):
    whole = tmp_path / "rows.jsonl"
    _run(whole, "explorer", num=2)
    expected = whole.read_bytes()
    first = expected.index(b"\n") + 1
    whole.write_bytes(expected[: first + 100])
    _run(whole, "explorer", num=2)
    assert whole.read_bytes() == expected


def test_a_file_of_other_settings_is_refused(tmp_path):
    _run(tmp_path / "rows.jsonl", "explorer", num=1)
    with pytest.raises(StorageError, match="other settings"):
        _run(tmp_path / "rows.jsonl", "oracle", num=1)


def test_the_fixer_solves_some_by_trying_and_claims_what_it_did(tmp_path):
    rows = _run(tmp_path / "rows.jsonl", "fixer")
    assert any(row.solved for row in rows)
    assert {row.outcome for row in rows} == {"finished"}
