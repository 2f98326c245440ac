"""Programs in a sandbox of their own."""

import os
import shutil

import pytest

from cwm_jax.sandbox import Limits, Outcome, SandboxError, run

PYTHON = ["python", "-c"]


def test_a_program_reads_its_files_and_stdin():
    code = "import sys; print(open('a/b.txt').read(), sys.stdin.read(), sys.argv[1:])"
    done = run([*PYTHON, code, "x"], stdin=b"typed", files={"a/b.txt": b"stored"})
    assert (done.outcome, done.returncode, done.stderr) == (Outcome.OK, 0, b"")
    assert done.stdout == b"stored typed ['x']\n"
    done = run(["python", "main.py"], files={"main.py": b"import sys; sys.exit(7)"})
    assert (done.outcome, done.returncode) == (Outcome.EXIT, 7)


@pytest.mark.parametrize(
    ("code", "limits", "outcome", "returncode"),
    [
        ("while True: pass", dict(cpu_s=0.2), Outcome.CPU, -9),
        ("import time; time.sleep(60)", dict(wall_s=0.2), Outcome.WALL, -9),
        ("x = bytearray(1 << 40)", {}, Outcome.MEMORY, 1),
        ("while True: print(1)", {}, Outcome.OUTPUT, -9),
        ("import os; os.abort()", {}, Outcome.SIGNAL, -6),
        ("1 / 0", {}, Outcome.EXIT, 1),
    ],
)
def test_every_ending_has_its_outcome(code, limits, outcome, returncode):
    done = run([*PYTHON, code], limits=Limits(**limits))
    assert (done.outcome, done.returncode) == (outcome, returncode), done


def test_it_is_an_ordinary_uid_in_a_read_only_world():
    done = run([*PYTHON, "import os; print(os.getuid() > 0, os.listdir('.')); os.mkdir('/x')"])
    assert done.stdout == b"True []\n" and b"Read-only file system" in done.stderr


def test_a_program_sees_nothing_of_its_supervisor():
    code = "import os; print(sorted(os.listdir('/proc/self/fd')), os.getppid())"
    done = run([*PYTHON, code])
    assert done.stdout == b"['0', '1', '2', '3'] 1\n"  # 3 is the folder itself


def test_only_python_and_what_is_readable_can_be_started():
    with pytest.raises(ValueError, match=r"'ls' did not start in the sandbox: .*No such file"):
        run(["ls"])
    with pytest.raises(ValueError, match="argv is empty"):
        run([])


def test_an_executable_can_be_made_readable(tmp_path):
    copy = tmp_path / "true"
    shutil.copy(shutil.which("true"), copy)
    assert run([str(copy)], readable=[copy]).outcome is Outcome.OK


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_stay_in_the_scratch_folder(name):
    with pytest.raises(ValueError, match="relative to the scratch folder"):
        run(["python"], files={name: b""})


def test_files_must_fit():
    with pytest.raises(ValueError, match=r"raise limits\.scratch_bytes"):
        run(["python"], files={"a": bytes(1 << 20)}, limits=Limits(scratch_bytes=1 << 16))


def test_without_bubblewrap_it_runs_only_when_told_so(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        run([*PYTHON, ""])
    done = run([*PYTHON, "import os; print(os.getuid())"], unsafe=True)
    assert done.stdout == b"%d\n" % os.getuid()
