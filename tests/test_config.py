"""Configs: the files of configs/, overrides, refusals, Hugging Face's spellings, unread fields."""

import ast
import dataclasses
import itertools
import json
import math
import re
from pathlib import Path

import pytest
import transformers
from field_reads import fields_read
from tiny import VOCAB_SIZE, tiny_model, tiny_run

import cwm_jax.config
from configs.cwm_60m import TOKENS_PER_PARAMETER, ladder_model
from configs.pretrain_32b import MODEL as PRETRAIN_MODEL
from cwm_jax.config import (
    BatchConfig,
    BatchPhase,
    CheckpointConfig,
    DataConfig,
    ExecutionConfig,
    GeneratedTraces,
    LengthBucket,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    Recipe,
    RopeParameters,
    RunConfig,
    SourceConfig,
    TokenizerConfig,
    layer_types_3_to_1,
)
from cwm_jax.config.files import load_config, load_recipe
from cwm_jax.config.schema import flatten, from_json, known_keys, override, to_json
from cwm_jax.sweeps.ablation import load_ablation
from cwm_jax.training.plan import Plan, make_plan
from cwm_jax.training.scaling.flops import num_non_embedding_parameters

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
ABLATIONS = sorted((ROOT / "configs/ablations").glob("*.py"))
LADDER = {"cwm_60m": 60e6, "cwm_160m": 160e6, "cwm_400m": 400e6, "cwm_1b": 1e9} | {
    "cwm_3b": 3e9,
    "cwm_8b": 8e9,
}
H100_BF16_FLOPS = 989e12
LLAMA3_ROPE = RopeParameters(rope_type="llama3")


@pytest.fixture
def run_config(tmp_path) -> RunConfig:
    return tiny_run(tmp_path)


def plan_on_own_mesh(config: RunConfig) -> Plan:
    return make_plan(config, num_devices=config.mesh.num_devices or 1)


