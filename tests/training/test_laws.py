"""Laws in files and in runs, laws of the ladder: closed forms, round trips, refusals, faults."""

import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import pytest
from tiny import tiny_run, write_corpus

from configs import cwm_1b, cwm_60m, midtrain_32b, pretrain_32b
from cwm_jax.__main__ import main
from cwm_jax.config import BatchConfig, MeshConfig, RunConfig
from cwm_jax.tokenizer import train_tokenizer
from cwm_jax.training import checkpoint as ckpt
from cwm_jax.training import startup
from cwm_jax.training.loop import run
from cwm_jax.training.plan import make_plan
from cwm_jax.training.scaling.flops import law_flops_per_token, report_flops_per_token
from cwm_jax.training.scaling.ladder import LadderRun, Phase, ladder, runs_of_configs, tables
from cwm_jax.training.scaling.laws import (
    REPORT_LAWS,
    LawError,
    Laws,
    PowerLaw,
    load_laws,
    save_laws,
)

ROOT = Path(__file__).parents[2]
FITTED = Laws(
    learning_rate=PowerLaw(
        3.0,
        -0.2,
        factor_interval=(2.0, 4.0),
        exponent_interval=(-0.25, -0.15),
        draws=((2.0, -0.19), (3.0, -0.2), (4.0, -0.21)),
    ),
    batch_tokens=PowerLaw(0.5, 0.3, draws=((0.4, 0.31), (0.6, 0.29))),
    flops_count="windows",
    source="a sweep of the test",
    compute_range=(1e13, 1e15),
)


def with_laws(config: RunConfig, *, rate, batch=None, **changes) -> RunConfig:
    optimizer = dataclasses.replace(config.optimizer, learning_rate=rate)
    if batch is not None:
        section = dict(gradient_accumulation_steps=None, global_batch_tokens=batch)
        changes["batch"] = dataclasses.replace(config.batch, **section)
    return dataclasses.replace(config, optimizer=optimizer, **changes)


def saved(path: Path, laws: Laws = FITTED) -> str:
    """The file's spelling in a config."""
    save_laws(path, laws)
    return f"law:{path}"


# Files


@pytest.mark.parametrize("laws", [FITTED, REPORT_LAWS], ids=["fitted", "report"])
def test_laws_survive_their_file(tmp_path, laws):
    path = tmp_path / "laws.json"
    save_laws(path, laws, extra={"dropped": {"loss not finite": 2}})
    assert load_laws(path) == laws
    assert json.loads(path.read_text())["extra"] == {"dropped": {"loss not finite": 2}}
    rate_alone = dataclasses.replace(laws, batch_tokens=None, compute_range=None)
    save_laws(path, rate_alone)
    assert load_laws(path) == rate_alone
    assert [p.name for p in tmp_path.iterdir()] == ["laws.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "laws.json"
    save_laws(path, FITTED)
    with pytest.raises(ValueError, match="JSON"):
        save_laws(path, REPORT_LAWS, extra={"loss": float("nan")})
    assert load_laws(path) == FITTED


def _without(key):
    return lambda values: {k: v for k, v in values.items() if k != key}


def _with(**changes):
    return lambda values: values | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("format"), "its format is None, not 'cwm_jax laws 1'"),
        (_with(format="cwm_jax laws 2"), "its format is 'cwm_jax laws 2'"),
        (lambda values: [values], "its format is None"),
        (_without("learning_rate"), "missing learning_rate"),
        (_without("batch_tokens"), "missing batch_tokens"),
        (_with(learningrate=1), "unknown key 'learningrate'; did you mean 'learning_rate'"),
        (_with(learning_rate={"factor": 1.0}), "missing exponent"),
        (_with(learning_rate={"factor": -1.0, "exponent": 0.1}), "factor is -1.0; expected more"),
        (_with(learning_rate={"factor": "1", "exponent": 0.1}), "factor is '1'; expected float"),
        (_with(learning_rate=None), "learning_rate is None; expected PowerLaw"),
        (_with(flops_count="mine"), "flops_count is 'mine'; expected"),
        (_with(compute_range=[2e20, 2e18]), "expected the least and the most compute"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, change, message):
    path = tmp_path / "laws.json"
    save_laws(path, FITTED)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(LawError, match=re.escape(message)) as error:
        load_laws(path)
    assert str(path) in str(error.value) and "fit the laws again" in str(error.value)


