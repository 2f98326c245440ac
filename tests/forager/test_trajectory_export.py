"""Contract: trajectories become dialogs to be trained on, near-duplicates left out."""

import argparse
import json

import pytest

from cwm_jax.config import SourceConfig
from cwm_jax.data.dialogs import parse_dialog
from cwm_jax.data.sources import documents
from cwm_jax.data.trajectories import Trajectory
from cwm_jax.forager.trajectories import command
from cwm_jax.forager.trajectories.deduplication import TrajectoryIndex
from cwm_jax.forager.trajectories.export import export, manifest_path
from cwm_jax.storage import file_sha256


def trajectory(name, words, *, repository="r", observed="a.py", solved=True):
    call = f"<tool: bash>\n{words}\n</tool>"
    messages = [
        {"role": "user", "content": "fix it"},
        {"role": "assistant", "content": call},
        {"role": "tool: bash", "content": observed},
        {"role": "assistant", "content": "done"},
    ]
    return Trajectory(
        name=name,
        task="t",
        kind="mutate-fix",
        repository=repository,
        policy="fixer",
        outcome="finished",
        solved=solved,
        reason="",
        messages=parse_dialog(messages),
    )


def numbers(start, stop):
    return " ".join(map(str, range(start, stop)))


def write(path, trajectories):
    path.write_text("".join(json.dumps(t.to_json()) + "\n" for t in trajectories))
    return path


def test_near_actions_are_duplicates_in_one_repository_alone():
    index = TrajectoryIndex()
    assert index.add(trajectory("a", numbers(0, 100)))
    assert not index.add(trajectory("b", numbers(0, 90), observed="another answer"))
    assert index.add(trajectory("c", numbers(80, 180)))  # a tenth in common
    assert index.add(trajectory("d", numbers(0, 100), repository="other"))


def test_what_is_exported_is_read_as_a_chat_source_with_its_counts(tmp_path):
    first = write(tmp_path / "1.jsonl", [trajectory("a", numbers(0, 50))])
    rest = [trajectory("b", numbers(0, 50)), trajectory("c", numbers(90, 140), solved=None)]
    second = write(tmp_path / "2.jsonl", rest)
    out = tmp_path / "chat.jsonl"
    manifest = export([first, second], out)
    assert [manifest[key] for key in ("read", "kept", "duplicates")] == [3, 2, 1]
    assert manifest["by"]["solved"] == {"true": 1, "none": 1}
    assert manifest["by"]["kind"] == {"mutate-fix": 2}
    assert manifest["sha256"] == file_sha256(out)
    assert json.loads(manifest_path(out).read_text()) == manifest
    assert len(list(documents(SourceConfig(name="c", kind="chat", path=str(out))))) == 2
    assert not list(tmp_path.glob("*.partial"))
    again = tmp_path / "again.jsonl"
    export([first, second], again)
    assert again.read_bytes() == out.read_bytes()


def test_a_broken_line_leaves_the_old_file(tmp_path):
    broken = tmp_path / "1.jsonl"
    broken.write_text("{}\n")
    out = tmp_path / "chat.jsonl"
    out.write_text("old")
    with pytest.raises(ValueError, match=r"1\.jsonl:1: a trajectory has"):
        export([broken], out)
    assert out.read_text() == "old"


def test_an_input_is_not_written_over(tmp_path):
    path = write(tmp_path / "1.jsonl", [trajectory("a", "x")])
    with pytest.raises(ValueError, match="choose another --out"):
        export([path], path)


def test_the_command_exports_and_returns_2_for_what_is_not_there(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    path = write(tmp_path / "1.jsonl", [trajectory("a", "x")])
    out = str(tmp_path / "o.jsonl")
    args = parser.parse_args(["export", str(path), "--out", out])
    assert args.main(args) == 0 and json.loads(capsys.readouterr().out)["kept"] == 1
    args = parser.parse_args(["export", str(tmp_path / "no"), "--out", out])
    assert args.main(args) == 2 and "no" in capsys.readouterr().err
