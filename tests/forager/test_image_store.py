"""The store of images: names by content, drafts that die with their maker, hostile archives."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cwm_jax.forager.images import tree
from cwm_jax.forager.images.recipe import Recipe
from cwm_jax.forager.images.store import (
    Manifest,
    Store,
    check_image,
    manifest_from_json,
    read_image,
)
from cwm_jax.forager.images.tree import TreeError, hash_tree, nodes, unpack
from cwm_jax.storage import StorageError

RECIPE = Recipe(
    name="pyproject extra test",
    install=("pip install pytest", "pip install -e ."),
    command="python -m pytest {canary} tests",
    format="pytest",
    canary="tests",
)
MANIFEST = Manifest(
    name="thing",
    version="1.2",
    source="thing==1.2",
    commit="0123456789" * 4,
    recipe=RECIPE,
    python="3.11.7",
    environment={"TZ": "UTC"},
    tests={"tests/a.py::test_x[\udcff]": "passed", "tests/a.py::test_y": "skipped"},
    flaky=("tests/a.py::test_y",),
)


def fill(draft, content=b"x"):
    (draft / "repository.git").mkdir()
    (draft / "repository.git/HEAD").write_text("ref: refs/heads/main\n")
    (draft / "root/venv/bin").mkdir(parents=True)
    (draft / "root/venv/bin/python").symlink_to("/nowhere/python")
    (draft / "root/testbed").mkdir()
    (draft / "root/testbed/made.txt").write_bytes(content)
    (draft / "root/testbed/run").write_bytes(b"")
    (draft / "root/testbed/run").chmod(0o4700)


def add(store, content=b"x", **changes):
    with store.draft() as draft:
        fill(draft, content)
        return store.add(draft, dataclasses.replace(MANIFEST, **changes))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_added_is_read_back(store):
    image = add(store)
    assert image == read_image(image.path) == store.find("thing") == store.find(image.name)
    assert store.images() == [image]
    assert dataclasses.replace(image.manifest, digest="") == MANIFEST
    assert image.name == f"thing-1.2-{image.manifest.digest[:12]}"
    assert image.root.is_dir() and image.repository.is_dir()
    assert manifest_from_json(json.loads(json.dumps(image.manifest.to_json()))) == image.manifest
    assert files(store.folder / "drafts") == []


def test_the_store_is_its_owners_and_the_root_is_everybodys(store):
    image = add(store)
    modes = {path: os.lstat(path).st_mode & 0o7777 for path in (store.folder, image.root)}
    assert modes == {store.folder: 0o700, image.root: 0o777}
    below = {path: (image.root / path).lstat().st_mode & 0o7777 for path in files(image.root)}
    links = ["venv/bin/python"]
    assert {path: mode for path, mode in below.items() if path not in links} == {
        "testbed": 0o777,
        "testbed/made.txt": 0o666,
        "testbed/run": 0o777,
        "venv": 0o777,
        "venv/bin": 0o777,
    }


def test_the_name_is_the_contents(store, tmp_path):
    first = add(store)
    names = {first.name}
    for changes in (
        {"commit": "1" * 40},
        {"tests": {}},
        {"recipe": dataclasses.replace(RECIPE, command="other")},
        {"content": b"y"},
    ):
        names.add(add(store, **changes).name)
    assert len(names) == 5
    again = add(Store(tmp_path / "another"))
    assert again.name == first.name
    # A golden one: the same on every machine.
    assert first.manifest.digest[:12] == "d0d070dcf756"


@pytest.mark.parametrize("change", ["mode", "link", "name", "kind", "empty folder", "content"])
def test_every_property_of_a_tree_counts(store, change):
    image = add(store)
    check_image(image)
    bed = image.root / "testbed"
    if change == "mode":
        (bed / "run").chmod(0o666)
    elif change == "link":
        (image.root / "venv/bin/python").unlink()
        (image.root / "venv/bin/python").symlink_to("/elsewhere")
    elif change == "name":
        (bed / "run").rename(bed / "ran")
    elif change == "kind":
        (image.root / "venv/bin/python").unlink()
        (image.root / "venv/bin/python").write_text("/nowhere/python")
    elif change == "empty folder":
        (bed / "new").mkdir()
    else:
        (bed / "made.txt").write_bytes(b"z")
    with pytest.raises(StorageError, match="its content has the digest"):
        check_image(image)


def test_times_and_owners_do_not_count(store):
    image = add(store)
    os.utime(image.root / "testbed/run", (5, 5))
    (image.root / "testbed/run").chmod(0o755)
    check_image(image)


def test_parts_cannot_run_into_each_other(tmp_path):
    hashes = set()
    for number, (name, content) in enumerate([("a", b"bc"), ("ab", b"c"), ("a4:file", b"")]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
        hashes.add(hash_tree(tmp_path / str(number)))
    assert len(hashes) == 3


def test_the_same_image_is_kept_once(store):
    first = add(store)
    marker = first.path / "marker"
    marker.touch()
    assert add(store) == first
    assert marker.exists() and files(store.folder / "drafts") == []


def test_a_draft_that_fails_is_removed(store):
    with pytest.raises(KeyError), store.draft() as draft:
        fill(draft)
        raise KeyError
    assert files(store.folder) == ["drafts", "images"]


def test_a_draft_with_something_else_is_refused(store):
    with store.draft() as draft, pytest.raises(StorageError, match=r"has \[\]; expected repos"):
        store.add(draft, MANIFEST)
    with store.draft() as draft:
        fill(draft)
        (draft / "image.tar").touch()
        with pytest.raises(StorageError, match=r"image\.tar"):
            store.add(draft, MANIFEST)
    with store.draft() as draft:
        fill(draft)
        os.mkfifo(draft / "root/pipe")
        with pytest.raises(TreeError, match="is a device, a pipe"):
            store.add(draft, MANIFEST)
    assert store.images() == []


def test_drafts_of_those_who_are_gone_are_removed_and_no_others(store):
    program = (
        "import os, sys; from pathlib import Path; from cwm_jax.forager.images.store import Store\n"
        "with Store(Path(sys.argv[1])).draft() as draft:\n"
        "    (draft / 'root').mkdir(); print(draft.name, flush=True); os._exit(9)\n"
    )
    line = [sys.executable, "-P", "-c", program, str(store.folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(tree.__file__).parents[3])}
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    left = done.stdout.strip()
    assert done.returncode == 9 and (store.folder / "drafts" / left / "root").is_dir()
    with store.draft() as mine:
        Store(store.folder)
        assert files(store.folder / "drafts") == [mine.name, f"{mine.name}.lock"]
    assert files(store.folder / "drafts") == []


def test_a_draft_whose_lock_was_taken_for_stale_gets_another(store, monkeypatch):
    names = iter(["taken", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    from cwm_jax.forager.images import store as module

    with module._locked(store.folder / "drafts/taken.lock"), store.draft() as draft:
        assert draft.name == "free"


def test_a_folder_of_something_else_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is no store of images"):
        Store(tmp_path)
    assert files(tmp_path) == ["file"]


def test_finding_needs_one_image(store):
    first = add(store)
    add(store, name="thingy")
    assert store.find("thing") == store.find("thing-1.2") == first
    with pytest.raises(StorageError, match=r"there is none; did you mean 'thingy-1.2-"):
        store.find("thigny-1.2")
    other = add(store, content=b"other")
    with pytest.raises(StorageError, match=f"{other.name}.*; expected one image"):
        store.find("thing")


def test_the_least_recently_used_go_first_and_ties_by_name(store):
    images = [add(store, name=name) for name in ("d", "c", "b", "a")]
    for image, when in zip(images, (1, 2, 2, 3), strict=True):
        os.utime(image.path / "manifest.json", (when, when))
    size = store.num_bytes() // 4
    assert size > 0 and store.reclaim(4 * size) == []
    assert [name[0] for name in store.reclaim(4 * size - 1)] == ["d"]
    assert [name[0] for name in store.reclaim(size)] == ["b", "c"]
    assert [image.name[0] for image in store.images()] == ["a"]
    assert store.num_bytes() == size
    assert files(store.folder / "drafts") == []


def test_use_is_noted_and_keeps_an_image(store):
    old, new = add(store, name="old"), add(store, name="new")
    for image, when in ((old, 1), (new, 2)):
        os.utime(image.path / "manifest.json", (when, when))
    with store.use(old) as used, store.use(old):
        assert used == old
        assert store.reclaim(0) == [new.name] and not store.remove(old)
        check_image(old)
    new = add(store, name="new")
    os.utime(new.path / "manifest.json", (3, 3))
    assert store.reclaim(store.num_bytes() - 1) == [new.name]
    assert store.remove(old) and store.images() == []


def test_the_same_image_again_is_a_use(store):
    image = add(store)
    os.utime(image.path / "manifest.json", (1, 1))
    add(store)
    assert (image.path / "manifest.json").stat().st_mtime > 1


def test_an_image_that_is_gone_cannot_be_used(store):
    image = add(store)
    assert store.remove(image)
    with pytest.raises(StorageError, match="is gone"), store.use(image):
        pass
    with pytest.raises(StorageError, match="is gone"):
        store.remove(image)
    with pytest.raises(FileNotFoundError), store.use(add(store)):
        raise FileNotFoundError


def test_an_image_that_took_the_place_of_a_locked_one_is_another(store, monkeypatch):
    """Between the opening and the locking of a manifest, the image is removed and made again."""
    image = add(store)
    import fcntl

    real = fcntl.flock

    def slow(file, how):
        monkeypatch.setattr("fcntl.flock", real)
        store.remove(image)
        add(store)
        real(file, how)

    monkeypatch.setattr("fcntl.flock", slow)
    with pytest.raises(StorageError, match="is gone"), store.use(image):
        pass
    assert store.images() == [image]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, "no readable manifest"),
        ({"schema_version": 2}, "version 2; expected 'executable-image', 1"),
        ({"kind": "x"}, "is of kind 'x'"),
        ({"namee": "x"}, "unknown key 'namee'; did you mean 'name'"),
        ({"commit": "HEAD"}, "commit is 'HEAD'; expected a text of"),
        ({"name": "../x"}, "name is '../x'"),
        ({"version": "1/2"}, "version is '1/2'"),
        ({"python": "3"}, "python is '3'"),
        ({"digest": "abc"}, "digest is 'abc'"),
        ({"source": 3}, "source is 3"),
        ({"tests": {"a": "PASSED"}}, "has the outcome 'PASSED'"),
        ({"tests": {"a": True}}, "tests is {'a': True}; expected texts by name"),
        ({"tests": ["a"]}, "expected texts by name"),
        ({"environment": {"a": 1}}, "environment is"),
        ({"flaky": "abc"}, "flaky is 'abc'"),
        ({"flaky": [1]}, "flaky is"),
        ({"recipe": {"name": "x"}}, "Recipe: missing"),
        ({"recipe": {**dataclasses.asdict(RECIPE), "install": [1]}}, "Recipe.install is"),
    ],
)
def test_broken_manifests_are_refused(store, change, says):
    image = add(store)
    path = image.path / "manifest.json"
    values = {**json.loads(path.read_bytes()), **change} if change else None
    path.write_text(json.dumps(values) if values else "{")
    with pytest.raises(StorageError, match=r"manifest\.json") as caught:
        store.images()
    assert says in str(caught.value)


def test_an_image_without_its_tree_is_refused(store):
    image = add(store)
    image.root.rename(image.path / "elsewhere")
    with pytest.raises(StorageError, match="no such folder; expected that of an image"):
        store.images()


def tar(path, entries):
    """(name, content or TarInfo's changes) of each entry."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
                continue
            for key, value in content.items():
                setattr(entry, key, value)
            file.addfile(entry)
    return path


FOLDER = {"type": tarfile.DIRTYPE}


def link(target):
    return {"type": tarfile.SYMTYPE, "linkname": target}


def hard(target):
    return {"type": tarfile.LNKTYPE, "linkname": target}


def test_a_tree_is_unpacked(tmp_path):
    entries = [
        ("./", FOLDER),
        ("./venv/bin/python", link("/usr/bin/python3")),
        ("./venv/bin/tool", {"mode": 0o4755, "mtime": 1234.5}),
        ("./venv/bin", {**FOLDER, "mode": 0o500}),
        ("./venv/odd\udcff name", b"content"),
        ("./venv/same", hard("./venv/odd\udcff name")),
        ("./venv/later", {"pax_headers": {"mtime": "nan"}}),
        ("./empty/", FOLDER),
        ("./pipe", {"type": tarfile.FIFOTYPE}),
    ]
    root = tmp_path / "root"
    unpack(tar(tmp_path / "x.tar", entries), root)
    assert {node.path.decode(errors="surrogateescape"): node.kind for node in nodes(root)} == {
        "empty": "folder",
        "venv": "folder",
        "venv/bin": "folder",
        "venv/bin/python": "link",
        "venv/bin/tool": "file",
        "venv/later": "file",
        "venv/odd\udcff name": "file",
        "venv/same": "file",
    }
    assert (root / "venv/same").read_bytes() == b"content"
    assert os.readlink(root / "venv/bin/python") == "/usr/bin/python3"
    tool = (root / "venv/bin/tool").stat()
    assert (tool.st_mode & 0o7777, tool.st_mtime) == (0o777, 1234)
    assert (root / "venv/bin").stat().st_mode & 0o7777 == 0o777
    assert (root / "venv/same").stat().st_mode & 0o7777 == 0o666


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([("../x", b"")], "lies outside"),
        ([("a/../../x", b"")], "lies outside"),
        ([("/x", b"")], "lies outside"),
        ([("/x", FOLDER)], "lies outside"),
        ([("d", {"type": tarfile.BLKTYPE})], "is a device"),
        ([("l", link("OUT")), ("l/x", b"")], "File exists"),
        ([("l/x", b""), ("l", link("OUT"))], "File exists"),
        ([("l", link("OUT")), ("l", FOLDER), ("l/x", b"")], "File exists"),
        ([("l", link("OUT/x")), ("l", b"")], "File exists"),
        ([("x", b""), ("x", b"")], "File exists"),
        ([("x", b""), ("x/y", b"")], "File exists"),
        ([("x", FOLDER), ("x", b"")], "File exists|Is a directory"),
        ([("h", hard("OUT/secret"))], "lies outside"),
        ([("h", hard("none"))], "is no file before it"),
        ([("l", link("OUT/secret")), ("h", hard("l"))], "is no file before it"),
        ([("x" * 300, b"")], "File name too long"),
        ([("/".join("x" * 102), b"")], "lies below more than 100"),
        ([(".", b"")], "is no name of a file"),
    ],
)
def test_trees_that_mean_harm_are_refused(tmp_path, entries, says):
    out = tmp_path / "out"
    out.mkdir()
    (out / "secret").write_text("secret")
    entries = [
        (name, {k: v.replace("OUT", str(out)) if k == "linkname" else v for k, v in e.items()})
        if isinstance(e, dict)
        else (name, e)
        for name, e in entries
    ]
    with pytest.raises(TreeError, match=says):
        unpack(tar(tmp_path / "x.tar", entries), tmp_path / "root")
    assert files(out) == ["secret"] and (out / "secret").read_text() == "secret"
    assert not (tmp_path / "x").exists()


