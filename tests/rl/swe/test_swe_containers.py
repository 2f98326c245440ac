"""Workspaces in containers, against a small engine of the tests' own, and a real one if there is.

No test here has pulled an image: what a real engine does differently shows only where one runs.
"""

import errno
import subprocess
import threading

import pytest
from fake_engine import IMAGE, FakeEngine
from swe_players import GOLD, call, final, output

from cwm_jax.rl.environment import EnvironmentFailure, Task
from cwm_jax.rl.envs.swe.environment import SoftwareEngineering
from cwm_jax.rl.envs.swe.profiles import PROFILES
from cwm_jax.rl.envs.swe.workspaces import container, engine
from cwm_jax.rl.envs.swe.workspaces.container import ContainerWorkspace
from cwm_jax.rl.envs.swe.workspaces.engine import Engine, EngineError, find_engine
from cwm_jax.rl.playing.keeper import Keeper
from cwm_jax.tokenizer import END_OF_TURN

MEMORY = 1 << 30


@pytest.fixture
def fake(tmp_path, git_task):
    image = tmp_path / "image"
    repository = git_task.data["repository"]
    git = ["git", "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "-q", repository["git"], image], check=True)
    subprocess.run([*git, "checkout", "-q", repository["commit"]], cwd=image, check=True)
    fake = FakeEngine(tmp_path / "engine.sock", image, tmp_path / "testbed")
    yield fake
    fake.stop()


@pytest.fixture
def workspace(fake):
    made = ContainerWorkspace(
        IMAGE, str(fake.root), memory_bytes=MEMORY, engine=Engine(fake.home / "engine.sock")
    )
    yield made
    made.close()


def test_a_container_has_no_network_and_bounded_means(fake, workspace):
    (settings,) = fake.containers.values()
    host = settings["HostConfig"]
    assert settings["Image"] == IMAGE and settings["NetworkDisabled"]
    assert host["NetworkMode"] == "none" and host["CapDrop"] == ["ALL"]
    assert host["Memory"] == host["MemorySwap"] == MEMORY and host["PidsLimit"] == 4096
    assert host["SecurityOpt"] == ["no-new-privileges"]
    workspace.close()
    workspace.close()
    assert fake.removed == ["c0"] and not fake.containers


def test_its_shell_lasts_and_reads_nothing(workspace):
    assert workspace.run("pwd", 10).output == f"{workspace.root}\n"
    workspace.run('cd tests; f() { echo "it\'s $1"; }; export x=5', 10)
    reply = workspace.run("f 'a\nb'; echo $x; pwd; echo err >&2; (exit 7)", 10)
    assert reply.output == f"it's a\nb\n5\n{workspace.root}/tests\nerr\n" and reply.exit_code == 7
    assert workspace.run("cat; read y; echo [$y]", 10).output == "[]\n"
    broken = workspace.run("if; then 'x", 10)
    assert broken.outcome == "ok" and broken.exit_code and "syntax" in broken.output
    assert workspace.run("echo $x; printf 'no line end'", 10).output == "5\nno line end"
    assert workspace.run("seq 20000", 10).output.endswith("19999\n20000\n")


def test_after_any_other_ending_there_is_a_fresh_shell(workspace):
    for command, outcome in (
        ("x=1; sleep 100", "timeout"),
        ("x=1; exit 3", "exit"),
        ("x=1; kill -9 $$", "exit"),
        ("x=1; yes", "too_long"),
    ):
        assert workspace.run(command, 0.5).outcome == outcome
        assert workspace.run("echo [$x]; pwd", 10).output == f"[]\n{workspace.root}\n"


def test_what_runs_in_the_background_ends_with_the_shell(workspace, fake):
    workspace.run("sleep 1000 & echo $! > pid", 10)
    assert workspace.run("exit", 100).outcome == "exit"  # though the job holds its output open
    gone = "[ ! -e /proc/$(cat pid) ] || grep zombie /proc/$(cat pid)/status"
    assert workspace.run(gone, 10).exit_code == 0


def test_files_are_read_and_written(workspace):
    root = workspace.root
    workspace.write(f"{root}/new/a.txt", b"a\xff\n")
    assert workspace.read(f"{root}/new/a.txt", 3) == b"a\xff\n"
    workspace.run("ln -s a.txt new/link; ln -s loop loop; mkfifo pipe; ln -s /none dangling", 10)
    assert workspace.read(f"{root}/new/link", 100) == b"a\xff\n"
    workspace.write(f"{root}/new/link", b"through")
    assert workspace.read(f"{root}/new/a.txt", 100) == b"through"
    for name, number in (
        ("new", errno.EISDIR),
        ("none", errno.ENOENT),
        ("dangling", errno.ENOENT),
        ("loop", errno.ENOENT),
        ("pipe", errno.EINVAL),
    ):
        with pytest.raises(OSError) as error:
            workspace.read(f"{root}/{name}", 100)
        assert error.value.errno == number, name
    with pytest.raises(OSError) as error:
        workspace.read(f"{root}/new/a.txt", 6)
    assert error.value.errno == errno.EFBIG
    with pytest.raises(NotADirectoryError):
        workspace.write(f"{root}/new/a.txt/b", b"")
    with pytest.raises(IsADirectoryError):
        workspace.write(f"{root}/new", b"")


def test_nothing_after_its_commit_can_be_found(workspace):
    command = "git log --all --format=%s; git for-each-ref; git reflog; git remote; git stash list"
    assert workspace.run(command, 10).output == "Base\nFirst\n"
    assert workspace.run("git fsck --unreachable --no-progress; git status -s", 10).output == ""
    everything = "for o in $(git cat-file --batch-all-objects --batch-check='%(objectname)')"
    assert "x * 2" not in workspace.run(f"{everything}; do git cat-file -p $o; done", 10).output


def test_an_episode_is_played_and_judged_in_containers(fake, git_task, play, monkeypatch):
    here = Engine(fake.home / "engine.sock")
    monkeypatch.setattr(container, "find_engine", lambda: here)
    repository = {"image": IMAGE, "root": str(fake.root)}
    task = Task(name="image", data={**git_task.data, "repository": repository})
    for patch, reward in ((GOLD, 1.0), (GOLD.replace("x * 2", "x + 4"), 0.0)):
        player = play(task)
        assert str(fake.root) in player.read
        assert "module.py" in output(player.say(call("bash", "ls")))
        player.say(call("create", f"{fake.root}.diff\n{patch.removesuffix(chr(10))}"))
        player.say(call("submit", f"{fake.root}.diff"))
        player.say(final())
        assert player.last.reward == reward, player.info
        (fake.root.parent / "testbed.diff").unlink()
    assert fake.removed == ["c0", "c1", "c2", "c3"]  # to work in, and to be judged in


def test_a_container_that_comes_up_after_its_step_was_given_up_is_removed(
    fake, git_task, tokenizer, clock, monkeypatch
):
    begun, go = threading.Event(), threading.Event()

    def find_late():
        clock.now_s += 1000.0
        begun.set()
        go.wait()
        return Engine(fake.home / "engine.sock")

    monkeypatch.setattr(container, "find_engine", find_late)
    repository = {"image": IMAGE, "root": str(fake.root)}
    task = Task(name="image", data={**git_task.data, "repository": repository})
    keeper = Keeper(lambda: SoftwareEngineering(task, tokenizer, PROFILES["small"]), 30.0)
    keeper.wait(60.0)
    assert keeper.answer().tokens
    keeper.step([*tokenizer.encode(call("bash", "ls")), tokenizer.special_tokens[END_OF_TURN]])
    begun.wait()
    assert keeper.answered
    with pytest.raises(EnvironmentFailure, match="no answer within 30 s"):
        keeper.answer()
    keeper.close()
    assert not keeper.is_closed() and not fake.removed
    go.set()
    assert keeper.is_closed(60.0)
    assert fake.removed == ["c0"] and not fake.containers


def test_what_the_engine_does_wrong_is_a_failure_of_the_environment(fake, workspace, tmp_path):
    here = Engine(fake.home / "engine.sock")
    with pytest.raises(EnvironmentFailure, match=r"says 404 to POST .*: .*No such image: other"):
        ContainerWorkspace("other", "/x", memory_bytes=MEMORY, engine=here)
    with pytest.raises(EnvironmentFailure, match="a shell does not start in /none"):
        ContainerWorkspace(IMAGE, "/none", memory_bytes=MEMORY, engine=here)
    with pytest.raises(EnvironmentFailure, match="cannot be prepared"):
        ContainerWorkspace(IMAGE, "/", memory_bytes=MEMORY, engine=here)
    absent = Engine(tmp_path / "absent.sock")
    with pytest.raises(EnvironmentFailure, match=r"absent\.sock does not answer"):
        ContainerWorkspace(IMAGE, "/x", memory_bytes=MEMORY, engine=absent)


def test_a_lost_container_is_a_failure_of_the_environment(fake, workspace):
    fake.containers.clear()
    with pytest.raises(EnvironmentFailure, match="says 404"):
        workspace.write(f"{workspace.root}/x", b"")
    with pytest.raises(EnvironmentFailure, match="says 404"):
        workspace.read(f"{workspace.root}/module.py", 10)


def test_without_an_engine_it_says_so(monkeypatch):
    monkeypatch.setattr(engine.Path, "is_socket", lambda path: False)
    with pytest.raises(EnvironmentFailure, match=r"no engine at /var/run/docker\.sock, /run"):
        find_engine()


def test_a_real_engine_does_what_the_fake_one_does():
    try:
        real = find_engine()
        tags = [tag for entry in real._asked("GET", "/images/json") for tag in entry["RepoTags"]]
    except (EnvironmentFailure, EngineError) as error:
        pytest.skip(f"no engine at hand: {error}")
    for tag in tags:
        number = real.create(container._settings(tag, MEMORY))
        try:
            real.start(number)
            if real.run(number, ["/bin/sh", "-c", "command -v bash"])[0] == 0:
                real.put_archive(number, "/tmp", container._tar("a", b"text", 0o644))
                assert real.stat(number, "/tmp/a")[1] == 4 and real.stat(number, "/no") is None
                session = container._Session(real, number, "/tmp")
                assert session.run("cat a; cat", 10).output == "text"
                return
        finally:
            real.remove(number)
    pytest.skip("the engine has no image with bash")
