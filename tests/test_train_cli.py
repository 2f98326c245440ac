"""train.py from end to end in this process, and what it says of bad input."""

import contextlib
import dataclasses
import gzip
import json
import math
import os
import re
import sys
from pathlib import Path

import jax
import pytest
from tiny import write_corpus

import train
from convert.from_hf import from_hf
from convert.to_hf import to_hf
from cwm_jax.config.files import load_config
from cwm_jax.sharding import make_mesh
from cwm_jax.tokenizer import load_tokenizer
from cwm_jax.training.checkpoint import Checkpointer, RunRecord, resolve_checkpoint, restore
from cwm_jax.training.metrics import read_metrics
from cwm_jax.training.state import abstract_state, init_sharded_state, state_shardings

CONFIG = """
import dataclasses, pathlib
from tiny import tiny_model, tiny_run

def get_config():
    config = tiny_run(
        pathlib.Path({folder!r}), rows=1, model=tiny_model(num_hidden_layers=2)
    )
    return dataclasses.replace(
        config,
        mesh=dataclasses.replace(config.mesh, data=8),
        optimizer=dataclasses.replace(config.optimizer, train_tokens=8 * 8 * 32),
    )
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus with one file in Latin-1 and a config for this process's eight devices."""
    folder = tmp_path_factory.mktemp("cli")
    write_corpus(folder)
    (folder / "corpus" / "latin.py").write_bytes("# caf\xe9\n".encode("latin-1"))
    (folder / "tiny.py").write_text(CONFIG.format(folder=str(folder)))
    return folder


def settings(*values: str) -> list[str]:
    return [arg for value in values for arg in ("--set", value)]


@pytest.fixture
def train_tiny(home, capsys):
    """``train_tiny("seed=1", ...)`` -> exit code, what was printed, errors."""

    def run(*values: str) -> tuple[int, str, str]:
        code = train.main(["--config", str(home / "tiny.py"), *settings(*values)])
        return code, *capsys.readouterr()

    return run


def refusal(result: tuple[int, str, str]) -> str:
    """The one line with which bad input was refused."""
    code, _, errors = result
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("train.py: ")
    return line


FULL = (
    "run_name=full",
    "logging.export=export",
    "logging.sample_prompt=def read",
    "logging.sample_tokens=4",
    "logging.profile_steps=2,2",
)


