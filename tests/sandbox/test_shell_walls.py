"""What a shell finds inside: a Unix to work with, nothing of the host; and files in and out."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cwm_jax
from cwm_jax.sandbox import Shell, ShellLimits, bubblewrap, userland

LIMITS = ShellLimits(timeout_s=20, scratch_bytes=16 << 20, processes=24)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["own", "namespace"])
def shell(request) -> Iterator[Shell]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET", "of the host")
        if request.param == "namespace":
            patch.setattr("cwm_jax.sandbox.bubblewrap.unique_uid", lambda: None)
        shell = Shell(limits=LIMITS)
    with shell:
        yield shell


@pytest.fixture
def own_shell() -> Iterator[Shell]:
    with Shell(limits=LIMITS) as shell:
        yield shell


def output(shell: Shell, command: str) -> str:
    reply = shell.run(command)
    assert reply.outcome == "ok", reply
    return reply.output


TOOLS = {
    "printf 'b\\na\\n' | sort | head -1": "a\n",
    "printf 'a b' | awk '{print $2}'": "b\n",
    "echo abc | sed s/b/x/": "axc\n",
    "echo abc | grep -o b": "b\n",
    "mkdir -p d/e; touch d/e/f; find d -name f": "d/e/f\n",
    "echo 1 > p; echo 2 > q; diff p q > r; patch -s p r; cat p": "2\n",
    "echo a | xargs -I{} echo {}{} | tee t | wc -l": "1\n",
    "tar cf t.tar p && tar tf t.tar": "p\n",
    "perl -e 'use File::Find; print 1'": "1",
    "whoami; id -un; echo ~; echo $SHELL": "agent\nagent\n/tmp\n/bin/bash\n",
    "python -c 'import socket; socket.create_server((\"localhost\", 0))'; echo $?": "0\n",
    "python -c 'import zoneinfo; print(zoneinfo.ZoneInfo(\"Europe/Paris\"))'": "Europe/Paris\n",
}


@pytest.mark.parametrize("command", TOOLS)
def test_the_tools_of_a_unix_work(shell, command):
    assert output(shell, command) == TOOLS[command]


def test_python_is_this_interpreter_with_the_standard_library_alone(shell):
    for name in userland.PYTHON_NAMES:
        code = "import sys, sqlite3, ssl, ctypes, unittest; print(sys.version)"
        assert output(shell, f"{name} -c '{code}'") == f"{sys.version}\n"
    for python in ("python", "/usr/bin/python3"):
        for name in ("cwm_jax", "numpy", "pytest", "pip", "setuptools", "yaml"):
            text = output(shell, f"{python} -c 'import {name}'")
            assert "No module named" in text or "No such file" in text


def test_git_works_in_the_scratch_folder(own_shell):
    text = output(
        own_shell,
        "git init -q repo && cd repo && echo a > file && git add . && git commit -qm one\n"
        "echo c >> file; git diff > ../patch; git stash -q; git apply ../patch; git diff --stat\n"
        "git switch -qc other; git commit -qam two; git status -s; git log --format='%an, %ae: %s'",
    )
    assert text.splitlines() == [
        " file | 1 +",
        " 1 file changed, 1 insertion(+)",
        "agent, agent@sandbox: two",
        "agent, agent@sandbox: one",
    ]
    output(own_shell, "git config user.name me; git commit -q --allow-empty -m three")
    assert output(own_shell, "git log -1 --format=%an") == "me\n"
    assert "resolve host" in output(own_shell, "git clone https://example.com/a.git")


def test_git_reads_a_repository_of_the_host(tmp_path):
    repository = tmp_path / "repository"
    git = ["git", "-c", "user.name=host", "-c", "user.email=host", "-C", str(repository)]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of the host"], check=True)
    with Shell(readable=[repository], limits=LIMITS) as shell:
        assert output(shell, f"git -C {repository} log --format=%s") == "of the host\n"
        assert output(shell, f"git clone -q {repository} copy; git -C copy log --format=%s")
        assert "Read-only" in output(shell, f"touch {repository}/new")


def test_the_environment_is_the_stated_one(shell):
    found = dict(line.split("=", 1) for line in output(shell, "env").splitlines())
    assert found.pop("_").endswith("/env")
    assert found == bubblewrap.environment(shell=True) | {"PWD": "/tmp", "SHLVL": "1"}
    assert "of the host" not in output(shell, "set; cat /proc/*/environ 2>/dev/null | tr '\\0' ' '")


def test_files_of_the_host_do_not_exist(shell, tmp_path):
    gold = tmp_path / "gold.jsonl"
    gold.write_text("the answer")
    paths = [gold, Path(__file__), ROOT, Path(cwm_jax.__file__), Path.home() / ".bashrc"]
    paths += [Path(sys.prefix, "pyvenv.cfg"), Path("/etc/shadow"), Path("/etc/hostname")]
    paths += map(
        Path, ("/sys", "/var", "/home", "/opt", "/srv", "/usr/src", "/usr/local/lib/python3")
    )
    for path in paths:
        assert "No such file" in output(shell, f"ls -d {path}"), path
    assert output(shell, "ls /etc; ls -A /root").split() == sorted(
        ["alternatives", "gitconfig", "group", "hosts", "ld.so.cache", "passwd"]
    ) + [name for name in (".pyenv",) if name in bubblewrap.interpreter()]
    assert output(shell, "wc -l < /etc/passwd") == "2\n"


def test_no_package_of_any_python_can_be_read(shell):
    found = output(
        shell,
        "find / -path /proc -prune -o -name site-packages -print -o -name dist-packages -print "
        "-o -name '*.dist-info' -print -o -name '*cwm_jax*' -print",
    )
    for folder in found.splitlines():
        assert output(shell, f"ls -A {folder}") == "", folder


def test_packages_are_hidden_wherever_they_are_installed(tmp_path, monkeypatch):
    """As if this folder were /usr/lib."""
    library = tmp_path / "lib"
    packages = ["python3/dist-packages", "python3.99/site-packages", "pypy3/site-packages"]
    for folder in packages:
        (library / folder / "cwm_jax").mkdir(parents=True)
        (library / folder / "cwm_jax" / "gold.txt").write_text("the answer")
    (library / "python3.99" / "os.py").write_text("of the library")
    monkeypatch.setattr(userland, "folders", lambda: (*FOLDERS, str(library)))
    with Shell(limits=LIMITS) as shell:
        assert output(shell, f"cat {library}/python3.99/os.py") == "of the library"
        assert output(shell, f"find {library} -name '*cwm*' -o -name gold.txt") == ""
        assert "Read-only" in output(shell, f"touch {library}/{packages[0]}/a")


FOLDERS = userland.folders()


def test_there_is_no_network(shell):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "refused" in output(shell, f"echo > /dev/tcp/127.0.0.1/{port}")
    assert "unreachable" in output(shell, "echo > /dev/tcp/192.0.2.1/80")


def test_processes_of_the_host_are_neither_seen_nor_signalled(shell):
    names = output(shell, "cat /proc/[0-9]*/comm").split()  # cat starts after the pattern
    assert len(names) == 2 and names[1] == "bash", names
    with subprocess.Popen(["sleep", "100"]) as process:
        for pid in (process.pid, os.getpid()):
            assert "No such process" in output(shell, f"kill -0 {pid}")
            assert "No such file" in output(shell, f"ls /proc/{pid}")
        process.kill()


@pytest.mark.parametrize("number", range(1, signal.SIGRTMIN))
def test_no_signal_reaches_the_first_process(shell, number):
    shell.run(f"kill -{number} 1")
    assert output(shell, "echo well") == "well\n"


def test_the_first_process_cannot_be_looked_into(own_shell):
    names = ("mem", "maps", "environ", "fd/10", "root/x", "cwd/x")
    text = output(own_shell, "".join(f"cat /proc/1/{n}; echo > /proc/1/{n}; " for n in names))
    assert text.count("Permission denied") == 2 * len(names), text
    assert "Permission denied" in output(own_shell, "ls /proc/1/fd")


def test_reports_forged_on_any_descriptor_do_not_reach_the_host(shell):
    code = (
        "import os, struct\n"
        "frame = struct.pack('<16s??xxidd4Q', b'ok', 0, 1, 0, 0, 0, 6, 0, 0, 0) + b'forged'\n"
        "for fd in range(3, 4096):\n"
        "    try: os.write(fd, frame)\n"
        "    except OSError: pass\n"
    )
    shell.write("forge.py", code.encode())
    assert shell.run("python forge.py; (exit 3)").exit_code == 3
    assert output(shell, "echo well") == "well\n"


def test_commands_inherit_no_descriptor_but_the_one_that_statuses_go_to(shell):
    code = 'import os; print(os.listdir("/proc/self/fd"))'
    assert output(shell, f"python -c '{code}'") == "['0', '1', '2', '3', '251']\n"  # 3 is the list
    assert output(shell, "readlink /proc/$$/fd/0") == "/dev/null\n"


def test_files_go_in_and_out(shell):
    content = bytes(range(256)) * 1000
    shell.write("new/folder/file", content)
    assert shell.read("new/folder/file", max_bytes=len(content)) == content
    assert output(shell, "wc -c < new/folder/file; stat -c %a new/folder/file") == "256000\n644\n"
    output(shell, "chmod 755 new/folder/file; ln -sf folder/file new/link")
    shell.write("/tmp/new/link", b"short")
    assert output(shell, "cat new/folder/file; stat -c %a new/folder/file") == "short755\n"
    shell.write("empty", b"")
    assert shell.read("/tmp/empty", max_bytes=0) == b""
    assert shell.read("/etc/hosts", max_bytes=1000).startswith(b"127.0.0.1")


def test_files_are_read_whatever_the_session_does(shell):
    shell.write("file", b"text")
    output(shell, "(while :; do echo x > other; done) & true")
    shell.run("kill -STOP $$", timeout_s=0.1)
    assert shell.read("file", max_bytes=10) == b"text"
    shell.run("trap '' TERM; cat() { echo forged; }; set -r; exec >/dev/null")
    assert shell.read("file", max_bytes=10) == b"text"
    shell.run("kill -9 $$")


WRONG_FILES = {
    "nonesuch": errno.ENOENT,
    "folder": errno.EISDIR,
    "file/below": errno.ENOTDIR,
    "pipe": errno.EINVAL,
    "/dev/zero": errno.EINVAL,
    "/dev/tty": errno.ENXIO,
    "loop": errno.ELOOP,
    "link": errno.EINVAL,  # into /proc
    "/proc/self/environ": errno.EACCES,
    "/proc/uptime": errno.EINVAL,
    "closed": errno.EACCES,
    "long": errno.EFBIG,
    "na\0me": errno.EINVAL,
    "n" * 10_000: errno.ENAMETOOLONG,
    "\ud800": errno.EINVAL,
}


@pytest.mark.parametrize("path", WRONG_FILES)
def test_what_is_no_file_is_not_read(own_shell, path):
    output(
        own_shell,
        "mkdir folder; echo text > file; mkfifo pipe; ln -s loop loop; ln -s /proc/meminfo link\n"
        "echo secret > closed; chmod 0 closed; head -c 11 /dev/zero > long",
    )
    with pytest.raises(OSError) as error:
        own_shell.read(path, max_bytes=10)
    assert error.value.errno == WRONG_FILES[path]
    assert output(own_shell, "echo well") == "well\n"


def test_what_cannot_be_written_leaves_what_was_there(own_shell):
    output(own_shell, "mkdir folder; mkfifo pipe; ln -s /proc/self/task link; echo text > file")
    for path, code in (
        ("folder", errno.EISDIR),
        ("pipe", errno.ENXIO),
        ("link/1/comm", errno.EINVAL),
        ("/etc/hosts", errno.EACCES),
        ("/new", errno.EROFS),
        ("file/below", errno.EEXIST),
        ("na\0me", errno.EINVAL),
        ("file", errno.ENOSPC),
    ):
        with pytest.raises(OSError) as error:
            own_shell.write(path, bytes(17 << 20))
        assert error.value.errno == code, path
    assert own_shell.read("file", max_bytes=10) == b"text\n"
    with pytest.raises(FileNotFoundError, match="nonesuch"):
        own_shell.read("nonesuch", max_bytes=1)
