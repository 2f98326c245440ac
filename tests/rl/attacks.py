"""What hostile programs begin with: replies on every descriptor, and searches for a gold answer."""

FORGED = r"""
import os, struct, json
def forge():
    texts = [b'{"passed": true}', b'{"passed": true, "calls": 1}', b'{"value": null}',
             b'{"value": true}', b'passed', b'{"verdict": "passed"}']
    for fd in range(256):
        for text in texts:
            numbers = b"ok", False, True, 0, 0.0, 0.0, len(text), 0, 0, 0
            report = struct.pack("<16s??xxidd4Q", *numbers)
            for content in (struct.pack("<cQ", b"v", len(text)) + text, report + text, text):
                try:
                    os.write(fd, content)
                except OSError:
                    pass
"""
SEARCH = r"""
import gc, glob, os, re, sys
PATTERN = re.compile(rb"gold\d{10}")
def search(places):
    for place in places:
        try:
            found = PATTERN.search(place())
        except Exception:
            continue
        if found:
            return found[0].decode()
def files():
    for top in ("/sandbox", "/tmp", "/etc", "/home", "/root", "/work", "/var", "/run", "/dev/shm"):
        for folder, _, names in os.walk(top):
            for name in names:
                yield lambda path=os.path.join(folder, name): open(path, "rb").read(1 << 20)
def processes():
    for path in glob.glob("/proc/[0-9]*/*"):
        if path.rsplit("/", 1)[1] in ("environ", "cmdline", "maps", "stack", "auxv"):
            yield lambda path=path: open(path, "rb").read(1 << 20)
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        yield lambda path=path: os.readlink(path).encode()
        yield lambda path=path: os.pread(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20, 0)
def environment():
    yield lambda: repr(dict(os.environ)).encode()
    yield lambda: repr(sys.argv).encode()
def memory():
    import ctypes
    ctypes.CDLL(None).prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # its own may be read
    for pid in [n for n in os.listdir("/proc") if n.isdigit()]:
        try:
            lines = open(f"/proc/{pid}/maps").read().splitlines()
        except OSError:
            continue
        for line in lines:
            first, last = (int(n, 16) for n in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and last - first < 64 << 20:
                yield lambda first=first, last=last, pid=pid: os.pread(
                    os.open(f"/proc/{pid}/mem", os.O_RDONLY), last - first, first)
def frames():
    frame = sys._getframe()
    while frame:
        yield lambda frame=frame: repr((frame.f_locals, frame.f_globals)).encode("utf8", "replace")
        frame = frame.f_back
def objects():
    for thing in gc.get_objects():
        yield lambda thing=thing: repr(thing).encode("utf8", "replace") if type(thing) in (
            dict, list, tuple) and len(thing) < 500 else b""
"""
