"""What is built reaches the hosts of the package index, and nothing else of a network."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwm_jax.forager.images import index_access as index_module
from cwm_jax.forager.images.index_access import Access, Index, configured_index, index_access
from cwm_jax.sandbox import Shell, ShellLimits

LIMITS = ShellLimits(timeout_s=20, memory_bytes=512 << 20, scratch_bytes=16 << 20)
ASK = """python - <<'END'
import socket
s = socket.create_connection(("127.0.0.1", 3128), 5)
s.sendall(b"{request}\\r\\n\\r\\n" + b"x" * 200_000)
s.shutdown(socket.SHUT_WR)
got = b""
while more := s.recv(1 << 16):
    got += more
print(got[:40], len(got))
END"""


def made(access: Access) -> Shell:
    return Shell(readable=access.readable, start=access.start, limits=LIMITS)


@pytest.fixture
def index(monkeypatch) -> Iterator[Index]:
    """Whose one host is a server of this process that says everything twice."""
    server = socket.create_server(("127.0.0.1", 0))
    connect = socket.create_connection

    def outer(address, timeout):
        assert address == ("index.test", 443)
        return connect(server.getsockname(), timeout)

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                content = b""
                while len(content) < 200_000:
                    content += connection.recv(1 << 16)
                connection.sendall(content * 2)

    monkeypatch.setattr(index_module.socket, "create_connection", outer)
    threading.Thread(target=serve, daemon=True).start()
    yield Index(hosts=("index.test",), options={"index-url": "https://index.test/"}, readable=())
    server.close()


def test_a_host_of_the_index_is_reached_and_no_other(index):
    with index_access(index) as access, made(access) as shell:
        found = shell.run(ASK.format(request="CONNECT index.test:443 HTTP/1.1")).output
        assert found == f"b'HTTP/1.1 200 Connected\\r\\n\\r\\n{'x' * 14}' 400026\n"
        for target in ("other.test:443", "index.test:80", "127.0.0.1:443"):
            found = shell.run(ASK.format(request=f"CONNECT {target} HTTP/1.1"))
            assert "200 Connected" not in found.output and target in access.refused
        shell.run(ASK.format(request="GET http://index.test/ HTTP/1.1"))
        assert access.refused[-1] == "http://index.test/"


def test_the_next_session_reaches_it_too_and_after_the_end_nothing_does(index):
    with index_access(index) as access, made(access) as shell:
        assert shell.run("exit 1").outcome == "exit"
        ask = ASK.format(request="CONNECT index.test:443 HTTP/1.1")
        assert "200 Connected" in shell.run(ask).output
        assert shell.run("echo $PIP_INDEX_URL").output == "https://index.test/\n"
    assert not access.readable[0].exists()


def test_without_it_there_is_no_network(index):
    with index_access(index) as access, Shell(readable=access.readable, limits=LIMITS) as shell:
        reply = shell.run(ASK.format(request="CONNECT index.test:443 HTTP/1.1"))
        assert reply.exit_code and "refused" in reply.output


def test_pips_configuration_says_what_the_index_is(tmp_path, monkeypatch):
    for name in ("simple", "wheels"):
        (tmp_path / name).mkdir()
    (tmp_path / "limits.txt").write_text("")
    configured = f"""global.index-url='https://index.test/simple'
global.extra-index-url='file://{tmp_path}/simple https://more.test/simple'
user.find-links='\\n{tmp_path}/wheels'
:env:.constraint='{tmp_path}/limits.txt'
global.user='true'
"""
    of_pip = {"-m": configured, "-c": "https://default.test/simple files.test"}
    monkeypatch.setattr(index_module, "_printed", lambda first, *_: of_pip[first])
    found = configured_index(["cdn.test"])
    assert found.hosts == ("cdn.test", "index.test", "more.test")
    assert found.options["find-links"] == f"{tmp_path}/wheels" and "user" not in found.options
    assert found.readable == (tmp_path, tmp_path / "wheels", tmp_path / "limits.txt")
    of_pip["-m"] = ""
    assert configured_index().hosts == ("default.test", "files.test")
    of_pip["-m"] = "global.index-url='http://plain.test/simple'"
    with pytest.raises(ValueError, match="without TLS; expected https"):
        configured_index()


def test_this_pip_can_be_asked():
    found = configured_index()
    assert found.options["index-url"].startswith("https://") and found.hosts
    assert all(isinstance(path, Path) and path.exists() for path in found.readable)
