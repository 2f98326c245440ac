"""Sources of executable repositories: histories that end at a commit, archives that mean harm."""

import io
import lzma
import os
import stat
import subprocess
import tarfile
import zipfile

import pytest

from cwm_jax.forager.images import archive, bare
from cwm_jax.forager.images.bare import git, history_up_to
from cwm_jax.forager.images.source import SourceError, open_source

FILES = {
    "thing-1.2/setup.py": b"print('never run here')\n",
    "thing-1.2/thing/data.bin": bytes(range(256)),
    'thing-1.2/thing/odd "name\\.txt': "ä".encode(),
}


def tar(entries, *, mode="w:gz"):
    """(name, content or TarInfo's changes) of each entry."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as file:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
                continue
            for key, value in content.items():
                setattr(entry, key, value)
            file.addfile(entry)
    return made.getvalue()


def link(target):
    return {"type": tarfile.SYMTYPE, "linkname": target}


def written(path, content):
    path.write_bytes(content)
    return str(path)


def tree(source):
    """(mode, content) by path of the first commit."""
    listed = git(["ls-tree", "-r", "-z", source.commits[0]], folder=source.repository)
    found = {}
    for entry in listed.split(b"\0")[:-1]:
        head, path = entry.split(b"\t", 1)
        mode, _, number = head.split()
        content = git(["cat-file", "blob", number.decode()], folder=source.repository)
        found[os.fsdecode(path)] = (mode.decode(), content)
    return found


@pytest.fixture
def checkout(tmp_path):
    """Commits 0 to 9 of main, one beside them, one after; two tags; hooks that would tell."""
    folder = tmp_path / "project"
    folder.mkdir()

    def run(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        line = ["git", *identity, *arguments]
        env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    run("init", "-q", "-b", "main")
    shas = []
    for number in range(10):
        (folder / "file.txt").write_text(f"{number}\n")
        run("add", ".")
        run("commit", "-qm", f"number {number}")
        shas.append(run("rev-parse", "HEAD"))
        if number == 3:
            run("tag", "-a", "-m", "third", "v3")
    run("checkout", "-q", "-b", "later")
    (folder / "file.txt").write_text("later\n")
    run("commit", "-qam", "later")
    run("tag", "v-later")
    run("checkout", "-q", "main")
    (folder / "file.txt").write_text("not committed\n")
    for name in ("post-checkout", "pre-auto-gc", "post-update", "reference-transaction"):
        hook = folder / ".git/hooks" / name
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/RAN\n")
        hook.chmod(0o755)
    run("config", "core.fsmonitor", f"touch {tmp_path}/RAN")
    run("config", "uploadpack.packObjectsHook", f"touch {tmp_path}/RAN; exec")
    yield folder, shas, run
    assert not (tmp_path / "RAN").exists()


def test_a_checkout_becomes_its_history_and_nothing_later(checkout, tmp_path):
    folder, shas, _ = checkout
    source = open_source(str(folder), tmp_path)
    assert (source.name, source.version) == ("project", shas[9][:12])
    assert source.commits == (shas[9],) and source.has_history
    assert source.repository.is_relative_to(tmp_path)
    objects = git(["cat-file", "--batch-all-objects", "--batch-check"], folder=source.repository)
    assert objects.count(b" commit ") == 10
    refs = git(["for-each-ref", "--format=%(refname)"], folder=source.repository).split()
    assert refs == [b"refs/heads/main", b"refs/tags/v3"]
    assert tree(source) == {"file.txt": ("100644", b"9\n")}
    assert list(tmp_path.glob("source-*")) == [source.repository.parent]


@pytest.mark.parametrize("asked", ["v3", "abbreviated"])
def test_a_commit_is_asked_for_by_tag_or_hash(checkout, tmp_path, asked):
    folder, shas, _ = checkout
    name = shas[3][:9] if asked == "abbreviated" else asked
    source = open_source(f"{folder}@{name}", tmp_path)
    assert source.commits == (shas[3],)
    objects = git(["cat-file", "--batch-all-objects", "--batch-check"], folder=source.repository)
    assert objects.count(b" commit ") == 4


def test_earlier_commits_are_spread_over_the_history(checkout, tmp_path):
    folder, shas, _ = checkout
    newest_first = shas[::-1]
    assert open_source(str(folder), tmp_path, earlier=2).commits == tuple(newest_first[0:9:3])
    for earlier in (8, 9, 40):
        commits = open_source(str(folder), tmp_path, earlier=earlier).commits
        assert commits == tuple(newest_first[: earlier + 1])
    first = open_source(f"{folder}@{shas[0]}", tmp_path, earlier=5)
    assert first.commits == (shas[0],) and not first.has_history


def test_a_url_is_cloned_and_its_commit_found(checkout, tmp_path):
    folder, shas, _ = checkout
    source = open_source(f"file://{folder}/.git", tmp_path)
    assert (source.name, source.commits) == ("project", (shas[9],))
    source = open_source(f"file://{folder}@{shas[5][:10]}", tmp_path)
    assert (source.name, source.commits) == ("project", (shas[5],))
    assert [path.name for path in source.repository.parent.iterdir()] == ["repository.git"]


def test_a_bare_repository_and_a_second_work_tree_are_read(checkout, tmp_path):
    _, shas, run = checkout
    run("clone", "-q", "--bare", ".", str(tmp_path / "Bare_One.git"))
    source = open_source(str(tmp_path / "Bare_One.git"), tmp_path)
    assert (source.name, source.commits) == ("bare-one", (shas[9],))
    run("worktree", "add", "-q", "--detach", str(tmp_path / "second"), shas[4])
    assert open_source(str(tmp_path / "second"), tmp_path).commits == (shas[4],)
    (tmp_path / "RAN").unlink(missing_ok=True)  # by the commands here


def test_a_history_can_be_cut_at_an_earlier_commit(checkout, tmp_path):
    folder, shas, _ = checkout
    source = open_source(str(folder), tmp_path)
    history_up_to(source.repository, shas[2], tmp_path / "cut.git")
    objects = git(["cat-file", "--batch-all-objects", "--batch-check"], folder=tmp_path / "cut.git")
    assert objects.count(b" commit ") == 3
    assert git(["for-each-ref", "--format=%(refname)"], folder=tmp_path / "cut.git").split() == [
        b"refs/heads/main"
    ]
    for path in (tmp_path / "cut.git").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize(("lacks", "says"), [("HEAD:file.txt", "git fetch"), ("HEAD", "rev-parse")])
def test_programs_that_a_partial_clone_names_are_not_run(checkout, tmp_path, lacks, says):
    folder, _, run = checkout
    number = run("rev-parse", lacks)
    (folder / ".git/objects" / number[:2] / number[2:]).unlink()
    run("config", "core.repositoryFormatVersion", "1")
    run("config", "extensions.partialClone", "origin")
    run("config", "remote.origin.promisor", "true")
    run("config", "remote.origin.url", str(folder))
    run("config", "remote.origin.uploadpack", f"touch {tmp_path}/RAN; false")
    with pytest.raises(SourceError, match=says):
        open_source(str(folder), tmp_path)
    assert not list(tmp_path.glob("source-*"))


def test_a_commit_of_too_much_is_refused(checkout, tmp_path, monkeypatch):
    folder, shas, run = checkout
    run("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},submodule")
    run("commit", "-qm", "two entries")
    (tmp_path / "RAN").unlink()  # by the commands here
    monkeypatch.setattr(bare, "_MOST_BYTES", 2)
    monkeypatch.setattr(bare, "_MOST_FILES", 2)
    assert len(open_source(str(folder), tmp_path, earlier=1).commits) == 2
    monkeypatch.setattr(bare, "_MOST_FILES", 1)
    with pytest.raises(SourceError, match="has too many files or bytes"):
        open_source(str(folder), tmp_path)
    assert len(open_source(f"{folder}@{shas[9]}", tmp_path, earlier=1).commits) == 2
    monkeypatch.setattr(bare, "_MOST_BYTES", 1)
    with pytest.raises(SourceError, match="has too many files or bytes"):
        open_source(f"{folder}@{shas[9]}", tmp_path)


def test_an_earlier_commit_of_too_much_is_passed_over(checkout, tmp_path, monkeypatch):
    folder, shas, run = checkout
    (folder / "second.txt").touch()
    run("add", "second.txt")
    run("commit", "-qm", "much")
    run("rm", "-q", "second.txt")
    run("commit", "-qm", "last")
    last = run("rev-parse", "HEAD")
    (tmp_path / "RAN").unlink()  # by the commands here
    monkeypatch.setattr(bare, "_MOST_FILES", 1)
    assert open_source(str(folder), tmp_path, earlier=99).commits == (last, *shas[::-1])


@pytest.mark.parametrize("leaf", ["blob", "tree"])
def test_a_tree_that_holds_itself_many_times_is_refused(tmp_path, monkeypatch, leaf):
    """Ten folders of ten folders, and so on: ten objects are ten thousand million files."""
    folder = tmp_path / "bomb.git"
    git(["init", "-q", "--bare", str(folder)])
    make = {"blob": ["hash-object", "-w", "--stdin"], "tree": ["mktree"]}[leaf]
    number = git(make, folder=folder).decode().strip()
    kind = {"blob": "100644 blob", "tree": "040000 tree"}[leaf]
    for _ in range(10):
        lines = "".join(f"{kind} {number}\t{name}\n" for name in range(10))
        number = git(["mktree"], folder=folder, stdin=lines.encode()).decode().strip()
        kind = "040000 tree"
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    commit = git([*identity, "commit-tree", "-m", "x", number], folder=folder).decode().strip()
    git(["update-ref", "HEAD", commit], folder=folder)
    monkeypatch.setattr(bare, "_MOST_FILES", 2000)
    with pytest.raises(SourceError, match="has too many files or bytes"):
        open_source(str(folder), tmp_path)
    assert not list(tmp_path.glob("source-*"))


def test_a_commit_whose_files_cannot_be_listed_is_refused(checkout, tmp_path):
    folder, _, run = checkout
    tree = run("rev-parse", "HEAD^{tree}")
    (folder / ".git/objects" / tree[:2] / tree[2:]).unlink()
    with pytest.raises(ValueError, match="cannot read"):
        bare.is_tree_bounded(folder / ".git", "HEAD")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ext::sh -c whoami", "no requirement"),
        ("http://localhost/x.git", "is over http; expected one of https"),
        ("git://localhost/x.git", "is over git"),
        ("ext://localhost/x.git", "is over ext"),
        ("file:///nowhere/at/all", "git clone on this host"),
        ("./nothing.tar.gz", "No such file"),
        ("{work}/empty@x", "expected a commit"),
        ("no/such/folder", "no such folder or file"),
        ("-e", "no requirement"),
        ("name>=1", "no requirement"),
        ("name==1 --index-url=x", "no requirement"),
        ("{work}", "without a git repository"),
        ("{work}/empty", "expected a commit"),
        ("name==1", "nothing here gets those"),
    ],
)
def test_what_is_no_source_is_refused_and_leaves_nothing(tmp_path, spec, says):
    git(["init", "-q", str(tmp_path / "empty")])
    with pytest.raises(SourceError, match=says):
        open_source(spec.format(work=tmp_path), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_folder_inside_a_repository_is_none(checkout, tmp_path):
    folder, _, _ = checkout
    (folder / "inner").mkdir()
    with pytest.raises(SourceError, match="without a git repository"):
        open_source(str(folder / "inner"), tmp_path)


def test_a_negative_number_of_commits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="earlier is -1; expected at least 0"):
        open_source("x==1", tmp_path, earlier=-1)


def test_a_distribution_becomes_one_commit_that_never_changes(tmp_path):
    entries = [*FILES.items(), ("thing-1.2/run.sh", {"mode": 0o755}), ("thing-1.2/thing", {})]
    entries[-1][1].update(type=tarfile.DIRTYPE)
    source = open_source(written(tmp_path / "Thing_x-1.2.tar.gz", tar(entries)), tmp_path)
    assert (source.name, source.version, source.has_history) == ("thing-x", "1.2", False)
    assert len(source.commits) == 1
    expected = {name.removeprefix("thing-1.2/"): ("100644", c) for name, c in FILES.items()}
    assert tree(source) == {**expected, "run.sh": ("100755", b"")}
    # The same files: the same hash, whatever the archive and the day.
    assert source.commits == ("102d5ee005bacaa5c46eb66b719cf58c50257085",)
    again = tar(reversed(entries), mode="w:bz2")
    assert open_source(written(tmp_path / "y.tar.bz2", again), tmp_path).commits == source.commits


@pytest.mark.parametrize("file", ["a-1.0.tgz", "a-1.0.tar.xz", "a-1.0.zip", "A-1.0.TAR.BZ2"])
def test_every_kind_of_archive_gives_the_same_files(tmp_path, file):
    if file.endswith("zip"):
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as zipped:
            zipped.mkdir("top") if hasattr(zipped, "mkdir") else None
            zipped.writestr("top/a.py", b"a")
            for name, mode, content in (
                ("top/run", stat.S_IFREG | 0o755, b"run"),
                ("top/link", stat.S_IFLNK | 0o777, b"a.py"),
            ):
                entry = zipfile.ZipInfo(name)
                entry.external_attr = mode << 16
                zipped.writestr(entry, content)
        content = made.getvalue()
    else:
        entries = [("top/a.py", b"a"), ("top/link", link("a.py"))]
        plain = tar(entries, mode="w:")
        plain = tar_with_program(plain)
        content = {"tgz": gz, "xz": lzma.compress, "BZ2": archive.bz2.compress}[
            file.rsplit(".", 1)[1]
        ](plain)
    source = open_source(written(tmp_path / file, content), tmp_path)
    assert tree(source) == {
        "a.py": ("100644", b"a"),
        "run": ("100755", b"run"),
        "link": ("120000", b"a.py"),
    }
    assert (source.name, source.version) == ("a", "1.0")


def tar_with_program(plain):
    made = io.BytesIO(plain)
    with tarfile.open(fileobj=made, mode="a") as file:
        entry = tarfile.TarInfo("top/run")
        entry.mode, entry.size = 0o755, 3
        file.addfile(entry, io.BytesIO(b"run"))
    return made.getvalue()


def gz(content):
    return archive.gzip.compress(content)


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("file", True),
        ("../file", True),
        ("./deep/../file", False),
        ("../../file", False),
        ("/etc/passwd", False),
        ("", False),
    ],
)
def test_links_are_kept_where_they_stay_inside(tmp_path, target, kept):
    content = tar([("t/file", b""), ("t/deep/link", link(target))])
    source = open_source(written(tmp_path / "t.tar.gz", content), tmp_path)
    assert ("deep/link" in tree(source)) == kept


def test_git_folders_are_left_out_and_hard_links_are_files(tmp_path):
    hard = {"type": tarfile.LNKTYPE, "linkname": "t/file"}
    entries = [("t/file", b"x"), ("t/hard", hard), ("t/.git/config", b"[alias]"), ("t/a/.GIT", b"")]
    source = open_source(written(tmp_path / "t.tar.gz", tar(entries)), tmp_path)
    assert tree(source) == {"file": ("100644", b"x"), "hard": ("100644", b"x")}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([("../x", b"")], "lies outside"),
        ([("t/../../x", b"")], "lies outside"),
        ([("/etc/x", b"")], "lies outside"),
        ([("/etc", {"type": tarfile.DIRTYPE})], "lies outside"),
        ([("t/d", {"type": tarfile.CHRTYPE})], "is a device"),
        ([("t/p", {"type": tarfile.FIFOTYPE})], "is a device, a pipe"),
        ([("t/h", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"})], "lies outside"),
        ([("t/h", {"type": tarfile.LNKTYPE, "linkname": "t/none"})], "is a hard link to"),
        ([("t/l", link("/")), ("t/h", {"type": tarfile.LNKTYPE, "linkname": "t/l"})], "hard link"),
        ([("t/l", link("/")), ("t/l/x", b"")], "has files below it"),
        ([("t/f", b""), ("t/f/x", b"")], "has files below it"),
        ([("t/" + "x" * 5000, b"")], "no file can have"),
        ([(".", b"")], "no file can have"),
        ([("t/git~1", b"")], "invalid path"),
        ([("t/d", {"type": tarfile.DIRTYPE})], "holds no files"),
        ([], "holds no files"),
    ],
)
def test_archives_that_mean_harm_are_refused(tmp_path, entries, says):
    with pytest.raises(SourceError, match=says):
        open_source(written(tmp_path / "t.tar.gz", tar(entries)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["t.tar.gz"]


def test_devices_in_a_zip_are_refused(tmp_path):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        entry = zipfile.ZipInfo("t/d")
        entry.external_attr = (stat.S_IFCHR | 0o666) << 16
        zipped.writestr(entry, b"")
    with pytest.raises(SourceError, match="is a device"):
        open_source(written(tmp_path / "t.zip", made.getvalue()), tmp_path)


@pytest.mark.parametrize("kind", ["one file", "all files", "zip", "hard links", "holes", "headers"])
def test_bombs_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "_MOST_BYTES", 1 << 20)
    big, half = bytes(1 << 21), bytes(1 << 19)
    file = tmp_path / "t.tar.gz"
    if kind == "one file":
        content = tar([("t/x", big)])
    elif kind == "all files":
        content = tar([(f"t/{number}", half) for number in range(3)])
    elif kind == "zip":
        file, made = tmp_path / "t.zip", io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("t/x", big)
        content = made.getvalue()
    elif kind == "hard links":
        hard = {"type": tarfile.LNKTYPE, "linkname": "t/x"}
        content = tar([("t/x", half), *((f"t/{number}", hard) for number in range(3))])
    elif kind == "holes":  # a sparse file of one block, and a gigabyte by what is said of it
        entry = tarfile.TarInfo("t/x")
        entry.type = tarfile.GNUTYPE_SPARSE
        head = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
        head[386:410] = b"%011o\0%011o\0" % (0, 0)
        head[483:495] = b"%011o\0" % (1 << 30)
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        content = gz(bytes(head) + bytes(1024))
        monkeypatch.setattr(tarfile.TarFile, "extractfile", lambda *_: pytest.fail("it is read"))
    else:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w:gz", pax_headers={"comment": "x" * (1 << 21)}):
            pass
        content = made.getvalue()
    with pytest.raises(SourceError, match="unpacks to more than 1048576 bytes"):
        open_source(written(file, content), tmp_path)


def test_too_many_members_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_FILES", 3)
    content = tar([(f"t/{number}", b"") for number in range(3)])
    assert len(tree(open_source(written(tmp_path / "a.tar.gz", content), tmp_path))) == 3
    content = tar([(f"t/{number}", b"") for number in range(4)])
    with pytest.raises(SourceError, match="more than 3 members"):
        open_source(written(tmp_path / "b.tar.gz", content), tmp_path)


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.bz2", "x.tar.xz", "x.zip"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 100, "cut"])
def test_broken_archives_are_refused(tmp_path, name, content):
    if content == "cut":
        content = tar([("t/x", os.urandom(5000))], mode="w:xz" if "xz" in name else "w:gz")[:2000]
    with pytest.raises(SourceError, match="cannot be read"):
        open_source(written(tmp_path / name, content), tmp_path)


def test_a_requirement_is_downloaded(tmp_path):
    asked = []

    def download(requirement):
        asked.append(requirement)
        return "odd_name-2.0.post1.tar.gz", tar(FILES.items())

    source = open_source("Odd.Name==2.0.post1", tmp_path, download=download)
    assert (source.name, source.version) == ("odd-name", "2.0.post1")
    assert open_source("odd-name", tmp_path, download=download).commits == source.commits
    assert asked == ["Odd.Name==2.0.post1", "odd-name"]
    with pytest.raises(SourceError, match="expected the source distribution of other"):
        open_source("other", tmp_path, download=download)
    with pytest.raises(SourceError, match="expected the source distribution of odd-name 3"):
        open_source("odd-name==3", tmp_path, download=download)


def test_a_wheel_is_no_source(tmp_path):
    with pytest.raises(SourceError, match=r"the download is .x-1.whl.; expected the source"):
        open_source("x==1", tmp_path, download=lambda _: ("x-1.whl", b""))


@pytest.mark.parametrize(
    ("file", "name", "version"),
    [
        ("python-dateutil-2.8.2.tar.gz", "python-dateutil", "2.8.2"),
        ("a-1.0-beta2.zip", "a", "1.0-beta2"),
        ("repo-v1.0.tar.gz", "repo", "v1.0"),
    ],
)
def test_names_of_files_say_name_and_version(tmp_path, file, name, version):
    made = tar([("t/x", b"")])
    if file.endswith("zip"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as zipped:
            zipped.writestr("t/x", b"")
        made = buffer.getvalue()
    source = open_source(written(tmp_path / file, made), tmp_path)
    assert (source.name, source.version) == (name, version)


def test_without_a_version_in_its_name_it_is_the_commit(tmp_path):
    source = open_source(written(tmp_path / "repo-main.tgz", tar([("t/x", b"")])), tmp_path)
    assert (source.name, source.version) == ("repo-main", source.commits[0][:12])
