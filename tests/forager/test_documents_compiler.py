"""C sources and what compilers make of them, as documents."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from cwm_jax.__main__ import main
from cwm_jax.config import SourceConfig
from cwm_jax.data.sources import documents as read_documents
from cwm_jax.forager.documents import Document, Dropped
from cwm_jax.forager.documents.compiler import (
    CompilerOptions,
    Source,
    compiler_pairs,
    generated_sources,
    read_sources,
)
from cwm_jax.forager.documents.toolchain import (
    CompilationError,
    assembly_text,
    check_compiler,
    compiled,
    find_compiler,
    gimple_text,
    llvm_text,
)

NEEDS_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on PATH")
SUM = b"""int sum(const int *a, int n)
{
    int s = 0;
    for (int i = 0; i < n; i++)
        s += a[i];
    return s;
}
"""
DUMP = """
;; Function sum (sum, funcdef_no=0, decl_uid=1850, cgraph_uid=1, symbol_order=0) (hot)

Removing basic block 6
__attribute__((noinline))
int sum (int n)
{
  int D.1877;
  int x;

  <bb 2> [local count: 118111600]:
  D.1877 = n_7(D);
  if (n_7(D) > 0)
    goto <bb 3>; [89.00%]
  else
    goto <bb 4>; [INV]

  <bb 3> :
<D.1880>:
  return D.1877;

}



;; Function one (one, funcdef_no=1, decl_uid=1862, cgraph_uid=2, symbol_order=1)

int one ()
{
  <bb 2> [local count: 1073741824]:
  return 1;

}


"""
MODULE = """; ModuleID = 'input.c'
source_filename = "input.c"
target datalayout = "e-m:e-p270:32:32-i64:64-f80:128-n8:16:32:64-S128"
target triple = "x86_64-pc-linux-gnu"

; Function Attrs: noinline nounwind optnone
define dso_local i32 @probe(i32 noundef %x) #0 {
entry:
  %add = add nsw i32 %x, 1
  ret i32 %add
}

attributes #0 = { noinline nounwind optnone "frame-pointer"="all" }

!llvm.module.flags = !{!0}
!llvm.ident = !{!1}

