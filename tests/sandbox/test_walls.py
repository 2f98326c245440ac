"""What code inside can see and reach: nothing of the host but the interpreter."""

import functools
import os
import socket
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from cwm_jax.sandbox import Outcome, Worker

ATTEMPT = """
def attempt(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return type(error).__name__
"""


def test_the_uid_is_ordinary_and_stays(call):
    reply = call(
        ATTEMPT + "import os\n"
        "out = [os.getuid() > 0, os.getgid() > 0, len(set(os.getresuid() + os.getresgid())),\n"
        "       attempt(os.setuid, 0), attempt(os.setgid, 0), attempt(os.setgroups, [0])]"
    )
    *ids, to_uid, to_gid, to_groups = eval(reply.value)
    assert ids == [True, True, 1] and to_groups == "PermissionError"
    assert {to_uid, to_gid} <= {"PermissionError", "OSError"}


def test_there_are_no_capabilities(call):
    reply = call(
        "lines = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "names = 'Cap', 'NoNew', 'Seccomp'\n"
        "out = {k: v.strip() for k, v in lines.items() if k.startswith(names)}"
    )
    status = eval(reply.value)
    assert status.pop("NoNewPrivs") == "1"
    assert status.pop("Seccomp") == "2"
    assert {k: int(v, 16) for k, v in status.items() if k != "Seccomp_filters"} == dict.fromkeys(
        ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0
    )


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's sandboxes share its uid")
def test_every_sandbox_of_root_has_a_uid_of_its_own_and_no_groups(program, request):
    request.addfinalizer(functools.partial(os.setgroups, os.getgroups()))
    os.setgroups([0, 4])
    found = set()
    for _ in range(2):
        with Worker(program) as worker:
            reply = worker.call(b"import os\nout = os.getuid(), os.getgid(), os.getgroups()")
            uid, gid, groups = eval(reply.value)
            assert uid == gid and groups == []
            found.add(uid)
    assert len(found) == 2


def test_the_environment_is_the_stated_one(call, monkeypatch):
    monkeypatch.setenv("SECRET", "of the host")
    reply = call("import os\nout = dict(os.environ)")
    assert eval(reply.value) == {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PWD": "/tmp",
        "PYTHONHASHSEED": "0",
        "TMPDIR": "/tmp",
    }
    reply = call(ATTEMPT + "out = attempt(lambda: open('/proc/1/environ', 'rb').read())")
    assert reply.value == b"'PermissionError'"


def test_files_of_the_host_do_not_exist(call, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    paths = [
        str(secret),
        str(Path(__file__)),
        str(Path.home() / ".bashrc"),
        os.path.join(sys.prefix, "pyvenv.cfg"),
        "/etc/passwd",
        "/etc/hostname",
        "/sys",
        *([] if sys.base_prefix == "/usr" else ["/usr"]),
        "/bin/sh",
        "/var",
    ]
    reply = call(f"import os\nout = [path for path in {paths} if os.path.lexists(path)]")
    assert reply.value == b"[]"
    reply = call("import os\nout = sorted(os.listdir('/sandbox'))")
    assert reply.value == b"['program.py', 'zygote.py']"


def test_no_packages_are_importable_but_the_standard_library(call):
    reply = call(
        ATTEMPT
        + "names = 'numpy', 'pip', 'pytest', 'cwm_jax', 'ssl', 'sqlite3', 'lzma', 'ctypes'\n"
        "out = [type(attempt(__import__, name)).__name__ for name in names]"
    )
    assert reply.value == repr(["str"] * 4 + ["module"] * 4).encode()


def test_only_processes_of_the_sandbox_are_seen(call):
    reply = call(
        "import os\nout = os.getppid(), sorted(filter(str.isdigit, os.listdir('/proc')))[0]"
    )
    assert reply.value == b"(1, '1')"


def test_there_is_no_network(call):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reply = call(
            ATTEMPT + "import socket\n"
            f"out = [attempt(socket.create_connection, ('127.0.0.1', {port}), 1),\n"
            "       attempt(socket.create_connection, ('192.0.2.1', 80), 1),\n"
            "       attempt(socket.getaddrinfo, 'example.com', 80),\n"
            "       [name for _, name in socket.if_nameindex()]]"
        )
    assert reply.value == repr(["ConnectionRefusedError", "OSError", "gaierror", ["lo"]]).encode()


def test_abstract_sockets_of_the_host_are_not_reached(call):
    name = f"\0cwm-jax-{os.getpid()}-{threading.get_ident()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        reply = call(
            ATTEMPT + "import socket\n"
            f"out = attempt(socket.socket(socket.AF_UNIX).connect, {name!r})"
        )
    assert reply.value == b"'ConnectionRefusedError'"