def test_files_that_are_absent_or_cut_are_refused(tmp_path):
    path = tmp_path / "laws.json"
    with pytest.raises(LawError, match=r"cannot be read .*No such file"):
        load_laws(path)
    save_laws(path, FITTED)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LawError, match="cannot be read"):
        load_laws(path)


def test_the_interval_of_a_value_is_that_of_the_draws():
    low, high = FITTED.learning_rate.interval(1.0)
    assert (low, high) == pytest.approx((2 * 1.5**0.05, 4 * 0.75**0.05))  # in between: by ratio
    low, high = FITTED.learning_rate.interval(1e100)  # here the exponents decide
    assert low < FITTED.learning_rate(1e100) < high and high / low > 30
    assert REPORT_LAWS.learning_rate.interval(1e20) is None


# In a run


def test_the_reports_laws_give_the_same_run_from_a_file(tmp_path):
    name = saved(tmp_path / "laws.json", REPORT_LAWS)
    config = cwm_60m.get_config()
    plan = make_plan(config, num_devices=1)
    same = make_plan(with_laws(config, rate=name, batch=name), num_devices=1)
    assert same.peak_learning_rate == plan.peak_learning_rate
    assert same.stages == plan.stages and same.law_compute_flops == plan.law_compute_flops
    assert same.describe() == plan.describe()


def test_a_run_takes_rate_and_batch_of_a_fitted_file(tmp_path):
    name = saved(tmp_path / "laws.json")
    config = with_laws(tiny_run(tmp_path), rate=name, batch=name)
    plan = make_plan(config, num_devices=1)
    M = law_flops_per_token(config.model, 32, count="windows")
    C = M * config.optimizer.train_tokens
    assert report_flops_per_token(config.model, 32) > M  # the windows are 8
    assert plan.law_compute_flops == pytest.approx(C, rel=1e-12)
    assert plan.peak_learning_rate == pytest.approx(3 * C**-0.2, rel=1e-12)
    assert plan.stages[0].batch_tokens == round(0.5 * C**0.3 / 64) * 64
    text = plan.describe()
    for part in (
        "law: source            a sweep of the test; fitted on 1e+13 to 1e+15 FLOP",
        f"{C:.4g} FLOP = {M:.4g} per token (windows count) x 512 tokens",
        f"EXTRAPOLATION: {1e13 / C:,.0f} times below the fitted range",
        f"3 x C^-0.2 = {3 * C**-0.2:.4g}, 95 % ",
        "0.5 x C^0.3 = ",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("compute_range", "text"),
    [
        ((1e17, 1e18), "law: range             inside the fitted range"),
        ((8.06e17 / 150, 8.06e17 / 120), "EXTRAPOLATION: 120 times above the fitted range"),
        ((8.06e17 * 3, 1e20), "EXTRAPOLATION: 3 times below the fitted range"),
        (None, "not known whether this is an extrapolation"),
    ],
)
def test_a_run_outside_the_fitted_range_is_called_an_extrapolation(tmp_path, compute_range, text):
    laws = dataclasses.replace(REPORT_LAWS, compute_range=compute_range)
    name = saved(tmp_path / "laws.json", laws)
    config = with_laws(cwm_60m.get_config(), rate=name, batch=name)
    described = make_plan(config, num_devices=1).describe()
    assert text in described and described.count("law: range") == 1


def test_two_files_are_told_apart(tmp_path):
    name = saved(tmp_path / "laws.json")
    text = make_plan(with_laws(cwm_60m.get_config(), rate=name), num_devices=1).describe()
    assert text.count("law: source") == 2  # the batch is still by the report's
    assert text.index("a sweep of the test") < text.index("technical report")
    number = with_laws(cwm_60m.get_config(), rate=1e-3)
    assert "law: learning rate" not in make_plan(number, num_devices=1).describe()


def test_a_file_without_a_batch_gives_none(tmp_path):
    name = saved(tmp_path / "laws.json", dataclasses.replace(FITTED, batch_tokens=None))
    config = tiny_run(tmp_path)
    assert make_plan(with_laws(config, rate=name), num_devices=1).batch_law is None
    with pytest.raises(LawError, match="has a law of the learning rate alone"):
        make_plan(with_laws(config, rate=name, batch=name), num_devices=1)


# Resuming