!0 = !{i32 1, !"wchar_size", i32 4}
!1 = !{!"Debian clang version 14.0.6"}
"""


@pytest.fixture(scope="module")
def gcc():
    compiler = find_compiler("gcc")
    assert compiler is not None
    return compiler


def pairs(compiler, *sources, **options):
    found = [Source(f"s{at}.c", content) for at, content in enumerate(sources)]
    return list(compiler_pairs(found, [compiler], CompilerOptions(**options)))


def named(found):
    return {item.name: item for item in found if isinstance(item, Document)}


@NEEDS_GCC
def test_a_source_is_paired_with_every_level_and_the_plain_output_with_the_optimised(gcc):
    found = pairs(gcc, SUM, levels=("O0", "O2"))
    assert sorted(named(found)) == [
        "s0.c:gcc:GIMPLE:levels:O0+O2",
        "s0.c:gcc:GIMPLE:source:O0",
        "s0.c:gcc:GIMPLE:source:O2",
        "s0.c:gcc:assembly:levels:O0+O2",
        "s0.c:gcc:assembly:source:O0",
        "s0.c:gcc:assembly:source:O2",
    ]
    plain = named(found)["s0.c:gcc:GIMPLE:source:O0"]
    assert f"C source:\n{SUM.decode()}" in plain.text
    assert "GIMPLE of gcc -O0:\nint sum (const int * a, int n)\n{\n" in plain.text
    assert plain.origin == {"compiler": f"gcc {gcc.version}", "form": "GIMPLE", "levels": ["O0"]}
    both = named(found)["s0.c:gcc:assembly:levels:O0+O2"].text
    assert "assembly of gcc -O0:\n\t.text\n" in both and "assembly of gcc -O2:\n\t.text\n" in both
    assert "C source" not in both


@NEEDS_GCC
def test_which_part_is_first_is_drawn(gcc):
    sources = [SUM.replace(b"sum", b"sum%d" % number) for number in range(3)]
    found = named(pairs(gcc, *sources, levels=("O1",))).values()
    assert {document.text.startswith("C source:") for document in found} == {True, False}


@NEEDS_GCC
def test_a_level_with_the_same_output_is_named_beside_the_other(gcc):
    found = pairs(gcc, b"int one(void) { return 1; }\n", levels=("O2", "O3"))
    assert found.count(Dropped("same at another level")) == 2
    assert "s0.c:gcc:GIMPLE:source:O2+O3" in named(found)
    (assembly,) = [item.text for name, item in named(found).items() if "assembly" in name]
    assert "assembly of gcc -O2, -O3:" in assembly


@NEEDS_GCC
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"int f( {\n", "does not compile (gcc)"),
        (b'#include "/etc/hostname"\nint x;\n', "does not compile (gcc)"),
        (b"#error " + b"x" * 15_000 + b"\n" * 5 + b"#error y\n" * 400, "does not compile (gcc)"),
        (b"// \xe9\n", "not UTF-8"),
        (b"int x;\0\n", "no text"),
        (b" \n", "no text"),
        (b"//" + b" " * 20_000, "too long a source"),
    ],
)
def test_what_compilers_make_nothing_of_is_dropped_with_a_reason(gcc, content, reason):
    assert pairs(gcc, content, levels=("O0",)) == [Dropped(reason)]


@NEEDS_GCC
def test_a_source_without_code_and_one_of_too_much_are_dropped(gcc):
    assert pairs(gcc, b"extern int x;\n", levels=("O0",)) == [Dropped("no code")] * 2
    found = pairs(gcc, SUM, levels=("O0",), max_output_chars=10)
    assert found == [Dropped("too long an output")] * 2


@NEEDS_GCC
def test_a_compiler_that_takes_too_long_is_stopped(gcc):
    """Each line includes the file again: 2 to the power of 199 lines."""
    forever = b'#if __INCLUDE_LEVEL__ < 199\n#include "input.c"\n#include "input.c"\n#endif\n'
    with pytest.raises(CompilationError, match="takes too long"):
        compiled(forever, gcc, ("O0",), timeout_s=1.0)


@NEEDS_GCC
def test_output_has_no_date_no_version_and_no_path(gcc):
    source = (
        b'const char *all[] = {__DATE__, __TIME__, __TIMESTAMP__, __FILE__, "v" __VERSION__};\n'
    )
    text = compiled(source, gcc, ("O0",))["assembly"]["O0"]
    found = [line.split('"')[1] for line in text.splitlines() if ".string" in line]
    wanted = ["Jan  1 2000", "00:00:00", "Sat Jan  1 00:00:00 2000", "input.c", "v"]
    assert sorted(found) == sorted(wanted)
    assert ".ident" not in text and ".file" not in text


def test_gimple_keeps_functions_and_their_own_numbers_alone():
    first, second = gimple_text(DUMP).split("\n\nint one ()")
    assert first.startswith("__attribute__((noinline))\nint sum (int n)\n{\n  int D.1;\n  int x;\n")
    assert "  <bb 2>:\n  D.1 = n_7(D);\n" in first
    assert "    goto <bb 3>;\n  else\n    goto <bb 4>;\n\n  <bb 3>:\n<D.2>:\n" in first
    assert second == "\n{\n  <bb 2>:\n  return 1;\n\n}"
    assert gimple_text("") == ""


def test_llvm_ir_keeps_functions_without_names_of_files_and_versions():
    text = llvm_text(MODULE)
    assert text.startswith('target triple = "x86_64-pc-linux-gnu"\n\n; Function Attrs')
    assert "%add = add nsw i32 %x, 1" in text and '!"wchar_size"' in text
    assert "clang" not in text and "input.c" not in text and "attributes #0" not in text
    assert llvm_text(MODULE.replace("define ", "declare ")) == ""


def test_assembly_without_functions_and_data_is_none():
    assert assembly_text('\t.file\t"input.c"\n\t.text\n') == ""
    assert assembly_text("\t.text\n\t.type\tx, @object\n") == "\t.text\n\t.type\tx, @object"


def fake(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


CLANG = f"""case "$1" in
-dumpversion) echo 14.0.6; exit;;
-dumpmachine) echo x86_64-pc-linux-gnu; exit;;
-print-resource-dir) echo /usr/lib; exit;;
esac
for last; do :; done
grep -q broken "$last" && exit 1
cat > output.s <<'EOF'
{MODULE}EOF"""


@NEEDS_GCC
def test_clang_gives_llvm_ir(tmp_path, monkeypatch):
    """A script stands for it: what it is asked for and what it prints are clang 14's."""
    tmp_path.chmod(0o755)
    fake(tmp_path, "clang", CLANG.replace("/usr/lib;", f"{tmp_path};"))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    clang = find_compiler("clang")
    assert clang is not None and (clang.version, clang.machine) == ("14.0.6", "x86_64")
    check_compiler(clang)
    found = pairs(clang, b"int probe(int x) { return x + 1; }\n", b"broken", levels=("O0", "O2"))
    (document,) = named(found).values()
    assert document.name == "s0.c:clang:LLVM IR:source:O0+O2"
    assert f"LLVM IR of clang -O0, -O2:\n{llvm_text(MODULE)}" in document.text
    assert found[2:] == [Dropped("same at both levels"), Dropped("does not compile (clang)")]


