"""C compilers of this machine, and what they make of a source, in a sandbox.

A source is foreign and a compiler is no wall: each source has a sandbox of its own, with limits.
What differs between installations and not between compilers is switched off or taken out: paths,
dates, versions, a distribution's hardening, the compiler's own numbers.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from cwm_jax.sandbox import SandboxError, Shell, ShellLimits

LEVELS = ("O0", "O1", "O2", "O3", "Os")
COMPILERS = ("gcc", "clang")
_MIB = 1 << 20
_MAX_FILE_BYTES = 8 * _MIB  # assumed: of a compiler's output, before it is tidied
_HEADERS = Path("/usr/include")
_SOURCE, _CODE, _GIMPLE = "input.c", "output.s", "output.gimple"
_FLAGS = (
    "-std=gnu17",
    "-w",
    "-S",
    "-fno-ident",
    "-fno-asynchronous-unwind-tables",
    # What distributions switch on, or not.
    "-fno-pie",
    "-fno-pic",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-U_FORTIFY_SOURCE",
    "-Wno-builtin-macro-redefined",
    '-D__DATE__="Jan  1 2000"',
    '-D__TIME__="00:00:00"',
    '-D__TIMESTAMP__="Sat Jan  1 00:00:00 2000"',
    '-D__VERSION__=""',
)
_OWN_FLAGS = {
    "gcc": ("-fno-stack-clash-protection", "-frandom-seed=0", f"-fdump-tree-optimized={_GIMPLE}"),
    "clang": ("-emit-llvm", "-fno-discard-value-names"),
}
_PROBE = b"int probe(int x) { return x + 1; }\n"
# Source: what gcc 12 writes between a function's header and its text, and beside its blocks.
_FUNCTION = re.compile(r"^;; Function .*$")
_FREQUENCY = re.compile(r" \[(local count: [^]]*|count: [^]]*|INV|\d+\.\d+%)\]| (?=:$)", re.M)
_UID = re.compile(r"\bD\.(\d+)\b")
_OF_ASSEMBLY = re.compile(r"^\t(\.file\t|\.ident\t|\.section\t\.note\.GNU-stack)")
_OF_LLVM = re.compile(
    r"^(; ModuleID|source_filename|target datalayout|attributes #|!llvm\.ident|![0-9]+ = "
    r'!\{!".*clang version .*"\}$)'
)


class CompilationError(ValueError):
    """A source that a compiler makes nothing of; the text is a reason that can be counted.

    Args:
        reason: in few words.
        said: by the compiler.
    """

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.said = said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiler:
    """A compiler of this machine.

    Attributes:
        name: one of `COMPILERS`.
        program: its absolute path.
        version: as it says, as in "12.2.0".
        machine: for which it compiles, as in "x86_64".
        readable: files and folders that it reads, beside a shell's.
    """

    name: str
    program: str
    version: str
    machine: str
    readable: tuple[Path, ...]


def find_compiler(name: str, readable: Sequence[Path] = ()) -> Compiler | None:
    """The compiler of that name on PATH, or None.

    Args:
        name: one of `COMPILERS`.
        readable: files and folders that it needs and does not name itself.

    Raises:
        ValueError: it does not say what it is.
    """
    found = shutil.which(name)
    if found is None:
        return None
    # A compiler finds its parts from where it lies; what stands before it (ccache) has to be called
    # by the compiler's name.
    real = os.path.realpath(found)
    program = real if name in os.path.basename(real) else os.path.abspath(found)
    version = "-dumpfullversion" if name == "gcc" else "-dumpversion"
    return Compiler(
        name=name,
        program=program,
        version=_said(program, version),
        machine=_said(program, "-dumpmachine").split("-")[0],
        readable=(*_own_files(name, program), *readable),
    )


def check_compiler(compiler: Compiler, *, unsafe: bool = False) -> None:
    """Raises ValueError where it does not work in the sandbox, SandboxError without one."""
    try:
        compiled(_PROBE, compiler, LEVELS[:1], unsafe=unsafe)
    except CompilationError as error:
        raise ValueError(
            f"{compiler.program} fails in the sandbox ({error}: {error.said.strip()[:300]}); "
            f"expected that what it reads is in {', '.join(map(str, compiler.readable))}: name "
            "what is missing with --readable, or other compilers with --compilers"
        ) from error


def compiled(
    source: bytes,
    compiler: Compiler,
    levels: Sequence[str],
    *,
    timeout_s: float = 20.0,
    unsafe: bool = False,
) -> dict[str, dict[str, str]]:
    """What a compiler makes of a source.

    Args:
        source: a translation unit; of headers it finds the system's.
        compiler: of `find_compiler`.
        levels: of `LEVELS`.
        timeout_s: of each level; assumed.
        unsafe: without bubblewrap.

    Returns:
        Form ("GIMPLE" and "assembly" of gcc, "LLVM IR" of clang) to level to text. A text is empty
        where there is no code.

    Raises:
        CompilationError: at some level it fails, or what it writes is too long or no text.
        SandboxError: the sandbox cannot be had.
    """
    found: dict[str, dict[str, str]] = {}
    limits = ShellLimits(
        timeout_s=timeout_s,
        output_bytes=64 << 10,
        memory_bytes=2048 * _MIB,
        scratch_bytes=64 * _MIB,
        processes=16,
        open_files=256,
    )
    shell = Shell(files={_SOURCE: source}, readable=compiler.readable, limits=limits, unsafe=unsafe)
    with shell:
        for level in levels:
            for form, text in _at_level(shell, compiler, level).items():
                found.setdefault(form, {})[level] = text
    return found


def _at_level(shell: Shell, compiler: Compiler, level: str) -> dict[str, str]:
    flags = (*_FLAGS, *_OWN_FLAGS[compiler.name], f"-{level}")
    line = shlex.join([compiler.program, *flags, "-o", _CODE, _SOURCE])
    try:
        reply = shell.run(f"rm -f {_CODE} {_GIMPLE}; LC_ALL=C {line}")
        if reply.outcome == "timeout":
            raise CompilationError("takes too long to compile")
        if reply.outcome != "ok" or reply.exit_code != 0:
            raise CompilationError("does not compile", reply.output)
        code = _read(shell, _CODE)
        if compiler.name == "clang":
            return {"LLVM IR": llvm_text(code)}
        return {"GIMPLE": gimple_text(_read(shell, _GIMPLE)), "assembly": assembly_text(code)}
    except SandboxError as error:
        raise CompilationError("breaks the sandbox") from error


def gimple_text(dump: str) -> str:
    """Functions of a dump of gcc's, without notes, frequencies and unique numbers."""
    parts = []
    for block in re.split(_FUNCTION.pattern, dump, flags=re.MULTILINE)[1:]:
        before, brace, body = block.partition("\n{\n")
        lines = before.strip().splitlines()
        kept = [line for line in lines[:-1] if line.startswith("__attribute__")] + lines[-1:]
        parts.append("\n".join(kept) + brace + _FREQUENCY.sub("", body).rstrip())
    numbers: dict[str, str] = {}
    text = _UID.sub(
        lambda match: numbers.setdefault(match[0], f"D.{len(numbers) + 1}"), "\n\n".join(parts)
    )
    return _tidied(text.splitlines())


