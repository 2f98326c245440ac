"""What the agent's tools do and say, and how patches are read, applied and compared."""

import random

import pytest
from swe_players import call, output

from cwm_jax.rl.envs.swe.actions import Call, FormatError, parse_answer
from cwm_jax.rl.envs.swe.edit import ToolError, apply_edit, parse_create, parse_edit
from cwm_jax.rl.envs.swe.patches import apply_patch, parse_patch, similarity


def block(search: str, replace: str, path: str = "a.py") -> str:
    return f"{path}\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE"


def edited(text: str, search: str, replace: str) -> str:
    return apply_edit(text, parse_edit(block(search, replace)))[0]


# The one call of a turn.


def test_a_turn_is_reasoning_then_words_and_at_most_one_call():
    answer = parse_answer("why\n</think>\nI look.\n<tool: bash>\nls\npwd\n</tool>\n", think=True)
    assert answer.call == Call(tool="bash", content="ls\npwd")
    assert parse_answer("</think>\n\nDone. ## Report", think=True).call is None
    assert parse_answer("<tool: submit>\n/x\n</tool>", think=False).call == Call(
        tool="submit", content="/x"
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no end", "has 0 </think> in it; it needs exactly one"),
        ("a</think>b</think>c", "has 2 </think> in it; it needs exactly one"),
        ("</think><tool: bash>\nls\n</tool>\n<tool: bash>\nls\n</tool>", "calls 2 tools"),
        ("</think><tool: bash>ls</tool>", "1 <tool: and 1 </tool>, which do not form one call"),
        ("</think><tool:bash>\nls\n</tool>", "do not form one call"),
        ("</think><tool: ba-sh>\nls\n</tool>", "do not form one call"),
        ("</think><tool: bash>\nls", "1 <tool: and 0 </tool>"),
        ("</think>ls\n</tool>", "0 <tool: and 1 </tool>"),
        ("</think><tool: bash>\necho '</tool>'\n</tool>", "1 <tool: and 2 </tool>"),
        ("</think>`<tool:` is how\n<tool: bash>\nls\n</tool>", "2 <tool: and 1 </tool>"),
        ("</think><tool: bash>\n \n</tool>", "Your call of bash is empty"),
    ],
)
def test_what_is_not_one_call_is_explained(text, complaint):
    with pytest.raises(FormatError) as error:
        parse_answer(text, think=True)
    assert complaint in str(error.value)


# edit and create, on text.


def test_whole_lines_are_replaced_at_both_ends():
    assert edited("foobar\nfoo\n", "foo\n", "baz\n") == "foobar\nbaz\n"
    assert edited("a\nb\nc\nd\n", "b\nc\n", "x\ny\nz\n") == "a\nx\ny\nz\nd\n"
    with pytest.raises(ToolError, match=r"not in a\.py"):
        edited("foobar\n", "foo\n", "baz\n")


def test_an_empty_replacement_leaves_no_line_and_an_empty_line_one():
    assert edited("a\nb\nc\n", "b\n", "") == "a\nc\n"
    assert edited("a\nb\nc\n", "b\n", "\n") == "a\n\nc\n"
    assert edited("a\n", "a\n", "") == ""


def test_line_ends_stay_as_they_are():
    assert edited("a\r\nb\r\nc\r\n", "b\n", "x\ny\n") == "a\r\nx\r\ny\r\nc\r\n"
    assert edited("a\nb", "b\n", "x\n") == "a\nx"
    assert edited("a\nb\n\n", "b\n", "x\n") == "a\nx\n\n"
    assert edited("form\x0cfeed\x85\na\n", "a\n", "b\n") == "form\x0cfeed\x85\nb\n"