# Files of configs/


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_plans_and_survives_json(path):
    found = load_recipe(str(path))
    phases = found.phases if isinstance(found, Recipe) else (found,)
    if len(phases) == 1:
        assert phases[0].run_name == path.stem
    for config in phases:
        assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config
        plan = plan_on_own_mesh(config)
        assert plan.total_steps > 0 and plan.state_bytes_per_device < 80e9


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_header_has_purpose_command_and_hardware(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    for word in (f"Command:   python train.py --config configs/{path.name}", "Hardware:"):
        assert word in header


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_arm_plans_and_survives_json_and_its_header_is_whole(path):
    ablation = load_ablation(str(path))
    assert ablation.name == path.stem and len(ablation.seeds) >= 3
    for arm in ablation.arms:
        config = ablation.config(arm, ablation.seeds[-1])
        assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config
        assert plan_on_own_mesh(config).total_steps > 0
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    command = f"Command:   python -m cwm_jax ablate --config configs/ablations/{path.name}"
    for word in (command, "Hardware:", "Time:", "Result:", "Values:"):
        assert word in header
    arms = re.findall(r"^ {4}(\w+(?:, \w+)*)  ", header, flags=re.MULTILINE)
    assert {name for line in arms for name in line.split(", ")} == set(ablation.arms)


@pytest.mark.parametrize(
    "path", [p for p in CONFIGS if "% MFU" in p.read_text()], ids=lambda path: path.stem
)
def test_estimated_times_follow_from_the_flops(path):
    config = load_config(str(path))
    plan = plan_on_own_mesh(config)
    found = re.search(r"([\d.]+) (hours|days) if H100s reach (\d+) % MFU", path.read_text())
    assert found is not None
    stated_s = float(found[1]) * {"hours": 3600, "days": 86400}[found[2]]
    num_devices = math.prod(plan.mesh_sizes)
    flops_per_s = H100_BF16_FLOPS * int(found[3]) / 100 * num_devices
    expected_s = plan.flops_per_token * config.optimizer.train_tokens / flops_per_s
    assert stated_s == pytest.approx(expected_s, rel=0.05)


@pytest.mark.parametrize("name", LADDER)
def test_rungs_have_cwms_shape(name):
    config = load_config(str(ROOT / "configs" / f"{name}.py"))
    model = config.model
    assert num_non_embedding_parameters(model) == pytest.approx(LADDER[name], rel=0.1)
    assert model.head_dim == 128
    assert model.num_attention_heads == 6 * model.num_key_value_heads
    assert model.hidden_size == model.num_attention_heads * model.head_dim
    assert model.intermediate_size == 3.5 * model.hidden_size
    assert model.num_repeats * 4 == model.num_hidden_layers
    assert (config.optimizer.learning_rate, config.batch.global_batch_tokens) == ("law", "law")
    tokens = TOKENS_PER_PARAMETER * num_non_embedding_parameters(model)
    assert config.optimizer.train_tokens == tokens


def test_the_ladder_ends_at_the_32b_model():
    assert ladder_model(num_key_value_heads=8, num_hidden_layers=64) == PRETRAIN_MODEL


def test_law_batches_stay_near_the_law():
    for name in LADDER:
        plan = plan_on_own_mesh(load_config(str(ROOT / "configs" / f"{name}.py")))
        law = 30.17 * plan.law_compute_flops**0.231
        assert plan.stages[0].batch_tokens == pytest.approx(law, rel=0.1)


def test_phases_start_from_the_ones_before_them():
    phases = load_recipe(str(ROOT / "configs/quickstart_rl.py")).phases
    for before, config in itertools.pairwise(phases):
        start = config.checkpoint
        started = start.load_parameters_path or start.load_full_state_path
        assert started == f"runs/{before.run_name}"
        assert config.tokenizer.path == f"runs/{before.run_name}/export"
        assert config.model == before.model
        assert config.data.heldout_fraction == before.data.heldout_fraction  # nothing leaks


def test_the_quickstarts_midtraining_starts_from_it_and_holds_out_the_same():
    before = load_config(str(ROOT / "configs/quickstart.py"))
    config = load_config(str(ROOT / "configs/quickstart_midtrain.py"))
    assert config.checkpoint.load_parameters_path == f"runs/{before.run_name}"
    assert config.tokenizer.path == f"runs/{before.run_name}/export"
    assert config.data.heldout_fraction == before.data.heldout_fraction
    assert config.trace_evaluation == before.trace_evaluation  # its result is compared
    context = {
        "rope_parameters": before.model.rope_parameters,
        "max_position_embeddings": before.model.max_position_embeddings,
    }
    assert dataclasses.replace(config.model, **context) == before.model
    assert config.batch.max_target_length <= config.model.max_position_embeddings


@pytest.mark.parametrize("name", ["quickstart_midtrain", "midtrain_32b"])
def test_midtraining_learns_half_of_the_results_in_whole_trajectories(name):
    data = load_config(str(ROOT / f"configs/{name}.py")).data
    assert data.observation_loss == 0.5 and data.long_dialogs == "split"
    assert sum(source.weight for source in data.sources) == pytest.approx(1)
    own = [source for source in data.sources if source.kind in ("traces", "chat")]
    assert [source.name for source in own] == ["traces", "trajectories"]
    if name == "midtrain_32b":
        assert sum(source.weight for source in own) == pytest.approx(0.3)


def test_a_file_of_phases_is_no_single_run():
    with pytest.raises(ValueError, match="has the phases quickstart-pre, quickstart-mid"):
        load_config(str(ROOT / "configs/quickstart_rl.py"))
    phase = tiny_run(ROOT)
    for phases in ((), (phase, phase)):
        with pytest.raises(ValueError, match="each with its own run_name"):
            Recipe(phases=phases)


def test_both_32b_phases_share_one_schedule():
    pre = load_config(str(ROOT / "configs/pretrain_32b.py"))
    mid = load_config(str(ROOT / "configs/midtrain_32b.py"))
    moved = {"start_tokens": 8 * 10**12, "train_tokens": 5 * 10**12}
    assert dataclasses.replace(pre.optimizer, **moved) == mid.optimizer
    assert pre.batch.global_batch_tokens == mid.batch.global_batch_tokens
    plain = {"rope_parameters": RopeParameters(), "max_position_embeddings": 8192}
    assert dataclasses.replace(mid.model, **plain) == pre.model
    assert mid.model.rope_parameters == LLAMA3_ROPE


def test_a_length_bucket_can_be_set():
    config = load_config(str(ROOT / "configs/midtrain_32b.py"))
    changed = override(
        config,
        "data.length_buckets.1.attention_cap=none",
        "data.sources.0.epochs=2",
        "data.sources.0.weight=1",
    )
    assert [bucket.attention_cap for bucket in changed.data.length_buckets] == [None] * 3
    assert changed.data.sources[0].epochs == 2


# override


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("optimizer.train_tokens=1e9", 10**9),
        ("optimizer.train_tokens=13e12", 13 * 10**12),
        ("optimizer.train_tokens=8_388_608", 8_388_608),
        ("optimizer.learning_rate=3e-4", 3e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("optimizer.learning_rate=law", "law"),
        ("optimizer.learning_rate=law:sweeps/laws.json", "law:sweeps/laws.json"),
        ("optimizer.horizon_tokens=none", None),
        ("optimizer.schedule=constant", "constant"),
        ("execution.scan_layers=False", False),
        ("execution.scan_layers=true", True),
        ("execution.dtype=bfloat16", "bfloat16"),
        ("execution.dtype=none", None),
        ("checkpoint.load_parameters_path=none", None),
        ("checkpoint.load_parameters_path=runs/a=b", "runs/a=b"),
        ("logging.profile_steps=(3, 5)", (3, 5)),
        ("logging.profile_steps=none", None),
        ("logging.sample_prompt=def f(x):", "def f(x):"),
        ("model.eos_token_id=7", 7),
        ("model.eos_token_id=7,8", (7, 8)),
        ("model.rope_parameters.rope_theta=500000", 500_000.0),
        ("data.heldout_fraction = 0.5", 0.5),
        ("run_name=again", "again"),
        ("steps=12", 12),
    ],
)
def test_override_reads_the_fields_type(run_config, assignment, expected):
    changed = override(run_config, assignment)
    key = assignment.split("=")[0].strip()
    before, after = flatten(run_config), flatten(changed)
    assert after[key] == expected and type(after[key]) in (type(expected), float)
    assert {k for k in after if after[k] != before[k]} <= {key}


