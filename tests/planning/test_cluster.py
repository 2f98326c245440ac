"""Plans of tiny runs on this process's eight devices, through the code of real targets."""

import dataclasses
import json
import math
import re

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import tiny_model, tiny_run

import train
from configs import midtrain_32b, pretrain_32b
from cwm_jax.config import BatchConfig, BatchPhase, LengthBucket, MeshConfig
from cwm_jax.planning import cluster, report, targets
from cwm_jax.planning.choice import (
    candidates,
    legal_works,
    own_work,
    smaller_variants,
)
from cwm_jax.planning.cluster import plan_cluster, with_attention
from cwm_jax.planning.estimate import estimated_collectives, memory_bytes, work_of
from cwm_jax.planning.program import (
    DeviceMemory,
    DoesNotFitError,
    Program,
    compile_step,
    state_bytes,
)
from cwm_jax.planning.targets import Target, parse_target
from cwm_jax.sharding import make_mesh
from cwm_jax.training.hardware import accelerator
from cwm_jax.training.plan import make_plan

T = 64
MODEL = tiny_model(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=16,
    num_key_value_heads=8,
)


def here(memory_bytes: int = 2**40) -> Target:
    """This process's devices, said to be H200s of so much memory."""
    device = dataclasses.replace(
        accelerator("h200"), memory_bytes=memory_bytes, usable_memory_fraction=1.0
    )
    return Target(
        name="here", accelerator=device, shape=(1, 8), platform="cpu", attention="chunked"
    )


def run_of(folder, *, rows=8, batch_tokens=16 * T, **changes):
    values = dict(
        model=MODEL,
        mesh=MeshConfig(data=1, fsdp=4, context=1, tensor=2),
        batch=BatchConfig(
            max_target_length=T,
            per_device_batch_size=rows / 8,
            global_batch_tokens=batch_tokens,
        ),
    )
    return tiny_run(folder, **{**values, **changes})


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_cluster(run_of(tmp_path_factory.mktemp("plan")), here())


@pytest.fixture
def pretended(monkeypatch):
    """Programs that take what the estimate says, and are not compiled."""

    def compile_step(config, plan, target):
        work, chip = work_of(plan), target.accelerator.name
        parts = {field.name: 0 for field in dataclasses.fields(DeviceMemory)}
        parts["activations"] = int(sum(memory_bytes(work, chip).values()))
        return Program(
            memory=DeviceMemory(**parts),
            peak_bytes=parts["activations"] // 2,
            collectives=tuple(estimated_collectives(work, chip)),
            custom_calls=(),
            lower_s=1.0,
            compile_s=2.0,
        )

    monkeypatch.setattr(cluster, "compile_step", compile_step)


# A plan of the run's own mesh


def test_the_runs_own_mesh_is_kept_and_compiled(plan):
    work = plan.attempt.work
    assert plan.fits and plan.attempt.candidate.changes == {} and plan.tried == ()
    assert (work.sizes, work.rows, work.accumulation) == ((1, 4, 1, 2), 8, 2)
    assert work.config.execution.attention == "chunked"
    memory = plan.attempt.program.memory
    weights = sum(math.prod(x.shape) for x in jax.tree.leaves(report.abstract_params(MODEL)))
    norms = 64 * (2 * 2 + 1)  # whole on every device
    assert memory.params == 4 * ((weights - norms) / 8 + norms)
    assert memory.optimizer == pytest.approx(2 * memory.params, abs=16)
    assert memory.batch == 16 * T * 5 * 4 / 4  # rows of five arrays, over four ranks
    assert memory.gradients == memory.params
    assert memory.total == sum(dataclasses.asdict(memory).values())