def test_success_shows_eight_numbered_lines_on_either_side():
    text = "".join(f"line {n}\n" for n in range(1, 31))
    _, report = apply_edit(text, parse_edit(block("line 15\n", "new\nnewer\n")))
    head, *snippet = report.split("\n")
    assert head == "Edited a.py: 1 line at line 15 replaced by 2 lines; the file has 31 lines now."
    assert snippet[0] == "     7\tline 7" and snippet[-1] == "    24\tline 23"
    assert snippet[8:10] == ["    15\tnew", "    16\tnewer"]
    _, report = apply_edit(text, parse_edit(block("line 30\n", "")))
    assert "1 line at line 30 removed; the file has 29 lines now." in report


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "No path"),
        ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "No path"),
        ("a.py\njust text", "The edit cannot be read"),
        ("a.py\n<<<<<<< SEARCH\na\n>>>>>>> REPLACE", "The edit cannot be read"),
        ("a.py\n=======\n<<<<<<< SEARCH\na\n>>>>>>> REPLACE", "The edit cannot be read"),
        ("a.py\nwords\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "The edit cannot be read"),
        ("a.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\nwords", "The edit cannot be read"),
        (block("a\n", "b\n") + "\n" + block("c\n", "d\n")[5:], "More than one block"),
        (block("a\n=======\nb\n", "c\n"), "More than one line is `=======`"),
        (block("", "b\n"), "The search text is empty"),
        (block("\n", "b\n"), "The search text is empty"),
        (block("a\n", "a\n"), "are the same, so nothing would change"),
    ],
)
def test_an_edit_that_cannot_be_read_is_explained(content, complaint):
    with pytest.raises(ToolError) as error:
        parse_edit(content)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("search", "complaint"),
    [
        ("nothing\n", "Read the file again"),
        ("if x:\n", "Its first line with another indentation is line 2: copy the indentation"),
        ("    if x:\n        stop()\n", "Its first line is line 2; a later one differs."),
        ("go()\n", "is in a.py 2 times, from lines 4, 5. Add lines around it"),
    ],
)
def test_a_search_text_that_is_not_there_once_is_explained(search, complaint):
    with pytest.raises(ToolError) as error:
        edited("def f(x):\n    if x:\n        return\ngo()\ngo()\n", search, "y\n")
    assert complaint in str(error.value)


def test_what_is_created_ends_with_a_line_end():
    assert parse_create("a/b.py\nx = 1\ny = 2") == ("a/b.py", "x = 1\ny = 2\n")
    assert parse_create("empty.txt") == ("empty.txt", "")
    with pytest.raises(ToolError, match="No path"):
        parse_create(" \nx = 1")


# The tools in a workspace.


def test_the_tools_work_and_say_what_is_wrong(tasks, play):
    player = play(tasks[0], max_turns=99, context_tokens=65_536, session_timeout_s=2.0)

    def say(tool, content):
        return output(player.say(call(tool, content)))

    assert say("bash", "cd toolbox; x=5; pwd") == "/tmp/testbed/toolbox\n"
    assert say("bash", "echo $x; false; echo $?; echo oops >&2") == "5\n1\noops\n"
    assert say("bash", "sleep 60") == (
        "The command ran longer than 2 s and was stopped. A fresh shell has started in the default "
        "directory; files are as they were."
    )
    assert say("bash", "echo [$x]; pwd") == "[]\n/tmp/testbed\n"
    assert say("bash", "yes").startswith("The command wrote too much output and was stopped; send")
    assert say("bash", "exit 3").startswith("The shell ended (bash ended with status 3). A fresh")

    made = say("create", "toolbox/new.py\ndef one():\n    return 1")
    assert made == "Created toolbox/new.py with 2 lines."
    assert say("create", "toolbox/new.py\nx").startswith("toolbox/new.py exists already; create")
    assert say("create", "toolbox\nx").startswith("toolbox exists already")
    assert say("create", "no/such/x.py\nx").startswith("The folder of no/such/x.py does not exist")
    assert say("create", "README.md/x\nx").startswith("The folder of README.md/x does not exist")
    assert say("create", "/proc/x\nx").startswith("Cannot create /proc/x: ")

    say("bash", "cd toolbox")  # paths are those of the shell's folder
    shown = say("edit", block("    return 1\n", "    return 2\n", "new.py"))
    assert shown.startswith("Edited new.py: 1 line at line 2 replaced by 1 line;")
    assert say("bash", "cat new.py") == "def one():\n    return 2\n"
    assert say("edit", block("a\n", "b\n", "gone.py")) == (
        "Cannot edit gone.py: there is no such file. Check the path."
    )
    assert say("edit", block("a\n", "b\n", "/tmp")) == (
        "Cannot edit /tmp: it is a folder. Check the path."
    )
    say("bash", "mkfifo pipe")
    assert "not a regular file" in say("edit", block("a\n", "b\n", "pipe"))
    assert say("edit", "new.py\nrubbish").startswith("The edit cannot be read.")

    assert say("submit", "/tmp/none.diff").startswith("Cannot read /tmp/none.diff: there is no")
    assert say("submit", "a\nb").startswith("submit takes one line")
    say("bash", "cd; touch empty; echo hello > words; rm testbed/toolbox/pipe")
    assert say("submit", "empty").startswith("empty is empty. Write your changes to it with `git")
    assert say("submit", "words").startswith("words does not begin with `diff`.")
    assert not player.info["submitted"]
    say("bash", "cd testbed && git add -N . && git diff > /tmp/changes.diff")
    shown = say("submit", "/tmp/changes.diff")
    assert shown.startswith("This patch is submitted:\n\ndiff --git a/toolbox/new.py")
    assert "+    return 2\n" in shown and "Review it." in shown
    assert player.info["submitted"] and player.info["format_errors"] == 0