def test_overrides_are_applied_before_the_result_is_checked(run_config):
    heads, kv_heads = "model.num_attention_heads=6", "model.num_key_value_heads=3"
    for assignments in ((heads, kv_heads), (kv_heads, heads)):
        model = override(run_config, *assignments, "steps=4").model
        assert (model.num_attention_heads, model.num_key_value_heads) == (6, 3)
    with pytest.raises(ValueError, match="num_key_value_heads"):
        override(run_config, kv_heads)
    assert override(run_config) == run_config
    assert override(run_config, "steps=3", "steps=5").steps == 5  # the last one holds


def test_override_reaches_one_source_of_many(run_config):
    second = SourceConfig(name="second", kind="jsonl", path="a.jsonl")
    sources = (*run_config.data.sources, second)
    config = dataclasses.replace(
        run_config, data=dataclasses.replace(run_config.data, sources=sources)
    )
    changed = override(config, "data.sources.1.path=b.jsonl")
    assert changed.data.sources == (sources[0], dataclasses.replace(second, path="b.jsonl"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optimizer.learning_rat=1", "did you mean 'optimizer.learning_rate'"),
        ("learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("model.learning_rate=1", "did you mean 'optimizer.learning_rate'"),
        ("training.steps=3", "did you mean 'steps'"),
        ("optimiser.weight_decay=0", "did you mean 'optimizer.weight_decay'"),
        ("data.sources.0.pth=x", "did you mean 'data.sources.0.path'"),
        ("qqqq=1", "unknown key$"),
        ("trace_evaluation.corpus=x", "trace_evaluation is none there and has no field 'corpus'"),
        ("optimizer=none", "got 'none'; expected"),
        ("optimizer=adam", "names a section; expected one of learning_rate"),
        ("optimizer.learning_rate.peak=1", "is a value and has no field 'peak'"),
        ("data.sources.9.path=x", "sources has 1 items, counted from 0: sources are 0 texts"),
        ("data.sources.-1.path=x", "sources are 0 texts: write data.sources.N.path"),
        ("data.sources.0=x", "does not name a value"),
        ("optimizer.learning_rate", "expected key=value"),
        ("optimizer.train_tokens=1.5", "got '1.5'; expected int"),
        ("optimizer.train_tokens=inf", "got 'inf'; expected int"),
        ("optimizer.train_tokens=", "got ''; expected int"),
        ("optimizer.learning_rate=fast", "learning_rate is 'fast'; expected a number, 'law' (the"),
        ("optimizer.learning_rate=law:", "learning_rate is 'law:'; expected a number, 'law' (the"),
        ("batch.global_batch_tokens=1.5", "global_batch_tokens is '1.5'; expected a number, 'law'"),
        ("optimizer.weight_decay=nan", "weight_decay is nan; expected float"),
        ("optimizer.weight_decay=none", "got 'none'; expected float"),
        ("execution.scan_layers=1", "got '1'; expected bool"),
        ("execution.dtype=fp8", "got 'fp8'; expected"),
        ("logging.profile_steps=3", "profile_steps is (3,); expected tuple[int, int]"),
        ("data.sources=x", "got 'x'; expected tuple"),
        ("mesh.tensor=0", "expected sizes >= 1"),
    ],
)
def test_override_refuses(run_config, assignment, message):
    pattern = message if message.endswith("$") else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        override(run_config, assignment)


def test_a_section_is_set_as_a_whole_or_in_part(tmp_path):
    made = SourceConfig(
        name="t", kind="traces", path="t", generate=GeneratedTraces(programs=9), weight=2.0
    )
    config = tiny_run(tmp_path, data=DataConfig(sources=(made,)))
    whole, part = "data.sources.0.generate=none", "data.sources.0.generate.programs=8"
    for assignments in ((whole, part), (part, whole)):
        with pytest.raises(ValueError, match="generate is set twice, as a whole and in part"):
            override(config, *assignments)
    assert override(config, whole, whole).data.sources[0].generate is None


PHASES = "phases are 0 first, 1 second: write phases.N."


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("phases.first.seed=1", PHASES + "seed"),
        ("phases.-1.seed=1", PHASES + "seed"),
        ("phases.rl.group_size=1", PHASES + "rl.group_size"),
        ("phases.second=1", PHASES + "KEY"),
        ("rl.group_size=1", PHASES + "rl.group_size"),
        ("phases.2.seed=1", "phases has 2 items, counted from 0: " + PHASES + "seed"),
        ("phases.0.rl.group_size=1", "rl is none there"),
        ("learning_rat=1", "did you mean 'phases.N.optimizer.learning_rate'"),
        ("phases.1.steps=0", "phases.1 second: RunConfig.steps is 0"),
    ],
)
def test_override_of_a_recipe_names_its_phases(tmp_path, assignment, message):
    recipe = Recipe(phases=tuple(tiny_run(tmp_path, run_name=n) for n in ("first", "second")))
    with pytest.raises(ValueError, match=re.escape(message)):
        override(recipe, assignment)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "RunConfig is None"),
        ([], "RunConfig is \\[\\]"),
        ({"run_nam": "x"}, "unknown key 'run_nam'; did you mean 'run_name'"),
        ({"run_name": "x"}, "missing batch, data, model, optimizer, tokenizer"),
    ],
)
def test_from_json_refuses(value, message):
    with pytest.raises(ValueError, match=message):
        from_json(RunConfig, value)