def test_a_tpus_compiler_decides_what_fits(plan):
    """It refuses what does not; on GPUs, where it does not, the sum decides."""
    attempt = plan.attempt
    small = {p: dataclasses.replace(here(1000), platform=p) for p in ("tpu", "cuda", "cpu")}
    fits = {p: dataclasses.replace(attempt, target=t).fits for p, t in small.items()}
    assert fits == {"tpu": True, "cuda": False, "cpu": False}
    refused = dataclasses.replace(attempt, program=None, refusal=DoesNotFitError("no"))
    assert not dataclasses.replace(refused, target=small["tpu"]).fits
    assert 0 < attempt.program.peak_bytes <= attempt.program.memory.total


def test_its_collectives_are_the_programs(plan):
    axes = {use.axes for use in plan.roofline.links}
    assert {("fsdp",), ("tensor",)} <= axes
    assert all(use.seconds > 0 for use in plan.roofline.links)


def test_numbers_follow_from_each_other(plan):
    slow = plan.step_s[1]
    assert plan.step_s[0] <= slow
    assert plan.tokens_per_s[1] == pytest.approx(16 * T / slow)
    flops = plan.roofline.flops.model * 16 * T
    assert plan.mfu[1] == pytest.approx(flops / slow / (8 * 989e12))
    tokens = plan.config.optimizer.train_tokens
    assert plan.device_hours[1] == pytest.approx(tokens / (16 * T) * slow / 3600 * 8)


KEYS = {
    "accelerator",
    "accumulation_steps",
    "attention",
    "buckets_flops_per_token",
    "changes",
    "collectives",
    "compile",
    "compiled",
    "context_layout",
    "fits",
    "flops_per_token",
    "loss_chunk_tokens",
    "memory",
    "mesh",
    "mfu",
    "num_devices",
    "phase",
    "platform",
    "remat_policy",
    "remedy",
    "row_tokens",
    "rows",
    "run",
    "seconds",
    "smallest_num_devices",
    "step_tokens",
    "target",
    "tokens_per_s",
    "topology",
    "traffic_bytes",
    "tried",
    "versions",
}


def test_json_has_every_number_of_the_text(plan):
    found = json.loads(json.dumps(report.to_json(plan), allow_nan=False))
    assert set(found) == KEYS
    assert found["mesh"] == {"data": 1, "fsdp": 4, "context": 1, "tensor": 2}
    memory = found["memory"]
    assert sum(memory["parts"].values()) == memory["needed"] <= memory["usable"]
    assert memory["excess"] == 0 and memory["refusal"] is None
    assert found["seconds"]["serial"] == pytest.approx(
        sum(found["seconds"][x] for x in ("products", "attention", "memory", "collectives"))
    )
    assert found["versions"]["jax"] == jax.__version__
    uses = found["collectives"]
    assert {"axes", "kind", "executions", "sent_bytes", "seconds"} == set(uses[0])


def test_text_says_devices_first_and_what_is_compiled(plan):
    text = report.to_text(plan)
    assert text.startswith("devices      8 devices of this process (here)\n")
    for part in (
        "memory of a device, GiB: fits",
        "optimizer state ",
        "collectives of a device in a step, compiled",
        "tensor all-gather",
        "time, everything overlapped to nothing overlapped",
        "basis: compiled for the target, nothing run",
        "device-hours",
    ):
        assert part in text
    assert "chosen for it" not in text and "cheapest change" not in text


def test_buckets_are_said_to_be_programs_of_their_own(tmp_path, pretended):
    config = run_of(tmp_path)
    buckets = (LengthBucket(max_document_tokens=16, attention_cap=8), LengthBucket())
    data = dataclasses.replace(config.data, length_buckets=buckets)
    found = plan_cluster(dataclasses.replace(config, data=data), here())
    text = " ".join(report.to_text(found).split())  # wherever its lines break
    assert "2 programs in the run" in text and "global attention is capped at 8" in text
    (capped,) = report.to_json(found)["buckets_flops_per_token"].values()
    assert capped < found.roofline.flops.model


# Another mesh