def test_a_run_whose_law_file_has_changed_is_not_resumed(tmp_path):
    """Refused before anything is compiled or loaded; that runs record their peak: midtraining."""
    write_corpus(tmp_path)
    path = tmp_path / "laws.json"
    mesh = MeshConfig(data=8, fsdp=1)
    config = with_laws(tiny_run(tmp_path, mesh=mesh), rate=saved(path))
    texts = [file.read_text() for file in (tmp_path / "corpus").iterdir()]
    folder = tmp_path / "runs" / config.run_name / "checkpoints"
    tokenizer = train_tokenizer(texts, config.model.vocab_size)
    saver = ckpt.Checkpointer(folder, config.checkpoint, tokenizer)
    saver.save({"step": jnp.int32(1)}, ckpt.run_record(make_plan(config), 1, {}))
    saver.close()
    saved(path, dataclasses.replace(FITTED, learning_rate=PowerLaw(3.0, -0.21)))
    with pytest.raises(ckpt.CheckpointError, match="says something else than when the run was"):
        run(config)
    saved(path)
    ckpt.check_same_run(folder, ckpt.read_record(folder / "00000001"), make_plan(config))


def test_the_same_laws_and_the_number_itself_may_be_resumed(tmp_path):
    path = tmp_path / "laws.json"
    name = saved(path)
    config = with_laws(tiny_run(tmp_path), rate=name)
    record = ckpt.run_record(make_plan(config, num_devices=1), 1, {})
    save_laws(path, FITTED, extra={"note": "of no effect"})
    ckpt.check_same_run(Path("x"), record, make_plan(config, num_devices=1))
    path.unlink()
    number = with_laws(config, rate=record.peak_learning_rate)
    ckpt.check_same_run(Path("x"), record, make_plan(number, num_devices=1))
    wrong = with_laws(config, rate=record.peak_learning_rate * 1.001)
    with pytest.raises(ckpt.CheckpointError, match=r"optimizer\.learning_rate: checkpoint 'law:"):
        ckpt.check_same_run(Path("x"), record, make_plan(wrong, num_devices=1))


def test_a_batch_that_a_changed_law_gives_is_refused(tmp_path):
    path = tmp_path / "laws.json"
    config = with_laws(tiny_run(tmp_path), rate=1e-3, batch=saved(path))
    plan = make_plan(config, num_devices=1)
    record = ckpt.run_record(plan, 1, {})
    saved(path, dataclasses.replace(FITTED, batch_tokens=PowerLaw(5.0, 0.3)))
    with pytest.raises(ckpt.CheckpointError, match="is a law, whose file may have changed") as e:
        ckpt.check_same_run(Path("x"), record, make_plan(config, num_devices=1))
    number = dataclasses.replace(
        config.batch, global_batch_tokens=int(str(e.value).split("set it to ")[1].split("\n")[0])
    )
    assert isinstance(number, BatchConfig)
    ckpt.check_same_run(
        Path("x"), record, make_plan(dataclasses.replace(config, batch=number), num_devices=1)
    )


def test_processes_compare_the_content_of_their_law_files(tmp_path, monkeypatch):
    path = tmp_path / "laws.json"
    config = with_laws(tiny_run(tmp_path), rate=saved(path))
    monkeypatch.setattr(startup.jax, "process_count", lambda: 2)
    before = startup.start_values(config)
    saved(path, dataclasses.replace(FITTED, source="another"))
    after = startup.start_values(config)
    assert {key for key in before if before[key] != after[key]} == {f"content of {path}"}
    path.unlink()
    assert startup.start_values(config)[f"content of {path}"] == "missing"


# The ladder


def test_the_report_at_cwms_own_compute_beside_what_cwm_used():
    runs = runs_of_configs([midtrain_32b.get_config(), pretrain_32b.get_config()])
    (row,) = ladder(runs, REPORT_LAWS)
    derived = row.by_count["report"]
    assert row.name == "pretrain_32b + midtrain_32b" and row.tokens == 13 * 10**12
    assert derived.learning_rate == pytest.approx(8.5e-4, rel=0.005)
    assert derived.batch_tokens == pytest.approx(14.6e6, rel=0.005)
    assert row.run.used_learning_rate == 8e-4
    assert row.run.used_batch_tokens == (2**23, 2**25)
    windows = row.by_count["windows"]  # not known which of the two the report took
    assert 0.05 < windows.learning_rate / derived.learning_rate - 1 < 0.06
    text = tables([row], REPORT_LAWS)
    for part in ("8.48e-4 ", "8.00e-4 ", "-5.7%", "14.6M ", "8.39M, then 33.6M", "20,596 times"):
        assert part in text
    assert "-42.7%, then +129.2%" in text


