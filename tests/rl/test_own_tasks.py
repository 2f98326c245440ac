"""Contract: the docs' lines are tasks; `rl check` says what a run would ask, and what is wrong."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.swe_episode import small_tokenizer
from configs import rl_own_tasks
from cwm_jax.__main__ import main
from cwm_jax.rl import checking
from cwm_jax.rl.envs import prediction
from cwm_jax.rl.envs.code import environment as code
from cwm_jax.rl.envs.math import environment as math
from cwm_jax.rl.envs.swe import profiles as swe

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/posttraining.md").read_text()
SECTION = DOC.partition("## Your own tasks\n")[2].partition("\n## ")[0]
LINES = [json.loads(block) for block in re.findall(r"```json\n(.*?)\n```", SECTION, re.S)]
KINDS = ("code", "code", "math", "math_python", "swe", "swe")

CONFIG = """
import dataclasses
from configs import rl_own_tasks
from cwm_jax.config import EnvironmentConfig, TokenizerConfig

def get_config():
    config = rl_own_tasks.get_config()
    return dataclasses.replace(
        config,
        tokenizer=TokenizerConfig(path={tokenizer!r}),
        batch=dataclasses.replace(config.batch, max_target_length=1024),
        rl=dataclasses.replace(config.rl, environments={environments}))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer().save(folder)
    return folder


