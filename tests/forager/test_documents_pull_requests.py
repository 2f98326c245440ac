"""Changes of git repositories as documents."""

import json
import subprocess

import pytest

from cwm_jax.__main__ import main
from cwm_jax.forager.documents import Document, Dropped, write_documents
from cwm_jax.forager.documents.pull_requests import (
    PullRequestOptions,
    pull_requests,
    read_issues,
)

CODE = "def double(x):\n    return x + x\n"


def git(folder, *arguments):
    line = ["git", "-c", "user.name=A", "-c", "user.email=a@localhost", "-C", folder, *arguments]
    subprocess.run(line, check=True, capture_output=True)


def commit(folder, message, files, author="Someone <someone@localhost>"):
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message, "--author", author)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "Begin with some code", {"pkg/a.py": CODE, "pkg/b.py": "B = 1\n"})
    commit(folder, "Doubling adds nothing, fixes #7", {"pkg/a.py": CODE.replace("+ x", "* 2")})
    return folder


def made(folder, **options):
    issues = options.pop("issues", None)
    return list(pull_requests(folder, PullRequestOptions(**options), issues=issues))


def reason_of_last(folder, **options):
    last = made(folder, **options)[-1]
    assert isinstance(last, Dropped)
    return last.reason


def test_a_change_is_its_message_its_files_before_and_its_diff(repository):
    first, second = made(repository)
    assert first == Dropped("first commit")
    assert isinstance(second, Document)
    assert second.text.startswith("Repository: mine\n\nPull request: Doubling adds nothing")
    assert f"File before the change: pkg/a.py\n{CODE}" in second.text
    assert "File before the change: pkg/b.py\nB = 1\n" in second.text  # one that is not changed
    assert "-    return x + x\n+    return x * 2\n" in second.text


def test_the_issue_that_a_message_names_is_the_first_part(repository, tmp_path):
    export = tmp_path / "issues.jsonl"
    export.write_text(json.dumps({"number": 7, "title": "Wrong", "body": None}) + "\n")
    document = made(repository, issues=read_issues(export))[-1]
    assert isinstance(document, Document) and document.origin["issue"] == "7"
    assert "\n\nIssue #7: Wrong\n\nPull request: " in document.text


@pytest.mark.parametrize(
    ("message", "files", "author", "reason"),
    [
        ("short", {"pkg/a.py": "X = 1\n"}, None, "short message"),
        ("A picture of the thing", {"a.png": b"\0\1\2"}, None, "binary file"),
        ("Update of the lock file", {"poetry.lock": "a\n"}, None, "generated file"),
        ("Words for the reader only", {"README.md": "a\n"}, None, "no code"),
        ("Bump a dependency to 2", {"pkg/a.py": "X = 1\n"}, "dependabot[bot] <d@x>", "bot"),
        ("Very many lines of it", {"pkg/a.py": "X = 1\n" * 600}, None, "too many lines"),
        ("Another spelling of text", {"pkg/a.py": b"X = '\xe9'\n"}, None, "not UTF-8"),
    ],
)
def test_what_teaches_nothing_is_dropped_with_a_reason(repository, message, files, author, reason):
    commit(repository, message, files, author or "Someone <someone@localhost>")
    assert reason_of_last(repository) == reason


def test_a_merge_is_dropped_and_its_commits_are_kept(repository):
    git(repository, "checkout", "-q", "-b", "side", "HEAD~1")
    commit(repository, "Beside the main line", {"pkg/b.py": "B = 2\n"})
    git(repository, "checkout", "-q", "main")
    git(repository, "merge", "-q", "--no-ff", "-m", "Merge the side", "side")
    results = made(repository)
    assert sum(isinstance(result, Document) for result in results) == 2
    assert Dropped("merge") in results


def test_repositories_of_benchmarks_are_left_out(repository):
    git(repository, "remote", "add", "origin", "https://example.org/me/Django.git")
    assert set(made(repository)) == {Dropped("excluded repository")}


def test_the_command_writes_the_same_bytes_again_with_counts(repository, tmp_path, capsys):
    commit(repository, "The same change again", {"pkg/c.py": "C = 1\n"})
    out, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (out, again):
        line = ["forage", "documents", "pull-requests", str(repository), "--out", str(path)]
        assert main(line) == 0
    assert out.read_bytes() == again.read_bytes()
    counts = json.loads((tmp_path / "a.jsonl.counts.json").read_text())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert counts["kept"] == len(rows) == 2
    assert counts["dropped"] == {"first commit": 1}
    assert "2 documents of 3 read" in capsys.readouterr().out


def test_what_is_no_repository_is_refused_and_nothing_is_written(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    line = ["forage", "documents", "pull-requests", str(tmp_path), "--out", str(out)]
    assert main(line) == 2
    assert "expected a git repository" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_texts_come_once_and_long_ones_not_at_all(tmp_path):
    found = [Document("a", "x" * 5), Document("b", "x" * 5), Document("c", "x" * 50)]
    counts = write_documents(tmp_path / "out.jsonl", found, max_chars=10)
    assert (counts.read, counts.kept) == (3, 1)
    assert counts.dropped == {"duplicate": 1, "too long": 1}


def test_a_file_of_no_documents_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="is not written"):
        write_documents(tmp_path / "out.jsonl", [Dropped("merge")])
    assert not list(tmp_path.iterdir())


def test_a_line_that_is_no_issue_is_refused_with_its_number(tmp_path):
    export = tmp_path / "issues.jsonl"
    export.write_text('{"number": 1, "title": "a", "body": ""}\n{"number": "2", "title": "b"}\n')
    with pytest.raises(ValueError, match=r"issues.jsonl:2: number is '2'; expected a whole number"):
        read_issues(export)
