"""Ablations: statistics on numbers made by hand, the grid, and a real one in processes."""

import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import textwrap
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
from tiny import VOCAB_SIZE, tiny_run, write_corpus

import train
from cwm_jax.__main__ import main
from cwm_jax.config import CheckpointConfig, PolicyLossConfig, Recipe, RunConfig, TokenizerConfig
from cwm_jax.config.files import load_recipe
from cwm_jax.sweeps.ablation import (
    Ablation,
    Measure,
    Reading,
    bootstrap_interval,
    compare,
    expand,
    heldout_loss,
    holm,
    load_ablation,
    paired_t,
    predicted_frames,
    predicted_programs,
    solve_rate,
)
from cwm_jax.sweeps.ablation.processes import Job, cores_of_this_process, run_jobs
from cwm_jax.sweeps.ablation.report import make_report, to_json, to_markdown, to_text
from cwm_jax.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]


# Statistics


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_interval_and_p_are_those_of_scipys_paired_t_test(n):
    ours, theirs = np.random.default_rng(n).normal(size=(2, n))
    found = paired_t(ours - theirs)
    expected = scipy.stats.ttest_rel(ours, theirs)
    low, high = expected.confidence_interval(0.95)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert found.p == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("differences", [[0.3], [0.3, 0.3, 0.3], [0.1 + 0.2, 0.3, 0.3], [0.0] * 4])
def test_without_spread_there_is_no_interval(differences):
    found = paired_t(differences)
    assert found.mean == pytest.approx(differences[0])
    assert (found.interval, found.p) == (None, None)


def test_no_seed_is_no_comparison():
    with pytest.raises(ValueError, match="expected one or more seeds"):
        paired_t([])


def test_the_bootstrap_covers_the_mean_of_seeds_and_items():
    """95 % intervals of 200 samples in which seeds and items both vary."""
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        of_seed, of_item = rng.normal(size=(12, 1)), rng.normal(size=(1, 40))
        sample = 0.7 + 0.3 * of_seed + of_item + 0.5 * rng.normal(size=(12, 40))
        found = bootstrap_interval(sample, draws=400, seed=number)
        assert found is not None
        covered += found.low <= 0.7 <= found.high
    assert 176 <= covered <= 198  # 88 to 99 %


def test_items_are_drawn_for_all_seeds_and_seeds_with_all_items():
    rng = np.random.default_rng(0)
    items, seeds = rng.normal(size=(1, 50)), rng.normal(size=(6, 1))
    for sample, n in ((np.repeat(items, 6, 0), 50), (np.repeat(seeds, 50, 1), 6)):
        found = bootstrap_interval(sample)
        assert found is not None
        error = sample.std() / n**0.5
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert bootstrap_interval(np.ones((3, 5))) is None
    assert bootstrap_interval(np.zeros((3, 0))) is None


def test_holm_adjusts_as_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.5]) == [0.5] and holm([]) == []


def readings(**arms):
    """Of one measure, by seed."""
    return {"m": {arm: {s: Reading(value=v) for s, v in enumerate(vs)} for arm, vs in arms.items()}}


@pytest.mark.parametrize(
    ("base", "ours", "verdict"),
    [
        ([1.0, 1.1, 1.2], [2.0, 2.11, 2.19], "differs"),
        ([1.0, 1.1, 1.2], [2.0, 1.0, 1.3], "not shown"),
        ([1.0, 1.1], [9.0, 9.11], "too few seeds"),  # whatever the difference
        ([1.0], [9.0], "too few seeds"),
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], "no spread"),
    ],
)
def test_nothing_differs_with_fewer_than_three_seeds(base, ours, verdict):
    (found,) = compare(readings(base=base, ours=ours), "base")
    assert found.verdict == verdict
    assert found.over_seeds.mean == pytest.approx(np.mean(ours) - np.mean(base))


