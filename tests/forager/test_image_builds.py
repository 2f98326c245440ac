"""A recipe is installed and tested in sandboxes; what tests leave behind stays there."""

import dataclasses
import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.forager.images_made import LIMITS, RECIPE, outcomes, repository, tried
from tests.forager.packages_made import FILES, PASSED

HEAD = "import os, socket, time, unittest\n\n\nclass AllTest(unittest.TestCase):\n"


def project(folder: Path, tests: str, **more: str) -> Path:
    """Whose tests are the methods; ``more`` are files, a dot in a name is ``__``."""
    files = {name.replace("__", "."): text for name, text in more.items()}
    lines = "".join(f"    {line}\n" if line else "\n" for line in tests.splitlines())
    return repository(
        folder, ("All", {"tests/__init__.py": "", "tests/test_all.py": HEAD + lines, **files})
    )


def test_a_project_is_built_and_tested_twice(tmp_path):
    checkout = repository(tmp_path / "project", ("All", {**FILES, "data.bin": "\0"}))
    module = "import site; open(site.getsitepackages()[0] + '/x.py', 'w').write('x = 1')"
    install = (f'python -c "{module}"', "echo made > made.txt; mkdir empty", "echo > data.bin")
    recipe = dataclasses.replace(RECIPE, install=install)
    found = tried(tmp_path / "draft", checkout, recipe)
    assert (found.failure, found.flaky, tuple(found.tests)) == ("", (), PASSED)
    assert {*found.tests.values()} == {"passed"} and found.share == 1.0
    root = tmp_path / "draft/root"
    # What the repository has comes from the repository, whatever the installation does to it.
    assert [path.name for path in (root / "testbed").iterdir()] == ["made.txt"]
    assert os.readlink(root / "venv/bin/python") == "/sandbox/bin/python"
    compiled = [*(root / "venv/lib").rglob("*.pyc")]
    assert compiled and all(path.read_bytes()[4:8] == b"\3\0\0\0" for path in compiled)  # PEP 552
    log = subprocess.run(
        ["git", "--git-dir", tmp_path / "draft/repository.git", "log", "--format=%H %s", "main"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert log == f"{found.commit} All\n"


@pytest.mark.parametrize(
    ("install", "failure", "said"),
    [
        ("echo what is missing; false", "install", "what is missing"),
        ("exit 3", "install", "3"),
        ("sleep 60", "timeout", "more than 5 s"),
        ("head -c 80M /dev/zero > large; cp large l2", "disk", "No space left"),
        ("head -c 20M /dev/urandom > /tmp/venv/large", "disk", "cannot be read"),
        ("(exec 3<> /dev/tcp/1.1.1.1/443) || exit 9", "install", "unreachable"),
    ],
)
def test_an_installation_that_fails_is_of_a_class(tmp_path, install, failure, said):
    limits = dataclasses.replace(
        LIMITS,
        install_s=30.0 if failure != "timeout" else 5.0,
        image_bytes=20 << 20 if "urandom" in install else LIMITS.image_bytes,
        install=dataclasses.replace(LIMITS.install, scratch_bytes=96 << 20),
    )
    checkout = project(tmp_path / "project", "def test_it(self): pass")
    recipe = dataclasses.replace(RECIPE, install=(install,))
    found = tried(tmp_path / "draft", checkout, recipe, limits)
    assert found.failure == failure and said in found.detail, found
    assert found.build_s > 0 and not found.tests


@pytest.mark.parametrize(
    ("tests", "failure", "said"),
    [
        ("def test_it(self): self.fail()", "tests-fail", "0.000 of the tests"),
        ("@unittest.skip('not here')\ndef test_it(self): pass", "no-tests", "0.000 of the tests"),
        ("def test_it(self): os._exit(0)", "no-tests", "not reported as failed"),
        ("def test_it(self): time.sleep(99)", "timeout", "did not come to an end"),
    ],
)
def test_tests_that_show_nothing_keep_no_image(tmp_path, tests, failure, said):
    limits = dataclasses.replace(LIMITS, test_s=3.0)
    found = tried(tmp_path / "draft", project(tmp_path / "project", tests), limits=limits)
    assert found.failure == failure and said in found.detail, found


def test_flaky_tests_are_found_and_do_not_count(tmp_path):
    """One that follows the clock: of twenty tries one finds it, but for once in a million."""
    many = "\n".join(f"def test_good{n}(self): pass" for n in range(20))
    flaky = "def test_flaky(self): self.assertTrue(time.monotonic_ns() // 1000 % 2)"
    checkout = project(tmp_path / "project", f"{many}\n{flaky}")
    attempts = (tried(tmp_path / f"draft{n}", checkout) for n in range(20))
    found = next(found for found in attempts if found.flaky)
    assert found.failure == "" and found.share == 20 / 21
    assert found.flaky == ("tests.test_all.AllTest.test_flaky",)
    assert found.tests[found.flaky[0]] == "failed"


HOSTILE = """
def test_home(self):
    home = os.path.expanduser("~")
    self.assertEqual(home, "/tmp")
    for name in (".bashrc", "testbed/left"):
        with open(os.path.join(home, name), "w") as file:
            file.write("exit 1")
    os.remove("/tmp/venv/bin/activate")

def test_socket(self):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with self.assertRaises(OSError):
        socket.create_connection(("127.0.0.1", HOST_PORT), 2)
    with self.assertRaises(OSError):
        socket.create_connection(("1.1.1.1", 443), 2)

def test_daemon(self):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while True:
            time.sleep(0.1)
            with open("/tmp/testbed/alive", "a") as file:
                file.write("x")
    os.wait()

def test_forks(self):
    import errno
    children = []
    with self.assertRaises(OSError) as caught:
        while True:
            child = os.fork()
            if child == 0:
                time.sleep(99)
            children.append(child)
    self.assertEqual(caught.exception.errno, errno.EAGAIN)
    for child in children:
        os.kill(child, 9)
        os.wait()

def test_disk(self):
    with self.assertRaises(OSError):
        with open("/tmp/large", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
    os.remove("/tmp/large")
"""


def test_nothing_of_hostile_tests_escapes_or_stays(tmp_path):
    before = {path.name for path in Path.home().iterdir()}
    # By this word its processes are told from those of tests that run at the same time.
    command = RECIPE.command.replace("python ", "python -X hostile ")
    recipe = dataclasses.replace(RECIPE, command=command)
    with socket.create_server(("127.0.0.1", 0)) as server:  # of the host
        tests = HOSTILE.replace("HOST_PORT", str(server.getsockname()[1])).strip()
        found = tried(tmp_path / "draft", project(tmp_path / "project", tests), recipe)
    assert outcomes(found) == [f"{n} passed" for n in ("daemon", "disk", "forks", "home", "socket")]
    root = tmp_path / "draft/root"
    assert (root / "venv/bin/activate").exists()  # both runs were on copies
    assert not [*root.glob("testbed/*")]
    assert {path.name for path in Path.home().iterdir()} == before
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not [line for line in lines if b"-X\0hostile" in line]


def readable(path: Path) -> bool:
    """Whether its process is still there."""
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
