"""Images as containers have them: layouts that are read back, and an engine that is asked."""

import dataclasses
import hashlib
import io
import json
import os
import re
import socketserver
import subprocess
import tarfile
import threading
from http.server import BaseHTTPRequestHandler

import pytest

from cwm_jax.forager.images.archive import FILE, LINK, PROGRAM, Member
from cwm_jax.forager.images.bare import import_files
from cwm_jax.forager.images.oci import add_to_engine, manifest_of_labels, needs, write_layout
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.store import Manifest, Store
from cwm_jax.rl.envs.swe.workspaces.engine import Engine, EngineError
from cwm_jax.storage import StorageError

TRACKED = {
    b"setup.py": Member(mode=FILE, content=b"setup\n"),
    b"tests/run": Member(mode=PROGRAM, content=b"#!/bin/sh\n"),
    b"tests/link": Member(mode=LINK, content=b"run"),
}
RECIPE = Recipe(
    name="x", install=(), command="python -m pytest {canary}", format="pytest", canary="tests"
)
LINKS = {"/sandbox/bin/python": "/usr/local/bin/python3.11"}
LONG = "long/" * 30 + "name"


@pytest.fixture
def image(tmp_path):
    store = Store(tmp_path / "store")
    with store.draft() as draft:
        commit = import_files(TRACKED, draft / "repository.git")
        root = draft / "root"
        (root / "venv/bin").mkdir(parents=True)
        (root / "venv/bin/python").symlink_to("/sandbox/bin/python")
        (root / "venv/bin/python3").symlink_to("python")
        (root / "venv/bin/inner").symlink_to("/tmp/venv/bin/tool")
        (root / "venv/bin/tool").write_text("#!/tmp/venv/bin/python\n")
        (root / "venv/bin/tool").chmod(0o755)
        (root / LONG).parent.mkdir(parents=True)
        (root / LONG).write_bytes(bytes(range(256)))
        (root / os.fsdecode(b"odd\xff")).touch()
        (root / "testbed").mkdir()
        (root / "testbed/thing.egg-info").write_text("made")
        manifest = Manifest(
            name="thing",
            version="1.0+local",
            source="thing",
            commit=commit,
            recipe=RECIPE,
            python="3.11.7",
            environment={"TZ": "UTC"},
            tests={"t::a": "passed"},
        )
        return store.add(draft, manifest)


