"""The tree: imports point one way, parts without JAX stay so, folders and files stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cwm_jax"
TOP_LEVEL = ("benchmarks", "configs", "convert", "cwm_jax", "tests", "train")
MAX_ENTRIES = 16
MAX_PARTS = 22  # of the package itself: its parts are those of the two flows
MAX_LINES = 700

# What each part of cwm_jax imports of the others, at most; a part is always free to import itself.
_BASE = {"config", "storage"}
_MODEL = _BASE | {"sharding", "kernels", "model"}
_TRACE = _BASE | {"tokenizer", "sandbox"}
_TRAINING = _MODEL | {"distributed", "data", "tokenizer", "training"}
_INFERENCE = _MODEL | {"tokenizer", "inference"}
ALLOWED = {
    "config": set(),
    "storage": {"config"},
    "sharding": _BASE,
    "distributed": set(),
    "tokenizer": _BASE,
    "kernels": _BASE | {"sharding"},
    "model": _MODEL,
    "data": _TRACE | {"trace"},
    "training": _TRAINING,
    "planning": _TRAINING | {"inference", "planning"},
    "sandbox": set(),
    "trace": _TRACE,
    "inference": _INFERENCE,
    "serve": _INFERENCE | {"data", "debugger"},
    "debugger": _INFERENCE | {"trace", "sandbox"},
    "cwm": _INFERENCE | {"trace", "debugger", "data"},
    "rl": _INFERENCE | _TRAINING | {"trace", "sandbox"},
    "evals": _INFERENCE | {"trace", "sandbox", "data", "debugger", "rl"},
    "forager": _INFERENCE | {"trace", "sandbox", "data", "debugger", "rl", "evals"},
    "sweeps": _INFERENCE | _TRAINING | {"trace", "sandbox", "rl", "sweeps"},
}
ENTRY_POINTS = {"__init__", "__main__"}  # the lazy names of the package; the command line
WITHOUT_JAX = _TRACE | {"data", "trace"}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
# Whose code is staged: all hosts have to come to one program, and so has a run that goes on.
STAGED = ("sharding", "kernels", "model", "training", "inference", "rl")
GRAIN_HOME = "data/loader.py"
# What reads a model's folder for those who serve it: the converters know files.
REACHES_UP = ("inference/pretrained.py", "imports convert: cwm_jax stands below it")


def imports(source: str) -> set[str]:
    """Dotted names that a module imports, anywhere in it; ``from a import b`` gives a and a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}: write cwm_jax.part"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(file: Path) -> str:
    """``model`` for cwm_jax/model/rope.py, ``config`` for cwm_jax/config.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_imported(source: str) -> set[str]:
    return {name.split(".")[1] for name in imports(source) if name.startswith("cwm_jax.")}


def roots_imported(source: str) -> set[str]:
    return {name.split(".")[0] for name in imports(source)}


def complaints(part_name: str, source: str) -> Iterable[str]:
    """What is wrong with the imports of a module in that part of cwm_jax."""
    allowed = ALLOWED[part_name] | {part_name}
    for other in sorted(parts_imported(source) & set(ALLOWED) - allowed):
        yield f"imports cwm_jax.{other}; {part_name} may import {sorted(allowed)}"
    roots = roots_imported(source)
    for root in sorted(roots & set(TOP_LEVEL) - {"cwm_jax"}):
        yield f"imports {root}: cwm_jax stands below it"
    if part_name in WITHOUT_JAX:
        for root in sorted(roots & JAX):
            yield f"imports {root}: {part_name} is without JAX"
    if part_name == "sandbox":
        for root in sorted(roots - set(sys.stdlib_module_names) - {"cwm_jax"}):
            yield f"imports {root}: the sandbox is the standard library alone"


def loops_over_sets(source: str) -> list[int]:
    """Lines that take the members of a set in its own order, which no two processes share."""

    def is_set(node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp):
            return is_set(node.left) or is_set(node.right)
        called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("set", "frozenset")
        return called or isinstance(node, ast.Set | ast.SetComp)

    taken = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.For | ast.comprehension):
            taken.append(node.iter)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "list",
            "tuple",
            "enumerate",
        ):
            taken += node.args
    return [node.lineno for node in taken if is_set(node)]


def python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def modules_of_package() -> list[Path]:
    return [f for f in python_files(PACKAGE) if part(f) not in ENTRY_POINTS]


def test_every_part_has_a_row():
    missing = {part(file) for file in modules_of_package()} - set(ALLOWED)
    assert not missing, f"say in ALLOWED what {sorted(missing)} may import"


def test_the_rows_make_no_cycle():
    for name, below in ALLOWED.items():
        for other in below - {name}:
            assert name not in ALLOWED[other], f"{name} and {other} may import each other"


def test_imports_point_one_way():
    found = [
        f"{file.relative_to(ROOT)} {complaint}"
        for file in modules_of_package()
        for complaint in complaints(part(file), file.read_text())
        if (file.relative_to(PACKAGE).as_posix(), complaint) != REACHES_UP
    ]
    assert not found, "\n".join(found)


def test_entry_points_and_converters_import_downwards():
    for file in [PACKAGE / "__init__.py", PACKAGE / "__main__.py", *python_files(ROOT / "convert")]:
        if file.exists():
            above = roots_imported(file.read_text()) & {"train", "configs", "tests", "benchmarks"}
            assert not above, f"{file} imports {above}"


def test_grain_has_one_home():
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in python_files(PACKAGE)
        if "grain" in roots_imported(file.read_text())
    }
    assert users == {GRAIN_HOME}


@pytest.mark.parametrize(
    ("part_name", "source", "complaint"),
    [
        ("model", "from cwm_jax.training.loop import run", "imports cwm_jax.training"),
        ("model", "from cwm_jax import training", "imports cwm_jax.training"),
        ("kernels", "def f():\n    import cwm_jax.model.layers", "imports cwm_jax.model"),
        ("sharding", "from cwm_jax.kernels import attention", "imports cwm_jax.kernels"),
        ("config", "from cwm_jax.sharding import make_mesh", "imports cwm_jax.sharding"),
        ("config", "import jax.numpy as jnp", "imports jax: config"),
        ("data", "if True:\n    from jax import random", "imports jax: data"),
        ("trace", "import flax", "imports flax: trace"),
        ("sandbox", "import numpy", "imports numpy: the sandbox"),
        ("training", "from convert import save_hf", "imports convert"),
        ("inference", "from configs.cwm_32b import MODEL", "imports configs"),
        ("trace", "from cwm_jax.inference import engine", "imports cwm_jax.inference"),
    ],
)
def test_wrong_imports_are_found(part_name, source, complaint):
    assert any(text.startswith(complaint) for text in complaints(part_name, source))


def test_no_staged_code_depends_on_the_order_of_a_set():
    found = {
        str(file.relative_to(ROOT)): lines
        for file in modules_of_package()
        if part(file) in STAGED and (lines := loops_over_sets(file.read_text()))
    }
    assert not found, f"{found}: sort them"
    assert loops_over_sets("for x in set(y) | {1}: pass\nlist({z for z in y})") == [1, 2]
    assert not loops_over_sets("for x in sorted({*y}): pass")


def test_tokenizer_and_config_load_without_jax():
    code = "import sys, cwm_jax.tokenizer, cwm_jax.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not JAX & {name.split(".")[0] for name in done.stdout.split()}


def test_public_names():
    from cwm_jax import CWM, ModelConfig, RunConfig, forward, init, loss, make_train_step
    from cwm_jax.kernels import attention
    from cwm_jax.tokenizer import load_tokenizer

    for name in (forward, init, loss, make_train_step, attention, load_tokenizer):
        assert callable(name)
    assert ModelConfig.from_hf and RunConfig and CWM.from_pretrained
    with pytest.raises(ImportError, match="cannot import name 'forwards'"):
        from cwm_jax import forwards  # noqa: F401


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "common", "helpers", "helper", "misc"}
    for folder in TOP_LEVEL[:-1]:
        for path in (ROOT / folder).rglob("*"):
            assert path.stem not in vague, f"{path}: name it after what it holds"


def test_no_two_test_files_share_a_name():
    """Folders of tests are no packages: pytest imports each file by its name alone."""
    seen: dict[str, Path] = {}
    for path in python_files(ROOT / "tests"):
        if path.name != "conftest.py":
            first = seen.setdefault(path.name, path)
            assert first == path, f"{first} and {path} share a name: rename one"


def test_folders_and_files_stay_small():
    folders = {file.parent for file in python_files(PACKAGE)}
    for folder in folders:
        entries = [p for p in folder.iterdir() if p.name not in ("__pycache__", "__init__.py")]
        most = MAX_PARTS if folder == PACKAGE else MAX_ENTRIES
        assert len(entries) <= most, f"{folder} has {len(entries)} entries"
    files = [ROOT / "train.py", *(f for d in TOP_LEVEL[:-1] for f in python_files(ROOT / d))]
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) > MAX_LINES}
    assert not long, f"{long}: split by noun"
