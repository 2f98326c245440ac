"""Programs to be traced, and episodes: what tracing one leaves, as a record with its origin."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import io
import json
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cwm_jax.tokenizer import BEGIN_OF_TEXT, END_OF_TEXT
from cwm_jax.trace.format import (
    START_MARKER,
    ParsedTrace,
    is_plain,
    parse_trace,
    render_prompt,
    split_prompt,
)
from cwm_jax.trace.frames import returned_value
from cwm_jax.trace.generator import KINDS, generate_programs
from cwm_jax.trace.tracer import (
    PARSE_ERRORS,
    Trace,
    TraceError,
    TraceLimits,
    Tracer,
    marked_line,
    source_lines,
    unmarked,
)

RECORD_VERSION = 2
_MAIN_TEST = re.compile(r"__name__ == '__main__'|'__main__' == __name__")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One context to be traced.

    Attributes:
        name: unique and stable; splits and orders are functions of it. Without ``#``.
        context: source whose entry line carries the start marker.
        source: kind of source: ``function``, ``script``, ``generated``, ``jsonl``; of episodes also
            ``doctest``, ``pytest``.
        origin: where it comes from, for people: a path and line, a seed.
        group: what held-out splits are a function of: programs with code in common share it. Empty
            for the program's own name.
        difficulty: of a generated program.
        kinds: constructs of a generated program.
    """

    name: str
    context: str
    source: str
    origin: str
    group: str = ""
    difficulty: int | None = None
    kinds: tuple[str, ...] = ()

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Its one episode; raises TraceError as `Tracer.trace` does."""
        trace = tracer.trace(self.context)
        return [
            episode_from_trace(
                trace,
                name=f"{self.name}#0",
                source=self.source,
                origin=self.origin,
                group=self.group,
                limits=tracer.limits,
                difficulty=self.difficulty,
                kinds=self.kinds,
            )
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uncallable:
    """A function or file that has no call: it is counted with what cannot be traced."""

    name: str
    reason: str
    message: str
    source: str

    def episodes(self, tracer: Tracer) -> list[Episode]:
        """Raises TraceError."""
        raise TraceError(self.reason, self.message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One trace and where it comes from: a record of a corpus.

    Attributes:
        name: ``PROGRAM#N``: episode N of a program.
        context: source with its marked line.
        frames: their text, ending with ``<|end_of_text|>`` if the entry scope was left.
        finished: whether it was.
        status: ``finished``, or the limit that cut it.
        raised: whether an exception left the entry scope.
        num_events: frames in the text.
        source, origin, group, difficulty, kinds: as of the `Program`.
        python: version of the interpreter that ran it.
        limits: that it was traced under.
        cut_reprs, failed_reprs: see `Trace`.
    """

    name: str
    context: str
    frames: str
    finished: bool
    status: str
    raised: bool
    num_events: int
    source: str
    origin: str
    group: str
    python: str
    limits: Mapping[str, float]
    difficulty: int | None = None
    kinds: tuple[str, ...] = ()
    cut_reprs: int = 0
    failed_reprs: int = 0

    @property
    def prompt(self) -> str:
        return render_prompt(self.context)

    @property
    def sha256(self) -> str:
        """Of the text, in hex: equal for equal traces of equal contexts, whatever their origin."""
        return hashlib.sha256((self.prompt + self.frames).encode()).hexdigest()

    @property
    def output(self) -> str | None:
        """``repr`` of what the entry returned; None if it was cut or left by an exception."""
        if not self.finished or self.raised:
            return None
        return returned_value(self.parse().frames)

    def parse(self) -> ParsedTrace:
        return parse_trace(self.frames)

    def to_json(self) -> dict[str, Any]:
        """A record fit for JSON: ``prompt`` in place of ``context``, version and hash added."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["context"]
        return {
            "version": RECORD_VERSION,
            **values,
            "prompt": self.prompt,
            "kinds": list(self.kinds),
            "limits": dict(self.limits),
            "sha256": self.sha256,
        }


def episode_from_trace(
    trace: Trace,
    *,
    name: str,
    source: str,
    origin: str,
    group: str = "",
    limits: TraceLimits,
    difficulty: int | None = None,
    kinds: tuple[str, ...] = (),
) -> Episode:
    """The record of a trace."""
    return Episode(
        name=name,
        context=trace.context,
        frames=trace.text,
        finished=trace.finished,
        status=trace.status,
        raised=trace.raised,
        num_events=len(trace.frames),
        source=source,
        origin=origin,
        group=group or name.partition("#")[0],
        python=trace.python,
        limits=dataclasses.asdict(limits),
        difficulty=difficulty,
        kinds=kinds,
        cut_reprs=trace.cut_reprs,
        failed_reprs=trace.failed_reprs,
    )


def episode_from_json(record: Mapping[str, Any]) -> Episode:
    """The inverse of `Episode.to_json`.

    Raises:
        ValueError: another version, keys that lack or are unknown, a hash that does not fit, or
            frames without the end that ``finished`` says.
    """
    values = dict(record)
    version, prompt, digest = (values.pop(k, None) for k in ("version", "prompt", "sha256"))
    if version != RECORD_VERSION or not isinstance(prompt, str):
        raise ValueError(
            f"episode record has version {version!r} and a prompt of type {type(prompt).__name__}; "
            f"expected version {RECORD_VERSION}: trace the programs again"
        )
    values["context"], rest = split_prompt(prompt)
    if rest:
        raise ValueError(
            f"episode record's prompt goes on with {rest[:60]!r}; expected its end at the first "
            "<|frame_sep|>: trace the programs again"
        )
    values["kinds"] = tuple(values.get("kinds", ()))
    known = {f.name for f in dataclasses.fields(Episode)}
    if set(values) != known:
        raise ValueError(
            f"episode record has keys {sorted(set(values) ^ known)} too many or too few; was it "
            "written by this version?"
        )
    episode = Episode(**values)
    if episode.sha256 != digest:
        raise ValueError(
            f"episode {episode.name!r}: sha256 of its text is {episode.sha256}, the record says "
            f"{digest}: the file is damaged"
        )
    if not episode.frames or episode.frames.endswith(END_OF_TEXT) is not episode.finished:
        raise ValueError(
            f"episode {episode.name!r}: finished is {episode.finished!r}, but the frames end with "
            f"{episode.frames[-30:]!r}; expected {END_OF_TEXT} there if finished alone"
        )
    return episode


def decode_source(content: bytes) -> str:
    """The text of a Python file, as Python reads it: its mark or declaration names the encoding.

    Raises:
        TraceError: it is not in that encoding, or there is none of that name.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return io.TextIOWrapper(io.BytesIO(content), encoding).read()
    except (SyntaxError, ValueError, LookupError) as error:
        raise TraceError(
            "syntax",
            f"no trace: {type(error).__name__}: {error}; expected UTF-8, or the encoding that the "
            "first two lines declare: declare it, or convert the file",
        ) from error