def contents(content):
    """What lies where when a layer is unpacked: (kind, mode, content or target) by path."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
        assert [(e.uid, e.gid, e.mtime, e.uname) for e in archive] == [(0, 0, 0, "")] * len(
            archive.getmembers()
        )
        for entry in archive:
            file = archive.extractfile(entry) if entry.isreg() else None
            what = file.read() if file else entry.linkname
            found[entry.name] = (entry.type.decode(), entry.mode, what)
    return found


def blobs(path):
    """All files of a layout; each blob is what its name says."""
    with tarfile.open(path) as archive:
        assert all(entry.mtime == 0 for entry in archive)
        found = {e.name: archive.extractfile(e).read() for e in archive if e.isreg()}
    for name, content in found.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"
    return found


def opened(found):
    """(manifest, configuration, layers) as a reader of layouts finds them."""

    def get(descriptor):
        content = found[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(content) == descriptor["size"]
        return content

    assert json.loads(found["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (listed,) = json.loads(found["index.json"])["manifests"]
    manifest = json.loads(get(listed))
    config = json.loads(get(manifest["config"]))
    layers = [get(layer) for layer in manifest["layers"]]
    (old,) = json.loads(found["manifest.json"])
    assert json.loads(found[old["Config"]]) == config
    assert [found[name] for name in old["Layers"]] == layers
    return listed, config, layers


def test_a_layout_is_read_back(image, tmp_path):
    out = tmp_path / "image.tar"
    missing = write_layout(image, out)
    listed, config, (root, checkout) = opened(blobs(out))
    digest = image.manifest.digest[:12]
    assert listed["annotations"]["io.containerd.image.name"].endswith(
        f"/forage/thing:1.0-local-{digest}"
    )
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in (root, checkout)]
    assert config["rootfs"] == {"type": "layers", "diff_ids": digests}
    assert config["os"] == "linux" and config["architecture"] in ("amd64", "arm64")
    assert len(config["history"]) == 2
    settings = config["config"]
    assert settings["WorkingDir"] == "/tmp/testbed"
    assert "TZ=UTC" in settings["Env"] and "VIRTUAL_ENV=/tmp/venv" in settings["Env"]
    (path,) = (entry for entry in settings["Env"] if entry.startswith("PATH="))
    assert path.startswith("PATH=/tmp/venv/bin:/usr/local/sbin:")
    assert manifest_of_labels(settings["Labels"]) == image.manifest
    assert missing == ("bash", "git", "Python 3.11.7", "/sandbox/bin/python")
    assert settings["Labels"]["cwm-jax.needs"] == ", ".join(missing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tar", "store"]


def test_the_layers_are_the_tree_and_the_checkout(image, tmp_path):
    write_layout(image, tmp_path / "image.tar")
    _, _, (root, checkout) = opened(blobs(tmp_path / "image.tar"))
    found = contents(root)
    assert list(found) == sorted(found)
    above = {LONG[: 5 * number - 1] for number in range(1, 31)}
    folders = {"", "testbed", "venv", "venv/bin", *above}
    expected = {f"tmp/{name}".rstrip("/"): ("5", 0o777, "") for name in folders}
    expected["tmp"] = ("5", 0o1777, "")
    expected |= {
        f"tmp/{LONG}": ("0", 0o666, bytes(range(256))),
        "tmp/odd\udcff": ("0", 0o666, b""),
        "tmp/testbed/thing.egg-info": ("0", 0o666, b"made"),
        "tmp/venv/bin/inner": ("2", 0o777, "/tmp/venv/bin/tool"),
        "tmp/venv/bin/python": ("2", 0o777, "/sandbox/bin/python"),
        "tmp/venv/bin/python3": ("2", 0o777, "python"),
        "tmp/venv/bin/tool": ("0", 0o777, b"#!/tmp/venv/bin/python\n"),
    }
    assert found == expected
    tree = {k: v for k, v in contents(checkout).items() if "/.git" not in k and v[0] != "5"}
    assert tree == {
        "tmp/testbed/setup.py": ("0", 0o666, b"setup\n"),
        "tmp/testbed/tests/run": ("0", 0o777, b"#!/bin/sh\n"),
        "tmp/testbed/tests/link": ("2", 0o777, "run"),
    }


def test_the_checkout_is_a_clean_work_tree_of_the_commit(image, tmp_path):
    write_layout(image, tmp_path / "image.tar")
    _, _, layers = opened(blobs(tmp_path / "image.tar"))
    for layer in layers:
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            archive.extractall(tmp_path / "container", filter=lambda entry, _: entry)
    folder = tmp_path / "container/tmp/testbed"
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "HOME": str(tmp_path)}

    def git(*arguments):
        line = ["git", "-c", "safe.directory=*", *arguments]
        done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert git("rev-parse", "HEAD") == image.manifest.commit
    assert git("status", "--porcelain") == "?? thing.egg-info"
    git("fsck", "--strict")


def test_the_bytes_are_the_same_each_time(image, tmp_path):
    links = {**LINKS, "/another": "/x"}
    for name, given in (("one", links), ("two", dict(reversed(links.items())))):
        write_layout(image, tmp_path / name, links=given)
        os.utime(image.root / "venv/bin/tool", (7, 7))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_links_are_added_and_are_no_longer_needed(image, tmp_path):
    missing = write_layout(image, tmp_path / "image.tar", links=LINKS)
    assert missing[3:] == ("/usr/local/bin/python3.11",) == needs(image, LINKS)[3:]
    _, _, (root, _) = opened(blobs(tmp_path / "image.tar"))
    found = contents(root)
    assert found["sandbox"] == found["sandbox/bin"] == ("5", 0o755, "")
    assert found["sandbox/bin/python"] == ("2", 0o777, "/usr/local/bin/python3.11")
    assert needs(image, {"/sandbox/bin/python": "/a", "/a": "/b"})[3:] == ("/b",)
    assert len(needs(image, {"/sandbox/bin/python": "/a", "/a": "/sandbox/bin/python"})) == 4


@pytest.mark.parametrize("place", ["relative", "/tmp/x", "/tmp", "/a/../tmp/x", "/a/"])
def test_a_link_at_a_wrong_place_is_refused(image, tmp_path, place):
    with pytest.raises(ValueError, match="expected an absolute path that is not in /tmp"):
        write_layout(image, tmp_path / "image.tar", links={place: "/x"})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_repository_at_another_commit_is_refused(image, tmp_path):
    manifest = dataclasses.replace(image.manifest, commit="1" * 40)
    with pytest.raises(StorageError, match="is at commit"):
        write_layout(dataclasses.replace(image, manifest=manifest), tmp_path / "image.tar")


def test_labels_of_another_image_are_refused():
    with pytest.raises(ValueError, match=r"expected cwm-jax\.manifest"):
        manifest_of_labels({"a": "b"})


def written_base(path, *, change=""):
    """A layout of one layer with an index within its index, as of several platforms."""
    made = {}

    def add(content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = hashlib.sha256(content).hexdigest()
        made[f"blobs/sha256/{digest}"] = content
        return {"mediaType": "application/x", "digest": f"sha256:{digest}", "size": len(content)}

    layer = add(b"a layer, compressed or not")
    settings = {"Env": ["PATH=/base/bin", "LANG=C"], "Entrypoint": ["/run"], "User": "root"}
    settings["Labels"] = {"of": "base"}
    config = {
        "architecture": "riscv64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:unpacked"]},
        "history": [{"created_by": "base"}],
    }
    manifest = add({"config": add(config), "layers": [layer]})
    inner = add({"manifests": [manifest]})
    entries = [inner, inner] if change == "platforms" else [inner]
    made["index.json"] = json.dumps({"manifests": entries}).encode()
    if change == "layer":
        made[f"blobs/sha256/{layer['digest'][7:]}"] = b"another"
    elif change == "config":
        name = next(name for name, content in made.items() if b"riscv64" in content)
        made[name] = made[name].replace(b"riscv64", b"another")
    elif change == "missing":
        del made[f"blobs/sha256/{layer['digest'][7:]}"]
    elif change == "outside":
        made["index.json"] = made["index.json"].replace(b"sha256:", b"sha256:../")
    with tarfile.open(path, "w:gz") as archive:
        for name, content in made.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_an_image_is_put_on_top_of_a_base(image, tmp_path):
    base = written_base(tmp_path / "base.tar.gz")
    write_layout(image, tmp_path / "image.tar", base=base)
    _, config, layers = opened(blobs(tmp_path / "image.tar"))
    assert len(layers) == 3 and layers[0] == b"a layer, compressed or not"
    assert config["rootfs"]["diff_ids"][0] == "sha256:unpacked"
    assert len(config["rootfs"]["diff_ids"]) == len(config["history"]) == 3
    assert config["architecture"] == "riscv64"
    settings = config["config"]
    assert settings["User"] == "root" and "Entrypoint" not in settings
    assert settings["Labels"]["of"] == "base"
    assert manifest_of_labels(settings["Labels"]) == image.manifest
    assert {"LANG=C", "PATH=/tmp/venv/bin:/base/bin", "TZ=UTC"} <= set(settings["Env"])


@pytest.mark.parametrize("change", ["layer", "config", "missing", "platforms", "outside", "none"])
def test_a_base_that_cannot_be_read_is_refused(image, tmp_path, change):
    base = written_base(tmp_path / "base.tar.gz", change=change)
    if change == "none":
        base.write_bytes(b"nothing")
    with pytest.raises(StorageError, match="expected an OCI layout of one image"):
        write_layout(image, tmp_path / "image.tar", base=base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.tar.gz", "store"]


class AskedEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Notes what it is asked; it has the image ``base``."""

    daemon_threads = True
    forgets = refuses = False

    def __init__(self, path):
        super().__init__(str(path), Handler)
        self.images = {"base:1": {"Env": ["PATH=/base/bin"]}}
        self.layers, self.containers, self.removed = [], [], []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def handle_one(self):
        engine = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = self.path.removeprefix("/v1.41")
        if self.command == "GET":
            name = re.fullmatch(r"/images/(.*)/json", asked)[1]
            found = engine.images.get(name)
            return self.answer(404 if found is None else 200, {"Config": found})
        if asked == "/containers/create":
            engine.containers.append(json.loads(body))
            return self.answer(201, {"Id": "c1"})
        if self.command == "PUT":
            assert asked == "/containers/c1/archive?path=%2F"
            engine.layers.append(body)
            return self.answer(500 if engine.refuses else 200, {})
        if self.command == "DELETE":
            engine.removed.append(asked)
            return self.answer(204, {})
        found = re.fullmatch(r"/commit\?container=c1&repo=(\S+)&tag=(\S+)", asked)
        name = f"{found[1].replace('%2F', '/')}:{found[2]}"
        engine.images[name] = {} if engine.forgets else json.loads(body)
        return self.answer(201, {"Id": "i1"})

    do_GET = do_POST = do_PUT = do_DELETE = handle_one  # noqa: N815

    def answer(self, status, content):
        body = json.dumps(content).encode() if status != 204 else b""
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def asked(tmp_path):
    engine = AskedEngine(tmp_path / "engine.sock")
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield engine
    engine.shutdown()
    engine.server_close()
    thread.join()


