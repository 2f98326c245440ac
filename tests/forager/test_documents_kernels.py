"""PyTorch modules and Triton kernels as documents, from rows as KernelBook has them."""

import json
import warnings

import pyarrow
import pyarrow.parquet
import pytest

from cwm_jax.__main__ import main
from cwm_jax.config import SourceConfig
from cwm_jax.data.sources import documents as read_documents
from cwm_jax.forager.decontamination import Exclusions
from cwm_jax.forager.documents import Document, Dropped
from cwm_jax.forager.documents.kernels import KernelOptions, kernels

MODULE = """import torch
import torch.nn as nn


class Double(nn.Module):
    def forward(self, x):
        return x + x


def get_inputs():
    return [torch.rand([4])]


def get_init_inputs():
    return [[], {}]
"""
KERNEL = """import torch
import triton
import triton.language as tl


@triton.jit
def triton_poi_fused_add_0(in_ptr0, out_ptr0, xnumel, XBLOCK: tl.constexpr):
    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)
    tmp0 = tl.load(in_ptr0 + xindex, xindex < xnumel)
    tl.store(out_ptr0 + xindex, tmp0 + tmp0, xindex < xnumel)


class DoubleNew(torch.nn.Module):
    def forward(self, x):
        return call([x])[0]
"""
ROW = {
    "uuid": 0,
    "entry_point": "Double",
    "original_triton_code": "# AOT ID: ['0_inference']\n",
    "python_code": MODULE,
    "triton_code": KERNEL,
    "repo_name": "someone/doubling",
    "module_name": "Double",
    "synthetic": False,
    "licenses": ["MIT"],
    "stars": 3,
    "sha": "0" * 40,
    "repo_link": "https://example.org/someone/doubling",
}


def written(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(folder, options=None, **changes):
    (found,) = kernels(written(folder, ROW | changes), options or KernelOptions())
    return found


def test_a_document_is_the_module_and_then_its_kernel(tmp_path):
    document = made(tmp_path)
    assert document == Document(
        "rows:1",
        f"PyTorch module: Double\n{MODULE}\nTriton kernel:\n{KERNEL}",
        {"repository": "someone/doubling", "entry_point": "Double", "licenses": ["MIT"]},
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"licenses": []}, "no licence"),
        ({"licenses": None}, "no licence"),
        ({"licenses": ["MIT", "GPL-3.0"]}, "licence not allowed"),
        ({"repo_name": None}, "no repository"),
        ({"repo_name": "me/scikit-learn"}, "excluded repository"),
        ({"repo_name": "me/KernelBench"}, "excluded repository"),
        ({"triton_code": KERNEL + "#" * 50_000}, "too long a side"),
        ({"python_code": "class Double(:\n"}, "module does not parse"),
        ({"python_code": "(" * 10_000}, "module does not parse"),
        ({"python_code": "x = '\0'"}, "module does not parse"),
        ({"triton_code": "@triton.jit\ndef f(x) return x\n"}, "kernel does not parse"),
        ({"entry_point": "Doubled"}, "no entry point"),
        ({"entry_point": "forward"}, "no entry point"),  # it is there, but inside
        ({"triton_code": "def call(args):\n    return extern_kernels.mm(*args)\n"}, "no kernel"),
    ],
)
def test_what_is_no_pair_is_dropped_with_a_reason(tmp_path, changes, reason):
    assert made(tmp_path, **changes) == Dropped(reason)


def test_licences_and_repositories_are_the_options(tmp_path):
    options = KernelOptions(licenses=("gpl-3.0",), exclusions=Exclusions(()))
    assert isinstance(made(tmp_path, options, licenses=["GPL-3.0"], repo_name="a/flask"), Document)
    assert made(tmp_path, options) == Dropped("licence not allowed")


def test_a_decorator_with_settings_is_a_kernels_too(tmp_path):
    code = KERNEL.replace("@triton.jit", "@triton.jit(do_not_specialize=['xnumel'])")
    assert isinstance(made(tmp_path, triton_code=code), Document)


def test_escapes_that_python_does_not_know_warn_nobody(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(made(tmp_path, python_code=MODULE + "S = '\\d'\n"), Document)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({k: v for k, v in ROW.items() if k != "licenses"}, "expected 'licenses' among"),
        (ROW | {"licenses": "MIT"}, "licenses is 'MIT'; expected a list of texts"),
        (ROW | {"licenses": ["MIT", 3]}, "expected a list of texts"),
        (ROW | {"python_code": None}, "python_code is None; expected text"),
        (ROW | {"triton_code": ["x"]}, "expected text"),
        (ROW | {"entry_point": 5}, "entry_point is 5; expected text"),
        (ROW | {"python_code": "x = '\ud800'"}, "surrogate"),
        ([ROW], "is list; expected an object"),
    ],
)
def test_a_row_of_another_form_is_refused_with_its_line(tmp_path, row, words):
    path = written(tmp_path, ROW, row)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2\b") as refused:
        list(kernels(path, KernelOptions()))
    assert words in str(refused.value)


@pytest.mark.parametrize("line", [b'{"a": 1', b"\xff\n", b"[" * 100_000])
def test_a_line_that_is_not_json_is_refused_with_its_number(tmp_path, line):
    path = written(tmp_path, ROW)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 is not JSON"):
        list(kernels(path, KernelOptions()))


def test_parquet_gives_what_jsonl_gives(tmp_path):
    rows = [ROW, ROW | {"licenses": None}, ROW | {"entry_point": "Other"}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    from_jsonl = list(kernels(written(tmp_path, *rows), KernelOptions()))
    assert list(kernels(path, KernelOptions())) == from_jsonl
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(kernels(path, KernelOptions()))


def test_the_command_writes_the_same_bytes_again_as_the_mixture_reads_them(tmp_path, capsys):
    fork = ROW | {"repo_name": "another/fork"}  # the same code
    path = written(tmp_path, ROW, fork, ROW | {"licenses": ["GPL-3.0"]})
    out, again = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for place in (out, again):
        assert main(["forage", "documents", "kernels", str(path), "--out", str(place)]) == 0
    assert out.read_bytes() == again.read_bytes()
    counts = json.loads((tmp_path / "a.jsonl.counts.json").read_text())
    assert counts["dropped"] == {"duplicate": 1, "licence not allowed": 1}
    assert "1 documents of 3 read" in capsys.readouterr().out
    (document,) = read_documents(SourceConfig(name="made", kind="jsonl", path=str(out)))
    assert document.data.decode().startswith("PyTorch module: Double\n")


def test_the_command_says_which_line_is_wrong_and_writes_nothing(tmp_path, capsys):
    path = written(tmp_path, ROW, ROW | {"triton_code": 1})
    line = ["forage", "documents", "kernels", str(path), "--out", str(tmp_path / "out.jsonl")]
    assert main(line) == 2
    assert "rows.jsonl:2: triton_code is 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_leaves_out_what_it_is_told_to(tmp_path):
    path = written(tmp_path, ROW, ROW | {"repo_name": "a/b", "python_code": MODULE + "X = 1\n"})
    out = tmp_path / "out.jsonl"
    line = ["forage", "documents", "kernels", str(path), "--out", str(out), "--exclude", "doubling"]
    assert main([*line, "--licenses", "mit"]) == 0
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["origin"]["repository"] == "a/b"