def assembly_text(output: str) -> str:
    """Assembly without file names, versions and the note on the stack."""
    return _text_with_code(
        [line for line in output.splitlines() if not _OF_ASSEMBLY.match(line)], "\n\t.type\t"
    )


def llvm_text(output: str) -> str:
    """A module of LLVM IR without names of files, layout, attributes and versions."""
    return _text_with_code(
        [line for line in output.splitlines() if not _OF_LLVM.match(line)], "\ndefine "
    )


def _text_with_code(lines: Sequence[str], mark: str) -> str:
    """Nothing where the mark of functions and data is not there."""
    text = _tidied(lines)
    return text if mark in f"\n{text}" else ""


def _tidied(lines: Sequence[str]) -> str:
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in lines))
    return text.strip("\n")


def _read(shell: Shell, name: str) -> str:
    """Of what is not there, nothing."""
    try:
        return shell.read(name, max_bytes=_MAX_FILE_BYTES).decode()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise CompilationError("output is not UTF-8") from error
    except OSError as error:
        raise CompilationError("too long an output") from error


def _own_files(name: str, program: str) -> tuple[Path, ...]:
    """What the compiler says that it reads, and itself; nothing of what holds other things."""
    real = Path(os.path.realpath(program))
    found = [path for path in (Path(program), real) if path.parent != Path("/usr/bin")]
    if name == "gcc":
        inner = _said(program, "-print-prog-name=cc1"), _said(program, "-print-libgcc-file-name")
        found += [Path(path).parent for path in inner if os.path.isabs(path)]
    else:
        found.append(Path(_said(program, "-print-resource-dir")))
        if real.parent.name == "bin" and real.parent.parent != Path("/usr"):
            found.append(real.parent.parent / "lib")
    return tuple(path for path in dict.fromkeys((*found, _HEADERS)) if path.exists())


def _said(program: str, flag: str) -> str:
    variables: Mapping[str, str] = os.environ | {"LC_ALL": "C"}
    done = subprocess.run([program, flag], capture_output=True, text=True, env=variables)
    if done.returncode or not done.stdout.strip():
        raise ValueError(
            f"{program} {flag} fails ({done.stderr.strip()[:200]}); expected a compiler: take it "
            "from PATH, or name others with --compilers"
        )
    return done.stdout.strip()