def context_of_call(code: str, arguments: str, *, function: str = "f") -> str:
    """The context that calls a function: output prediction, where no argument has to be invented.

    Args:
        code: source that defines the function; its ``if __name__ == "__main__":`` is left out.
        arguments: source of the arguments, as between the brackets of a call.
        function: its name.

    Raises:
        TraceError: it is ``main``, which the context itself defines, or the code uses another.

    Source: prompts of the released model for CruxEval.
    """
    if function == "main":
        raise TraceError(
            "main",
            "no trace: the function is named main; expected another name, as the context's own "
            "main calls it: rename it",
        )
    if uses_main(code):
        raise TraceError(
            "main",
            "no trace: the code uses a main of its own; expected another name, as the context's "
            "main takes its place: rename it",
        )
    code, _ = _as_module(code)
    body = code if code.endswith("\n") else code + "\n"
    body = body if body.startswith("\n") else "\n" + body
    return f"{body}def main():{START_MARKER}\n    return {function}({arguments})\n"


def uses_main(code: str) -> bool:
    """Whether a module needs its own ``main``, but for what it does only when run as a script."""
    return _as_module(code)[1]


@functools.lru_cache(maxsize=16)  # a module comes once for each of its calls
def _as_module(code: str) -> tuple[str, bool]:
    """A module without what it does only when it is run as a script; whether it uses its main."""
    try:
        body = ast.parse(code).body
    except PARSE_ERRORS:
        return code, False  # the tracer names what is wrong with it
    lines, uses = source_lines(code), False
    for node in reversed(body):
        if isinstance(node, ast.If) and _MAIN_TEST.fullmatch(ast.unparse(node.test)):
            lines[node.lineno - 1 : node.end_lineno] = []
        else:
            uses = uses or any(map(_reads_main, ast.walk(node)))
    return "".join(lines), uses


