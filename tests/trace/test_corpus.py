"""Corpora: the same bytes however they are written, whatever the work does, and damage is found."""

import argparse
import dataclasses
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpus_work import (
    Exits,
    ExitsOnce,
    Hangs,
    LeavesPython,
    Raises,
    generated,
    program,
)

from cwm_jax.storage import StorageError
from cwm_jax.trace import TraceLimits
from cwm_jax.trace.corpus import (
    CorpusError,
    CorpusSettings,
    LocalEngine,
    NearDuplicates,
    load_benchmarks,
    read_corpus,
    read_manifest,
    write_corpus,
)
from cwm_jax.trace.corpus import progress as progress_module
from cwm_jax.trace.corpus.command import _Sources, add_parser
from cwm_jax.trace.corpus.functions import functions
from cwm_jax.trace.corpus.report import CorpusReport
from cwm_jax.trace.episodes import Program

ROOT = Path(__file__).parent.parent.parent
# Chunks and shards so small that there are several; shared with KILLED.
SETTINGS = CorpusSettings(unsafe=True, chunk_items=4, shard_bytes=20_000)
KILLED = """
import sys
from cwm_jax.trace.corpus import CorpusSettings, LocalEngine, write_corpus
from corpus_work import generated
if __name__ == "__main__":
    settings = CorpusSettings(unsafe=True, chunk_items=4, shard_bytes=20_000)
    write_corpus(generated(200), sys.argv[1], settings=settings, engine=LocalEngine(2))
"""


