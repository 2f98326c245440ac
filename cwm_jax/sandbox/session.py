"""The first process inside a shell's sandbox: keeps one bash, and starts another where it ends.

It stands to bash as `zygote.py`, whose file lies beside it, to its children: out of their reach,
and the end of all of them. bash reads a script from a pipe that it opened itself, so that commands
do not inherit it; their stdin is /dev/null. Of each command the script has an ``eval`` of one
quoted word, whatever is in it, and a line that writes a new random word and the status to a pipe.
Commands inherit that pipe, yet do not know the word. One that looks for it in bash's script can
feign its own end. But no more than an exit status is taken from that pipe, and a pipe that others
have emptied or filled does not fail this process.
"""

import contextlib
import errno
import fcntl
import importlib.util
import marshal
import os
import re
import select
import signal
import stat
import struct
import termios
import time
import traceback

_spec = importlib.util.spec_from_file_location(
    "zygote", os.path.join(os.path.dirname(os.path.abspath(__file__)), "zygote.py")
)
assert _spec and _spec.loader
zygote = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(zygote)

SCRIPT_FD = 3  # bash opens it anew, and closes this one
STATUS_FD = 251  # far from what people use, and from bash's own, which are 10 and up, 63 and down
BASH = ("bash", "--noprofile", "--norc")
FIRST_LINES = f'\\exec {SCRIPT_FD}<&-\n\\cd -- "$HOME"\n\\unset OLDPWD\n'.encode()
STATUS_BYTES = 4096  # more than one line of status, less than is worth keeping
CODE = rb"(1?\d?\d|2[0-4]\d|25[0-5])"  # what an exit status can be; a report takes no larger number


def main():
    requests, reports = zygote.own_pipes()
    start = marshal.loads(zygote.read_frame(requests) or b"")
    try:
        os.umask(0o022)
        zygote.settle(start)
    except BaseException:
        zygote.write(reports, zygote.report("error", detail=traceback.format_exc().encode()))
        return
    zygote.write(reports, zygote.report("ok"))
    shell = Shell(start, requests)
    try:
        while (frame := shell.next_frame()) is not None:
            zygote.write(reports, shell.answer(marshal.loads(frame)))
    finally:
        shell.end()


class Shell:
    """Answers the host, from one session to the next."""

    def __init__(self, start, host):
        self.start, self.host = start, host
        self.session = None
        self.lost = None  # the report of a session that ended while nobody waited

    def next_frame(self):
        while self.session and not self.asked(self.session):
            pass
        return zygote.read_frame(self.host)

    def asked(self, session):
        """Waits for the host, for a moment; what still runs is kept within its limits."""
        poll = select.poll()
        poll.register(self.host, select.POLLIN)
        poll.register(session.process, select.POLLIN)
        session.reap()
        alone = sum(1 for _ in session.processes()) < 2
        ready = [fd for fd, _ in poll.poll(None if alone else 1000 * zygote.TICK_S)]
        if self.host in ready:
            return True
        why = session.too_much()
        if why or session.process in ready:
            session.forget_output()
            _, detail = ("exit", why) if why else session.ended(None)
            self.lost = self.finish(session, "exit", f"between two commands: {detail}")
        return False

    def answer(self, request):
        try:
            return getattr(self, f"do_{request['do']}")(request)
        except OSError as error:
            code = error.errno or errno.EINVAL
        except ValueError:  # no name of a file
            code = errno.EINVAL
        return zygote.report("error", detail=os.strerror(code).encode(), returncode=code)

    def do_start(self, request):
        """The first request: limits, script and files."""
        self.limits, self.script = request["limits"], request["script"]
        del self.limits["cpu_s"]  # time is limited by the clock
        zygote.write_files(self.start["scratch"], request["files"])
        return self.run(self.script, request["timeout_s"])

    def do_run(self, request):
        if self.lost:
            lost, self.lost = self.lost, None
            return lost
        deadline = time.monotonic() + request["timeout_s"]
        if not self.session:
            report = self.run(self.script, request["timeout_s"])
            if not self.session:
                return report
        return self.run(request["command"], deadline - time.monotonic())

    def run(self, command, timeout_s):
        self.session = session = self.session or Session(self.start, self.limits)
        return self.finish(session, *session.run(command, timeout_s, self.host))

    def finish(self, session, outcome, detail):
        """Returns the report; only a session that is well goes on."""
        output, code = session.output(), session.code
        if outcome != "ok":
            self.end()
        return zygote.report(outcome, detail=detail.encode(), value=output, returncode=code)

    def end(self):
        if self.session:
            self.session.end()
        self.session = None

    def do_read(self, request):
        with open_regular(self.path(request), os.O_RDONLY) as file:
            content = file.read(request["max_bytes"] + 1)
        if len(content) > request["max_bytes"]:
            raise OSError(errno.EFBIG, "")
        return zygote.report("ok", value=content)

    def do_write(self, request):
        path, content = self.path(request), request["content"]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open_regular(path, os.O_WRONLY | os.O_CREAT) as file:
            if content:  # what does not fit does not cost the old content
                os.posix_fallocate(file.fileno(), 0, len(content))
            zygote.write(file.fileno(), content)
            file.truncate(len(content))
        return zygote.report("ok")

    def path(self, request):
        return os.path.join(self.start["scratch"], request["path"])