def test_a_difference_of_many_comparisons_must_be_larger():
    base, ours = [1.0, 1.1, 1.2], [2.0, 2.3, 1.9]
    (alone,) = compare(readings(base=base, ours=ours), "base")
    others = {f"same{n}": [1.1, 1.0, 1.2] for n in range(9)}
    among = compare(readings(base=base, ours=ours, **others), "base")[0]
    assert (alone.over_seeds.p, alone.verdict) == (among.over_seeds.p, "differs")
    assert among.adjusted_p == pytest.approx(10 * alone.over_seeds.p)
    assert among.verdict == "not shown"


def test_only_what_both_have_is_compared():
    def of(shift, seeds, names):
        return {s: Reading(value=s + shift, items=dict.fromkeys(names, shift)) for s in seeds}

    found = {"m": {"base": of(0, (0, 1, 2), "abc"), "ours": of(2, (1, 2, 5), "bcd")}}
    found["other"] = {"ours": of(0, (0,), "a")}
    (comparison,) = compare(found, "base")
    assert comparison.seeds == (1, 2) and comparison.differences == (2, 2)
    assert comparison.num_items == 2


# The grid


def measure(name="m", **values):
    """Whose values are given by the folder's name."""
    return Measure(name=name, read=lambda folder: values.get(folder.name))


def ablation(folder, **changes):
    values = dict(
        name="rates",
        question="Which rate?",
        base=tiny_run(folder),
        arms={"low": {}, "high": {"optimizer.learning_rate": 3e-2}},
        baseline="low",
        measures=(heldout_loss(),),
        seeds=(0, 1),
        output_directory=str(folder / "ablations"),
    )
    return Ablation(**{**values, **changes})


def test_the_grid_has_each_arm_with_each_seed(tmp_path):
    found = ablation(tmp_path)
    runs = expand(found, "a.py", settings=["optimizer.weight_decay=0"])
    assert [run.name for run in runs] == ["low-0", "high-0", "low-1", "high-1"]
    last = runs[-1]
    assert last.folder == tmp_path / "ablations/rates/high-1" and last.parent == found.folder
    same = {"learning_rate": 3e-2, "weight_decay": 0.0}
    assert last.config == dataclasses.replace(
        found.base,
        run_name="high-1",
        base_output_directory=str(found.folder),
        seed=1,
        optimizer=dataclasses.replace(found.base.optimizer, **same),
    )
    expected = "--config a.py --arm high --seed 1 --set optimizer.weight_decay=0"
    assert shlex.join(last.arguments) == expected
    assert [run.name for run in expand(found, "a.py", seeds=[7])] == ["low-7", "high-7"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("model.layer_types", ("full_attention",) * 5, None),
        ("optimizer.gradient_clipping_threshold", None, None),
        ("execution.scan_layers", False, None),
        ("data.sources.0.weight", 2.0, None),
        ("optimizer", tiny_run(Path()).optimizer, "make the arm a function of the base"),
        ("optimizer.learnin_rate", 1.0, "did you mean 'optimizer.learning_rate'"),
    ],
)
def test_an_arm_sets_keys_as_set_does(tmp_path, key, value, text):
    arms = {"low": {}, "other": {key: value}}
    if text is None:
        found = ablation(tmp_path, arms=arms).config("other", 0)
        for name in key.split("."):
            found = found[int(name)] if name.isdigit() else getattr(found, name)
        assert found == value
    else:
        with pytest.raises(ValueError, match=f"arm 'other' of rates: .*{re.escape(text)}"):
            ablation(tmp_path, arms=arms)


def test_phases_move_into_the_folder_of_the_run_with_what_they_read(tmp_path):
    second = tiny_run(
        tmp_path,
        run_name="second",
        tokenizer=TokenizerConfig(path=f"{tmp_path}/runs/tiny/export"),
        checkpoint=CheckpointConfig(load_parameters_path=f"{tmp_path}/runs/tiny"),
    )
    recipe = Recipe(phases=(tiny_run(tmp_path), second))
    arms = {"low": {}, "high": {"phases.1.optimizer.learning_rate": 3e-2}}
    found = ablation(tmp_path, base=recipe, arms=arms)
    run = expand(found, "a.py")[-1]
    folder = found.folder / "high-1"
    assert run.folder == folder / "second" and run.parent == found.folder
    first, second = run.phases
    assert second.tokenizer.path == f"{folder}/tiny/export"
    assert second.checkpoint.load_parameters_path == f"{folder}/tiny"
    assert second.optimizer.learning_rate == 3e-2 != first.optimizer.learning_rate
    assert {(p.seed, p.base_output_directory) for p in run.phases} == {(1, str(folder))}
    assert first.data == recipe.phases[0].data  # read from outside: left where it is