@pytest.fixture(scope="module")
def commit(tmp_path_factory):
    """(folder, hash) of the repository that the docs' line speaks of."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "tests").mkdir()
    (folder / "tests/__init__.py").write_text("")
    (folder / "shapes.py").write_text("def area(width, height):\n    return width + height\n")
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "First"]):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    head = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(head, cwd=folder, check=True, capture_output=True, text=True)
    return str(folder), done.stdout.strip()


@pytest.fixture
def check(tmp_path, tokenizer, capsys):
    """``check({name: (kind, tasks)}, options)``: status, output, errors."""

    def run(files, *options):
        environments = []
        for name, (kind, tasks) in files.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
            environments.append(
                f"EnvironmentConfig(name={name!r}, kind={kind!r}, path={str(path)!r})"
            )
        (tmp_path / "config.py").write_text(
            CONFIG.format(tokenizer=str(tokenizer), environments=f"({', '.join(environments)},)")
        )
        return main(["rl", "check", str(tmp_path / "config.py"), *options]), *capsys.readouterr()

    return run


def named(task, name, **data):
    return {"name": name, "data": {**task["data"], **data}}


@pytest.fixture
def own(commit):
    """The docs' lines, the git one in this test's repository."""
    folder, head = commit
    lines = list(LINES)
    lines[4] = named(lines[4], "area", repository={"git": folder, "commit": head})
    return lines


def test_the_docs_have_a_line_of_every_kind_and_its_gold_answer_earns_one(check, own):
    assert len(LINES) == len(KINDS)
    files = {f"e{n}": (kind, [line]) for n, (kind, line) in enumerate(zip(KINDS, own, strict=True))}
    status, out, err = check(files, "--gold", "--set", "data.heldout_fraction=1e-9")
    assert (status, err) == (0, ""), out + err
    assert out.count("gold: 1 of 1 earn +1") == 4
    assert out.count("have no gold answers; their tests are not run") == 2
    assert out.endswith("0 problems\n")
    for line in LINES:
        assert f"the prompt of {line['name']}: " in out
        assert line["data"].get("problem", line["data"].get("issue")) in out
    (shown,) = re.findall(r"````text\n(.*?)\n````", SECTION, re.S)
    assert shown in out


def test_gold_answers_that_earn_nothing_are_named_with_the_reason(check, own):
    area, perimeter = own[4:]
    number = {"calls": [{"module": "shapes", "call": "perimeter(2, 3)", "expected": "11"}]}
    suite = {**area["data"]["tests"], "fail_to_pass": ["tests.test_shapes.Area.test_it"]}
    swe_tasks = [
        area,
        named(area, "names", tests=suite),
        named(area, "hash", repository={**area["data"]["repository"], "commit": "1" * 40}),
        named(perimeter, "value", tests=number),
        named(perimeter, "plain", patch=perimeter["data"]["patch"].partition("\n")[2]),
        named(perimeter, "marks", patch=perimeter["data"]["patch"] + " </tool>\n"),
    ]
    brace = named(own[2], "brace", answer="x } y")
    files = {"s": ("swe", swe_tasks), "m": ("math", [own[2], brace])}
    status, out, err = check(files, "--gold", "--set", "data.heldout_fraction=1e-9")
    assert (status, err) == (1, ""), err
    assert "gold: 1 of 6 earn +1" in out and "gold: 1 of 2 earn +1" in out
    for problem in (
        "s, task names: its gold answer: earns +0: 1 of 2 hidden tests fail: tests.",
        "s, task hash: its gold answer: the environment failed: git fetch",
        "s, task value: its gold answer: earns +0: 1 of 1 hidden tests fail",
        "s, task plain: its gold answer: the patch is not submitted: ",
        "s, task marks: its gold answer: its patch has one of <tool:, </tool>",
        "m, task brace: its gold answer: earns -1: another answer",
    ):
        assert f"\nenvironment {problem}" in out, out
    assert out.endswith("6 problems\n")
    status, out, _ = check(files, "--gold", "--limit", "1", "--set", "data.heldout_fraction=1e-9")
    assert status == 0 and out.count("gold: 1 of 1 earn +1") == 2


def test_prompts_without_room_and_the_split_are_said(check, own):
    tasks = [named(own[2], f"t{n}") for n in range(40)]
    status, out, _ = check({"m": ("math", tasks)}, "--set", "data.heldout_fraction=0.3")
    counts = re.search(
        r"m \(math, profile small\): 40 tasks, (\d+) to train on, (\d+) held out", out
    )
    assert status == 0 and sum(map(int, counts.groups())) == 40 and int(counts[2]) > 3
    status, out, _ = check(
        {"m": ("math", tasks)},
        *("--set", "data.heldout_fraction=0.3", "rl.environments.0.max_tasks=5"),
    )
    left = int(counts[1]) - 5
    assert status == 0 and f" 5 to train on (max_tasks: {left} are left out), " in out
    tokens = int(re.search(r"the prompt of t0: (\d+) tokens of batch.max_target", out)[1])
    limits = (f"batch.max_target_length={tokens}", f"batch.global_batch_tokens={tokens}")
    status, out, _ = check({"m": ("math", tasks)}, "--set", *limits)
    assert status == 1
    assert (
        f"40 of 40 prompts leave no room for an answer in batch.max_target_length {tokens}" in out
    )


def test_what_does_not_start_is_said_once_and_not_played(check, own, monkeypatch):
    def broken(name, task):
        raise KeyError("repository")

    monkeypatch.setattr(checking, "make_environments", lambda configs, tokenizer: broken)
    status, out, _ = check(
        {"m": ("math", [own[2]])}, "--gold", "--set", "data.heldout_fraction=0.1"
    )
    assert status == 1 and "prompts of 1 tasks: none starts" in out
    assert "\nenvironment m, task a-half-and-a-third: it does not start: KeyError: 'repo" in out
    assert out.endswith("gold: 0 of 1 earn +1\n" + out.splitlines()[-2] + "\n1 problems\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "rl.environments.0.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["--set", "rl.environments.0.profile=huge"], "profile is 'huge'; those of kind 'math'"),
        (["--set", "rl.group_siz=3"], "did you mean 'rl.group_size'"),
        (["--set", "tokenizer.path=nowhere"], "name one by --tokenizer"),
        (["--tokenizer", "nowhere"], "rl_own_tasks is nowhere, and there is nothing"),
        (["--set", "data.heldout_fraction=0.9999999"], "none of its 1 tasks is left to train on"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_status_2(check, own, options, message):
    status, _, err = check({"m": ("math", [own[2]])}, *options)
    assert status == 2 and err.startswith("cwm_jax rl: ") and message in err


def test_a_config_without_rl_is_refused(capsys):
    assert main(["rl", "check", str(ROOT / "configs/quickstart.py")]) == 2
    assert "no rl is set" in capsys.readouterr().err


def test_checking_needs_no_jax():
    program = "import sys; import cwm_jax.rl.checking, cwm_jax.rl.command; print(*sys.modules)"
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "jax" not in done.stdout.split()


# ---------------------------------------------------------------- the table of profiles


def rows():
    """As the docs have them."""
    yes = {True: "yes", False: "no"}
    for kind in ("output_prediction", "trace_prediction"):
        for name, p in prediction.PROFILES.items():
            is_dialog = kind == "output_prediction"
            yield (
                f"| `{kind}` | `{name}` | {p.max_action_tokens:,} | whole "
                f"| {yes[is_dialog and p.think]} | {yes[is_dialog and p.system_prompt]} | |"
            )
    for name, p in code.PROFILES.items():
        g = p.grading
        total = "" if g.total_s is None else f", all {g.total_s:g} s"
        yield (
            f"| `code` | `{name}` | {p.max_action_tokens:,} | {p.max_prompt_tokens:,} "
            f"| {yes[p.think]} | {yes[p.system_prompt]} | a test {g.test_s:g} s{total}; "
            f"{g.memory_bytes / 2**20:,.0f} MiB |"
        )
    for name, p in math.PROFILES.items():
        packages = f"; imports {', '.join(p.packages)}" if p.packages else ""
        yield (
            f"| `math`, `math_python` | `{name}` | {p.max_action_tokens:,} "
            f"| {p.max_prompt_tokens:,} | {yes[p.think]} | {yes[p.system_prompt]} | math-verify "
            f"{yes[p.math_verify]}; {p.calls} programs of {p.call_s:g} s, output "
            f"{p.max_result_tokens:,}{packages} |"
        )
    for name, p in swe.PROFILES.items():
        formed = "strict" if p.strict_format else "lenient"
        middle = "no reward of similarity" if p.similarity_threshold is None else ""
        yield (
            f"| `swe` | `{name}` | {p.action_tokens:,} | {p.prompt_tokens:,} | {yes[p.think]} "
            f"| yes | {p.max_turns} turns, {p.context_tokens:,} tokens in all, of a tool "
            f"{p.tool_message_tokens:,}; a command {p.session_timeout_s:g} s, all "
            f"{p.sandbox_s:,.0f} s, tests {p.test_timeout_s:g} s; "
            f"{p.limits.memory_bytes / 2**20:,.0f} MiB; {formed}{', ' if middle else ''}{middle} |"
        )


def test_the_table_of_profiles_is_the_codes():
    table = [line for line in SECTION.splitlines() if line.startswith("| `")]
    assert table == list(rows())


def test_the_example_names_its_files_and_has_no_profile_that_is_not_there():
    assert [e.path for e in rl_own_tasks.ENVIRONMENTS] == ["tasks/math.jsonl", "tasks/code.jsonl"]
    assert rl_own_tasks.PROFILE in code.PROFILES and rl_own_tasks.PROFILE in math.PROFILES
    assert dataclasses.is_dataclass(rl_own_tasks.get_config())
