"""Of what kind a tool's output is: a function of the call and of what was observed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cwm_jax.evals.observations.shell import Command, Pipeline, pipelines, program
from cwm_jax.rl.envs.swe.actions import Call, FormatError, parse_answer

KINDS = ("tests", "listing", "file", "edit", "error", "git", "empty", "other")
_TOOLS = ("bash", "create", "edit", "view", "submit")

_LISTERS = {"ls", "tree", "find", "fd", "fdfind", "dir"}
_READERS = {
    *("cat", "bat", "tac", "nl", "head", "tail", "less", "more", "sed", "awk", "gawk", "cut"),
    *("grep", "egrep", "fgrep", "rg", "ag", "ack", "strings", "xxd", "od", "zcat"),
}
_FILTERS = _READERS | {"sort", "uniq", "tr", "tee", "column", "fold", "rev", "shuf"}
_SILENT = {  # or only marks between what others print
    *("cd", "pushd", "popd", "export", "set", "unset", "alias", "source", ".", "shopt", "trap"),
    *("mkdir", "touch", "cp", "mv", "rm", "rmdir", "ln", "chmod", "chown", "sleep", "wait", "kill"),
    *("true", "false", ":", "exit", "test", "[", "[[", "for", "case", "esac", "read", "local"),
    *("echo", "printf"),
}
_SILENT_GIT = {
    *("add", "apply", "checkout", "clean", "clone", "config", "fetch", "init", "mv", "reset"),
    *("restore", "rm", "switch"),
}
_GIT_OPTIONS = {"-C", "-c", "--git-dir", "--work-tree"}  # those with a value
_NAMES_ONLY = re.compile(r"-[a-zA-Z]*[lL][a-zA-Z]*|--files(?:-with.*|-without.*)?")  # of grep, rg

_SUMMARY = re.compile(  # of a run of tests
    r"^Ran \d+ tests? in |^FAILED \((?:failures|errors)="  # unittest, Django
    r"|^=+ .*\b(?:\d+ (?:passed|failed|errors?|skipped|deselected)|no tests ran)\b.* =+$"  # pytest
    r"|^\d+ (?:passed|failed|errors?|skipped)\b.* in [\d.]+ ?s"  # pytest -q
    r"|^no tests ran in "
    r"|^(?:PASSED|FAILED|ERROR) \S+::"  # pytest -rA
    r"|^\S+::\S+ (?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b"  # pytest -v
    r"|^=+ tests finished: "  # sympy
    r"|^test result: (?:ok|FAILED)\."  # cargo
    r"|^(?:ok|FAIL|---\s(?:PASS|FAIL):)\s+\S+\s+\(?[\d.]+s"  # go
    r"|^Tests:\s+\d+ (?:passed|failed)",  # jest
    re.MULTILINE,
)
_TRACEBACK = re.compile(
    r"^\s*Traceback \(most recent call last\):"
    r"|^\s+File \"[^\"\n]+\", line \d+"
    r"|^(?:\w+\.)*[A-Z]\w*(?:Error|Exception)(?:: .*)?$",  # by itself, where lines were cut
    re.MULTILINE,
)
_ENDED = re.compile(  # what the tool bash says in place of output
    r"The command (?:ran longer than|wrote too much output)|The shell ended \("
)
_NUMBERED = re.compile(r"\s*\d+\t|The file has \d+ lines\.$")  # of the tool view


def observation_kind(call_text: str, observation: str) -> str:
    """One of `KINDS`.

    The rules, of which the first that fits decides:

    * ``empty``: nothing but white space.
    * The tools create and edit: ``edit``, whether or not the change was made. View: ``file`` where
      lines are numbered, ``error`` where it says that it cannot, else ``listing``. Submit: ``git``
      where it shows the patch, else ``error``.
    * bash, as far as the words of the command tell what prints (`shell`): where a program of any
      other sort than below runs, ``tests`` if there is the summary or a status line of a test
      runner, and ``error`` if there is a traceback or the line of an exception. ``error`` also
      where each line is a complaint of the shell, of git or of a program of the command.
    * Else what comes first: ``git``: git or diff; ``listing``: ls, find, tree, names of grep -l or
      of git ls-files; ``file``: cat, head, sed, grep and other readers; ``other``. A pipeline is
      of the sort of its first command, unless it goes through a program that is no filter.
    * What is no call, or of a tool that is not known: as of bash with an unknown program.

    Args:
        call_text: the turn that the observation answers, ``<tool: NAME>`` and what is around it.
        observation: the tool's output.
    """
    if not observation.strip():
        return "empty"
    call = _call(call_text)
    if call is not None and call.tool != "bash":
        return _of_tool(call.tool, observation)
    try:
        found = pipelines(call.content) if call else []
    except ValueError:  # what no shell would take either, or words that are none
        found = []
    sorts = [sort for sort in map(_sort, found) if sort] or [_of_silent(found)]
    if "other" in sorts:
        if _SUMMARY.search(observation):
            return "tests"
        if _TRACEBACK.search(observation):
            return "error"
    if _ENDED.match(observation) or _is_complaint(found, observation):
        return "error"
    return sorts[0]


def _call(text: str) -> Call | None:
    try:
        return parse_answer(text, think=False, tools=_TOOLS).call
    except FormatError:
        return None


def _of_tool(tool: str, observation: str) -> str:
    if tool == "submit":
        return "git" if re.search(r"^diff ", observation, re.MULTILINE) else "error"
    if tool in ("create", "edit"):
        return "edit"
    if _NUMBERED.match(observation):
        return "file"
    refused = observation.startswith(("Cannot view ", "view takes "))
    return "error" if refused else "listing"


def _sort(pipeline: Pipeline) -> str:
    """Of what it prints; empty where it prints nothing."""
    first, *others = pipeline
    sort = _sort_of_command(first)
    for command in others:
        if not sort or not command:
            return ""
        name = program(command)
        if name == "xargs":
            sort = _sort_of_command(_of_xargs(command)) or "other"
        elif name not in _FILTERS:
            sort = "other"
    return sort


def _sort_of_command(command: Command) -> str:
    name, words = program(command), command[1:]
    if not name or name in _SILENT:
        return ""
    if name == "git":
        return _sort_of_git(words)
    if name == "diff":
        return "git"
    if name == "find" and "-exec" in words:
        return _sort_of_command(words[words.index("-exec") + 1 :])
    if name in _LISTERS:
        return "listing"
    if name in ("grep", "egrep", "fgrep", "rg") and any(map(_NAMES_ONLY.fullmatch, words)):
        return "listing"
    if name == "sed" and any(word.startswith("-i") for word in words):
        return ""
    return "file" if name in _READERS else "other"


def _sort_of_git(words: Sequence[str]) -> str:
    words = [*words]
    while words and words[0].startswith("-"):
        words = words[2 if words[0] in _GIT_OPTIONS else 1 :]
    name = words[0] if words else ""
    if name in _SILENT_GIT:
        return ""
    if name in ("ls-files", "ls-tree"):
        return "listing"
    return "file" if name == "grep" else "git"


def _of_xargs(command: Command) -> Command:
    """What it runs; ``-n 1`` and the like are read as one option without value and a number."""
    words = command[1:]
    while words and (words[0].startswith("-") or words[0].isdecimal() or words[0] == "{}"):
        words = words[1:]
    return words


def _of_silent(found: Sequence[Pipeline]) -> str:
    """Where something was printed all the same."""
    is_git = any(program(command) == "git" for pipeline in found for command in pipeline)
    return "git" if is_git else "other"


def _is_complaint(found: Sequence[Pipeline], observation: str) -> bool:
    names = {program(command) for pipeline in found for command in pipeline if command}
    names |= {"bash", "sh", "fatal", "error"}
    named = "|".join(re.escape(name) for name in sorted(names))
    complaint = re.compile(rf"(?:\S*/)?(?:{named})[\d.]*: |usage: |Try '")
    lines = [line for line in observation.splitlines() if line.strip()]
    return all(map(complaint.match, lines))
