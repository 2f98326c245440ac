"""``python -m cwm_jax eval`` as processes: killed, stopped and left by its server, it goes on."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_server import fake_server
from toy_set import Broken, write_toy_file

from cwm_jax.__main__ import main
from cwm_jax.evals import catalog
from cwm_jax.evals.runs.records import ITEMS_FILE, read_records

ROOT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("toy_eval.py")
NUM_PROBLEMS, NUM_SAMPLES = 12, 24


@pytest.fixture
def fake():
    with fake_server() as fake:
        yield fake


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_toy_file(tmp_path_factory.mktemp("toy") / "toy.jsonl", NUM_PROBLEMS)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(catalog, "MODULES", ("toy_set",))


def command(url: str, data: Path, out: Path, *more: str) -> list[str]:
    options = ("--parallel", "3", "--retries", "1", "--retry-wait", "0.01")
    return ["eval", "toy", "--model", url, "--data", str(data), "--out", str(out), *options, *more]


def process(arguments: list[str]) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(LAUNCHER.parent)])
    return subprocess.Popen(
        [sys.executable, str(LAUNCHER), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines_of_report(folder: Path) -> list[str]:
    """Without what differs from start to start."""
    lines = (folder / "report.md").read_text().splitlines()
    return [line for line in lines if not line.startswith(("| started", "| server"))]


def numbers_of_report(folder: Path) -> dict:
    report = json.loads((folder / "report.json").read_text())
    return {name: value for name, value in report.items() if name != "run"}


def each_once(folder: Path) -> bool:
    lines = (folder / ITEMS_FILE).read_text().splitlines()
    keys = [(r["problem"], r["sample"]) for r in map(json.loads, lines)]
    wanted = {(f"sum/{n}", sample) for n in range(NUM_PROBLEMS) for sample in range(2)}
    return len(keys) == len(wanted) and {*keys} == wanted


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch, fake_server() as fake:
        patch.setattr(catalog, "MODULES", ("toy_set",))
        assert main(command(fake.url, data, folder)) == 0
    return folder


def test_a_killed_run_goes_on_and_its_report_is_that_of_one_that_was_not(
    fake, data, tmp_path, uninterrupted
):
    started = process(command(fake.url, data, tmp_path / "killed"))
    num_before = len(fake.seen)
    fake.answered = lambda number: number == num_before + 11 and started.kill()
    started.communicate()
    assert started.returncode == -signal.SIGKILL
    done = len(read_records(tmp_path / "killed"))
    assert 0 < done < NUM_SAMPLES
    with (tmp_path / "killed" / ITEMS_FILE).open("ab") as file:  # a write that the kill has torn
        file.write(b'{"problem": "sum/1')
    num_before = len(fake.seen)
    resumed = process(command(fake.url, data, tmp_path / "killed"))
    _, said = resumed.communicate()
    assert resumed.returncode == 0 and f"{done} of 24 samples are done already" in said
    # the killed one's last requests may be read late
    assert 0 <= len(fake.seen) - num_before - (NUM_SAMPLES - done) <= 3
    assert each_once(tmp_path / "killed") and each_once(uninterrupted)
    assert lines_of_report(tmp_path / "killed") == lines_of_report(uninterrupted)
    assert numbers_of_report(tmp_path / "killed") == numbers_of_report(uninterrupted)


def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(fake, data, tmp_path, toy):
    hold = threading.Event()
    fake.answered = lambda number: number == 9 and started.send_signal(signal.SIGTERM)
    fake.refuse = lambda number, path, body: (number > 12 and not hold.wait(60)) or None
    started = process(command(fake.url, data, tmp_path / "run"))
    try:
        assert started.stderr.readline() == "\n"
        assert started.stderr.readline().startswith("SIGTERM: recording what is finished")
    finally:
        hold.set()
    _, said = started.communicate()
    assert started.returncode == 128 + signal.SIGTERM
    left = NUM_SAMPLES - len(read_records(tmp_path / "run"))
    assert f"SIGTERM: {left} samples are left; the same command goes on" in said and left > 0
    assert "Not finished" in (tmp_path / "run" / "report.md").read_text()
    fake.answered = lambda number: None
    assert main(command(fake.url, data, tmp_path / "run")) == 0
    assert each_once(tmp_path / "run")


def test_a_server_that_dies_leaves_a_run_that_another_finishes(
    data, tmp_path, toy, capfd, uninterrupted
):
    with fake_server() as dying:
        dying.refuse = lambda number, path, body: "drop" if number > 10 else None
        assert main(command(dying.url, data, tmp_path / "run")) == 3
    said = capfd.readouterr().err
    assert "stopped: " in said and "cannot be reached" in said and "gave up after 2 tries" in said
    assert f"14 samples are left, all others are in {tmp_path / 'run'}: the same command" in said
    assert len(read_records(tmp_path / "run")) == 10
    with fake_server() as other:
        assert main(command(other.url, data, tmp_path / "run")) == 0
        assert len(other.seen) == 14
    assert each_once(tmp_path / "run")
    assert lines_of_report(tmp_path / "run") == lines_of_report(uninterrupted)


def test_void_samples_are_said_and_fail_the_command(fake, data, tmp_path, toy, capfd):
    Broken.failures.clear()
    options = ("--option", "broken=9", "--environment-retries", "0")
    arguments = command(fake.url, data, tmp_path / "run", *options)
    assert main(arguments) == 1
    assert "6 samples are void" in capfd.readouterr().err
    report = (tmp_path / "run" / "report.md").read_text()
    assert "**6 samples are void**" in report and "the sandbox is full" in report
    numbers = numbers_of_report(tmp_path / "run")
    assert len(numbers["void"]) == 6 and numbers["scores"]["mean"]["num_problems"] == 9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["toys", "--model", "URL"], "no set 'toys'.*toy"),
        (["toy"], "--model is missing"),
        (["toy", "--model", "URL"], "toy needs its official file; expected --data FILE: http"),
        (["toy", "--model", "URL", "--data", "nowhere"], "nowhere is not there"),
        (["toy", "--model", "URL", "--data", "DATA", "--mode", "x"], "no mode 'x'; expected.*chat"),
        (["toy", "--model", "URL", "--data", "DATA", "--option", "x=1"], "no option 'x'"),
        (["toy", "--model", "URL", "--data", "DATA", "--option", "x"], "expected NAME=VALUE"),
        (["toy", "--model", "URL", "--data", "DATA", "--shard", "2"], "expected I/N"),
        (["toy", "--model", "URL", "--data", "DATA", "--metrics", "mode"], "expected mean, @K"),
        (["toy", "--model", "URL", "--data", "DATA", "--dtype", "int8"], "--dtype is given with a"),
        (["toy", "--model", "DATA", "--data", "DATA", "--tokenizer", "x"], "--tokenizer or"),
        (["toy", "extra", "--model", "URL"], "'extra' is not expected"),
        (["toy", "--model", "URL", "--download"], "--download is given without --data"),
        (["compare", "one"], "compare got 1 runs"),
        (["merge", "one"], "merge expects"),
        (["report", "nowhere"], "no readable run.json"),
        (
            ["toy", "--model", "URL", "--data", "DATA", "--samples", "2", "--metrics", "@4"],
            "--samples is 2.*aggregate of 4",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_on(fake, data, toy, capfd, arguments, said):
    named = {"URL": fake.url, "DATA": str(data)}
    assert main(["eval", *(named.get(a, a) for a in arguments)]) == 2
    assert re.search(said, capfd.readouterr().err)
    assert not fake.seen


def test_other_settings_or_another_file_are_not_mixed_into_a_run(
    fake, data, tmp_path, toy, uninterrupted, capfd
):
    before = (uninterrupted / ITEMS_FILE).read_bytes()
    other = write_toy_file(tmp_path / "toy.jsonl", NUM_PROBLEMS + 1)
    for arguments, named in (
        (command(fake.url, data, uninterrupted, "--temperature", "0.5"), "settings.temperature"),
        (command(fake.url, other, uninterrupted), "file.sha256"),
    ):
        assert main(arguments) == 2
        said = capfd.readouterr().err
        assert f"{named} was" in said and "name another folder by --out" in said
    assert (uninterrupted / ITEMS_FILE).read_bytes() == before


def test_the_report_has_what_readers_need(uninterrupted):
    report = (uninterrupted / "report.md").read_text()
    for part in (
        "# toy/chat: fake",
        "| majority@2 |",
        "| distance:best@2 |",
        "| a pocket calculator | 100.0 |",
        "few come with intervals",
        "## By size",
        "| wrong |",
        "## An answer that is right: sum/",
        "## An answer that is wrong: sum/",
        "Sums, made by the tests.",
        "toy.jsonl, sha256",
    ):
        assert part in report, part
    assert (uninterrupted / "report.png").read_bytes().startswith(b"\x89PNG")
    scores = numbers_of_report(uninterrupted)["scores"]
    passed = [record.passed for record in read_records(uninterrupted).values()]
    assert scores["mean"]["mean"] == pytest.approx(sum(passed) / len(passed))
    assert scores["mean"]["low"] < scores["mean"]["mean"] < scores["mean"]["high"]


def test_shards_merge_into_the_run_that_was_whole(fake, data, tmp_path, toy, uninterrupted, capfd):
    for shard in range(2):
        out = tmp_path / f"shard{shard}"
        assert main(command(fake.url, data, out, "--shard", f"{shard}/2")) == 0
    shards = [str(tmp_path / f"shard{shard}") for shard in range(2)]
    assert main(["eval", "merge", *shards, "--out", str(tmp_path / "merged")]) == 0
    assert numbers_of_report(tmp_path / "merged") == numbers_of_report(uninterrupted)
    assert "toy/chat: mean" in capfd.readouterr().out


def test_two_runs_are_compared_problem_by_problem(fake, data, tmp_path, toy, uninterrupted, capsys):
    assert main(command(fake.url, data, tmp_path / "b", "--seed", "1")) == 0
    capsys.readouterr()
    assert main(["eval", "compare", str(uninterrupted), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    means = [
        numbers_of_report(f)["scores"]["mean"]["mean"] for f in (uninterrupted, tmp_path / "b")
    ]
    shown = f"{100 * means[0]:.1f} | {100 * means[1]:.1f} | {100 * (means[1] - means[0]):+.1f} |"
    assert f"| mean | {shown}" in said and "| seed | 0 | 1 |" in said
    assert main(command(fake.url, data, tmp_path / "c", "--mode", "two_turns")) == 0
    assert main(["eval", "compare", str(uninterrupted), str(tmp_path / "c")]) == 2
    assert "differ in their set" in capsys.readouterr().err


def test_metrics_decide_how_often_is_asked(fake, data, tmp_path, toy):
    options = ("--metrics", "mean", "@2", "--limit", "2")
    assert main(command(fake.url, data, tmp_path / "run", *options)) == 0
    assert len(read_records(tmp_path / "run")) == 2 * 4
    assert {*numbers_of_report(tmp_path / "run")["scores"]} == {"mean", "@2", "distance:mean"}


def test_problems_in_training_data_are_listed_and_left_out_of_a_score(fake, data, tmp_path, toy):
    text = "x Take 3 apples and 1 pears, put them together in one basket, and count what is in it."
    (tmp_path / "train.jsonl").write_text(json.dumps({"any": ["key", {"text": text}]}) + "\n")
    options = ("--contamination", str(tmp_path / "train.jsonl"))
    assert main(command(fake.url, data, tmp_path / "run", *options)) == 0
    numbers = numbers_of_report(tmp_path / "run")
    assert [f["problem"] for f in numbers["contamination"]["found"]] == ["sum/3"]
    assert numbers["scores"]["mean"]["num_problems"] == NUM_PROBLEMS
    assert numbers["scores_without_contaminated"]["mean"]["num_problems"] == NUM_PROBLEMS - 1
    assert "| without those found |" in (tmp_path / "run" / "report.md").read_text()


def test_a_server_is_measured_without_jax(fake, data, tmp_path):
    arguments = command(fake.url, data, tmp_path / "run", "--limit", "1")
    code = (
        "import sys; from cwm_jax.evals import catalog; catalog.MODULES += ('toy_set',)\n"
        "from cwm_jax.__main__ import main\n"
        f"status = main({arguments!r})\n"
        "print(status, sorted({'jax', 'flax'} & sys.modules.keys()))"
    )
    path = os.pathsep.join([str(ROOT), str(LAUNCHER.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


@contextlib.contextmanager
def files(folder: Path):
    def handler(*arguments):
        return QuietHandler(*arguments, directory=str(folder))

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_files_are_fetched_once_and_whole(tmp_path, data):
    target = tmp_path / "below" / "toy.jsonl"
    with files(data.parent) as url:
        said = catalog.fetch(f"{url}/toy.jsonl", target)
        with pytest.raises(ValueError, match=r"could not be fetched.*404"):
            catalog.fetch(f"{url}/no.jsonl", tmp_path / "no.jsonl")
    about = json.loads((tmp_path / "below" / "toy.jsonl.download.json").read_text())
    assert target.read_bytes() == data.read_bytes()
    assert about["sha256"] == catalog.file_identity(data)["sha256"] and about["sha256"] in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == [
        "below",
        "toy.jsonl",
        "toy.jsonl.download.json",
    ]
    assert "is there: sha256" in catalog.download("toy", target)


def test_a_file_that_does_not_come_whole_leaves_nothing(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/toy.jsonl"
        with pytest.raises(ValueError, match=r"10 bytes came of 100.*name it by --data"):
            catalog.fetch(url, tmp_path / "toy.jsonl")
        thread.join()
    assert not [*tmp_path.iterdir()]


def test_the_list_names_sets_with_their_modes_and_options(toy, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["eval", "--list"])
    said = capsys.readouterr().out
    assert "sums of small numbers (reads a file)" in said and "modes: chat, text" in said
    assert "--option broken=...: how often" in said


def test_every_module_of_sets_is_in_the_catalogue():
    folder = Path(catalog.__file__).parent / "sets"
    modules = {
        f"cwm_jax.evals.sets.{file.stem}"
        for file in folder.glob("*.py")
        if "\nENTRIES" in file.read_text()
    }
    assert modules <= {*catalog.MODULES}
    assert all(entry.modes and entry.summary for entry in catalog.entries().values())