def test_a_file_that_is_not_utf_8_is_edited_without_loss(tasks, play):
    player = play(tasks[0])
    player.say(call("bash", r"printf 'a\xff\nb\n' > latin; cd /tmp/testbed"))
    player.say(call("edit", block("b\n", "c\n", "latin")))
    assert output(player.say(call("bash", "od -An -tx1 latin"))) == " 61 ff 0a 63 0a\n"


# Patches.

GIT = """\
diff --git a/a.py b/a.py
index 111..222 100644
--- a/a.py
+++ b/a.py
@@ -1,3 +1,3 @@ def f():
 one
-two
+TWO
 three
@@ -8,2 +8,3 @@
 eight
 nine
+ten
diff --git a/gone.py b/gone.py
deleted file mode 100644
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/new/b.py b/new/b.py
new file mode 100644
--- /dev/null
+++ b/new/b.py
@@ -0,0 +1,2 @@
+hello
+world
\\ No newline at end of file
diff --git a/old.py b/moved.py
similarity index 100%
rename from old.py
rename to moved.py
diff --git a/empty b/empty
new file mode 100644
diff --git a/run.sh b/run.sh
old mode 100644
new mode 100755
diff --git a/pic.png b/pic.png
Binary files a/pic.png and b/pic.png differ
"""
A = "one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n"


def test_a_diff_of_git_is_read_and_applied():
    patches = parse_patch(GIT)
    names = [(patch.old, patch.new) for patch in patches]
    assert names[:4] == [
        ("a.py", "a.py"),
        ("gone.py", None),
        (None, "new/b.py"),
        ("old.py", "moved.py"),
    ]
    assert names[4:] == [(None, "empty"), ("run.sh", "run.sh"), ("pic.png", "pic.png")]
    assert [patch.binary for patch in patches] == [False] * 6 + [True]
    before = {"a.py": A, "gone.py": "bye\n", "old.py": "same\n", "run.sh": "#!\n"}
    changed = apply_patch(
        patches[:-1], lambda path: before[path].encode() if path in before else None
    )
    assert changed == {
        "a.py": A.replace("two", "TWO").encode() + b"ten\n",
        "gone.py": None,
        "new/b.py": b"hello\nworld",
        "old.py": None,
        "moved.py": b"same\n",
        "empty": b"",
        "run.sh": b"#!\n",
    }
    with pytest.raises(ValueError, match="binary patches are not applied"):
        apply_patch(patches[-1:], lambda path: b"")


def test_a_hunk_goes_to_the_nearest_place_that_has_its_old_lines():
    (patch,) = parse_patch("--- a/a\n+++ b/a\n@@ -4,2 +4,2 @@\n x\n-y\n+z\n")
    text = b"x\ny\n1\n2\n3\nx\ny\n"
    assert apply_patch([patch], lambda _: text) == {"a": b"x\ny\n1\n2\n3\nx\nz\n"}
    with pytest.raises(ValueError, match=r"a: @@ -4,2 \+4,2 @@ does not apply"):
        apply_patch([patch], lambda _: b"x\nother\n")


def test_a_file_may_be_made_anew_where_another_one_was_moved_away():
    new = "diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n"
    moved = "diff --git a/a b/b\nrename from a\nrename to b\n"
    for text in (new + moved, moved + new):
        changed = apply_patch(parse_patch(text), {"a": b"x\n"}.get)
        assert changed == {"a": b"y\n", "b": b"x\n"}