def test_bounds_hold(tmp_path):
    path = tar(tmp_path / "x.tar", [("a", b"12"), ("b", b"345")])
    unpack(path, tmp_path / "fits", max_bytes=5, max_files=2)
    with pytest.raises(TreeError, match="more than 2 members or 4 bytes"):
        unpack(path, tmp_path / "bytes", max_bytes=4, max_files=2)
    with pytest.raises(TreeError, match="more than 1 members"):
        unpack(path, tmp_path / "files", max_bytes=5, max_files=1)


@pytest.mark.parametrize("size", [-512, -1024])
def test_a_member_that_leads_back_does_not_go_on_for_ever(tmp_path, size):
    """CVE-2025-8194: of a negative size the next member is one before it."""
    entry = tarfile.TarInfo("x")
    head = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    head[124:136] = (size + (1 << 96)).to_bytes(12, "big")
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    (tmp_path / "x.tar").write_bytes(bytes(head) + bytes(1024))
    with pytest.raises(TreeError):
        unpack(tmp_path / "x.tar", tmp_path / "root")


@pytest.mark.parametrize("content", [b"nonsense" * 200, "cut"])
def test_broken_archives_are_no_trees(tmp_path, content):
    path = tar(tmp_path / "x.tar", [("a", bytes(2000))])
    path.write_bytes(path.read_bytes()[:1500] if content == "cut" else content)
    with pytest.raises(TreeError, match="cannot be read"):
        unpack(path, tmp_path / "root")