def _reads_main(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "main" and isinstance(node.ctx, ast.Load)


def direct_prompt(context: str) -> str | None:
    """Asks for the output of a context's ``main()`` without a trace (form assumed).

    The text of an assertion after ``<|begin_of_text|>``, to be continued by `direct_answer`. None
    where the marked scope is no ``main()`` of the module: no call can be asserted about.
    """
    lines = source_lines(context)
    if not lines[marked_line(context) - 1].startswith("def main():"):
        return None
    return f"{BEGIN_OF_TEXT}{''.join(map(unmarked, lines))}\nassert main() == "


def direct_answer(output: str) -> str:
    """The rest of the assertion, and ``<|end_of_text|>``."""
    return f"{output}\n{END_OF_TEXT}"


def direct_document(episode: Episode) -> tuple[str, str] | None:
    """(prompt, answer) of an episode, to be trained on.

    None where it has no prompt, where its output is none, or where it is not one line of plain text
    and so could not be told from what follows it.
    """
    prompt, output = direct_prompt(episode.context), episode.output
    if prompt is None or not output or not output.isprintable() or not is_plain(output):
        return None
    return prompt, direct_answer(output)


def context_of_script(script: str, stdin: bytes = b"") -> str:
    """The context of a whole script: its module is traced, and its first statement feeds stdin.

    That statement stands after a docstring and ``from __future__`` lines (assumed: how the report's
    scripts were presented is not published).

    Raises:
        TraceError: the script does not parse, or has no line to stand on there.
    """
    stream = f"io.TextIOWrapper(io.BytesIO({stdin!r}), encoding='utf-8')"
    feed = f"import io, sys; sys.stdin = {stream}{START_MARKER}\n"
    try:
        body = ast.parse(script).body
    except PARSE_ERRORS as error:
        raise TraceError("syntax", f"no trace: {type(error).__name__}: {error}") from None
    last = 0
    for number, statement in enumerate(body):
        is_docstring = (
            not number
            and isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
        is_future = isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        if is_docstring or is_future:
            last = statement.end_lineno or last
        elif statement.lineno == last:
            raise TraceError(
                "syntax",
                f"no trace: line {last} goes on after a docstring or __future__ import; expected "
                "its end there, as the next line feeds stdin: put the rest on a line of its own",
            )
    lines = source_lines(script)
    if last and not lines[last - 1].endswith("\n"):
        lines[last - 1] += "\n"
    return "".join([*lines[:last], feed, *lines[last:]])


def generated_programs(
    seed: int, count: int, *, difficulties: Sequence[int], kinds: Sequence[str] = KINDS
) -> Iterator[Program]:
    """Programs of `cwm_jax.trace.generator`, to be traced."""
    for made in generate_programs(seed, count, difficulties=difficulties, kinds=kinds):
        yield Program(
            name=f"{made.name}-{made.difficulty}",
            context=made.source,
            source="generated",
            origin=f"seed {seed}",
            difficulty=made.difficulty,
            kinds=made.kinds,
        )


def jsonl_programs(
    path: Path, *, limit: int | None = None, prefix: str = ""
) -> Iterator[Program | Uncallable]:
    """Programs of a file with ``code`` and ``input`` in each line, such as CruxEval.

    ``input`` holds the arguments' source; the function is ``f``, or the last one that ``code``
    defines; it cannot be ``main``, which is the context's own. ``id`` names the line if it is
    there, ``prefix`` begins the name.

    Raises:
        ValueError: a line that is no such object.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and number > limit:
                return
            try:
                row = json.loads(line.decode())
                code, arguments = row["code"], row["input"]
                if not (isinstance(code, str) and isinstance(arguments, str)):
                    raise TypeError("'code' or 'input' is no string")
                name = str(row.get("id", f"line-{number}"))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{path}:{number}: {error!r}; expected an object with strings 'code' and "
                    "'input': mend or remove the line"
                ) from error
            name, origin = f"{prefix}{path.stem}-{name}".replace("#", "-"), f"{path.name}:{number}"
            try:
                context = context_of_call(code, arguments, function=_function_of(code))
            except TraceError as error:
                message = f"{origin}: {error}"
                yield Uncallable(name=name, reason=error.reason, message=message, source="jsonl")
                continue
            digest = hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()
            yield Program(
                name=name,
                context=context,
                source="jsonl",
                origin=origin,
                group=f"jsonl {digest}",  # lines of one function with several inputs share it
            )


def _function_of(code: str) -> str:
    try:
        names = [n.name for n in ast.parse(code).body if isinstance(n, ast.FunctionDef)]
    except PARSE_ERRORS:
        return "f"  # the tracer names what is wrong with it
    return "f" if "f" in names or not names else names[-1]
