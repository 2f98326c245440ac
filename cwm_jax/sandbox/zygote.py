"""The first process inside a sandbox: forks a child for every request and watches over it.

One self-contained file, because nothing else of the project can be read there. Its children have
its uid, so other means keep it out of their reach: as process 1 of its namespace it survives their
signals, it cannot be traced, and `seccomp.py` refuses them its limits and priority.

Frames, both with a length first: the host sends marshalled dictionaries, and gets a `Report`.
"""

import contextlib
import ctypes
import fcntl
import gc
import marshal
import math
import os
import resource
import select
import signal
import struct
import sys
import time
import traceback
import types

LENGTH = struct.Struct("<Q")
# outcome, retire, has a value, returncode, cpu_s, wall_s, lengths of value, stdout, stderr, detail
REPORT = struct.Struct("<16s??xxidd4Q")
REPLY = struct.Struct("<cQ")  # of a child: kind and length
VALUE, RAISED, NO_MEMORY, NOT_STARTED = b"v", b"e", b"m", b"x"
DETAIL_BYTES = 1 << 16

TICK_S = 0.05  # assumed: how far memory may overshoot between two looks
MAX_REMOVED = 10_000  # assumed: with more in the scratch folder, a new sandbox is the faster way
INODE_BYTES = (
    1024  # assumed: what an empty file costs the kernel, which a tmpfs's size does not count
)
PAGE_BYTES = resource.getpagesize()
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
REPLY_FD, FIRST_OWN_FD, MAX_FDS = 3, 10, 1 << 10
WAIT_ALL = 0x40000000  # __WALL of wait4(2): children that announce their end by another signal, too

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24  # linux/prctl.h
libc = ctypes.CDLL(None, use_errno=True)
exit_now, write_some = os._exit, os.write  # a program may leave others in their place


def main():
    requests, reports = own_pipes()
    start = marshal.loads(read_frame(requests) or b"")
    try:
        settle(start)
        handle = load(start["program"], start["preload"])
    except BaseException:
        write(reports, report("error", detail=traceback.format_exc().encode()))
        return
    flush()
    gc.collect()
    gc.freeze()  # the children share these pages: a collection must not write to them
    write(reports, report("ok"))
    while (frame := read_frame(requests)) is not None:
        call = Call(marshal.loads(frame), start, handle, requests)
        answer = call.run()
        write(reports, answer)
        wipe([frame, answer, *call.contents()])


def settle(start):
    """Gives up what untrusted code may not have; everything inside descends from this process."""
    if start["uid"] is not None:
        drop_to(start["uid"])
    if start["isolated"]:
        seal()
    grow_older(start["age"], start["scratch"])


def own_pipes():
    """Moves the two pipes to the host away from 0 and 1, which will be the children's."""
    os.closerange(3, MAX_FDS)
    null = os.open(os.devnull, os.O_RDWR)
    assert null == REPLY_FD  # it keeps the number free
    pipes = []
    for fd in (0, 1):
        pipes.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_OWN_FD))
        os.dup2(null, fd)
    return pipes


def drop_to(uid):
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for capability in range(last + 1):
        prctl(PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def seal():
    """Nothing inside can end this process, and it ends with the host's."""
    if os.getpid() != 1:
        raise RuntimeError("the sandbox's first process is not process 1 of its namespace")
    # Version and process, then the effective, permitted and inheritable capabilities, twice.
    if libc.capset(struct.pack("<Ii", 0x20080522, 0), bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a change of uid has cleared it
    # What has no handler does not reach process 1.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def grow_older(age, scratch):
    """Uses up numbers of processes and files."""
    for _ in range(age):
        pid = os.fork()
        if pid == 0:
            exit_now(0)
        os.waitpid(pid, 0)
        path = os.path.join(scratch, "aged")
        open(path, "x").close()
        os.remove(path)


def prctl(*arguments):
    if libc.prctl(*(ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0)[:5])):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}: {os.strerror(ctypes.get_errno())}")


def load(program, preload):
    """Runs the program as module ``program`` and returns its handler; None without a program."""
    for name in preload:
        __import__(name)
    if program is None:
        return None
    module = types.ModuleType("program")
    module.__file__ = program
    module.__dict__["reply"] = reply_and_end
    sys.modules["program"] = module
    with open(program, "rb") as file:
        exec(compile(file.read(), program, "exec"), module.__dict__)
    return module.handle