def write(work, folder, *, workers=1, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    return write_corpus(work, folder, settings=settings, engine=LocalEngine(workers))


def content(folder):
    """What must be the same in every run."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """24 programs by one worker; a copy of the first is among them."""
    folder = tmp_path_factory.mktemp("corpus") / "traces"
    work = generated(24)
    write([*work, dataclasses.replace(work[0], name="copy")], folder)
    return folder


@pytest.mark.parametrize("workers", [2, 3])
def test_bytes_do_not_depend_on_the_number_of_workers(corpus, tmp_path, workers):
    work = generated(24)
    report = write(
        [*work, dataclasses.replace(work[0], name="copy")], tmp_path / "traces", workers=workers
    )
    assert report.total.kept == 24
    assert len(content(corpus)) > 2, "one shard proves little"
    assert content(tmp_path / "traces") == content(corpus)
    assert not (tmp_path / "traces.partial").exists()


@pytest.mark.parametrize(
    "value", ["os.getpid()", "os.getpgid(0)", "open('a', 'w').close() or os.stat('a').st_ino"]
)
def test_what_counts_the_runs_before_is_dropped_as_it_would_count_the_workers(tmp_path, value):
    contexts = [
        f"import os\ndef main():  # << START_OF_TRACE\n    a = {i}\n    return a, {value}\n"
        for i in range(4)
    ]
    work = [
        Program(name=f"p{i}", context=context, source="script", origin=f"p{i}")
        for i, context in enumerate(contexts)
    ]
    report = write([*generated(1), *work], tmp_path / "traces", unsafe=False)
    assert report.total.kept == 1
    assert report.total.dropped == {"nondeterministic": 4}


def test_a_corpus_reads_back_in_the_order_of_the_work(corpus):
    episodes = list(read_corpus(corpus))
    assert [episode.name for episode in episodes] == [f"{item.name}#0" for item in generated(24)]
    assert all(not episode.parse().problems for episode in episodes)
    manifest = read_manifest(corpus)
    assert manifest.num_episodes == 24
    assert manifest.num_events == sum(episode.num_events for episode in episodes)
    assert manifest.python == episodes[0].python
    assert manifest.report["total"]["dropped"] == {"duplicate": 1}
    assert manifest.report["examples"] == {"duplicate": ["copy#0"]}
    assert manifest.report["by_difficulty"]["2"]["kept"] == 12


def test_a_run_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "traces"
    paths = [str(ROOT), str(ROOT / "tests" / "trace")]
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    chunks = tmp_path / "traces.partial" / "chunks"
    while len(list(chunks.glob("*.gz"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists()
    write(generated(200), folder, workers=2)
    assert json.loads((folder / "run.json").read_text())["resumed_chunks"] >= 3
    write(generated(200), tmp_path / "whole")
    assert content(folder) == content(tmp_path / "whole")


def test_what_was_begun_otherwise_is_not_gone_on_with(tmp_path):
    folder, work = tmp_path / "traces", generated(8)

    def interrupted():
        yield from work[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(interrupted(), folder)
    assert not multiprocessing.active_children()
    with pytest.raises(CorpusError, match=r"settings\.repeats was 2, is 3; expected the same"):
        write(work, folder, repeats=3)
    with pytest.raises(CorpusError, match=r"limits\.max_events was 10000, is 9"):
        write(work, folder, limits=TraceLimits(max_events=9))
    with (tmp_path / "traces.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="another process writes there"):
            write(work, folder)
    assert write(work, folder).num_items == 8
    with pytest.raises(CorpusError, match="exists; expected a new folder"):
        write(work, folder)


@pytest.fixture
def begun(tmp_path):
    """A corpus of two chunks whose first is done."""

    def interrupted():
        yield from generated(8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(interrupted(), tmp_path / "traces", chunk_items=1)
    chunks = tmp_path / "traces.partial" / "chunks"
    assert list(chunks.iterdir()), "nothing was done before the interruption"
    return tmp_path / "traces", sorted(chunks.iterdir())[0]


def test_other_work_is_refused_and_named(begun):
    folder, _ = begun
    with pytest.raises(CorpusError, match="'gen-5-0', now 'gen-6-0'"):
        write(generated(8, seed=6), folder, chunk_items=1)


def test_a_damaged_chunk_is_found_and_can_be_traced_again(begun):
    folder, chunk = begun
    whole = chunk.read_bytes()
    for place in range(10, len(whole), len(whole) // 10):  # what zlib says of it differs
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        chunk.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"damaged .*delete it and start again"):
            write(generated(8), folder, chunk_items=1)
    chunk.unlink()
    assert write(generated(8), folder, chunk_items=1).total.kept == 8


def test_whatever_an_item_does_is_counted_and_named_and_the_rest_is_kept(tmp_path):
    clock = "import time\ndef f():\n    t = time.time_ns()\n    return t"
    loop = "def f(x):\n    while True:\n        x += 1"
    hidden_loop = "while True:\n    pass\ndef f(x):\n    return x"
    good = generated(6)
    work = [
        *good[:2],
        Raises("raises"),
        LeavesPython("leaves"),
        Exits("exits"),
        Hangs("hangs"),
        good[2],
        program("clock", clock),
        program("loop", loop, 1),
        program("hidden loop", hidden_loop, 1),
        program("broken", "def f(:"),
        ExitsOnce("exits once", str(tmp_path / "flag")),
        *good[3:],
    ]
    limits = TraceLimits(max_events=200, cpu_s=1, wall_s=2)
    folder = tmp_path / "traces"
    report = write(work, folder, workers=2, limits=limits, item_s=2)
    assert report.examples == {
        "internal:KeyError": ["raises"],
        "internal:SystemExit": ["leaves"],
        "worker-died": ["exits"],
        "time": ["hangs", "hidden loop"],
        "nondeterministic": ["clock#0"],
        "truncated:events": ["loop#0"],
        "syntax": ["broken"],
    }
    kept = [episode.name for episode in read_corpus(folder)]
    assert kept == [f"{item.name}#0" for item in (*good[:3], work[-4], *good[3:])]
    assert report.total.dropped.total() == 8
    assert report.num_items == len(work)
    messages = json.loads((folder / "run.json").read_text())["messages"]
    assert messages["internal:KeyError"] == [["raises", "'no such thing'"]]
    assert "syntax: 1 (broken)" in str(report)


def test_truncated_traces_are_kept_marked_if_asked(tmp_path):
    loop = program("loop", "def f(x):\n    while True:\n        x += 1", 1)
    write([loop], tmp_path / "traces", limits=TraceLimits(max_events=20), keep_truncated=True)
    (episode,) = read_corpus(tmp_path / "traces")
    assert (episode.finished, episode.status, episode.num_events) == (False, "events", 20)


def test_near_duplicates_and_benchmark_functions_are_dropped_and_counted(tmp_path):
    def summing(name, n):
        total = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i * i\n"
        return program(name, total + "    return total", n)

    secret = "def f(words):\n    out = []\n    for w in words:\n        out.append(w[::-1])\n"
    path = tmp_path / "benchmark.jsonl"
    path.write_text(json.dumps({"code": secret + "    return out"}) + "\n")
    renamed = (
        secret.replace("words", "xs").replace("out", "y").replace("w", "z") + "    return y  # !"
    )
    work = [summing("a", 40), summing("b", 41), summing("c", 3), program("known", renamed, ["ab"])]
    report = write_corpus(
        work,
        tmp_path / "traces",
        settings=SETTINGS,
        engine=LocalEngine(1),
        benchmarks=load_benchmarks([path]),
    )
    assert report.examples == {"near-duplicate": ["b#0"], "benchmark": ["known#0"]}
    benchmarks = read_manifest(tmp_path / "traces").settings["benchmarks"]
    assert benchmarks["files"] == [{"name": "benchmark.jsonl", "programs": 1, "functions": 1}]
    report = write(work[:2], tmp_path / "all", near_duplicates=None)
    assert report.total.kept == 2


@pytest.fixture
def copied(corpus, tmp_path):
    folder = tmp_path / "copied"
    folder.mkdir()
    for name, data in content(corpus).items():
        (folder / name).write_bytes(data)
    return folder


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (flip, "sha256 is .* write the corpus again"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes; expected"),
        (Path.unlink, "missing, but its manifest lists it"),
    ],
)
def test_damage_to_a_shard_is_found(copied, damage, complaint):
    damage(sorted(copied.glob("*.arrayrecord"))[-1])
    with pytest.raises(StorageError, match=complaint):
        list(read_corpus(copied))


def test_sizes_are_checked_before_the_first_episode(copied):
    sorted(copied.glob("*.arrayrecord"))[-1].unlink()
    with pytest.raises(StorageError, match="missing"):
        read_corpus(copied)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda text: text[:-9], "no readable manifest"),
        (lambda text: text.replace("trace-corpus", "token-corpus"), "kind 'token-corpus'"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 2'), "version 2"),
        (lambda text: text.replace('"num_episodes"', '"episodes"'), "unknown key 'episodes'"),
        (lambda text: text.replace('"num_episodes": 24', '"num_episodes": 25'), "hold 24 episodes"),
    ],
)
def test_damage_to_a_manifest_is_found(copied, change, complaint):
    path = copied / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(StorageError, match=complaint):
        list(read_corpus(copied))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"repeats": 0}, "repeats is 0; expected more than 0"),
        ({"chunk_items": 1.5}, "chunk_items is 1.5; expected int"),
        ({"near_duplicates": 0.8}, "near_duplicates is 0.8; expected NearDuplicates or none"),
    ],
)
def test_settings_are_checked(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        CorpusSettings(**settings)


def test_a_line_tells_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "_PERIOD_S", 0.0)
    report = CorpusReport(num_items=5)
    with progress_module.Progress(10) as progress:
        progress.show(report, resumed=False)
        first = capsys.readouterr().err
        progress.show(report, resumed=True)
    assert first.startswith("5 of 10 items, 0 episodes kept, 0 events, ")
    assert first.endswith(" s to go\n")
    assert capsys.readouterr().err == "5 of 10 items, 0 episodes kept, 0 events, 0.0 items/s\n"


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["corpus", *map(str, arguments)])
    return args.main(args)


def test_the_command_traces_every_source_it_is_given(tmp_path, capsys):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "echo.py").write_text("line = input()\nprint(line * 2)\n")
    (tmp_path / "scripts" / "echo.in").write_text("hello\n")
    (tmp_path / "scripts" / "latin.py").write_bytes(b"x = '\xe9'\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"code": "def f(x):\n    return x + 1", "input": "2"}) + "\n")
    folder = tmp_path / "traces"
    options = ["--out", folder, "--generate", 4, "--difficulty", "2-3", "--jsonl", rows]
    options += ["--scripts", tmp_path / "scripts", "--workers", 1, "--unsafe"]
    assert command(*options) == 0
    names = [episode.name for episode in read_corpus(folder)]
    generated = [f"gen-0-{n}-{2 + n % 2}#0" for n in range(4)]
    assert names == [*generated, "rows-line-1#0", "echo.py#0"]
    assert "'hello'" in list(read_corpus(folder))[-1].frames
    shown = capsys.readouterr().out
    assert "6 episodes of 7 programs" in shown
    assert "dropped as syntax: 1 (latin.py)" in shown
    described = read_manifest(folder).settings["description"]
    assert described["generate"] == {"count": 4, "seed": 0, "difficulties": [2, 3]}
    assert command(*options) == 2
    assert "exists; expected a new folder" in capsys.readouterr().err


def test_the_command_traces_functions_doctests_and_a_repository(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "mod.py").write_text(
        "def add(a: int, b: str):\n    return b * (a % 3)\n\ndef unknown(x):\n    return x\n"
    )
    (tmp_path / "src" / "broken.py").write_text("def f(:\n")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "area.py").write_text("def area(w, h):\n    return w * h\n")
    (tmp_path / "repo" / "test_area.py").write_text(
        "from area import area\n\ndef test_area():\n    assert area(2, 3) == 6\n"
    )
    folder = tmp_path / "traces"
    options = ["--out", folder, "--functions", tmp_path / "src", "--doctests", "textwrap"]
    assert command(*options, "--pytest", tmp_path / "repo", "--workers", 1) == 0
    episodes = list(read_corpus(folder))
    by_source = {e.source: e for e in episodes}
    assert by_source.keys() == {"function", "doctest", "pytest"}
    assert sum(e.source == "function" for e in episodes) == 4
    assert "def area(w, h):" in by_source["pytest"].context + by_source["pytest"].frames
    shown = capsys.readouterr().out
    assert "dropped as no-types: 1 (mod.py-unknown)" in shown
    assert "dropped as syntax: 1 (broken.py-*)" in shown


def test_folders_of_one_name_are_read_and_named_apart(tmp_path):
    options = ["--out", tmp_path / "traces", "--workers", 1, "--unsafe", "--scripts"]
    for number, parent in enumerate("ab"):
        (tmp_path / parent / "src").mkdir(parents=True)
        (tmp_path / parent / "src" / "m.py").write_text(f"x = {number}\n")
        options.append(tmp_path / parent / "src")
    assert command(*options) == 0
    assert [e.name for e in read_corpus(tmp_path / "traces")] == ["0-m.py#0", "1-m.py#0"]
    digests = read_manifest(tmp_path / "traces").settings["description"]["files"]
    assert digests.keys() == {"scripts 0 src", "scripts 1 src"}
    assert len(set(digests.values())) == 2


def test_a_script_and_a_file_without_functions_have_names_of_their_own(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def f(:\n")
    options = ["--scripts", tmp_path, "--functions", tmp_path, "--workers", 1, "--unsafe"]
    assert command("--out", tmp_path / "traces", *options) == 0
    assert "dropped as syntax: 2 (broken.py, broken.py-*)" in capsys.readouterr().out


def test_files_of_one_name_in_other_folders_and_repositories_are_told_apart(tmp_path):
    rows, repositories = [], []
    for parent in "ab":
        (tmp_path / parent / "repo").mkdir(parents=True)
        (tmp_path / parent / "repo" / "m.py").write_text("")
        rows.append(tmp_path / parent / "rows.jsonl")
        rows[-1].write_text(json.dumps({"code": "def f(x):\n    return x", "input": "1"}) + "\n")
        repositories.append(tmp_path / parent / "repo")
    names = [item.name for item in sources(jsonl=rows, pytest=repositories)]
    assert names == ["0-rows-line-1", "1-rows-line-1", "pytest-0-repo", "pytest-1-repo"]


def sources(**chosen):
    options = {"jsonl", "scripts", "functions", "doctests", "pytest"}
    values = {name: tuple(chosen.get(name, ())) for name in options}
    return _Sources(generate=0, difficulties=(1,), seed=0, **values)


def test_two_items_of_one_name_are_refused(tmp_path):
    work = generated(3)
    with pytest.raises(CorpusError, match=r"items 0 and 3 .* named 'gen-5-0'; expected .*: rename"):
        write([*work, dataclasses.replace(work[1], name=work[0].name)], tmp_path / "traces")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "m.in").write_text("6\n"),
        lambda folder: (folder / "m.in").unlink(),
        lambda folder: (folder / "a").rename(folder / "b"),
    ],
)
def test_the_digest_of_scripts_covers_their_places_and_standard_input(tmp_path, change):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "n.py").write_text("x = 1\n")
    (tmp_path / "m.py").write_text("x = input()\n")
    (tmp_path / "m.in").write_text("5\n")
    before = sources(scripts=[tmp_path]).files()
    assert before == sources(scripts=[tmp_path]).files()
    change(tmp_path)
    after = sources(scripts=[tmp_path]).files()
    assert before.keys() == after.keys() == {f"scripts 0 {tmp_path.name}"}
    assert before != after


def test_functions_of_files_are_decoded_as_python_does(tmp_path):
    body = "def f(x: int):\n    return x, 'é'\n"
    (tmp_path / "bom.py").write_text(body, encoding="utf-8-sig")
    (tmp_path / "declared.py").write_text(f"# coding: latin-1\n{body}", encoding="latin-1")
    (tmp_path / "wrong.py").write_text(body, encoding="latin-1")
    work = list(functions(tmp_path, seed=0))
    assert {item.name for item in work if isinstance(item, Program)} == {
        f"{stem}.py-f-{number}" for stem in ("bom", "declared") for number in range(4)
    }
    assert all("'é'" in item.context for item in work[:-1])
    assert (work[-1].name, work[-1].reason) == ("wrong.py-*", "syntax")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "no programs; expected some"),
        (["--generate", 1, "--address", "auto"], "expected none without --engine ray"),
        (["--generate", 1, "--workers", 0], "workers is 0; expected at least 1"),
        (["--generate", 1, "--jaccard", 0.3], "take more bands"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, capsys, options, complaint):
    assert command("--out", tmp_path / "traces", *options) == 2
    assert complaint in capsys.readouterr().err


def test_near_duplicates_are_a_setting_of_the_manifest(corpus):
    settings = read_manifest(corpus).settings
    assert settings["near_duplicates"] == dataclasses.asdict(NearDuplicates())


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (["--doctests", "no_such_package"], "no package 'no_such_package'"),
        (["--jsonl", "bad.jsonl"], "expected an object"),
        (["--jsonl", "binary.jsonl"], "binary.jsonl:1: UnicodeDecodeError"),
    ],
)
def test_work_that_is_refused_leaves_the_way_free(tmp_path, monkeypatch, capsys, wrong, complaint):
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text("[]\n")
    Path("binary.jsonl").write_bytes(b"\xff\n")
    options = ["--out", "traces", "--workers", 1, "--unsafe"]
    assert command(*options, *wrong, "--generate", 70, "--difficulty", 1) == 2
    assert complaint in capsys.readouterr().err
    assert not Path("traces.partial").exists()
    assert command(*options, "--generate", 2) == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--generate", "-3"], "'-3'; expected a number of programs"),
        (["--difficulty", "x"], "'x'; expected one of 1 to 5, or a range as 2-4"),
        (["--difficulty", "5-1"], "'5-1'; expected one of 1 to 5"),
        (["--difficulty", "9"], "'9'; expected one of 1 to 5"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path, capsys, options, complaint):
    with pytest.raises(SystemExit):
        command("--out", tmp_path / "traces", *options)
    assert complaint in capsys.readouterr().err


def test_a_program_that_changes_the_version_stops_nothing(tmp_path):
    faked = (
        "import sys\nsys.version = '3.99 fake'\ndef main():  # << START_OF_TRACE\n    return {}\n"
    )
    contexts = [faked.format(1).replace("sys.version", "x"), faked.format(2)]
    work = [
        Program(name=f"p{n}", context=context, source="script", origin="a test")
        for n, context in enumerate(contexts)
    ]
    settings = CorpusSettings(unsafe=True)
    report = write_corpus(work, tmp_path / "traces", settings=settings, engine=LocalEngine(1))
    assert report.total.kept == 2


def test_doctests_of_installed_packages_are_found():
    sources = _Sources(
        generate=0, difficulties=(1,), seed=0, jsonl=(), scripts=(), functions=(),
        doctests=("jaxtyping", "numpy"), pytest=(),
    )  # fmt: skip
    assert any(suite.name.startswith("doctest-numpy.") for suite in sources)