def test_a_mesh_is_chosen_where_the_runs_own_does_not_fit(tmp_path):
    config = run_of(tmp_path, mesh=MeshConfig(fsdp=1024, tensor=2))
    found = plan_cluster(config, here())
    assert found.fits and math.prod(found.attempt.work.sizes) == 8
    changes = [f"{key}={value}" for key, value in found.attempt.candidate.changes.items()]
    assert changes and f"--set {' '.join(changes)}" in report.to_text(found)
    again = own_work(train.schema.override(config, *changes), here())
    assert again is not None  # what it prints is what it planned
    assert (again.sizes, again.rows) == (found.attempt.work.sizes, found.attempt.work.rows)


@pytest.mark.parametrize("name", ["v5p:4x4x8", "v6e:16x16", "h100:64", "h100:4096"])
@pytest.mark.parametrize("config", [pretrain_32b, midtrain_32b], ids=["pretrain", "midtrain"])
def test_what_is_legal_divides_everything(config, name):
    config, target = config.get_config(), parse_target(name)
    model, T = config.model, config.batch.max_target_length
    works = list(legal_works(config, target))
    assert len(works) > 50 and len({(w.sizes, w.rows) for w in works}) == len(works)
    batch = 2**23 if T == 8192 else 2**25
    for work in works:
        data, fsdp, context, tensor = work.sizes
        assert data * fsdp * context * tensor == target.num_devices
        for width in (48, 8, model.intermediate_size, model.vocab_size):
            assert width % tensor == 0
        assert model.hidden_size % (fsdp * context) == work.rows % (data * fsdp) == 0
        assert T % (2 * context if context > 1 else 1) == 0
        assert work.accumulation * work.rows * T == batch
        assert work.config.batch.per_device_batch_size * target.num_devices == work.rows
        assert target.platform == "tpu" or tensor <= 8


def test_tensor_parallel_gpus_are_of_one_node(tmp_path):
    config = run_of(tmp_path, model=dataclasses.replace(MODEL, num_key_value_heads=16))
    widest = {
        name: max(work.sizes[3] for work in legal_works(config, parse_target(name)))
        for name in ("h100:16", "v6e-16")
    }
    assert widest == {"h100:16": 8, "v6e-16": 16}


def test_the_best_is_fast_and_of_the_fast_the_smallest():
    found = candidates(midtrain_32b.get_config(), here())
    fastest = min(c.seconds_per_token for c in found)
    assert found[0].seconds_per_token <= fastest * math.exp(0.02)
    near = [c for c in found if c.seconds_per_token < fastest * math.exp(0.0199)]
    assert len(near) > 2 and found[0].total_bytes == min(c.total_bytes for c in near)


def test_rows_that_do_not_divide_are_chosen_too(tmp_path):
    config = run_of(tmp_path, rows=2)  # two rows for four ranks
    assert own_work(config, here()) is None
    found = candidates(config, here())
    assert all("batch.per_device_batch_size" in c.changes or c.work.rows == 2 for c in found)


def test_batches_of_every_phase_of_the_run_must_divide(tmp_path):
    phases = (
        BatchPhase(from_tokens=0, batch_tokens=16 * T),
        BatchPhase(from_tokens=100 * T, batch_tokens=24 * T),
    )
    train_tokens = 200 * T
    config = run_of(tmp_path, batch_tokens=phases)
    optimizer = dataclasses.replace(config.optimizer, train_tokens=train_tokens)
    config = dataclasses.replace(config, optimizer=optimizer)
    assert {work.rows for work in legal_works(config, here())} == {1, 2, 4, 8}
    short = dataclasses.replace(optimizer, train_tokens=100 * T)
    config = dataclasses.replace(config, optimizer=short)
    assert 16 in {work.rows for work in legal_works(config, here())}


def test_nothing_divides(tmp_path):
    with pytest.raises(ValueError, match="no mesh of 8 devices divides this model"):
        plan_cluster(run_of(tmp_path, mesh=MeshConfig(), batch_tokens=T + 1), here())


# What does not fit