def open_regular(path, flags):
    """Opens a file of the agent's, which may be anything: a pipe, a device, a link into /proc."""
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(path, flags, 0o666)
    file = os.fdopen(fd, "wb", 0) if flags & os.O_WRONLY else os.fdopen(fd, "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_dev != os.stat("/proc").st_dev:
        return file
    file.close()
    raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL, "")


class Session(zygote.Family):
    """One bash with what it has started."""

    def __init__(self, start, limits):
        super().__init__(start)
        self.limits = limits
        self.forget_output()
        self.code = 0  # status of the last command, or what bash ended with
        self.to_write = memoryview(FIRST_LINES)
        script, self.script_fd = os.pipe()
        # These two keep both ends, and so do not end before bash.
        self.output_fds, self.status_fds = os.pipe(), os.pipe()
        for fd in (self.script_fd, self.output_fds[0], self.status_fds[0]):
            os.set_blocking(fd, False)
        pid = os.fork()
        if pid == 0:
            self.become_bash(script)
        os.close(script)
        self.adopt(pid)

    def become_bash(self, script):
        """In the child; never returns."""
        try:
            os.setsid()
            zygote.prctl(zygote.PR_SET_PDEATHSIG, signal.SIGKILL)
            output, status = self.output_fds[1], self.status_fds[1]
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for fd, number in ((output, 1), (output, 2), (status, STATUS_FD), (script, SCRIPT_FD)):
                os.dup2(fd, number)
            os.closerange(SCRIPT_FD + 1, STATUS_FD)
            os.closerange(STATUS_FD + 1, zygote.MAX_FDS)
            with contextlib.suppress(OSError):  # root's, or as it has to be
                os.chmod(self.scratch, 0o700)
            zygote.default_signals()
            zygote.set_limits(self.limits, self.isolated)
            os.execvp(BASH[0], (*BASH, self.script_name()))
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            zygote.exit_now(127)

    def script_name(self):
        """What bash's messages start with: its own name, if there is a link to its script."""
        if not self.isolated:
            return f"/dev/fd/{SCRIPT_FD}"
        os.chdir(os.path.dirname(os.path.abspath(__file__)))
        return "bash"

    def run(self, command, timeout_s, host):
        """Returns the outcome and a detail; ``output`` and ``code`` have the rest."""
        deadline = time.monotonic() + timeout_s
        word = os.urandom(16).hex().encode()
        self.to_write = memoryview(bytes(self.to_write) + lines(command, word, self.code))
        self.forget_output()
        said = re.compile(word + b" " + CODE + b"\n")
        return self.watch(deadline, said, host) or ("timeout", f"more than {timeout_s:.3g} s")

    def watch(self, deadline, said, host):
        """Serves the pipes until the command has ended or has to be; None for the deadline."""
        poll = select.poll()
        for fd in (self.output_fds[0], self.status_fds[0], self.process):
            poll.register(fd, select.POLLIN)
        poll.register(host, 0)  # its end alone is reported
        if self.write_script():
            poll.register(self.script_fd, select.POLLOUT)
        look, status = time.monotonic() + zygote.TICK_S, b""
        while (now := time.monotonic()) < deadline:
            if now >= look:
                look = now + zygote.TICK_S
                if why := self.too_much():
                    return "exit", why
            wait_s = min(look, deadline) - now
            ready = {fd for fd, _ in poll.poll(max(0.0, wait_s * 1000))}
            if host in ready:
                self.kill_all()
                zygote.exit_now(0)
            if self.script_fd in ready and not self.write_script():
                poll.unregister(self.script_fd)
            if self.status_fds[0] in ready:
                status = status[-STATUS_BYTES:] + read_some(self.status_fds[0], STATUS_BYTES)
            found = said.search(status)
            if found or self.process in ready:
                return self.ended(found)
            if self.output_fds[0] in ready:
                self.take(1 << 16)
                if self.size > self.limits["output_bytes"]:
                    return self.too_long()
        return None

    def ended(self, found):
        """Nothing that the command itself wrote is still to come, and jobs may write for ever."""
        self.take(waiting(self.output_fds[0]))
        if self.size > self.limits["output_bytes"]:
            return self.too_long()
        if found:
            self.code = int(found[1])
            return "ok", ""
        self.reap()  # bash among them
        self.code = os.waitstatus_to_exitcode(self.status)
        return "exit", f"bash ended with status {self.code}"

    def too_long(self):
        return "too_long", f"more than {self.limits['output_bytes']} bytes of output"

    def too_much(self):
        """Returns why this cannot go on, if it cannot."""
        _, memory_bytes = self.usage()
        if memory_bytes > self.limits["memory_bytes"]:
            self.code = -signal.SIGKILL  # what it is going to end with
            return f"more than {self.limits['memory_bytes']} bytes in all processes"
        return ""

    def write_script(self):
        """Returns whether there is more to write."""
        try:
            while self.to_write:
                self.to_write = self.to_write[os.write(self.script_fd, self.to_write) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:  # it reads no more, and will end or be ended
            self.to_write = self.to_write[:0]
        return False

    def take(self, size):
        """Reads so many bytes of output, if there are."""
        while size > 0:
            chunk = read_some(self.output_fds[0], min(size, 1 << 16))
            if not chunk:
                return
            self.chunks.append(chunk)
            self.size += len(chunk)
            size -= len(chunk)

    def forget_output(self):
        self.chunks, self.size = [], 0

    def output(self):
        return b"".join(self.chunks)[: self.limits["output_bytes"]]

    def end(self):
        self.kill_all()
        fds = (self.script_fd, *self.output_fds, *self.status_fds, self.process)
        for fd in fds:
            os.close(fd)


def lines(command, word, code):
    """What bash reads for one command.

    Each is a simple command on a line of its own: what stopped bash's parser in the first does not
    stop it in the next, where it would not know a reserved word.
    """
    before = b"\\eval '(exit %d) && :'\n" % code if code else b""  # what ``$?`` is in it
    quoted = command.replace(b"'", b"'\\''")
    report = b"\\builtin printf '%s %%d\\n' \"$?\" >&%d || \\exit\n" % (word, STATUS_FD)
    return before + b"\\eval -- '" + quoted + b"'\n" + report


def read_some(fd, size):
    """Nothing, too, where there was something: commands can open the pipe by /proc and read it."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return b""


def waiting(fd):
    """How many bytes the pipe holds now."""
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0]


if __name__ == "__main__":
    main()