def _with_seed(config):
    return dataclasses.replace(config, seed=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "lo"}, "baseline 'lo': no such arm; did you mean 'low'?"),
        ({"tokenizer_of": "none"}, "tokenizer_of 'none': no such arm"),
        ({"arms": {"low": {}, "a b": {}}}, "arm 'a b': expected letters"),
        ({"arms": {"low": {}, "same": {"seed": 0}}}, "the arms low and same are one run"),
        ({"arms": {"low": {}, "x": _with_seed}}, "changes run_name, base_output_directory or seed"),
        ({"arms": {"low": {}, "x": lambda c: Recipe(phases=(c,))}}, "makes Recipe; expected Run"),
        ({"seeds": ()}, r"seeds are []; expected one or more"),
        ({"seeds": (1, 1)}, "expected one or more, none twice"),
        ({"measures": (heldout_loss(), heldout_loss())}, "none twice"),
        ({"tokenizer_of": "low", "base": "phases"}, "expected a base that is one run"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(tmp_path, changes, message):
    if changes.get("base") == "phases":
        changes = changes | {"base": Recipe(phases=(tiny_run(tmp_path),))}
        changes["arms"] = {"low": {}, "high": {"phases.0.optimizer.learning_rate": 3e-2}}
    with pytest.raises(ValueError, match=re.escape(message)):
        ablation(tmp_path, **changes)


# The worked ones


def test_the_arms_on_traces_differ_in_their_sources_alone():
    found = load_ablation(str(ROOT / "configs/ablations/traces.py"))
    configs = {arm: found.config(arm, 3) for arm in found.arms}
    first = configs["outputs"]
    asked = {"direct": "trace_outputs", "free_running": "traces", "single_step": "traces"}
    for arm, config in configs.items():
        same = dataclasses.replace(
            config,
            run_name=first.run_name,
            data=dataclasses.replace(
                config.data, sources=first.data.sources, trace_context_loss=False
            ),
            trace_evaluation=first.trace_evaluation,
        )
        assert same == first, arm
        assert config.tokenizer.path == str(found.tokenizer_path)
        assert config.data.trace_context_loss == (arm == "outputs_language")
        kinds = {source.kind for source in config.data.sources}
        assert {asked[mode] for mode in config.trace_evaluation.modes} == kinds
        assert config.trace_evaluation.corpus == config.data.sources[0].path


def test_the_windows_are_patterns_of_few_and_more_global_layers():
    found = load_ablation(str(ROOT / "configs/ablations/windows.py"))
    models = {arm: found.config(arm, 0).model for arm in found.arms}
    counts = {arm: m.layer_types.count("full_attention") for arm, m in models.items()}
    assert counts == {"sixteen": 2, "seventeen": 3, "all_global": 8, "all_local": 0}
    assert [m.layer_types[-1][0] for m in models.values()] == ["s", "f", "f", "s"]
    config = found.config("all_local", 0)
    assert models["all_local"].sliding_window < 150 < config.batch.max_target_length


def test_the_baselines_start_from_one_sft_model_with_the_reports_first():
    found = load_ablation(str(ROOT / "configs/ablations/rl_baselines.py"))
    (sft,) = [
        p for p in load_recipe(str(ROOT / "configs/quickstart_rl.py")).phases if "sft" in p.run_name
    ]
    configs = [found.config(arm, 0) for arm in found.arms]
    assert configs[0].rl.loss == PolicyLossConfig() and found.baseline == "token_mean"
    for config in configs:
        assert config.checkpoint.load_parameters_path == f"runs/{sft.run_name}"
        assert config.model == sft.model
        assert config.data.heldout_fraction == sft.data.heldout_fraction  # nothing leaks
    losses = [(c.rl.loss.baseline, c.rl.loss.divide_by_std) for c in configs]
    assert losses[1:] == [("mean", False), ("leave_one_out", False), ("mean", True)]


# Measures


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_measures_are_read_from_a_runs_files(tmp_path):
    asked = (heldout_loss(), predicted_frames(), predicted_programs("exact"), solve_rate("output"))
    assert [m.read(tmp_path) for m in asked] == [None] * 4
    lines = [{"step": 0, "heldout_loss": 5.0}, {"step": 1}, {"step": 2, "heldout_loss": 3.0}]
    write_lines(tmp_path / "metrics.jsonl", *lines)
    traces = {
        "teacher_forced": {"overall": {"frames": 4, "exact": 0.75}},
        "programs": {"overall": {"programs": 3, "exact": 0.0, "output_direct": 0.5}},
        "outcomes": {
            "a": {"exact": False, "output_direct": True},
            "b": {"exact": False, "output_direct": False},
            "c": {"exact": False},  # left by an exception: there is no output
        },
    }
    (tmp_path / "traces.json").write_text(json.dumps(traces))
    evaluation = {"environment": "output", "mean_action_tokens": 3.0}
    write_lines(
        tmp_path / "evaluation.jsonl",
        evaluation | {"step": 0, "solve_rates": {"t": 0.0, "u": 0.0}},
        evaluation | {"step": 9, "solve_rates": {"t": 1.0, "u": 0.5}},
        evaluation | {"step": 9, "solve_rates": {"t": 0.0}, "environment": "other"},
    )
    loss, frames, exact, solved = (m.read(tmp_path) for m in asked)
    assert loss == Reading(value=3.0) and frames == Reading(value=0.75)
    assert exact == Reading(value=0.0, items={"a": 0.0, "b": 0.0, "c": 0.0})
    assert solved == Reading(value=0.75, items={"t": 1.0, "u": 0.5})
    direct = Reading(value=0.5, items={"a": 1.0, "b": 0.0})
    assert predicted_programs("output_full_trace", "output_direct").read(tmp_path) == direct
    assert predicted_programs("output_full_trace").read(tmp_path) is None
    write_lines(tmp_path / "metrics.jsonl", *lines, {"step": 3, "heldout_loss": None})
    assert heldout_loss().read(tmp_path) is None  # not finite: no earlier one stands for it


def test_the_report_has_what_was_compared_and_says_how(tmp_path, monkeypatch):
    def reading(value, **items):
        return Reading(value=value, items=items or None)

    values = {
        "low-0": reading(0.10, t=0.1, u=0.1),
        "low-1": reading(0.20, t=0.2, u=0.2),
        "high-0": reading(0.30, t=0.2, u=0.4),
        "high-1": reading(0.50, t=0.4, u=0.6),
    }
    solved = dataclasses.replace(measure("solved", **values), percent=True)
    found = ablation(tmp_path, measures=(solved, heldout_loss()), seeds=(0, 1, 2))
    runs = expand(found, "a.py")
    finished = lambda run: run.name in values  # noqa: E731
    monkeypatch.setattr("cwm_jax.sweeps.ablation.grid.Run.is_finished", finished)
    report = make_report(found, runs, {})
    text, markdown, as_json = to_text(report), to_markdown(report), to_json(report)
    (row,) = [line for line in text.splitlines() if line.startswith("solved   high")]
    assert "40.0 (30.0 to 50.0)" in row and "+25.0" in row and row.endswith("too few seeds")
    assert "-38.5 to +88.5" in row  # 12.706 standard errors of 5
    assert "Not finished, left out: low-2, high-2." in text
    assert "| solved | high | 2 |" in markdown and "adjusted for the 1 comparisons" in markdown
    (comparison,) = as_json["comparisons"]
    assert comparison["differences"] == pytest.approx((0.2, 0.3))
    assert as_json["values"]["solved"]["high"] == {"0": 0.30, "1": 0.50}
    assert json.loads(json.dumps(as_json))["unfinished"] == ["low-2", "high-2"]


# Processes


def job(folder, name, code):
    return Job(
        name=name,
        command=(sys.executable, "-S", "-c", textwrap.dedent(code)),
        shown=f"run {name}",
        log=folder / f"{name}.log",
    )


SHOW_CORES = "import os, time; print(sorted(os.sched_getaffinity(0))); time.sleep(0.5)"


def test_a_job_that_fails_is_reported_and_the_others_finish(tmp_path):
    jobs = [job(tmp_path, "bad", "print('why'); raise SystemExit(3)")]
    jobs += [job(tmp_path, f"good{n}", SHOW_CORES) for n in range(2)]
    notes, mine = [], cores_of_this_process()
    assert run_jobs(jobs, parallel=2, note=notes.append) == {"bad": 3, "good0": 0, "good1": 0}
    assert any("bad: FAILED with 3" in note and "  | why" in note for note in notes)
    cores = [json.loads(job.log.read_text().splitlines()[1]) for job in jobs[1:]]
    assert cores_of_this_process() == mine
    if len(mine) > 1:
        assert sorted(cores[0] + cores[1]) == mine  # each its share, and none is left over


@pytest.fixture
def heard_interrupts():
    """As in a terminal: a shell's background jobs ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard_interrupts")
def test_an_interruption_asks_those_that_run_to_stop(tmp_path):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(0)))
        print("ready", flush=True)
        time.sleep(60)
    """
    jobs = [job(tmp_path, "long", code), job(tmp_path, "never", "print('begun')")]

    def interrupt():
        while "ready" not in (jobs[0].log.read_text() if jobs[0].log.exists() else ""):
            pause.wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    pause = threading.Event()
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, parallel=1)
    assert jobs[0].log.read_text().endswith("saved\n") and not jobs[1].log.exists()