def test_a_compiler_that_is_not_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler("gcc") is None


@NEEDS_GCC
def test_a_compiler_that_cannot_work_in_the_sandbox_is_refused(gcc, tmp_path):
    broken = dataclasses.replace(gcc, program=str(tmp_path / "gcc"))
    with pytest.raises(ValueError, match=r"fails in the sandbox .*No such file"):
        check_compiler(broken)


def test_a_program_that_does_not_say_its_version_is_refused(monkeypatch, tmp_path):
    fake(tmp_path, "gcc", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ValueError, match="-dumpfullversion fails"):
        find_compiler("gcc")


def test_sources_of_a_folder_come_in_order_without_links(tmp_path):
    folder = tmp_path / "project"
    (folder / "b").mkdir(parents=True)
    for name in ("z.c", "b/a.c", "b/a.h"):
        (folder / name).write_bytes(SUM)
    (folder / "link.c").symlink_to(folder / "z.c")
    found = list(read_sources([folder]))
    assert [source.name for source in found] == ["project/b/a.c", "project/z.c"]
    assert found[0] == Source("project/b/a.c", SUM, {"file": "project/b/a.c"})
    assert [source.name for source in read_sources([folder / "z.c"])] == ["z.c"]
    with pytest.raises(ValueError, match="is there twice"):
        list(read_sources([folder, folder]))
    with pytest.raises(ValueError, match="no such file"):
        list(read_sources([tmp_path / "nowhere"]))


def test_levels_that_there_are_not_are_refused():
    for levels in ((), ("O0", "Ofast")):
        with pytest.raises(ValueError, match="expected some of O0, O1"):
            CompilerOptions(levels=levels)


def test_generated_sources_say_what_has_written_them():
    (source,) = generated_sources(1, 7)
    assert source.name == "generated-7-0" and source.content.count(b"{") > 1
    assert source.origin["generator"] == "c_programs" and source.origin["seed"] == 7


@NEEDS_GCC
def test_the_command_writes_the_same_bytes_for_any_number_of_workers(tmp_path, capsys):
    place = tmp_path / "a.c"
    place.write_bytes(SUM)
    out, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    line = ["forage", "documents", "compiler", "--sources", str(place), "--generate", "2"]
    line += ["--compilers", "gcc", "--levels", "O0", "O2", "--seed", "3"]
    assert main([*line, "--out", str(out)]) == 0
    assert main([*line, "--out", str(again), "--workers", "3"]) == 0
    assert out.read_bytes() == again.read_bytes()
    counts = json.loads((tmp_path / "a.jsonl.counts.json").read_text())
    found = list(read_documents(SourceConfig(name="made", kind="jsonl", path=str(out))))
    assert counts["kept"] == len(found) >= 12
    assert f"{counts['kept']} documents of {counts['read']} read" in capsys.readouterr().out


@NEEDS_GCC
def test_the_command_says_which_compiler_is_missing(tmp_path, capsys, monkeypatch):
    found = {name: shutil.which(name) for name in ("gcc", "bwrap")}
    for name, path in found.items():
        (tmp_path / name).symlink_to(Path(path or name))
    monkeypatch.setenv("PATH", str(tmp_path))
    out = tmp_path / "out.jsonl"
    line = ["forage", "documents", "compiler", "--generate", "1", "--out", str(out)]
    assert main([*line, "--levels", "O0"]) == 0
    assert "no clang on PATH" in capsys.readouterr().err
    assert main([*line, "--compilers", "clang"]) == 2
    assert "expected one: install gcc" in capsys.readouterr().err


def test_the_command_without_sources_is_refused(tmp_path, capsys):
    line = ["forage", "documents", "compiler", "--out", str(tmp_path / "out.jsonl")]
    assert main(line) == 2
    assert "give --sources, --generate" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
