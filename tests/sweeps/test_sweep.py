"""Sweeps: their runs, runs in lockstep against train.py's loop, resuming, and what is found."""

import collections
import dataclasses
import itertools
import json
import math
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_model, tiny_run, write_corpus
from tolerances import TRAJECTORY_RTOL

from cwm_jax.__main__ import main
from cwm_jax.config import (
    ConfirmationConfig,
    RepetitionConfig,
    RunConfig,
    SweepConfig,
    SweepScale,
    schema,
)
from cwm_jax.sweeps import command, design, sweep
from cwm_jax.sweeps.lockstep import Finished, Lockstep, Schedule
from cwm_jax.sweeps.records import RUNS_FILE, RunRecord, SweepFolder
from cwm_jax.sweeps.rows import SweepRows
from cwm_jax.sweeps.sweep import SweepOptions, run_sweep, train_all
from cwm_jax.trace.corpus.engines import LocalEngine
from cwm_jax.training.plan import make_plan
from cwm_jax.training.scaling.flops import law_flops_per_token
from cwm_jax.training.scaling.laws import load_laws
from cwm_jax.training.state import init_state
from cwm_jax.training.step import make_train_step

MICRO_TOKENS = 2 * 32
SIZES = [tiny_model(num_hidden_layers=n) for n in (2, 3, 5)]


def tiny_sweep(folder, *, tokens=(1024, 2048, 4096), **changes) -> SweepConfig:
    """Two sizes, three computes."""
    values = dict(
        base=tiny_run(folder, run_name="sweep", model=SIZES[0]),
        scales=tuple(
            SweepScale(
                compute_flops=count * law_flops_per_token(SIZES[0], 32, count="report"),
                model=SIZES[0],
            )
            for count in tokens
        ),
        learning_rates=(1e-3, 1e-1),
        batch_tokens=(MICRO_TOKENS, 4 * MICRO_TOKENS),
        min_steps=4,
    )
    return SweepConfig(**{**values, **changes})


# Design


def test_a_larger_budget_begins_with_the_same_runs(tmp_path):
    config = tiny_sweep(tmp_path)
    few, many = (design.search_runs(config, count) for count in (6, 21))
    assert len(many) == 3 * 21
    by_name = {spec.name: spec for spec in many}
    assert all(by_name[spec.name] == spec for spec in few)
    assert design.num_points(config, 21.5 * sum(s.compute_flops for s in config.scales)) == 21


def test_the_search_covers_both_ranges_evenly(tmp_path):
    config = tiny_sweep(tmp_path, tokens=(1 << 20, 1 << 22), batch_tokens=(64, 64 * 64))
    specs = [s for s in design.search_runs(config, 64) if s.name.startswith("search/0/")]
    rates = np.log([s.learning_rate for s in specs]) - math.log(1e-3)
    batches = np.log([s.batch_tokens / 64 for s in specs])
    cells = collections.Counter(
        zip(
            (rates / math.log(100) * 4).astype(int).tolist(),
            np.minimum(batches / math.log(64) * 4, 3).astype(int).tolist(),
            strict=True,
        )
    )
    assert len(cells) == 16 and max(cells.values()) <= 8  # of 4 on average; batches are rounded


def test_every_run_is_one_that_train_py_plans_the_same(tmp_path):
    config = tiny_sweep(tmp_path)
    for spec in design.search_runs(config, 12):
        plan = make_plan(design.run_config(config, spec), num_devices=1)
        assert plan.total_steps == spec.steps >= config.min_steps
        assert plan.stages[0].batch_tokens == spec.batch_tokens
        compute = spec.tokens * law_flops_per_token(spec.scale.model, 32, count="report")
        assert compute == pytest.approx(spec.scale.compute_flops, rel=1 / 2 / spec.steps + 1e-9)
        rates = Schedule.of(design.run_config(config, spec)).rates
        np.testing.assert_allclose(
            rates, plan.learning_rate(jnp.arange(spec.steps)), rtol=1e-5, atol=1e-9
        )