def test_the_first_process_cannot_be_looked_into_or_starved(own_call):
    reply = own_call(
        ATTEMPT + "import ctypes, os, resource\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "out = [attempt(open, f'/proc/1/{name}', 'rb') for name in ('mem', 'maps', 'environ')]\n"
        "out += [attempt(os.listdir, '/proc/1/fd'), attempt(os.open, '/proc/1/fd/10', 1)]\n"
        "out += [attempt(open, f'/proc/1/{name}', 'w') for name in ('root/x', 'oom_score_adj')]\n"
        "out += [attempt(resource.prlimit, 1, resource.RLIMIT_CPU, (1, 1))]\n"
        "out += [attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)]\n"
        "out += [attempt(os.sched_setaffinity, 1, [0])]\n"
        "out += [attempt(os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))]\n"
        "out += [libc.ptrace(16, 1, 0, 0)]\n"
    )
    assert set(eval(reply.value)) == {"PermissionError", -1}, reply


def test_new_namespaces_and_hidden_memory_are_refused(call):
    reply = call(
        ATTEMPT + "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "out = [libc.unshare(0x10000000), libc.unshare(0x20000), libc.shmget(0, 4096, 0o1600),\n"
        "       libc.msgget(0, 0o1600), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None),\n"
        "       attempt(os.memfd_create, 'x')]"
    )
    assert reply.value == b"[-1, -1, -1, -1, -1, 'PermissionError']"


def test_a_readable_path_can_be_read_and_not_written(program, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(mode=0o755)
    (folder / "file").write_text("shared")
    (tmp_path / "other").write_text("not shared")
    tmp_path.chmod(0o700)  # closed to the uid inside
    with Worker(program, readable=[folder]) as worker:
        for _ in range(2):  # emptying the scratch folder, which it lies in, spares it
            code = (
                ATTEMPT + "import os\nos.makedirs('/tmp/a/b')\n"
                f"out = [open({str(folder / 'file')!r}).read(), os.listdir({str(tmp_path)!r}),\n"
                f"       attempt(open, {str(folder / 'file')!r}, 'w'),\n"
                "       attempt(os.rename, '/tmp/a/b', '/tmp/a/c'), os.listdir('/tmp/a'),\n"
                f"       attempt(os.rename, {str(folder)!r}, '/tmp/moved')]"
            )
            *found, moved = eval(worker.call(code.encode()).value)
            assert found == ["shared", ["data"], "OSError", None, ["c"]]
            assert moved in ("OSError", "PermissionError")
    assert (folder / "file").read_text() == "shared"


def test_a_package_of_the_installation_can_be_made_readable(program):
    pip = Path(sysconfig.get_path("stdlib")) / "site-packages" / "pip"
    if not pip.exists():
        pytest.skip("this interpreter has no pip of its own")
    with Worker(program, readable=[pip]) as worker:
        assert worker.call(b"import pip\nout = 1").value == b"1"
        assert worker.call(b"import setuptools").outcome is Outcome.ERROR


@pytest.mark.parametrize("path", ["/", "/tmp", "/proc/self", "/dev/null", "/does/not/exist"])
def test_a_path_that_cannot_be_bound_is_refused(program, path):
    with pytest.raises(ValueError, match="readable path"):
        Worker(program, readable=[Path(path)])


def test_deleting_everything_leaves_the_host_as_it_was(call, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("kept")
    before = sorted(os.listdir("/"))
    reply = call(
        "import os, shutil\n"
        "open('mine', 'w')\n"
        "shutil.rmtree('/', ignore_errors=True)\n"
        "out = os.listdir('/tmp')"
    )
    assert (reply.outcome, reply.value) == (Outcome.OK, b"[]"), reply
    assert kept.read_text() == "kept" and sorted(os.listdir("/")) == before
    assert call("import decimal, json\nout = json.dumps(1)").value == b"'1'"
