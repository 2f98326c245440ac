"""A shell's scratch folder that begins as a folder of the host, which is copied on write."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_jax.sandbox import SandboxError, Shell, ShellLimits

LIMITS = ShellLimits(timeout_s=20, memory_bytes=256 << 20, scratch_bytes=4 << 20, processes=24)


@pytest.fixture
def base(tmp_path) -> Path:
    """With names that mount options would split; its modes let every uid write."""
    folder = tmp_path / "a,b:c\\d"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "kept").write_text("before\n")
    (folder / "script").write_text("#!/bin/sh\necho runs\n")
    for path in (folder, folder / "inner", folder / "script"):
        path.chmod(0o777)
    (folder / "inner" / "kept").chmod(0o666)
    return folder


@pytest.fixture(params=["own", "namespace"])
def shell(request, monkeypatch, base) -> Iterator[Shell]:
    """In both kinds of sandboxes, as in conftest.py."""
    if request.param == "namespace":
        monkeypatch.setattr("cwm_jax.sandbox.bubblewrap.unique_uid", lambda: None)
    with Shell(base=base, limits=LIMITS) as shell:
        yield shell


def output(shell: Shell, command: str) -> str:
    reply = shell.run(command)
    assert (reply.outcome, reply.exit_code) == ("ok", 0), reply
    return reply.output


def contents(folder: Path) -> dict[str, str]:
    return {str(p): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_files_are_there_and_may_be_changed_and_the_folder_stays(shell, base):
    before = contents(base)
    assert output(shell, "pwd; cat inner/kept; ./script") == "/tmp\nbefore\nruns\n"
    output(shell, "echo after > inner/kept; rm script; mkdir inner/new; echo x > inner/new/file")
    assert output(shell, "mv inner/new .; cat inner/kept new/file; ls") == "after\nx\ninner\nnew\n"
    assert shell.read("inner/kept", max_bytes=100) == b"after\n"
    assert contents(base) == before and sorted(os.listdir(base)) == ["inner", "script"]


def test_shells_of_one_folder_do_not_see_each_other(shell, base):
    with Shell(base=base, limits=LIMITS) as other:
        output(shell, "echo mine > inner/kept; echo > new")
        assert output(other, "cat inner/kept; ls") == "before\ninner\nscript\n"


def test_what_is_written_has_a_limit_and_the_folder_does_not_count(base):
    (base / "large").write_bytes(bytes(6 << 20))
    with Shell(base=base, limits=LIMITS) as shell:
        assert output(shell, "wc -c < large") == f"{6 << 20}\n"
        reply = shell.run("head -c 6M /dev/zero > more; stat -c %s more")
        assert int(re.findall(r"\d+", reply.output)[-1]) <= 4 << 20, reply
        assert shell.run("echo well").output == "well\n"


def test_the_host_sees_no_mount(shell, base):
    escaped = str(base).replace("\\", "\\134")
    assert escaped not in Path("/proc/self/mounts").read_text()
    assert "lower" not in shell.run("ls -a").output


def test_the_next_session_finds_the_files(shell):
    output(shell, "echo changed > inner/kept")
    assert shell.run("exit 3").outcome == "exit"
    assert output(shell, "pwd; cat inner/kept") == "/tmp\nchanged\n"


def test_what_is_bound_lies_over_it(base, tmp_path):
    readable = tmp_path / "readable"
    readable.mkdir()
    (readable / "file").write_text("bound\n")
    with Shell(base=base, readable=[readable], limits=LIMITS) as shell:
        assert output(shell, f"cat {readable}/file inner/kept") == "bound\nbefore\n"


def test_what_cannot_be_is_refused(base, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="is no folder"):
        Shell(base=tmp_path / "none")
    with pytest.raises(ValueError, match="unsafe"):
        Shell(base=base, unsafe=True)
    program = tmp_path / "overlay.py"
    program.write_text("import sys\nsys.exit('a folder copied on write: mounting fails')\n")
    monkeypatch.setattr("cwm_jax.sandbox.bubblewrap._OVERLAY", program)
    with pytest.raises(SandboxError, match="copied on write: mounting fails"):
        Shell(base=base, limits=LIMITS)