@pytest.fixture(scope="module")
def full_run(home) -> tuple[Path, str]:
    """A whole run with everything switched on: its folder, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        code = train.main(["--config", str(home / "tiny.py"), *settings(*FULL)])
    assert code == 0, lines
    return home / "runs" / "full", "\n".join(lines)


def test_a_run_trains_evaluates_exports_and_samples(full_run):
    folder, printed = full_run
    before, after = re.search(r"held-out loss: (\S+) untrained, (\S+) now", printed).groups()
    assert float(after) < float(before) - 0.1
    assert f"export: {folder}/export, read back by convert.load_hf: identical logits" in printed
    assert "sample:\ndef read" in printed
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))
    assert [line["step"] for line in lines if "heldout_loss" in line] == [0, 4, 8]
    assert f"{lines[0]['heldout_loss']:.4f}" == before
    assert (folder / "loss.png").stat().st_size > 1000
    assert (folder / "checkpoints" / "00000008").is_dir()


def test_text_that_is_not_utf8_is_skipped_and_counted(full_run):
    assert ", 1 documents not UTF-8 skipped" in full_run[1]


def test_a_profile_of_the_chosen_steps_is_written(full_run):
    assert list((full_run[0] / "profile").rglob("*.xplane.pb"))


def test_the_same_command_again_trains_nothing_and_keeps_the_export(full_run, train_tiny):
    folder, _ = full_run
    metrics, export = folder / "metrics.jsonl", folder / "export" / "model.safetensors"
    seen = metrics.read_bytes(), export.stat().st_mtime_ns
    code, printed, errors = train_tiny(*FULL)
    assert code == 0, errors
    assert "resuming at step 8" in printed and "identical logits" in printed
    assert (metrics.read_bytes(), export.stat().st_mtime_ns) == seen


def test_the_export_of_a_run_that_was_cut_is_kept_beside_the_last(train_tiny, home):
    cut = train_tiny("run_name=cut", "logging.export=export", "steps=4")
    assert cut[0] == 0 and "step 4/4" in cut[1]
    code, printed, errors = train_tiny("run_name=cut", "logging.export=export")
    assert code == 0, errors
    assert "held other weights and is now" in printed and "identical logits" in printed
    exports = [home / "runs" / "cut" / name for name in ("export", "export-1")]
    assert exports[0].is_dir() and exports[1].is_dir()


def test_text_that_is_not_utf8_is_kept_as_bytes_if_asked(train_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # ends the run after its data are ready
    result = train_tiny(
        "run_name=bytes", "data.sources.0.non_utf8=bytes", "logging.tensorboard=true"
    )
    assert "pip install tensorboardX" in refusal(result)
    assert ", 1 documents not UTF-8 kept as bytes" in result[1]


def test_the_next_phase_starts_from_weights_and_optimizer_state(full_run, train_tiny):
    """As configs/midtrain_32b.py: one schedule, whose second part another run goes on with."""
    tokens = 8 * 8 * 32
    code, output, errors = train_tiny(
        "run_name=phase_two",
        f"checkpoint.load_full_state_path={full_run[0]}",
        f"optimizer.start_tokens={tokens}",
        f"optimizer.horizon_tokens={4 * tokens}",
    )
    assert code == 0, errors
    assert "starting from params and opt_state of" in output
    assert "at the start" in output and "untrained" not in output
    first, last = (read_metrics(full_run[0] / "metrics.jsonl")[i] for i in (0, -1))
    second = read_metrics(full_run[0].parent / "phase_two" / "metrics.jsonl")
    assert second[0]["heldout_loss"] == last["heldout_loss"] < first["heldout_loss"]
    assert second[0]["tokens"] == tokens and second[-1]["tokens"] == 2 * tokens
    config = load_config(str(full_run[0].parents[1] / "tiny.py"))
    mesh = make_mesh(config.mesh)
    state = restore(
        resolve_checkpoint(full_run[0].parent / "phase_two"),
        abstract_state(config),
        state_shardings(config, mesh),
    )
    assert 16 in [int(x) for x in jax.tree.leaves(state.opt_state) if x.ndim == 0], "Adam's count"


def test_training_starts_from_imported_bfloat16_weights(full_run, train_tiny, home):
    """The road from released weights: export in bfloat16, import, train on."""
    folder, checkpoint = home / "bfloat16_export", home / "bfloat16_imported"
    to_hf(full_run[0], folder, dtype="bfloat16")
    from_hf(folder, checkpoint)
    code, output, errors = train_tiny(
        "run_name=tuned",
        f"checkpoint.load_parameters_path={checkpoint}",
        f"tokenizer.path={checkpoint / 'tokenizer'}",
        "tokenizer.vocab_size=null",
    )
    assert code == 0, errors
    assert f"starting from params of {checkpoint}" in output
    before = read_metrics(full_run[0] / "metrics.jsonl")[-1]["heldout_loss"]
    after = read_metrics(home / "runs" / "tuned" / "metrics.jsonl")[0]["heldout_loss"]
    assert abs(after - before) < 0.05  # rounding of the weights


def test_training_on_broken_weights_stops_with_a_report(full_run, train_tiny, home):
    config = load_config(str(home / "tiny.py"))
    state = init_sharded_state(config, make_mesh(config.mesh))
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: x * math.nan, state.params))
    tokenizer = load_tokenizer(full_run[0] / "export")
    with contextlib.closing(Checkpointer(home / "broken", config.checkpoint, tokenizer)) as saver:
        saver.save(state, RunRecord(1, config, (), {}))
    code, _, errors = train_tiny(
        "run_name=diverged",
        f"checkpoint.load_parameters_path={home / 'broken'}",
        "optimizer.max_nonfinite_steps=3",
    )
    assert code == 1
    (line,) = errors.splitlines()
    assert "steps 1 to 3 all had a loss or gradient that is not finite (loss nan" in line
    assert "Lower optimizer.learning_rate" in line and "the same command resumes" in line
    text = (home / "runs" / "diverged" / "metrics.jsonl").read_text()
    assert "NaN" not in text
    first, *steps = [json.loads(line) for line in text.splitlines()]
    assert first["heldout_loss"] is None
    assert [line["loss"] for line in steps] == [line["grad_norm"] for line in steps] == [None] * 3
    assert [line["skipped_in_a_row"] for line in steps] == [1, 2, 3]


def test_ctrl_c_before_the_first_step_ends_the_run_with_one_line(train_tiny, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("cwm_jax.training.loop.load_or_train_tokenizer", interrupted)
    code, _, errors = train_tiny("run_name=interrupted")
    assert code == 130
    assert errors.startswith("train.py: interrupted; the same command goes on")


def test_a_dry_run_prints_every_derived_number_and_touches_no_file(home, capsys):
    before = sorted(home.rglob("*"))
    arguments = settings("run_name=dry", f"data.cache_directory={home}/nowhere", "mesh.data=16")
    code = train.main(["--config", str(home / "tiny.py"), "--dry-run", *arguments])
    printed, errors = capsys.readouterr()
    assert code == 0, errors
    assert sorted(home.rglob("*")) == before
    for expected in (
        r'run_name = "dry"',
        r"optimizer\.learning_rate = 0\.01",
        r"parameters +\d{2},\d{3} ",
        r"FLOPs per token +\S+ \(windows counted, T 32\)",
        r"FLOPs of the run",
        r"devices +16 \(data 16",
        r"bytes per device +\d{3},\d{3} ",
        r"steps +4\n",
        r"tokens +2,048, schedule 0 to 2,048",
        r"batch from step 0 +512 tokens = 1 x 16 rows x 32",
        r"learning rate +\S+ at step 1, .* at step 4",
    ):
        assert re.search(expected, printed), expected


def test_a_missing_config_lists_those_there_are(capsys, monkeypatch):
    monkeypatch.chdir(Path(train.__file__).parent)
    line = refusal((train.main(["--config", "configs/quick.py"]), *capsys.readouterr()))
    assert "configs/quick.py: no such file" in line and "configs/quickstart.py" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def config(): ...", r"expected a function get_config\(\) that returns a RunConfig"),
        ("def get_config(): return 3", r"expected a function get_config\(\)"),
        ("model: 32b", "not a Python file: invalid"),
        ("import train\nget_config = lambda: train.schema.override(3, 'a')", "expected key=value"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, capsys, text, expected):
    path = tmp_path / "mine.py"
    path.write_text(text)
    line = refusal((train.main(["--config", str(path)]), *capsys.readouterr()))
    assert re.search(expected, line)


def test_a_config_changed_within_a_second_is_read_again(tmp_path):
    path = tmp_path / "mine.py"
    text = CONFIG.format(folder=str(tmp_path))
    for name in ("one", "two"):
        path.write_text(text.replace("config,\n", f"config,\n        run_name={name!r},\n", 1))
        os.utime(path, (1, 1))
        assert load_config(str(path)).run_name == name


def test_an_unknown_key_names_the_nearest(train_tiny):
    assert "did you mean 'optimizer.learning_rate'?" in refusal(
        train_tiny("optimizer.learnin_rate=1")
    )


def test_values_that_depend_on_each_other_change_together(home, capsys):
    changes = settings("tokenizer.vocab_size=none", "tokenizer.path=some.json")
    code = train.main(["--config", str(home / "tiny.py"), "--dry-run", *changes])
    assert code == 0
    assert 'tokenizer.path = "some.json"' in capsys.readouterr().out


def _gzip_cut_short(folder: Path) -> None:
    data = gzip.compress(json.dumps({"text": "some text " * 100}).encode())
    (folder / "cut.jsonl.gz").write_bytes(data[: len(data) // 2])


CORPORA = {
    "missing": ("folder", lambda folder: folder.rmdir(), "set path to a corpus that exists"),
    "empty": ("folder", lambda folder: None, "holds no file that matches"),
    "a loop": (
        "folder",
        lambda folder: (folder.rmdir(), folder.symlink_to(folder)),
        "cannot be read",
    ),
    "unreadable": (
        "folder",
        lambda folder: (folder / "a.py").symlink_to("/proc/self/mem"),  # for root too
        r"a\.py cannot be read \(.*check its permissions",
    ),
    "cut short": ("jsonl", _gzip_cut_short, "cannot be read .* fetch it again"),
    "no document": ("folder", lambda folder: (folder / "a.py").touch(), "texts have 0 merges"),
}


@pytest.mark.parametrize("name", CORPORA)
def test_an_unusable_corpus_is_refused(train_tiny, tmp_path, name):
    kind, make, expected = CORPORA[name]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make(corpus)
    result = train_tiny(
        "run_name=refused", f"data.sources.0.kind={kind}", f"data.sources.0.path={corpus}"
    )
    assert re.search(expected, refusal(result))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["mesh.data=3"], "takes 3 devices; got 8: change mesh.data"),
        (["batch.per_device_batch_size=0.3"], "gives 2.4 rows; expected a multiple of 8"),
        (["model.head_dim=7"], "head_dim is 7; expected an even number"),
        (["logging.export=a/b"], "expected the name of one folder"),
        (["logging.export="], "expected the name of one folder"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    train_tiny, home, values, expected
):
    assert expected in refusal(train_tiny("run_name=never", *values))
    assert not (home / "runs" / "never").exists()


@pytest.mark.parametrize(
    ("name", "content"), [("tokenizer.json", b"{]"), ("tokenizer.model", b"\x00\xff"), ("t", None)]
)
def test_a_file_that_is_no_tokenizer_is_refused(train_tiny, tmp_path, name, content):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = train_tiny("run_name=refused", "tokenizer.vocab_size=none", f"tokenizer.path={path}")
    assert str(path) in refusal(result)


def test_a_tokenizer_larger_than_the_model_is_refused(full_run, train_tiny):
    line = refusal(
        train_tiny(
            "run_name=refused",
            "tokenizer.vocab_size=none",
            f"tokenizer.path={full_run[0] / 'export'}",
            "model.vocab_size=512",
        )
    )
    assert "the tokenizer has 576 tokens, the model 512" in line
    assert "raise model.vocab_size" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num-processes", "2"), "say nothing without --coordinator"),
        (("--process-id", "1"), "this process would train alone"),
        (("--plan-json", "plan.json"), "--plan-json needs --plan"),
    ],
)
def test_options_that_would_be_left_alone_are_refused(home, capsys, options, message):
    with pytest.raises(SystemExit) as left:
        train.main(["--config", str(home / "tiny.py"), *options])
    assert left.value.code == 2 and message in capsys.readouterr().err
    assert not (home / "plan.json").exists()