def test_a_rung_of_the_ladder_is_what_its_plan_says():
    config = cwm_1b.get_config()
    (row,) = ladder(runs_of_configs([config]), REPORT_LAWS)
    plan = make_plan(config, num_devices=config.mesh.num_devices)
    derived = row.by_count["report"]
    assert derived.compute_flops == pytest.approx(plan.law_compute_flops, rel=1e-12)
    assert derived.learning_rate == pytest.approx(plan.peak_learning_rate, rel=1e-12)
    assert plan.batch_law is not None and derived.batch_tokens == plan.batch_law.value
    assert row.run.used_learning_rate is None and row.run.used_batch_tokens == ()


def test_a_part_of_a_schedule_counts_all_of_it():
    """As in its plan: the horizon decides, not what this config trains on."""
    config = pretrain_32b.get_config()
    (run_,) = runs_of_configs([config]).values()
    assert sum(phase.tokens for phase in run_.phases) == config.optimizer.horizon_tokens
    apart = runs_of_configs([config, cwm_1b.get_config(), with_laws(config, rate=1e-3)])
    assert sorted(apart) == ["cwm_1b", "pretrain_32b"]  # the same name: the later one counts


GOLDEN = """\
| cwm_60m                     | 60.6M | 1.21B  | 8,192          | 6.65e+08           | 8.06e+17 | 2.48 times below   | 1.31e-2 | 413k  | 2,934   |
| cwm_160m                    | 151M  | 3.03B  | 8,192          | 1.66e+09           | 5.04e+18 | inside             | 9.44e-3 | 631k  | 4,802   |
| cwm_400m                    | 363M  | 7.27B  | 8,192          | 3.09e+09           | 2.24e+19 | inside             | 7.25e-3 | 890k  | 8,162   |
| cwm_1b                      | 1.09B | 21.8B  | 8,192          | 8.35e+09           | 1.82e+20 | inside             | 5.00e-3 | 1.44M | 15,094  |
| cwm_3b                      | 2.91B | 58.1B  | 8,192          | 2.11e+10           | 1.22e+21 | 6.12 times above   | 3.57e-3 | 2.24M | 25,915  |
| cwm_8b                      | 7.63B | 153B   | 8,192          | 5.21e+10           | 7.95e+21 | 39.8 times above   | 2.56e-3 | 3.46M | 44,153  |
| pretrain_32b + midtrain_32b | 31B   | 13T    | 8,192, 131,072 | 2.05e+11, 4.95e+11 | 4.12e+24 | 20,596 times above | 8.48e-4 | 14.6M | 887,864 |
"""  # noqa: E501


def test_the_command_prints_the_ladder(tmp_path, monkeypatch, capsys):
    """Fine-tuning at a constant rate (cwm_32b) is no rung."""
    monkeypatch.chdir(ROOT)
    written = tmp_path / "laws.md"
    assert main(["laws", "--markdown", str(written)]) == 0
    text = capsys.readouterr().out
    assert GOLDEN in text and written.read_text() == text
    assert "-24.7%" in text and "cwm_32b" not in text


def test_the_command_reads_a_law_and_configs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "laws.json"
    save_laws(path, FITTED)
    args = ["laws", "--law", str(path), "--config", "configs/cwm_60m.py", "configs/cwm_32b.py"]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "a sweep of the test" in text and "rate, 95 %" in text and "1.00e-5" in text
    C = law_flops_per_token(cwm_60m.MODEL, 8192, count="windows")
    C *= cwm_60m.get_config().optimizer.train_tokens
    low, high = FITTED.learning_rate.interval(C)
    assert f"{low:.2e}".replace("e-0", "e-") + " to " + f"{high:.2e}".replace("e-0", "e-") in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--law", "nowhere.json"], "law file nowhere.json: cannot be read"),
        (["--config", "nowhere.py"], "--config nowhere.py: no such file"),
        ([], "expected the project's configs"),
    ],
)
def test_the_command_refuses(tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    assert main(["laws", *args]) == 2
    assert message in capsys.readouterr().err


def test_a_law_without_a_batch_has_a_ladder(tmp_path):
    laws = dataclasses.replace(FITTED, batch_tokens=None)
    runs = {"a": LadderRun(phases=(Phase(cwm_60m.MODEL, 8192, 10**9),), used_learning_rate=1e-3)}
    (row,) = ladder(runs, laws)
    assert row.by_count["windows"].steps is None
    assert "batch not fitted" in tables([row], laws)
