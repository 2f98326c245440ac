"""What a command of bash runs, as far as its words tell: nothing is expanded or executed."""

from __future__ import annotations

import posixpath
import re
import shlex

Command = list[str]
Pipeline = list[Command]

_HEREDOC = re.compile(r"(?<!<)<<-?[ \t]*(['\"]?)(\w+)\1(.*)\n(?:.*\n)*?[ \t]*\2(?=\n|$)")
_COMMENT = re.compile(r"^[ \t]*#.*$", re.MULTILINE)
_PUNCTUATION = ";()|&<>\n"
_ASSIGNMENT = re.compile(r"\w+\+?=.*", re.DOTALL)
_RESERVED = {"{", "}", "!", "if", "then", "else", "elif", "fi", "do", "done", "while", "until"}
_WRAPPERS = {"time", "timeout", "env", "sudo", "nice", "command", "builtin", "stdbuf", "nohup"}
_NUMBER = re.compile(r"-?[\d.]+[smhd]?")  # of seconds after timeout, of nice -n


def pipelines(command: str) -> list[Pipeline]:
    """The simple commands that are piped into each other, in the order of the text.

    Bodies of here-documents, whole lines of comment, assignments, words of control and wrappers,
    as ``timeout 30``, are left out. A command whose output goes to a file is empty.

    Raises:
        ValueError: a quote is not closed.
    """
    text = _COMMENT.sub("", _HEREDOC.sub(r"\3", command.replace("\\\n", " ")))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_PUNCTUATION)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    found: list[Pipeline] = [[[]]]
    is_target = is_lost = False
    before = ""
    for word in lexer:
        if is_target:
            is_target = False
        elif not word or word.strip(_PUNCTUATION):
            found[-1][-1].append(word)
        elif "<" in word or ">" in word:
            is_target = True
            if before.isdecimal() and found[-1][-1]:
                found[-1][-1].pop()  # the descriptor
            is_lost |= word in (">", ">>", "&>", ">|") and before != "2"
        else:
            if is_lost:
                found[-1][-1], is_lost = [], False
            if word.strip("\n") in ("|", "|&"):
                found[-1].append([])
            else:
                found.append([[]])
        before = word
    if is_lost:
        found[-1][-1] = []
    stripped = [[_stripped(words) for words in pipeline] for pipeline in found]
    return [pipeline for pipeline in stripped if any(pipeline)]


def program(command: Command) -> str:
    """Its name without folders; empty of an empty command."""
    return posixpath.basename(command[0]) if command else ""


def _stripped(words: Command) -> Command:
    while words:
        if words[0] in _RESERVED or _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        elif words[0] in _WRAPPERS:
            words = words[1:]
            while words and (words[0].startswith("-") or _NUMBER.fullmatch(words[0])):
                words = words[1:]
        else:
            break
    return words