@pytest.mark.parametrize("own", [True, False], ids=["own mesh", "chosen mesh"])
def test_a_remedy_is_found_and_compiled(tmp_path, pretended, own):
    """A device on which remat policy none is too much on every mesh, and another one is not."""
    config = run_of(tmp_path, **({} if own else {"mesh": MeshConfig(fsdp=1024)}))
    least = min(c.total_bytes for c in candidates(config, here()))
    notes = []
    found = plan_cluster(config, here(int(least) - 1), note=notes.append)
    assert not found.fits and found.remedy is not None and found.remedy.fits
    assert found.remedy.candidate.changes["execution.remat_policy"] in ("minimal", "full")
    assert len(notes) == 2 + len(found.tried)
    text, data = report.to_text(found), report.to_json(found)
    assert "memory of a device, GiB: DOES NOT FIT" in text and "too much" in text
    assert re.search(r"cheapest change that fits, compiled: --set \S+=", text)
    assert data["memory"]["excess"] > 0 and data["remedy"]["fits"]


def test_another_chosen_mesh_is_tried_where_the_first_needs_more_than_estimated(
    tmp_path, monkeypatch, pretended
):
    """The first program takes a tenth more than the estimate said."""
    config = run_of(tmp_path, mesh=MeshConfig(fsdp=1024))
    first = candidates(config, here())[0]
    honest, seen = cluster.compile_step, []

    def compile_step(config, plan, target):
        program = honest(config, plan, target)
        seen.append(plan.mesh_sizes)
        if len(seen) == 1:
            more = dataclasses.replace(program.memory, code=int(first.total_bytes / 10))
            program = dataclasses.replace(program, memory=more)
        return program

    monkeypatch.setattr(cluster, "compile_step", compile_step)
    found = plan_cluster(config, here(int(first.total_bytes) + 1))
    assert found.fits and len(seen) == 2 and found.remedy is None
    assert [attempt.fits for attempt in found.tried] == [False]
    assert found.attempt.candidate.total_bytes <= first.total_bytes / 1.1
    assert "execution.remat_policy" not in found.attempt.candidate.changes


def test_what_fits_nowhere_names_a_number_of_devices(tmp_path, pretended):
    config = run_of(tmp_path)
    variants = smaller_variants(config)
    least = min(c.total_bytes for c in candidates(config, here(), variants=variants))
    found = plan_cluster(config, here(int(least) - 1))
    assert not found.fits and found.remedy is None
    assert found.smallest_num_devices == 16
    assert "by the estimate 16 h200 would be enough" in report.to_text(found)
    nowhere = plan_cluster(config, here(1000))
    assert nowhere.smallest_num_devices is None
    assert "on any number of these devices" in report.to_text(nowhere)


REFUSED = "RESOURCE_EXHAUSTED: Ran out of memory. Used 36.96G of 15.75G hbm. Exceeded by 21.21G."


def test_a_refusal_of_xla_is_a_result(tmp_path, monkeypatch):
    def refuse(config, plan, target):
        raise DoesNotFitError(REFUSED)

    monkeypatch.setattr(cluster, "compile_step", refuse)
    found = plan_cluster(run_of(tmp_path), here(16 * 2**30))
    text = report.to_text(found)
    assert "XLA refuses the program: RESOURCE_EXHAUSTED: Ran out of memory. Used 36.96G" in text
    assert re.search(r"sum, as XLA says +36\.96\n", text)
    assert re.search(r"too much +20\.96$", text, re.MULTILINE)
    assert "nothing compiled fits: memory and collectives are estimates" in text
    data = json.loads(json.dumps(report.to_json(found), allow_nan=False))
    assert data["memory"]["needed"] == int(36.96 * 2**30) and not data["compiled"]


@pytest.mark.parametrize("out_of_memory", [True, False])
def test_only_a_want_of_memory_is_a_refusal(tmp_path, monkeypatch, out_of_memory):
    text = REFUSED if out_of_memory else "INTERNAL: a bug"

    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    error = DoesNotFitError if out_of_memory else jax.errors.JaxRuntimeError
    config = with_attention(run_of(tmp_path), here())
    with pytest.raises(error, match=text.split(":")[0]):
        compile_step(config, make_plan(config, num_devices=8), here())