@pytest.mark.parametrize("bad", [None, "x", -1, [], {}, {"x": 1}, [1], 1.5, True])
def test_from_json_of_damaged_values_raises_nothing_but_value_error(run_config, bad):
    for key in to_json(run_config):
        damaged = to_json(run_config) | {key: bad}
        try:
            assert isinstance(from_json(RunConfig, damaged), RunConfig)
        except ValueError as error:
            assert str(error)


# Impossible values

SOURCE = SourceConfig(name="a", kind="folder", path="x")
OPTIMIZER = {"learning_rate": 1e-3, "train_tokens": 100}
BATCH = {"max_target_length": 8, "per_device_batch_size": 1}


def buckets(*limits: int | None) -> DataConfig:
    found = tuple(LengthBucket(max_document_tokens=limit) for limit in limits)
    return DataConfig(sources=(SOURCE,), length_buckets=found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_model(num_key_value_heads=3), "num_attention_heads \\(4\\).*\\(3\\)"),
        (lambda: tiny_model(head_dim=7), "head_dim is 7"),
        (lambda: tiny_model(layer_types=("full_attention",)), "layer_types has 1 entries"),
        (lambda: tiny_model(layer_types=("global",) * 5), "layer_types holds \\['global'\\]"),
        (lambda: tiny_model(layer_types=["full_attention"] * 5), "layer_types is"),
        (lambda: tiny_model(sliding_window=None), "set sliding_window"),
        (lambda: tiny_model(sliding_window=0), "sliding_window is 0"),
        (lambda: tiny_model(hidden_size=0), "hidden_size is 0"),
        (lambda: tiny_model(hidden_size=32.0), "hidden_size is 32.0; expected int"),
        (lambda: tiny_model(vocab_size=True), "vocab_size is True"),
        (lambda: tiny_model(rms_norm_eps=float("nan")), "rms_norm_eps is nan"),
        (lambda: RopeParameters(rope_theta=0.0), "rope_theta is 0"),
        (lambda: RopeParameters(high_freq_factor=1.0), "high_freq_factor is 1.0"),
        (lambda: RopeParameters(rope_type="yarn"), "rope_type is 'yarn'"),
        (lambda: ExecutionConfig(dtype="fp8"), "dtype is 'fp8'"),
        (lambda: ExecutionConfig(loss_chunk_tokens=0), "loss_chunk_tokens is 0"),
        (lambda: MeshConfig(data=-1, fsdp=-1), "-1 at most once"),
        (lambda: MeshConfig(data=0), "sizes >= 1"),
        (lambda: SourceConfig(name="a/b", kind="stdlib"), "source name is 'a/b'"),
        (lambda: SourceConfig(name="a", kind="folder"), "path is None; kind 'folder'"),
        (lambda: SourceConfig(name="a", kind="stdlib", path="x"), "path is 'x'; kind 'stdlib'"),
        (lambda: SourceConfig(name="a", kind="stdlib", weight=0.0), "weight is 0"),
        (lambda: TokenizerConfig(), "either path .* or vocab_size"),
        (lambda: TokenizerConfig(path="x", vocab_size=9), "either path .* or vocab_size"),
        (lambda: tiny_run(ROOT, data=DataConfig(sources=())), "expected one of them"),
        (lambda: DataConfig(sources=(SOURCE, SOURCE)), "has a name twice"),
        (lambda: DataConfig(sources=(SOURCE,), heldout_fraction=1.0), "heldout_fraction is 1"),
        (lambda: SourceConfig(name="a", kind="traces"), "path is None; kind 'traces'"),
        (lambda: SourceConfig(name="a", kind="traces", path="x", glob="*"), "glob is '\\*'"),
        (lambda: SourceConfig(name="a", kind="stdlib", epochs=0.0), "epochs is 0"),
        (
            lambda: SourceConfig(name="a", kind="stdlib", weight=0.3, epochs=2.0),
            "weight is 0.3 and epochs 2.0; expected one of them",
        ),
        (lambda: LengthBucket(attention_cap=0), "attention_cap is 0"),
        (lambda: LengthBucket(max_document_tokens=0), "max_document_tokens is 0"),
        (lambda: buckets(8), "max_document_tokens \\[8\\]; expected rising numbers and none"),
        (lambda: buckets(None, 8, None), "\\[None, 8, None\\]; expected rising"),
        (lambda: buckets(8, 8, None), "\\[8, 8, None\\]; expected rising"),
        (lambda: BatchPhase(from_tokens=-1, batch_tokens=8), "from_tokens is -1"),
        (lambda: BatchPhase(from_tokens=0, batch_tokens=0), "batch_tokens is 0"),
        (
            lambda: BatchConfig(**BATCH, global_batch_tokens=8, gradient_accumulation_steps=2),
            "both set",
        ),
        (
            lambda: BatchConfig(
                **BATCH, global_batch_tokens=(BatchPhase(from_tokens=8, batch_tokens=8),)
            ),
            "phases start at \\[8\\]; expected 0 first",
        ),
        (lambda: BatchConfig(**BATCH, global_batch_tokens=()), "expected 0 first"),
        (lambda: OptimizerConfig(**OPTIMIZER | {"learning_rate": 0.0}), "learning_rate is 0"),
        (lambda: OptimizerConfig(**OPTIMIZER, weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: OptimizerConfig(**OPTIMIZER, adam_b1=1.5), "adam_b1 is 1.5"),
        (
            lambda: OptimizerConfig(**OPTIMIZER, warmup_tokens=9, horizon_tokens=9),
            "warmup_tokens \\(9\\) does not end before horizon_tokens",
        ),
        (
            lambda: CheckpointConfig(load_parameters_path="a", load_full_state_path="b"),
            "not both",
        ),
        (lambda: LoggingConfig(profile_steps=(5, 3)), "profile_steps is \\(5, 3\\)"),
    ],
)
def test_impossible_values_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_name": "a/b"}, "run_name is 'a/b'"),
        ({"run_name": ""}, "run_name is ''"),
        (
            {"tokenizer": TokenizerConfig(vocab_size=700)},
            f"\\(700\\) differs .* \\({VOCAB_SIZE}\\)",
        ),
        (
            {"batch": BatchConfig(max_target_length=512, per_device_batch_size=1)},
            "max_target_length \\(512\\) exceeds model.max_position_embeddings \\(256\\)",
        ),
        ({"steps": 0}, "steps is 0"),
        ({"model": "cwm_32b"}, "model is 'cwm_32b'; expected ModelConfig"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_run(tmp_path, **changes)


# Hugging Face


def hf(**changes) -> dict:
    """config.json of a tiny model; a value of ``...`` removes the key."""
    values = tiny_model(rope_parameters=LLAMA3_ROPE).to_hf() | changes
    return {k: v for k, v in values.items() if v is not ...}


def test_transformers_default_is_the_32b_config():
    theirs = ModelConfig.from_hf(transformers.CwmConfig().to_dict())
    assert theirs == load_config(str(ROOT / "configs/cwm_32b.py")).model


@pytest.mark.parametrize(
    "rope", [LLAMA3_ROPE, RopeParameters(rope_theta=1e4)], ids=lambda rope: rope.rope_type
)
@pytest.mark.parametrize("last_global", [False, True])
def test_round_trip_through_transformers(rope, last_global):
    model = tiny_model(
        rope_parameters=rope,
        layer_types=layer_types_3_to_1(5, last_global=last_global),
        eos_token_id=7,
        pad_token_id=3,
    )
    theirs = transformers.CwmConfig(**model.to_hf())
    assert ModelConfig.from_hf(theirs.to_dict()) == model
    assert ModelConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False))) == model
    assert ModelConfig.from_hf(json.loads(json.dumps(model.to_hf()))) == model


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": ...},  # transformers 4: rope_theta and rope_scaling
        {"rope_theta": ..., "rope_scaling": ...},  # transformers 5
        {"rope_theta": ..., "rope_scaling": None},
    ],
)
def test_either_spelling_of_rope(changes):
    assert ModelConfig.from_hf(hf(**changes)).rope_parameters == LLAMA3_ROPE


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_parameters": ..., "rope_scaling": None},
        {"rope_theta": 5e5, "rope_parameters": ..., "rope_scaling": ...},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": ...},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}, "rope_scaling": ...},
        {"rope_theta": 5e5, "rope_parameters": ..., "rope_scaling": {"type": "default"}},
    ],
)
def test_plain_rope_in_every_spelling(spelling):
    rope = ModelConfig.from_hf(hf(**spelling)).rope_parameters
    assert rope == RopeParameters(rope_theta=5e5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ...}, "no layer_types"),
        ({"layer_types": None}, "no layer_types"),
        ({"hidden_size": ...}, "lacks hidden_size"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"qk_norm": True}, "unknown key 'qk_norm'"),
        ({"hidden_sizes": 4}, "unknown key 'hidden_sizes' = 4; did you mean 'hidden_size'"),
        ({"rope_theta": ..., "rope_parameters": ..., "rope_scaling": ...}, "lacks rope_theta"),
        ({"rope_theta": 5.0}, "disagree"),
        ({"rope_scaling": {"type": "default"}}, "disagree"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "lacks factor, low_freq_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3'"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads is 0"),
    ],
)
def test_from_hf_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf(hf(**changes))