class Stream:
    """What one pipe of the child brings, at most ``limit`` bytes."""

    def __init__(self, name, limit):
        self.name, self.limit = name, limit
        self.fd, self.child_fd = os.pipe()
        os.set_blocking(self.fd, False)
        self.chunks, self.size, self.open = [], 0, True
        self.whole = b""

    def read(self):
        """Takes what is there; returns whether it is too much."""
        while self.open:
            try:
                chunk = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
            self.open = bool(chunk)
            self.chunks.append(chunk)
            self.size += len(chunk)
            if self.size > self.limit:
                self.open = False
                return True
        return False

    def content(self):
        """All that came, within the limit; no copy that `wipe` would not find."""
        self.whole = self.whole or b"".join(self.chunks)
        return memoryview(self.whole)[: self.limit]


class Family:
    """A child with all that descends from it: what they use, and a sure end."""

    def __init__(self, start):
        self.isolated, self.scratch = start["isolated"], start["scratch"]
        self.status = -1  # of the child; not yet known
        self.cpu_s = 0.0  # of those that have ended

    def adopt(self, pid):
        self.pid, self.process = pid, os.pidfd_open(pid)

    def usage(self):
        """Returns processor time and memory, of all of them together."""
        self.reap()
        cpu_s, memory_bytes = self.cpu_s, 0
        for fields in self.processes():
            # User and system time, its own and that of children it waited for.
            cpu_s += sum(map(int, fields[11:15])) / TICKS_PER_S
            memory_bytes += int(fields[21]) * PAGE_BYTES
        if self.isolated:
            scratch = os.statvfs(self.scratch)
            memory_bytes += (scratch.f_files - scratch.f_ffree) * INODE_BYTES
        return cpu_s, memory_bytes

    def processes(self):
        """Yields the fields of /proc/PID/stat from the state on, for each of them."""
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            if int(name) != 1 if self.isolated else int(fields[3]) == self.pid:
                yield fields

    def reap(self, options=os.WNOHANG):
        """Collects the children that have ended; returns whether others are left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, options | WAIT_ALL)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.cpu_s += usage.ru_utime + usage.ru_stime
            if pid == self.pid and self.status < 0:  # numbers are used again
                self.status = status

    def kill_all(self):
        """Ends them; afterwards none is left inside the namespace."""
        if not self.isolated:
            kill(os.killpg, self.pid)
            kill(signal.pidfd_send_signal, self.process)  # it may not have its group yet
            while self.status < 0:
                self.reap(0)
            return
        assert os.getpid() == 1  # else it would be every process of this user
        while kill(os.kill, -1):
            self.reap(0)


class Call(Family):
    """One request: a child, its pipes, and what it has used."""

    def __init__(self, request, start, handle, host):
        super().__init__(start)
        self.request, self.handle, self.host = request, handle, host
        self.kept = start["kept"]
        self.limits = request["limits"]
        self.why = None  # outcome and detail, once this side has ended it
        self.streams = {}

    def contents(self):
        """What of the request and of the child's output is in this process's memory."""
        request = self.request
        own = [request.get("request", b""), request["stdin"], *request["files"].values()]
        streams = self.streams.values()
        return [*own, *(c for stream in streams for c in (*stream.chunks, stream.whole))]

    def run(self):
        try:
            write_files(self.scratch, self.request["files"])
        except OSError as error:
            return report("not started", detail=str(error).encode(), retire=True)
        self.started = time.monotonic()
        self.open_pipes()
        pid = os.fork()
        if pid == 0:
            Child(self.request, self.handle, self.isolated).run(self.streams, self.stdin)
        for stream in self.streams.values():
            os.close(stream.child_fd)
        os.close(self.stdin[0])
        self.adopt(pid)
        try:
            self.watch()
        finally:
            self.kill_all()
            self.close_pipes()
        wall_s = time.monotonic() - self.started
        return self.report(wall_s, retire=not empty(self.scratch, self.kept))

    def open_pipes(self):
        limits = self.limits
        self.streams = {
            "stdout": Stream("stdout", limits["output_bytes"]),
            "stderr": Stream("stderr", limits["output_bytes"]),
            "reply": Stream("the reply", limits["reply_bytes"] + REPLY.size),
        }
        self.stdin = os.pipe()
        os.set_blocking(self.stdin[1], False)
        self.to_write = memoryview(self.request["stdin"])

    def watch(self):
        """Serves the pipes until the child ends or has to be ended."""
        poll = select.poll()
        poll.register(self.process, select.POLLIN)
        poll.register(self.host, 0)  # its end alone is reported
        by_fd = {stream.fd: stream for stream in self.streams.values()}
        for fd in by_fd:
            poll.register(fd, select.POLLIN)
        if self.write_stdin():
            poll.register(self.stdin[1], select.POLLOUT)
        deadline = self.started + self.limits["wall_s"]
        look = self.started + TICK_S
        while not self.why:
            wait_s = max(0.0, min(look, deadline) - time.monotonic())
            for fd, _ in poll.poll(math.ceil(wait_s * 1000)):
                if fd == self.process:
                    return
                if fd == self.host:
                    self.kill_all()
                    exit_now(0)
                if fd == self.stdin[1]:
                    if not self.write_stdin():
                        poll.unregister(fd)
                else:
                    self.read(by_fd[fd])
                    if not by_fd[fd].open:
                        poll.unregister(fd)
            now = time.monotonic()
            if now >= deadline:
                self.why = "wall", f"more than {self.limits['wall_s']} s passed"
            elif now >= look:
                look = now + TICK_S
                self.look()

    def read(self, stream):
        if stream.read() and not self.why:
            self.why = "output", f"{stream.name}: more than {stream.limit} bytes"

    def write_stdin(self):
        """Returns whether there is more to write."""
        try:
            while self.to_write:
                self.to_write = self.to_write[os.write(self.stdin[1], self.to_write) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self.to_write = self.to_write[:0]
        if self.stdin[1] >= 0:
            os.close(self.stdin[1])
            self.stdin = (self.stdin[0], -1)
        return False

    def look(self):
        """Compares what all processes use together with the limits."""
        cpu_s, memory_bytes = self.usage()
        if cpu_s > self.limits["cpu_s"]:
            self.why = "cpu", f"more than {self.limits['cpu_s']} s of processor time"
        elif memory_bytes > self.limits["memory_bytes"]:
            self.why = "memory", f"more than {self.limits['memory_bytes']} bytes in all processes"

    def close_pipes(self):
        for stream in self.streams.values():
            self.read(stream)
            os.close(stream.fd)
        self.to_write = self.to_write[:0]
        self.write_stdin()
        os.close(self.process)

    def report(self, wall_s, retire):
        outcome, value, detail = self.outcome()
        return report(
            outcome,
            detail=detail,
            value=value,
            retire=retire,
            returncode=os.waitstatus_to_exitcode(self.status),
            cpu_s=self.cpu_s,
            wall_s=wall_s,
            stdout=self.streams["stdout"].content(),
            stderr=self.streams["stderr"].content(),
        )

    def outcome(self):
        """Returns the outcome's name, the value and the detail."""
        if self.why:
            return self.why[0], None, self.why[1].encode()
        code = os.waitstatus_to_exitcode(self.status)
        if -code == signal.SIGXCPU or (code < 0 and self.cpu_s >= self.limits["cpu_s"]):
            return "cpu", None, f"more than {self.limits['cpu_s']} s of processor time".encode()
        if code < 0:
            return "signal", None, f"ended by {signal_name(-code)}".encode()
        if self.handle is None:
            return self.program_outcome(code)
        content = self.streams["reply"].content()
        if code or len(content) < REPLY.size:
            return "exit", None, f"exited with status {code} without a reply".encode()
        kind, length = REPLY.unpack_from(content)
        content = content[REPLY.size :]
        if length != len(content) or kind not in (VALUE, RAISED, NO_MEMORY):
            return "exit", None, b"its reply is malformed"
        if kind == VALUE:
            return "ok", content, b""
        return ("error" if kind == RAISED else "memory"), None, content

    def program_outcome(self, code):
        reply = self.streams["reply"].content()
        if reply[:1] == NOT_STARTED:
            return "not started", None, reply[REPLY.size :]
        last_line = bytes(self.streams["stderr"].content()).rstrip().rpartition(b"\n")[2]
        if code and last_line.startswith(b"MemoryError"):
            return "memory", None, last_line
        if code:
            return "exit", None, f"exited with status {code}".encode()
        return "ok", None, b""


def signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def kill(function, target):
    """Returns whether there was anything to kill."""
    try:
        function(target, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def report(
    outcome,
    *,
    detail: bytes | memoryview = b"",
    value: bytes | memoryview | None = None,
    retire=False,
    returncode=0,
    cpu_s=0.0,
    wall_s=0.0,
    stdout: bytes | memoryview = b"",
    stderr: bytes | memoryview = b"",
):
    body = (value or b"", stdout, stderr, detail[-DETAIL_BYTES:])
    numbers = (outcome.encode(), retire, value is not None, returncode, cpu_s, wall_s)
    return b"".join([REPORT.pack(*numbers, *map(len, body)), *body])


class Child:
    """The process that runs the request; it trusts nothing after that, and never returns."""

    def __init__(self, request, handle, isolated):
        self.request, self.handle, self.isolated = request, handle, isolated

    def run(self, streams, stdin):
        status = 70  # EX_SOFTWARE: this class failed
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            fds = [stdin[0], *(stream.child_fd for stream in streams.values())]
            for number, fd in enumerate(fds):  # all of them lie above REPLY_FD
                os.dup2(fd, number, inheritable=number < REPLY_FD)
            os.closerange(REPLY_FD + 1, MAX_FDS)
            set_limits(self.request["limits"], self.isolated)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = self.execute() if self.handle is None else self.answer()
        finally:
            exit_now(status)

    def execute(self):
        default_signals()
        argv = self.request["argv"]
        try:
            os.execvp(argv[0], argv)
        except OSError as error:
            write_reply(NOT_STARTED, str(error).encode())
        return 127

    def answer(self):
        gc.freeze()  # and the collector's counts are the same in each child
        getpid, pid = os.getpid, os.getpid()
        try:
            value = self.handle(self.request["request"])
            if not isinstance(value, bytes):
                raise TypeError(f"handle returned {type(value).__name__}, not bytes")
            kind = VALUE
        except MemoryError:
            kind, value = NO_MEMORY, b"MemoryError"
        except SystemExit as error:
            flush()
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException as error:
            kind, value = RAISED, formatted(error)
        flush()
        if getpid() == pid:  # a copy that the request forked may come back from it as well
            write_reply(kind, value)
        return 0


def set_limits(limits, isolated):
    """Without ``cpu_s``, processor time is not limited."""
    bounds = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_FSIZE: (limits["scratch_bytes"],) * 2,
        resource.RLIMIT_NOFILE: (limits["open_files"],) * 2,
        resource.RLIMIT_AS: (limits["memory_bytes"],) * 2,
    }
    if "cpu_s" in limits:
        cpu_s = math.ceil(limits["cpu_s"])
        bounds[resource.RLIMIT_CPU] = (cpu_s, cpu_s + 1)
    if isolated:  # elsewhere the user's other processes would count
        bounds[resource.RLIMIT_NPROC] = (limits["processes"] + 1,) * 2  # the zygote is one
    for name, bound in bounds.items():
        resource.setrlimit(name, bound)