def test_xla_without_numbers_is_a_result_too():
    assert DoesNotFitError("RESOURCE_EXHAUSTED: no more").needed_bytes is None
    assert DoesNotFitError("Used 512.5M of 1.5G hbm", 7).needed_bytes == 537_395_200
    early = "RESOURCE_EXHAUSTED: HLO temporaries (1.50G) exceeds available HBM (15.75G)."
    assert DoesNotFitError(early, 7).needed_bytes == 3 * 2**29 + 7  # arguments come on top


def test_smaller_variants_begin_with_the_run(tmp_path):
    config = run_of(tmp_path)
    variants = smaller_variants(config)
    assert variants[0] == config
    policies = [variant.execution.remat_policy for variant in variants]
    assert (policies[0], policies[-1]) == ("none", "full") and "minimal" in policies
    works = [next(legal_works(variant, here())) for variant in variants]
    kept = [memory_bytes(work, "h200")["kept for the backward pass"] for work in works]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    assert smaller_variants(variants[-1]) == variants[-1:]


def test_what_lies_in_the_hosts_memory_does_not_count():
    mesh = make_mesh(MeshConfig(fsdp=8))
    on_device = NamedSharding(mesh, PartitionSpec("fsdp"), memory_kind="device")
    array = jax.ShapeDtypeStruct((16, 4), "float32", sharding=on_device)
    on_host = jax.ShapeDtypeStruct(
        (16, 4), "float32", sharding=on_device.with_memory_kind("pinned_host")
    )
    assert state_bytes([array, on_host]) == 2 * 4 * 4


def test_attention_is_that_of_the_target_not_of_this_machine(tmp_path):
    config = pretrain_32b.get_config()
    assert config.execution.attention == "auto"
    for name, attention in (("v6e-64", "tpu"), ("h200:8", "hopper"), ("a100:8", "triton")):
        assert with_attention(config, parse_target(name)).execution.attention == attention
    execution = dataclasses.replace(config.execution, attention="reference")
    named = dataclasses.replace(config, execution=execution)
    assert with_attention(named, parse_target("h200:8")) is named


# The command line

CONFIG = """
import pathlib
from planning_run import run_of

def get_config():
    return run_of(pathlib.Path("."))
"""


@pytest.fixture
def command(tmp_path, monkeypatch, pretended):
    """Runs train.py with the tiny run on this process's devices, whatever target is named."""
    module = type(report)("planning_run")
    module.run_of = run_of
    monkeypatch.setitem(__import__("sys").modules, "planning_run", module)
    monkeypatch.setattr(targets, "prepare_environment", lambda: None)
    monkeypatch.setattr(targets, "parse_target", lambda name: here(int(name)))
    (tmp_path / "config.py").write_text(CONFIG)
    return lambda *words: train.main(["--config", str(tmp_path / "config.py"), *words])


def test_the_command_plans_and_says_whether_it_fits(command, tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert command("--plan", str(2**40), "--plan-json", str(file)) == 0
    out, err = capsys.readouterr()
    assert out.startswith("8 devices of this process\n") and "compiling for here" in err
    assert json.loads(file.read_text())["fits"] is True
    assert command("--plan", "1000") == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_the_command_prints_shardings(command, capsys):
    assert command("--shardings", "--set", "mesh.fsdp=4") == 0
    out = capsys.readouterr().out
    assert re.search(r"layers\.0\.mlp\.gate_proj\.kernel +1x64x64 +-, fsdp\*context, tensor ", out)
    assert re.search(r"on a device: parameters 0\.00 GiB, optimizer state 0\.00 GiB", out)


def test_the_command_refuses_a_bad_target(tmp_path, capsys):
    (tmp_path / "config.py").write_text("from configs.pretrain_32b import get_config\n")
    assert train.main(["--config", str(tmp_path / "config.py"), "--plan", "b200:8"]) == 2
    assert "unknown target 'b200:8'; known: " in capsys.readouterr().err
