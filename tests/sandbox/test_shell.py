"""A shell lasts from command to command, and survives whatever a command does to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from process_tree import descendants, has_ended, wait_until

from cwm_jax.sandbox import SandboxError, Shell, ShellLimits

ROOT = Path(__file__).parents[2]
SHORT = ShellLimits(
    timeout_s=20,
    output_bytes=100_000,
    memory_bytes=256 << 20,
    scratch_bytes=32 << 20,
    processes=24,
)
KINDS = {"own": False, "namespace": True}


@pytest.fixture
def shell() -> Iterator[Shell]:
    with Shell(limits=SHORT) as shell:
        yield shell


@pytest.fixture(params=KINDS)
def any_shell(request, monkeypatch) -> Iterator[Shell]:
    """In both kinds of sandboxes, as in conftest.py."""
    if KINDS[request.param]:
        monkeypatch.setattr("cwm_jax.sandbox.bubblewrap.unique_uid", lambda: None)
    with Shell(limits=SHORT) as shell:
        yield shell


def output(shell: Shell, command: str) -> str:
    reply = shell.run(command)
    assert reply.outcome == "ok", reply
    return reply.output


def test_folder_variables_functions_and_options_last(any_shell):
    any_shell.run("mkdir a; cd a; x=1; export Y=2; f() { echo f $1; }; shopt -s extglob; umask 077")
    assert output(any_shell, "pwd; echo $x; f 3; sh -c 'echo $Y'; shopt extglob; umask") == (
        "/tmp/a\n1\nf 3\n2\nextglob        \ton\n0077\n"
    )


def test_the_exit_code_is_the_commands_and_the_next_one_finds_it(shell):
    for command, code in (("true", 0), ("false", 1), ("(exit 37)", 37), ("nonesuch", 127)):
        assert shell.run(command).exit_code == code
        assert output(shell, "echo $?") == f"{code}\n"
    assert shell.run("sh -c 'kill -9 $$'").exit_code == 137
    assert shell.run("echo a | grep b").exit_code == 1


def test_stdout_and_stderr_come_as_they_were_written(shell):
    text = output(shell, "echo a; echo b >&2; sh -c 'echo c >&2; echo d'; nonesuch; echo e")
    assert text.startswith("a\nb\nc\nd\nbash: line ")
    assert text.endswith(": nonesuch: command not found\ne\n")


def test_output_that_comes_with_the_end_is_not_lost(shell):
    first = descendants(shell._supervisor.process.pid)[0]
    with ThreadPoolExecutor(1) as threads:
        late = threads.submit(output, shell, "read -t 0.2 < <(sleep 9); echo late")
        wait_until(lambda: len(inside(shell)) == 3)
        os.kill(first, signal.SIGSTOP)  # it finds both at once
        time.sleep(0.5)
        os.kill(first, signal.SIGCONT)
        assert late.result() == "late\n"


def test_output_is_not_changed_and_what_is_no_text_is_replaced(shell):
    assert output(shell, "printf 'a\\r\\n\\n  é'") == "a\r\n\n  é"
    assert output(shell, r"printf 'a\0b\xff\xfe'") == "a\0b\ufffd\ufffd"


def test_commands_read_an_empty_stdin(shell):
    assert output(shell, "cat; read x; echo $?; python -c 'import sys; print(sys.stdin.read())'")
    assert output(shell, "bash; sh -s; echo here\necho there") == "here\nthere\n"


def test_a_command_ends_with_its_foreground(shell):
    start = time.monotonic()
    assert output(shell, "(sleep 0.3; echo late) & echo now") == "now\n"
    assert time.monotonic() - start < SHORT.timeout_s / 2
    assert output(shell, "wait; echo done") == "late\ndone\n"


def test_a_job_that_writes_for_ever_holds_no_command(shell):
    assert output(shell, "yes > /dev/null & while :; do echo x; sleep 0.01; done & echo y")
    text = output(shell, "sleep 0.1; echo now")
    assert set(text.split()) == {"x", "now"}
    shell.run("yes &")  # fills the pipe between commands
    assert shell.run("sleep 5").outcome == "too_long"
    assert output(shell, "echo /proc/[0-9]*").split() == ["/proc/1", f"/proc/{pid(shell)}"]


def pid(shell: Shell) -> int:
    return int(output(shell, "echo $$"))


CODES_OF_ENDED_SHELLS = {
    "exit 3": 3,
    "exit": 0,
    "kill -9 $$": -9,
    "kill -TERM $$": -15,
    "exec true": 0,
    "exec nonesuch": 127,
    "exec bash": 0,
    "set -e; false": 1,
    "set -u; echo $nonesuch": 1,
    "echo ${nonesuch?}": 1,
    "trap 'exit 5' EXIT; exit 4": 5,
    "exec 251>&-": 1,
    "python -c 'import os; os.kill(-1, 9)'": -9,
}


@pytest.mark.parametrize("command", CODES_OF_ENDED_SHELLS)
def test_a_shell_that_ends_is_started_afresh(shell, command):
    reply = shell.run("echo before; " + command)
    assert (reply.outcome, reply.exit_code) == ("exit", CODES_OF_ENDED_SHELLS[command]), reply
    assert reply.output.startswith("before\n") and "bash ended with status" in reply.detail
    assert output(shell, "echo well") == "well\n"


HOSTILE = {
    "an unbalanced quote": ("echo 'a", {"ok"}),
    "an unbalanced double quote": ('echo "a $(', {"ok"}),
    "an unfinished here-document": ("cat <<EOF\na", {"ok"}),
    "an unfinished if": ("if true; then", {"ok"}),
    "an unfinished function": ("f() {", {"ok"}),
    "a closing quote": ("'; exit 1; echo '", {"ok"}),
    "an unfinished line": ("echo a \\", {"ok"}),
    "a comment": ("# a", {"ok"}),
    "nothing": ("", {"ok"}),
    "an option": ("--help", {"ok"}),
    "break": ("break; continue; return", {"ok"}),
    "a bad substitution": ("echo ${a!b}", {"ok"}),
    "NULs": ("echo a\0b\0", {"ok"}),
    "surrogates": ("echo \udc80\ud800", {"ok"}),
    "control characters": ("echo \x01\x7f\x1b[2J\r", {"ok"}),
    "set -e": ("set -e", {"ok"}),
    "set -n": ("set -n", {"timeout", "exit"}),
    "set -r": ("set -r", {"ok"}),
    "set -x and -v": ("set -xv", {"ok"}),
    "traps": ("trap '' TERM INT HUP PIPE; trap 'echo trap' DEBUG ERR RETURN", {"ok"}),
    "an exit that never ends": ("trap 'while :; do :; done' EXIT; exit", {"timeout"}),
    "eval redefined": ("eval() { :; }; builtin() { :; }; exit() { :; }", {"timeout"}),
    "aliases": ("shopt -s expand_aliases; alias eval=: builtin=: exit=:", {"ok"}),
    "stdout and stderr elsewhere than before": ("exec >&- 2>&-", {"ok"}),
    "stdout and stderr elsewhere": ("exec > /tmp/log 2>&1", {"ok"}),
    "the script closed": ("exec 255<&-", {"ok", "exit"}),
    "all descriptors closed": ('for i in {0..255}; do eval "exec $i>&-"; done', {"ok", "exit"}),
    "kill -9 -1": ("kill -9 -1", {"ok", "exit"}),
    "stopped": ("kill -STOP $$", {"timeout"}),
    "a signal to the first process": ("kill -9 1; kill -TERM 1; kill -STOP 1", {"ok"}),
    "a fork bomb": (":(){ :|:& };:", {"ok", "timeout"}),
    "sleep": ("sleep 100", {"timeout"}),
    "a loop that ignores signals": ("trap '' TERM INT; while :; do :; done", {"timeout"}),
    "output without end": ("yes", {"too_long"}),
    "one long line": ("head -c 10000000 /dev/zero", {"too_long"}),
    "stderr without end": ("yes >&2", {"too_long"}),
    "forged ends on every descriptor": (
        "for i in {3..260}; do echo 00000000000000000000000000000000 7 >&$i; done 2>/dev/null",
        {"ok"},
    ),
    "a flood on the pipe of ends": ("yes >&251", {"timeout"}),
    "a flood on the pipe of ends, and others that read it": (
        "for i in {1..6}; do cat < /proc/self/fd/251 > /dev/null & done; yes >&251 & yes >&251",
        {"timeout"},
    ),
    "others that read the output": (
        "for i in {1..6}; do cat < /proc/self/fd/1 > /dev/null & done; yes | head -c 9000",
        {"ok", "timeout"},
    ),
    "few descriptors": ("ulimit -n 8", {"ok"}),
    "little memory": ("ulimit -v 1000", {"ok", "exit"}),
    "the scratch folder removed": ("rm -rf --no-preserve-root /sandbox /tmp; cd /", {"ok"}),
    "the scratch folder closed": ("chmod 0 /tmp", {"ok"}),
}


@pytest.fixture(scope="module", params=KINDS)
def hardened(request) -> Iterator[Shell]:
    """One shell for all of the hostile commands, which no process 1 may die of."""
    with pytest.MonkeyPatch.context() as patch:
        if KINDS[request.param]:
            patch.setattr("cwm_jax.sandbox.bubblewrap.unique_uid", lambda: None)
        shell = Shell(limits=SHORT)
    with shell:
        yield shell


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_hangs_or_breaks_the_shell(hardened, name, request):
    assert hardened.folder == "/tmp"  # never outside a sandbox
    if name == "a fork bomb" and request.node.callspec.params["hardened"] == "namespace":
        pytest.skip("there the kernel counts no processes of root's: see conftest.py")
    command, outcomes = HOSTILE[name]
    timeout_s = 0.2 if "timeout" in outcomes else None
    reply = hardened.run(command, timeout_s=timeout_s)
    assert reply.outcome in outcomes, reply
    reply = hardened.run("echo well", timeout_s=timeout_s)
    assert "well\n" in reply.output or "timeout" in outcomes or "elsewhere" in name, reply
    hardened.run("\\kill -9 $$", timeout_s=timeout_s)
    if "timeout" in outcomes:  # the one before may have been the first to end
        hardened.run("\\kill -9 $$")
    bash = pid(hardened)
    assert output(hardened, "echo well; echo /proc/[0-9]*") == f"well\n/proc/1 /proc/{bash}\n"


def test_a_command_cannot_end_itself_without_the_word(shell):
    forge = "for i in {3..260}; do echo '" + "0" * 32 + " 7' >&$i; done 2> /dev/null"
    shell.write("forge", forge.encode())
    reply = shell.run("bash forge; . ./forge; sleep 0.3; echo end; (exit 3)")
    assert (reply.outcome, reply.exit_code) == ("ok", 3)
    assert reply.output.endswith("end\n")  # bash keeps its stdout in one of them meanwhile


# Takes the word from the pipe of bash's script, writes it with any code, and puts the script back.
FEIGN = r"""
import os, re, sys
bash = f"/proc/{os.getppid()}/fd"
links = {n: os.readlink(f"{bash}/{n}") for n in os.listdir(bash) if int(n) > 2 and n != "251"}
(pipe,) = [n for n, link in links.items() if link.startswith("pipe")]
script = os.read(os.open(f"{bash}/{pipe}", os.O_RDONLY), 1 << 16)
(word,) = re.findall(rb"[0-9a-f]{32}", script)
os.write(251, word + b" " + eval(sys.argv[1]) + b"\n")
os.write(os.open(f"{bash}/{pipe}", os.O_WRONLY), script)
"""
NO_CODES = ["b'99999999999'", "b'9' * 4000", "b'9' * 4400", "b'256'", "b'-1'", "b''", "b'0x1'"]


@pytest.mark.parametrize("code", NO_CODES)
def test_what_is_no_exit_code_ends_neither_the_command_nor_the_sandbox(shell, code):
    shell.write("feign.py", FEIGN.encode())
    reply = shell.run(f'python feign.py "{code}"; echo end; (exit 3)')
    assert (reply.outcome, reply.exit_code, reply.output) == ("ok", 3, "end\n"), reply
    assert output(shell, "echo well") == "well\n"


def test_a_command_that_finds_the_word_can_end_itself_alone(shell):
    shell.write("feign.py", FEIGN.encode())
    wait = "until [ -e go ]; do sleep 0.01; done"
    reply = shell.run(f"python feign.py \"b'255'\"; {wait}; echo late")
    assert (reply.outcome, reply.exit_code, reply.output) == ("ok", 255, "")
    shell.write("go", b"")
    reply = shell.run("echo well; (exit 4)")
    assert (reply.outcome, reply.exit_code, reply.output) == ("ok", 4, "late\nwell\n")


def test_a_megabyte_of_command_arrives(shell):
    text = "'" + "ab\n" * (1 << 18) + "'"
    assert output(shell, f"printf %s {text} > file; wc -c < file").strip() == str(3 << 18)
    shell.run("exec 255<&-")
    assert shell.run(f": {text}").outcome in ("ok", "exit")
    assert output(shell, "cat file | wc -l").strip() == str(1 << 18)


def test_the_limit_of_output_is_exact(shell):
    assert len(output(shell, "head -c 100000 /dev/zero")) == 100_000
    reply = shell.run("head -c 100001 /dev/zero")
    assert (reply.outcome, reply.exit_code, len(reply.output)) == ("too_long", None, 100_000)
    assert reply.detail == "more than 100000 bytes of output"


def test_a_command_may_have_its_own_time(shell):
    reply = shell.run("echo a; sleep 100; echo b", timeout_s=0.3)
    assert (reply.outcome, reply.exit_code, reply.output) == ("timeout", None, "a\n")
    assert reply.detail == "more than 0.3 s"


def test_a_fresh_session_has_the_start_script_and_the_files_and_nothing_else():
    files = {"repo/file": b"text"}
    with Shell(files=files, start="cd repo; started=$((started + 1))", limits=SHORT) as shell:
        assert output(shell, "pwd; cat file; echo $started; x=1; echo new > new") == (
            "/tmp/repo\ntext1\n"
        )
        assert shell.run("cd /; sleep 100 & setsid sleep 100 & exit").outcome == "exit"
        assert output(shell, "pwd; cat new; echo $started$x") == "/tmp/repo\nnew\n1\n"


DETACHED = {
    "a job": "sleep 100 &",
    "nohup": "nohup sleep 100 > /dev/null 2>&1 &",
    "setsid": "setsid sleep 100 &",
    "a daemon": "(setsid sh -c '(trap \"\" TERM HUP; sleep 100; sleep 100) &' &)",
    "disown": "sleep 100 & disown -a",
}


@pytest.mark.parametrize("name", DETACHED)
def test_what_has_been_detached_lasts_until_the_session_ends(shell, name):
    output(shell, DETACHED[name] + "\n true")
    wait = "until grep -qs sleep /proc/[0-9]*/comm; do sleep 0.01; done"
    assert output(shell, wait + "; echo runs") == "runs\n"
    shell.run("sleep 100", timeout_s=0.1)
    assert output(shell, "grep -h sleep /proc/[0-9]*/comm") == ""


def test_closing_leaves_no_processes():
    shell = Shell(limits=SHORT)
    for command in DETACHED.values():
        shell.run(command)
    first = shell._supervisor.process.pid
    processes = [first, *descendants(first)]
    assert len(processes) >= 4
    shell.close()
    assert all(map(has_ended, processes))
    with pytest.raises(ValueError, match="the shell is closed"):
        shell.run("true")
    shell.close()


def test_a_session_that_ends_between_commands_is_told_once(shell):
    bash = pid(shell)
    output(shell, "x=1; (sleep 0.05; kill -9 $$) &")
    wait_until(lambda: bash not in inside(shell))
    reply = shell.run("echo not run")
    assert (reply.outcome, reply.exit_code, reply.output) == ("exit", -9, "")
    assert reply.detail == "between two commands: bash ended with status -9"
    assert output(shell, "echo run $x") == "run\n"


def inside(shell: Shell) -> list[int]:
    """The numbers that processes have inside."""
    found = []
    for process in descendants(shell._supervisor.process.pid):
        status = Path(f"/proc/{process}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        found += [int(line.split()[-1]) for line in lines if line.startswith("NSpid:")]
    return found


MEMORY = "python -c 'x = bytearray(60 << 20); import time; time.sleep(100)'"


def test_memory_of_all_processes_together_is_limited(shell):
    reply = shell.run(f"for i in 1 2 3 4 5; do {MEMORY} & done; wait")
    assert (reply.outcome, reply.exit_code) == ("exit", -9)
    assert reply.detail == f"more than {256 << 20} bytes in all processes"
    output(shell, f"for i in 1 2 3 4 5; do {MEMORY} & done")
    wait_until(lambda: len(inside(shell)) == 1)  # they are watched between commands, too
    assert "between two commands: more than" in shell.run("true").detail
    assert "MemoryError" in output(shell, "python -c 'x = bytearray(1 << 30)'")


def test_the_scratch_folder_and_descriptors_are_limited(shell):
    assert "No space left" in output(shell, "head -c 20000000 /dev/zero | tee a b > c; rm a b c")
    assert "Read-only" in output(shell, "echo > /a; echo > /dev/shm/a; echo > /usr/a")
    assert output(shell, "ulimit -n; ulimit -c") == "1024\n0\n"


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user's sandboxes share its uid")
def test_processes_are_limited(shell):
    code = (
        "import subprocess\nn = 0\ntry:\n  while n < 99: subprocess.Popen(['sleep', '100']); n += 1"
    )
    shell.write("many.py", f"{code}\nexcept OSError as error: print(n, error)".encode())
    number, error = output(shell, "python many.py").split(maxsplit=1)
    assert 15 < int(number) < 24 and "Resource temporarily unavailable" in error


def test_the_start_script_has_to_work_at_first():
    for start, complaint in (
        ("cd nowhere", "No such file"),
        ("exit", "bash ended"),
        ("(", "syntax"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)start script of a shell fails.*{complaint}"):
            Shell(start=start)
    limits = ShellLimits(timeout_s=0.2)
    with pytest.raises(ValueError, match=r"more than 0\.2 s"):
        Shell(start="echo a; sleep 100", limits=limits)


def test_a_start_script_that_was_spoilt_costs_the_next_command_only(shell):
    with Shell(start=". ./rc", files={"rc": b"true"}, limits=SHORT) as shell:
        shell.run("echo 'exit 9' > rc; exit")
        reply = shell.run("rm rc")
        assert (reply.outcome, reply.exit_code) == ("exit", 9)
        shell.write("rc", b"nonesuch; sleep 100")
        assert shell.run("true", timeout_s=0.2).outcome == "timeout"
        shell.write("rc", b"nonesuch")
        assert output(shell, "echo well") == "well\n"


def test_threads_may_share_a_shell(shell):
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda n: output(shell, f"echo {n}; x{n}={n}"), range(40)))
    assert replies == [f"{n}\n" for n in range(40)]
    assert output(shell, "echo $x0 $x39") == "0 39\n"


def test_a_lost_sandbox_is_an_error_and_no_reply():
    with Shell(limits=SHORT) as shell:
        os.kill(shell._supervisor.process.pid, signal.SIGKILL)
        wait_until(lambda: not shell._supervisor.alive())
        with pytest.raises(SandboxError, match="the sandbox was lost"):
            shell.run("true")
        with pytest.raises(ValueError, match="its sandbox was lost: make another"):
            shell.run("true")
    with Shell(limits=SHORT) as shell:
        kill = threading.Timer(0.2, os.kill, (shell._supervisor.process.pid, signal.SIGKILL))
        kill.start()
        with pytest.raises(SandboxError, match="the sandbox was lost"):
            shell.run("sleep 100")
        kill.join()


def test_a_first_process_that_hangs_is_an_error_and_no_reply(monkeypatch):
    monkeypatch.setattr("cwm_jax.sandbox.supervisor._GRACE_S", 0.2)
    with Shell(limits=SHORT) as shell:
        first = descendants(shell._supervisor.process.pid)[0]
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(SandboxError, match="does not answer"):
            shell.run("true", timeout_s=0.2)
        assert has_ended(first)


def test_the_sandbox_ends_with_a_host_that_is_killed_in_a_command():
    code = (
        "from cwm_jax.sandbox import Shell\n"
        "shell = Shell()\n"
        "print(shell._supervisor.process.pid, flush=True)\n"
        "shell.run('setsid sleep 60 & sleep 60')\n"
    )
    line = [sys.executable, "-c", code]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as host:
        first = int(host.stdout.readline())
        wait_until(lambda: len(descendants(first)) == 4)  # the first one, bash and both
        processes = [first, *descendants(first)]
        host.kill()
    wait_until(lambda: all(map(has_ended, processes)))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="stay in it"):
        Shell(files={"../a": b""})
    with pytest.raises(ValueError, match="readable path"):
        Shell(readable=[Path("/does/not/exist")])
    with pytest.raises(ValueError, match=r"ShellLimits.open_files is 4; .* at least 32"):
        ShellLimits(open_files=4)


def test_without_bubblewrap_it_refuses_or_works_in_a_folder(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SECRET", "of the host")
    with pytest.raises(SandboxError, match="unsafe=True"):
        Shell()
    files = {"a/b": b"text"}
    with Shell(unsafe=True, files=files, start="cd a", limits=SHORT) as shell:
        assert output(shell, "pwd; cat b; echo $SECRET") == f"{shell.folder}/a\ntext\n"
        assert output(shell, "git init -q; git commit -q --allow-empty -m x; git log --format=%s")
        assert output(shell, "python -c 'print(1)'; x=1") == "1\n"
        shell.write("c", b"c")
        assert shell.read("c", max_bytes=1) == b"c"
        for command, outcome in (("sleep 100", "timeout"), ("exit", "exit"), ("yes", "too_long")):
            assert shell.run(f"sleep 100 & {command}", timeout_s=0.3).outcome == outcome
            assert output(shell, "echo $x; cat b") == "\ntext"
        first = shell._supervisor.process.pid
        wait_until(lambda: len(descendants(first)) == 1)
        shell.run("sleep 100 &")
        processes = [first, *descendants(first)]
    assert not Path(shell.folder).exists() and all(map(has_ended, processes))