def test_an_engine_makes_the_same_image(image, asked, tmp_path):
    name = add_to_engine(image, Engine(tmp_path / "engine.sock"), base="base:1", links=LINKS)
    assert name == f"forage/thing:1.0-local-{image.manifest.digest[:12]}"
    write_layout(image, tmp_path / "image.tar", links=LINKS)
    _, config, layers = opened(blobs(tmp_path / "image.tar"))
    assert asked.layers == layers
    settings = asked.images[name]
    assert settings["Labels"] == config["config"]["Labels"] and settings["Entrypoint"] == []
    assert settings["WorkingDir"] == "/tmp/testbed"
    assert "PATH=/tmp/venv/bin:/base/bin" in settings["Env"]
    (container,) = asked.containers
    assert container["Image"] == "base:1" and container["NetworkDisabled"]
    assert len(asked.removed) == 1


def test_an_engine_without_the_base_makes_nothing(image, asked, tmp_path):
    with pytest.raises(EngineError, match="404"):
        add_to_engine(image, Engine(tmp_path / "engine.sock"), base="other:1")
    assert not asked.containers


@pytest.mark.parametrize(
    ("fault", "says"), [("forgets", "without the settings"), ("refuses", "500")]
)
def test_an_engine_that_fails_leaves_no_container(image, asked, tmp_path, fault, says):
    setattr(asked, fault, True)
    with pytest.raises(EngineError, match=says):
        add_to_engine(image, Engine(tmp_path / "engine.sock"), base="base:1")
    assert len(asked.removed) == len(asked.containers) == 1