def test_all_bytes_and_line_ends_survive():
    (patch,) = parse_patch("--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n x\r\n-y\r\n+z\r\n")
    assert apply_patch([patch], lambda _: b"x\r\ny\r\n\xff\x0c") == {"a": b"x\r\nz\r\n\xff\x0c"}


@pytest.mark.parametrize(
    ("patch", "complaint"),
    [
        ("--- a/../x\n+++ b/../x\n", "'a/../x' is no file of the repository"),
        ("--- /etc/x\n+++ /etc/x\n", "'/etc/x' is no file of the repository"),
        ("--- a/.git/config\n+++ b/.git/config\n", "is no file of the repository"),
        ("diff --git a/x b/y\nold mode 1\n", "no names of files"),
        ("diff --git a/x b/x\nnew file mode 120000\n", "links and submodules are not taken"),
        ("--- a/x\n@@ -1 +1 @@\n", "no +++ after ---"),
        ("--- /dev/null\n+++ /dev/null\n", "a file without a name"),
        ("--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n", "the last hunk is shorter than its header"),
        ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\nb\n", "neither context nor change"),
        ("--- a/x\n+++ b/x\n@@ -1 +1,2 @@\n-a\n-b\n+c\n+d\n", "longer than its header says"),
        ("--- a/x\n+++ b/x\n@@ what @@\n", "no header of a hunk"),
        ("--- a/x\n+++ b/x\n--- a/x\n+++ b/x\n", "the patch names a file twice"),
    ],
)
def test_what_is_no_patch_of_the_repository_is_refused(patch, complaint):
    with pytest.raises(ValueError) as error:
        parse_patch(patch)
    assert complaint in str(error.value)


def test_a_patch_must_fit_the_files_that_are_there():
    new = parse_patch("--- /dev/null\n+++ b/a\n@@ -0,0 +1 @@\n+x\n")
    with pytest.raises(ValueError, match="makes a file that is there already"):
        apply_patch(new, lambda _: b"")
    changed = parse_patch("--- a/a\n+++ b/a\n@@ -1 +1 @@\n-x\n+y\n")
    with pytest.raises(ValueError, match="changes a file that is not there"):
        apply_patch(changed, lambda _: None)


def test_names_that_git_quotes_are_read():
    (patch,) = parse_patch('--- "a/\\303\\251 \\"x\\".py"\n+++ "b/\\303\\251 \\"x\\".py"\n')
    assert patch.path == 'é "x".py'


def one_file(path: str, old: str, new: str) -> str:
    return f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n"


def test_similarity_is_the_mean_ratio_over_the_gold_files():
    gold = parse_patch(one_file("a", "x" * 40, "y" * 40) + one_file("b", "u" * 40, "v" * 40))
    assert similarity(gold, gold) == 1.0
    only_a = parse_patch(one_file("a", "x" * 40, "y" * 40) + one_file("other", "1", "2"))
    assert similarity(only_a, gold) == 0.5  # b is left alone, other does not count
    assert similarity([], gold) == 0.0
    half = parse_patch(one_file("a", "x" * 40, "z" * 40))
    # Of "@@ -1 +1 @@", "-xx..." and "+zz...", each with its line end, all but the z are alike.
    assert similarity(half, gold[:1]) == pytest.approx((12 + 42 + 2) / (12 + 42 + 42))


def new_file(lines: list[str]) -> str:
    body = "".join(f"+{line}\n" for line in lines)
    return f"--- /dev/null\n+++ b/a\n@@ -0,0 +1,{len(lines)} @@\n{body}"


@pytest.mark.parametrize("number", [600, 6000])
def test_long_patches_are_compared_by_words_or_lines(number):
    words = random.Random(0).choices(["if", "else", "return", "print(x)", "y = 1"], k=4 * number)
    lines = [" ".join(words[4 * n : 4 * n + 4]) for n in range(number)]
    gold = parse_patch(new_file(lines))
    half = parse_patch(new_file(lines[: number // 2]))
    assert similarity(half, gold) == pytest.approx(2 / 3, abs=0.01)
    assert similarity(parse_patch(new_file([" " * 200] * number)), gold) < 0.3


def test_patches_too_long_for_any_comparison_are_not_alike():
    long = parse_patch(new_file(["x"] * 6000))
    longer = parse_patch(new_file(["x"] * 6001))
    assert similarity(long, longer) == 0.0 and similarity(long, long) == 1.0