CONFIG = """
import dataclasses, os, pathlib, signal
from tiny import tiny_model, tiny_run
from cwm_jax.config import CheckpointConfig
from cwm_jax.sweeps.ablation import Ablation, heldout_loss
from cwm_jax.training import metrics

def get_ablation():
    folder = pathlib.Path({folder!r})
    base = tiny_run(folder, model=tiny_model(num_hidden_layers=2),
        checkpoint=CheckpointConfig(checkpoint_period=2, async_checkpointing=False))
    return Ablation(
        name="rates",
        question="Which rate?",
        base=base,
        arms={{
            "low": {{"optimizer.learning_rate": 1e-4}},
            "high": lambda c: dataclasses.replace(
                c, optimizer=dataclasses.replace(c.optimizer, learning_rate=3e-2)),
        }},
        baseline="low",
        tokenizer_of="low",
        measures=(heldout_loss(),),
        seeds=(0, 1),
        output_directory=str(folder / "ablations"),
    )

fault, write = pathlib.Path({folder!r}, "fault"), metrics.MetricsLog.write

def killed(self, line):
    write(self, line)
    if self.path.parent.name == "high-1" and line["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

if fault.exists():
    metrics.MetricsLog.write = killed
"""


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A folder with a config of two arms and two seeds, whose run high-1 a file `fault` kills."""
    write_corpus(tmp_path)
    (tmp_path / "rates.py").write_text(CONFIG.format(folder=str(tmp_path)))
    jax.devices()  # of this process; those it starts have one device
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    monkeypatch.setenv("XLA_FLAGS", " ".join(flags))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    (tmp_path / "fault").touch()
    monkeypatch.setattr("cwm_jax.training.metrics.MetricsLog.write", None)  # put back afterwards
    return tmp_path


def ablate(folder, *more):
    return main(["ablate", "--config", str(folder / "rates.py"), "--parallel", "2", *more])


def test_a_grid_goes_on_after_one_of_its_runs_was_killed(real, capsys):
    """Four processes, one of which is killed, and a fifth that goes on with it."""
    assert ablate(real) == 1
    printed, errors = capsys.readouterr()
    assert not errors and "high-1: FAILED with -9" in printed
    assert "Not finished, left out: high-1." in printed
    found = real / "ablations/rates"
    logs = {log.stem: log.read_text() for log in (found / "logs").glob("*.log")}
    assert sorted(logs) == ["high-0", "high-1", "low-0", "low-1"]
    shared = [p for p in (real / "data").rglob("*") if p.is_file()] + [found / "tokenizer"]
    first = json.loads((found / "low-0/goodput.json").read_text())
    # A process's start is not told exactly everywhere; its imports alone take longer than this.
    began = first["until_s"] - sum(first["seconds"].values()) + 1.0
    assert len(shared) > 3 and all(p.stat().st_mtime < began for p in shared)  # made once, before

    (real / "fault").unlink()
    assert ablate(real, "--report-only") == 1  # runs nothing
    assert (found / "logs/high-1.log").read_text() == logs["high-1"]
    capsys.readouterr()
    assert ablate(real) == 0
    printed = capsys.readouterr().out
    assert "4 runs, 3 of them finished" in printed and "[1/1] high-1" in printed
    assert "resuming at step 4" in (found / "logs/high-1.log").read_text()
    for name in ("low-0", "low-1", "high-0"):
        assert (found / f"logs/{name}.log").read_text() == logs[name]

    report = json.loads((found / "report.json").read_text())
    values = report["values"]["held-out loss"]
    for arm, of_arm in values.items():
        for seed, value in of_arm.items():
            lines = (found / f"{arm}-{seed}/metrics.jsonl").read_text().splitlines()
            assert json.loads(lines[-1])["heldout_loss"] == value
            assert len(lines) == 9  # step 0 to 8, each once
    assert max(values["high"].values()) < min(values["low"].values())
    assert values["low"]["0"] != values["low"]["1"]
    (comparison,) = report["comparisons"]
    assert comparison["verdict"] == "too few seeds" and comparison["over_seeds"]["interval"]
    assert (found / "report.png").read_bytes().startswith(b"\x89PNG")

    # What is printed makes the very run alone: train.py reads the same config from it.
    command = shlex.split(report["commands"]["high-1"])
    assert command[:2] == ["python", str(ROOT / "train.py")] or command[1] == "train.py"
    alone = train._config(train._parse(command[2:]), None)
    assert isinstance(alone, RunConfig) and alone.run_name == "high-1"
    run = {r.name: r for r in expand(load_ablation(str(real / "rates.py")), "")}["high-1"]
    assert alone == run.config and run.is_finished()
    longer = dataclasses.replace(alone, optimizer=run.config.optimizer, steps=4)
    assert not dataclasses.replace(run, config=longer).is_finished()  # another run's folder


def test_another_tokenizer_than_that_of_earlier_runs_is_refused(real, capsys):
    """And what keeps a run from beginning is said before any process begins."""
    other = real / "ablations/rates/tokenizer"
    train_tokenizer(["ab cd ef gh " * 200, *map(str, range(3000))], VOCAB_SIZE).save(other)
    assert ablate(real) == 2
    errors = capsys.readouterr().err
    assert "is another tokenizer than that of the sources of low" in errors
    assert not (real / "ablations/rates/logs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/quickstart.py"], "expected a function get_ablation()"),
        (["--config", "configs/ablations/windows.py", "--parallel", "0"], "--parallel is 0"),
        (["--config", "configs/ablations/windows.py", "--set", "sed=1"], "did you mean 'seed'?"),
        (["--config", "configs/ablations/x.py"], "no such file"),
    ],
)
def test_bad_input_of_the_command_is_refused(monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main(["ablate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_ablation_without_an_arm_is_no_run(capsys):
    path = str(ROOT / "configs/ablations/windows.py")
    with pytest.raises(ValueError, match=r"is an ablation; expected one run: name its --arm"):
        load_recipe(path)
    assert train.main(["--config", path, "--arm", "all_globl", "--dry-run"]) == 2
    assert "did you mean 'all_global'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--config", path, "--seed", "1"])
    assert "--seed is that of an ablation's --arm" in capsys.readouterr().err