def default_signals():
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # Python's choices
        signal.signal(number, signal.SIG_DFL)


def formatted(error):
    """The traceback from the handler on, its end if it is long."""
    below = error.__traceback__ and error.__traceback__.tb_next
    lines = traceback.format_exception(type(error), error, below)
    return "".join(lines).encode(errors="replace")[-DETAIL_BYTES:]


def flush():
    streams: tuple = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    for stream in streams:
        with contextlib.suppress(BaseException):  # it may be anything by now
            stream.flush()


def reply_and_end(value):
    """Answers from anywhere in the program, a trace function included, and ends the child."""
    flush()
    write_reply(VALUE, value)
    exit_now(0)


def write_reply(kind, value):
    write(REPLY_FD, REPLY.pack(kind, len(value)) + value)


def read_frame(fd):
    """Returns None at the end of the pipe."""
    head = read(fd, LENGTH.size)
    return None if head is None else read(fd, LENGTH.unpack(head)[0])


def read(fd, size):
    chunks = []
    while size:
        chunk = os.read(fd, min(size, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        size -= len(chunk)
    whole = b"".join(chunks)
    wipe(chunk for chunk in chunks if chunk is not whole)
    return whole


def wipe(contents):
    """Overwrites bytes that nobody uses any more: a call's child finds freed memory in its own.

    Else it could look for what other calls were asked, or answered.
    """
    for content in contents:
        if len(content) > 1:  # Python keeps one object of each shorter content
            ctypes.memset(id(content) + bytes.__basicsize__ - 1, 0, len(content))


def write(fd, content):
    view = memoryview(content)
    while view:
        view = view[write_some(fd, view) :]


def write_files(scratch, files):
    for name, content in files.items():
        path = os.path.join(scratch, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def parents(path, top):
    """Yields the folders between ``top`` and ``path``."""
    while (path := os.path.dirname(path)) != top:
        yield path


def empty(scratch, kept):
    """Removes all but the paths ``kept``; returns whether that went well.

    Folders move up to the top before their content goes: no path gets long, however deep they are.
    """
    fixed = {scratch, *(path for name in kept for path in parents(name, scratch))}
    pending, removed = [scratch], 0
    try:
        while pending:
            folder = pending.pop()
            if os.stat(folder).st_uid == os.getuid():
                os.chmod(folder, 0o700)
            for entry in list(os.scandir(folder)):
                removed += 1
                if entry.path in kept:
                    continue
                if entry.path in fixed:
                    pending.append(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
                    pending.append(f"{scratch}/.removed-{removed}")
                    os.rename(entry.path, pending[-1])
                else:
                    os.unlink(entry.path)
            if removed > MAX_REMOVED:
                return False
            if folder not in fixed:
                os.rmdir(folder)
    except OSError:
        return False
    return all(map(os.path.lexists, kept))


if __name__ == "__main__":
    main()