def test_a_budget_too_small_to_fit_anything_to_says_what_is_enough(tmp_path, capsys):
    config = tiny_sweep(tmp_path)
    one_each = sum(scale.compute_flops for scale in config.scales)
    with pytest.raises(ValueError, match="pays 5 runs at each of 3 scales") as refused:
        design.num_points(config, 5.9 * one_each)
    assert f"give {6 * one_each:.3g}" in str(refused.value)
    path = tmp_path / "other.py"
    path.write_text("def get_config():\n    return 3\n")
    assert main(["sweep", "--config", str(path), "--budget", "1e12"]) == 2
    assert "returns a SweepConfig" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rates": (1e-1, 1e-3)}, "learning_rates is"),
        ({"tokens": (1024,)}, "1 different computes"),
        ({"seeds": ()}, "seeds is"),
        ({"tokens": (128, 1024)}, "not 4 steps of a micro-batch of 64"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        design.search_runs(tiny_sweep(tmp_path, **changes), 6)


def test_a_sweeps_config_survives_json_and_groups_share_rows(tmp_path):
    config = full_sweep(tmp_path)
    again = schema.from_json(SweepConfig, json.loads(json.dumps(schema.to_json(config))))
    assert again == config
    specs = [*design.search_runs(config, 7), *design.repetition_runs(config, _rate, _batch)]
    groups = list(design.groups(specs, 3))
    assert sorted(s.name for g in groups for s in g) == sorted(s.name for s in specs)
    for group in groups:
        assert len(group) <= 3
        assert len({(s.scale, s.seed, s.unique_tokens) for s in group}) == 1


# Lockstep


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_corpus(folder)
    return folder


def runs_of_two_batches(home) -> list[RunConfig]:
    config = tiny_sweep(home)
    spec = design.search_runs(config, 6)[0]
    specs = [
        dataclasses.replace(spec, name="a", learning_rate=3e-2, batch_tokens=64, steps=12),
        dataclasses.replace(spec, name="b", learning_rate=1e-2, batch_tokens=192, steps=4),
        dataclasses.replace(spec, name="c", learning_rate=1e9, batch_tokens=64, steps=8),
    ]
    return [design.run_config(config, dataclasses.replace(s, seed=5)) for s in specs]


@pytest.fixture(scope="module")
def one_by_one(home):
    return train_lockstep(home, "one_by_one")


def train_lockstep(home, together):
    runs = runs_of_two_batches(home)
    rows = SweepRows(runs[0])
    micro, heldout = rows.micro_batches(5, train_tokens=1), rows.heldout(train_tokens=1)
    return Lockstep(runs[0], together).train(runs, micro, heldout)


def test_runs_in_lockstep_take_the_steps_of_the_training_loop(home, one_by_one):
    for run, found in zip(runs_of_two_batches(home)[:2], one_by_one, strict=False):
        plan = make_plan(run, num_devices=1)
        step = jax.jit(make_train_step(run, plan=plan))
        state, losses, A = init_state(run, jax.random.key(5)), [], plan.stages[0].accumulation_steps
        micro = SweepRows(run).micro_batches(5, train_tokens=1)
        for _ in range(plan.total_steps):
            rows = [next(micro) for _ in range(A)]
            batch = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        np.testing.assert_allclose(found.losses, losses, rtol=TRAJECTORY_RTOL)


@pytest.mark.parametrize("together", ["vmap", "map"])
def test_runs_side_by_side_are_those_one_by_one(home, one_by_one, together):
    for ours, theirs in zip(train_lockstep(home, together)[:2], one_by_one[:2], strict=True):
        np.testing.assert_allclose(ours.losses, theirs.losses, rtol=TRAJECTORY_RTOL)
        assert ours.heldout_loss == pytest.approx(theirs.heldout_loss, rel=TRAJECTORY_RTOL)


def test_a_run_that_diverges_is_told_and_harms_no_other(one_by_one):
    fine, _, diverged = one_by_one
    assert math.isfinite(fine.heldout_loss) and fine.skipped_steps == 0
    assert not math.isfinite(diverged.heldout_loss) or diverged.heldout_loss > fine.heldout_loss


def test_repeated_rows_are_each_seen_once_an_epoch(home):
    rows = SweepRows(tiny_sweep(home).base)
    read = rows.repeated(0, train_tokens=1, unique_tokens=6 * 32)
    tokens = [row.tobytes() for _ in range(6) for row in next(read)["tokens"]]
    first = set(tokens[:6])
    assert len(first) == 6 and set(tokens[6:]) == first
    assert tokens[:6] != tokens[6:]
    fresh = rows.micro_batches(0, train_tokens=1)
    assert first == {row.tobytes() for _ in range(3) for row in next(fresh)["tokens"]}


# Sweeps


def folder_of(config: SweepConfig) -> Path:
    return Path(config.base.base_output_directory) / config.base.run_name


def records_of(config: SweepConfig, specs, options=SweepOptions()) -> list[RunRecord]:  # noqa: B008
    with SweepFolder(config) as folder:
        return train_all(config, specs, folder, options)


def test_a_sweep_that_is_cut_goes_on_without_repeating_or_losing_runs(home, monkeypatch):
    config = tiny_sweep(home, base=tiny_run(home, run_name="cut", model=SIZES[0]))
    specs = design.search_runs(config, 6)[:5]
    whole = records_of(config, specs)
    path = folder_of(config) / RUNS_FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # a kill amid a line
    trained = []
    one_by_one = sweep.train_group
    monkeypatch.setattr(
        sweep, "train_group", lambda *args: trained.append(args[2]) or one_by_one(*args)
    )
    again = records_of(config, specs)
    assert [len(group) for groups in trained for group in groups] == [1, 1]
    assert [without_time(r) for r in again] == [without_time(r) for r in whole]
    other = dataclasses.replace(config, warmup_fraction=0.5)
    with pytest.raises(ValueError, match="other values of warmup_fraction"):
        SweepFolder(other)
    trained.clear()
    for near_optimum in (0.5, config.near_optimum):  # of the fit alone
        assert records_of(dataclasses.replace(config, near_optimum=near_optimum), specs) == again
    assert not trained
    with SweepFolder(config), pytest.raises(ValueError, match="is being written by another"):
        SweepFolder(config)


def test_a_larger_budget_tests_the_laws_that_it_gives(home, monkeypatch):
    config = full_sweep(home)
    config = dataclasses.replace(
        config, base=dataclasses.replace(config.base, run_name="grown"), repetition=None
    )
    monkeypatch.setattr(sweep, "train_group", made_losses)
    for count in (16, 24):
        assert run_sweep(config, count, SweepOptions()) == 0
    rate = load_laws(folder_of(config) / "laws.json").learning_rate
    expected = rate(config.confirmation.scale.compute_flops)
    assert f"the law's rate is {expected:.3g};" in (folder_of(config) / "report.md").read_text()
    lines = map(json.loads, (folder_of(config) / RUNS_FILE).read_text().splitlines())
    tested = [line["learning_rate"] for line in lines if line["name"] == "confirmation/0/1"]
    assert len(tested) == 2 and tested[0] != tested[1] == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_train_what_one_does(home):
    config = tiny_sweep(home, base=tiny_run(home, run_name="alone", model=SIZES[0]))
    others = tiny_sweep(home, base=tiny_run(home, run_name="workers", model=SIZES[0]))
    specs = design.search_runs(config, 6)[:4]
    alone = records_of(config, specs)
    options = SweepOptions(engine=LocalEngine(workers=2), group_runs=2)
    together = records_of(others, specs, options)
    assert [without_time(r) for r in together] == [without_time(r) for r in alone]


def without_time(record: RunRecord) -> RunRecord:
    return dataclasses.replace(record, time_s=0.0)


# What is found. The losses are made by a rule here: what training gives is tested above.


def _rate(compute: float) -> float:
    return 0.5 * (compute / 1e9) ** -0.3


def _batch(compute: float) -> float:
    return 900 * (compute / 1e9) ** 0.2


def full_sweep(folder) -> SweepConfig:
    def scale(model, tokens):
        flops = law_flops_per_token(model, 32, count="report")
        return SweepScale(compute_flops=tokens * flops, model=model)

    lengths = [1 << 15, 1 << 17, 1 << 19]
    return SweepConfig(
        base=tiny_run(folder, run_name="full", model=SIZES[0]),
        scales=tuple(scale(*pair) for pair in itertools.product(SIZES, lengths)),
        learning_rates=(3e-2, 3),
        batch_tokens=(64, 8192),
        loss_scales=(scale(SIZES[2], 1 << 13),),
        confirmation=ConfirmationConfig(scale=scale(SIZES[1], 1 << 21)),
        repetition=RepetitionConfig(scale=scale(SIZES[0], 1 << 17)),
    )


def made_losses(config: SweepConfig, together, groups) -> bytes:
    """A valley around the rule's optimum, less where there are more fresh tokens."""
    lines = []
    for spec in (spec for group in groups for spec in group):
        C, tokens = spec.scale.compute_flops, design.scale_tokens(config, spec.scale)
        x = math.log(spec.learning_rate / _rate(C))
        y = math.log(spec.batch_tokens / _batch(C))
        if spec.unique_tokens:
            repeats = tokens / spec.unique_tokens - 1
            tokens = spec.unique_tokens * (1 + 5 * (1 - math.exp(-repeats / 5)))
        valley = 0.02 * x * x + 0.01 * y * y - 0.008 * x * y
        noise = 5e-4 * np.random.default_rng(zlib.crc32(spec.name.encode())).normal()
        loss = (0.5 + 40 / tokens**0.35) * math.exp(valley + noise)
        size = sweep.num_non_embedding_parameters(spec.scale.model)
        found = Finished(
            losses=np.full(spec.steps, loss),
            heldout_loss=loss if x < 2 else math.nan,
            skipped_steps=0,
        )
        lines.append(RunRecord.of(spec, found, params=size, time_s=1.0, device="cpu").to_line())
    return b"".join(lines)


@pytest.fixture(scope="module")
def whole_sweep(home):
    config = full_sweep(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train_group", made_losses)
        assert run_sweep(config, 24, SweepOptions()) == 0
    return config, folder_of(config)


def test_the_laws_that_are_written_are_those_of_the_losses(whole_sweep):
    config, folder = whole_sweep
    laws = load_laws(folder / "laws.json")
    for scale in config.scales:
        C = scale.compute_flops
        assert laws.learning_rate(C) == pytest.approx(_rate(C), rel=0.25)
        assert laws.batch_tokens(C) == pytest.approx(_batch(C), rel=0.5)
    low, high = laws.learning_rate.exponent_interval
    assert low < -0.3 < high


def test_a_report_says_what_the_runs_show(whole_sweep):
    _, folder = whole_sweep
    report = (folder / "report.md").read_text()
    assert report.count("| worse |") == 2  # 4 times higher and lower
    assert "R* = " in report and "10 pairs of N and D" in report
    assert "epochs**" in report  # the corpus is small, and it says so
    assert (folder / "laws.png").read_bytes().startswith(b"\x89PNG")
    names = {json.loads(line)["name"] for line in (folder / RUNS_FILE).read_text().splitlines()}
    assert {"search/8/23", "confirmation/2/0.25", "repeated/0/16", "fresh/0/16", "loss/0"} <= names


def test_runs_without_a_valley_give_no_law_and_say_so(home, monkeypatch, capsys):
    config = full_sweep(home)
    config = dataclasses.replace(
        config, base=dataclasses.replace(config.base, run_name="flat"), confirmation=None
    )

    def flat(config, together, groups):
        lines = made_losses(config, together, groups).splitlines()
        return b"".join(
            json.dumps({**json.loads(line), "heldout_loss": 1.0}).encode() + b"\n" for line in lines
        )

    monkeypatch.setattr(sweep, "train_group", flat)
    assert run_sweep(config, 8, SweepOptions()) == 1
    assert "no law" in capsys.readouterr().err


def test_the_command_prints_the_runs_before_any_is_trained(home, capsys, monkeypatch):
    config = full_sweep(home)
    monkeypatch.setattr(command, "load_sweep", lambda path: config)
    flops = sum(scale.compute_flops for scale in config.scales)
    args = ["sweep", "--config", "any.py", "--budget", str(8.5 * flops), "--dry-run"]
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert "8 runs at each of 9 scales" in shown and "then 19 runs" in shown