@pytest.mark.parametrize("bad", [None, "x", -1, 0, [], {}, {"x": 1}, [1], 1.5, True])
def test_from_hf_of_damaged_values_raises_nothing_but_value_error(bad):
    for key in hf():
        for others in ({}, {"head_dim": None}, {"rope_parameters": None}):
            try:
                assert isinstance(ModelConfig.from_hf(hf(**others) | {key: bad}), ModelConfig)
            except ValueError as error:
                assert str(error)


def test_head_dim_defaults_to_hugging_faces():
    assert ModelConfig.from_hf(hf(head_dim=None, hidden_size=48)).head_dim == 12


# Fields


def test_every_field_of_every_config_is_read():
    classes = {n: c for n, c in vars(cwm_jax.config).items() if dataclasses.is_dataclass(c)}
    files = [
        ROOT / "train.py",
        *(f for d in ("cwm_jax", "convert") for f in (ROOT / d).rglob("*.py")),
    ]
    reads = fields_read([ast.parse(file.read_text()) for file in files], set(classes))
    fields = {(name, f.name) for name, cls in classes.items() for f in dataclasses.fields(cls)}
    unread = sorted(f"{owner}.{field}" for owner, field in fields - reads)
    assert not unread, (
        f"{unread}: set in a config, yet nothing reads it. Read it or remove it; where it is "
        "read, annotate the variable it is read from (tests/field_reads.py)"
    )


def test_a_read_of_the_same_name_elsewhere_does_not_count():
    source = """
class Inner:
    name: str
    size: int
    spare: int
    checked: int
    def __post_init__(self):
        assert self.checked
class Outer:
    items: tuple[Inner, ...]
    flag: bool
def use(outer: Outer, path: Path):
    path.spare, path.name, path.flag
    for number, inner in enumerate(outer.items):
        print(inner.size)
    first = outer.items[0]
    return [first for x in outer.items if x.name]
"""
    reads = fields_read([ast.parse(source)], {"Inner", "Outer"})
    assert reads == {("Outer", "items"), ("Inner", "size"), ("Inner", "name")}


def test_keys_are_about_a_hundred_with_one_home_each(run_config):
    keys = known_keys(run_config)
    assert len(keys) == len(set(keys)) <= 110
