"""Laws: FLOPs, traffic, memory and times of a step by hand."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_model, tiny_run

from configs import midtrain_32b, pretrain_32b
from cwm_jax.config import BatchConfig, ExecutionConfig
from cwm_jax.planning.collectives import Collective
from cwm_jax.planning.estimate import (
    Work,
    attention_imbalance,
    estimated_collectives,
    flops,
    memory_bytes,
    traffic,
)
from cwm_jax.planning.roofline import collective_seconds, link_uses, roofline
from cwm_jax.planning.targets import Target, parse_target
from cwm_jax.training.hardware import accelerator
from cwm_jax.training.scaling.flops import (
    flops_per_token,
    mean_visible_keys,
)

GIGA = 1e9
GIB = 2**30


def work_32b(config, sizes, *, rows, accumulation=1, T=None, **execution) -> Work:
    if T is not None:
        model = dataclasses.replace(config.model, max_position_embeddings=T)
        batch = dataclasses.replace(config.batch, max_target_length=T)
        config = dataclasses.replace(config, model=model, batch=batch)
    config = dataclasses.replace(
        config, execution=dataclasses.replace(config.execution, **execution)
    )
    return Work(config=config, sizes=sizes, rows=rows, accumulation=accumulation)


PRETRAIN, MIDTRAIN = pretrain_32b.get_config(), midtrain_32b.get_config()


@pytest.mark.parametrize(("T", "giga"), [(8192, 210.1), (32_768, 235.4), (131_072, 296.1)])
def test_flops_per_token_of_the_32b(T, giga):
    work = work_32b(MIDTRAIN, (1, 1, 1, 1), rows=1, T=T)
    assert flops(work).model == flops_per_token(work.model, T)
    assert flops(work).model / GIGA == pytest.approx(giga, abs=0.1)


def test_a_cap_makes_of_global_layers_local_ones():
    work = work_32b(MIDTRAIN, (1, 1, 1, 1), rows=1)
    local = dataclasses.replace(work.model, sliding_window=32_768)
    capped = flops(work, 32_768)
    of_locals = 48 * mean_visible_keys(131_072, 8192)
    of_globals = 16 * mean_visible_keys(131_072, 32_768)
    assert capped.attention == pytest.approx(12 * 6144 * (of_locals + of_globals))
    assert capped.products == pytest.approx(flops(work).products)
    assert local.sliding_window == 32_768 and capped.model < flops(work).model


@pytest.mark.parametrize(
    ("policy", "products", "attention"), [("none", 0, 2), ("minimal", 0, 6), ("full", 1, 6)]
)
def test_recomputation_is_counted_apart(policy, products, attention):
    """Full: the layers' forward pass again; the scores of a backward pass always."""
    work = work_32b(PRETRAIN, (1, 1, 1, 1), rows=1, remat_policy=policy)
    found = flops(work)
    layers = 31_005_087_744 - 129 * 6144
    keys = 64 * 4096.5
    assert found.recomputed_products == pytest.approx(2 * layers * products)
    assert found.recomputed_attention == pytest.approx(attention * 6144 * keys)
    assert found.hardware == found.model + found.recomputed_products + found.recomputed_attention


def test_an_unknown_policy_is_refused():
    work = work_32b(PRETRAIN, (1, 1, 1, 1), rows=1)
    object.__setattr__(work.config.execution, "remat_policy", "half")
    with pytest.raises(ValueError, match=r"no plan for execution\.remat_policy=half; planned for"):
        flops(work)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_imbalance_by_counting_pairs(layout, tmp_path):
    T, n = 64, 4
    config = tiny_run(
        tmp_path,
        model=tiny_model(sliding_window=24),
        batch=BatchConfig(max_target_length=T, per_device_batch_size=1),
        execution=ExecutionConfig(context_layout=layout),
    )
    q, k = np.indices((T, T))
    seen = np.zeros(T)
    for kind in config.model.layer_types:
        window = config.model.window(kind) or T
        seen += ((q >= k) & (q - k < window)).sum(axis=1)
    pieces = seen.reshape(-1, T // (2 * n)).sum(axis=1)
    if layout == "zigzag":
        of_devices = pieces[:n] + pieces[::-1][:n]
    else:
        of_devices = pieces.reshape(n, 2).sum(axis=1)
    work = Work(config=config, sizes=(1, 1, n, 1), rows=1, accumulation=1)
    assert attention_imbalance(work) == pytest.approx(of_devices.max() / of_devices.mean())


def test_memory_of_compiled_programs_is_met():
    """XLA's own analyses of the 32B's step, jax 0.10.2, fully rematerialised (docs/LOG.md)."""
    compiled = [  # chip, config, mesh, rows, accumulation, GiB
        ("h200", PRETRAIN, (1, 64, 1, 1), 64, 1, 25.84),
        ("h200", PRETRAIN, (1, 8, 1, 1), 8, 1, 83.87),
        ("h200", PRETRAIN, (1, 64, 1, 1), 512, 2, 103.06),
        ("h200", MIDTRAIN, (1, 8, 8, 1), 8, 1, 37.83),
        ("v6e", MIDTRAIN, (1, 16, 16, 1), 16, 16, 29.54),
        ("v5p", PRETRAIN, (1, 64, 1, 1), 256, 4, 85.31),
        ("v5p", MIDTRAIN, (1, 32, 4, 1), 32, 8, 80.06),
    ]
    for chip, config, sizes, rows, accumulation, gib in compiled:
        work = work_32b(config, sizes, rows=rows, accumulation=accumulation)
        estimate = sum(memory_bytes(work, chip).values()) / GIB
        assert estimate == pytest.approx(gib, rel=0.15), (chip, sizes, rows)


def test_stronger_policies_keep_less_and_compute_more():
    kept, computed = [], []
    for policy in ("none", "minimal", "full"):
        work = work_32b(PRETRAIN, (1, 64, 1, 1), rows=64, remat_policy=policy)
        kept.append(memory_bytes(work, "h200")["kept for the backward pass"])
        computed.append(flops(work).hardware)
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 3
    assert computed == sorted(computed) and len(set(computed)) == 3
    assert kept[-1] == 64 * 8192 * 6144 * 2  # the layers' inputs alone, in bfloat16


def test_traffic_of_weights_and_optimizer():
    once = work_32b(PRETRAIN, (1, 64, 1, 1), rows=64)
    n = 32_581_097_472
    assert traffic(once)["weights"] == pytest.approx(4 * 2 * n)  # forward twice, dx, dW
    assert traffic(once)["optimizer"] == pytest.approx((24 + 4 + 4) * n / 64)
    twice = work_32b(PRETRAIN, (1, 64, 1, 1), rows=64, accumulation=2)
    for name in ("weights", "activations", "logits"):
        assert traffic(twice)[name] == pytest.approx(2 * traffic(once)[name])


# Collectives


def bytes_by_kind(work, chip="h200"):
    found = {}
    for item in estimated_collectives(work, chip):
        key = (item.axes, item.kind)
        found[key] = found.get(key, 0) + item.total_bytes / GIB
    return found


def test_collectives_of_a_compiled_midtraining_step_are_met():
    """64 H200, jax 0.10.2: what XLA's program sends, read from its text."""
    found = bytes_by_kind(work_32b(MIDTRAIN, (1, 8, 8, 1), rows=8))
    compiled = {
        (("fsdp", "context"), "all-gather"): 116.6,
        (("fsdp", "context"), "reduce-scatter"): 61.2,
        (("context",), "all-gather"): 14.0,
        (("context",), "reduce-scatter"): 7.0,
        (("context",), "collective-permute"): 9.0,
    }
    assert set(found) == set(compiled)
    for key, gib in compiled.items():
        assert found[key] == pytest.approx(gib, rel=0.1), key


def test_one_device_sends_nothing():
    assert estimated_collectives(work_32b(PRETRAIN, (1, 1, 1, 1), rows=1), "h200") == []


def test_pieces_without_whole_lanes_send_twice_on_tpus():
    key = (("fsdp",), "reduce-scatter")
    whole, cut = (work_32b(PRETRAIN, (1, n, 1, 1), rows=n) for n in (48, 64))
    ratio = {
        chip: bytes_by_kind(cut, chip)[key] / bytes_by_kind(whole, chip)[key]
        for chip in ("h200", "v6e")
    }
    assert ratio["v6e"] == pytest.approx(2 * ratio["h200"])


def collective(kind, group, sent=1e9, executions=1, axes=("fsdp",)) -> Collective:
    return Collective(
        kind=kind, name="", axes=axes, group=group, sent_bytes=sent, executions=executions
    )


@pytest.mark.parametrize(
    ("places", "bytes_per_s"),
    [
        ([(0, i) for i in range(8)], 450e9),  # NVLink
        ([(i, 0) for i in range(8)], 50e9),  # one NIC for each
        ([(i, j) for i in range(2) for j in range(4)], 200e9),  # four NICs
        ([(i, j) for i in range(8) for j in range(8)], 400e9),
    ],
)
def test_gpus_send_through_nvlink_and_nics(places, bytes_per_s):
    target = parse_target("h100:64")
    item = collective("all-gather", tuple(range(len(places))))
    assert collective_seconds(item, target, places) == pytest.approx(1e9 / bytes_per_s)


@pytest.mark.parametrize(
    ("name", "kind", "places", "links"),
    [
        ("v5p:4x4x8", "all-gather", [(0, 0, i) for i in range(8)], 2),  # a ring, both ways
        ("v5p:4x4x8", "all-gather", [(i, j, 0) for i in range(4) for j in range(4)], 4),
        ("v5p:2x4x8", "all-gather", [(i, 0, 0) for i in range(2)], 1),  # a line
        ("v6e:16x16", "all-reduce", [(i, j) for i in range(16) for j in range(16)], 4),
        ("v6e:8x8", "all-reduce", [(i, j) for i in range(8) for j in range(8)], 2),
        ("v6e:16x16", "collective-permute", [(0, 0), (0, 1)], 1),
        ("v6e:16x16", "all-to-all", [(0, i) for i in range(16)], 0.5),
    ],
)
def test_tpus_send_along_the_torus(name, kind, places, links):
    target = parse_target(name)
    item = collective(kind, tuple(range(len(places))))
    expected = 1e9 / (links * target.accelerator.link_bytes_per_s)
    assert collective_seconds(item, target, places) == pytest.approx(expected)


def test_uses_of_links_add_up_by_axes_and_kind():
    items = [
        collective("all-gather", (0, 1), executions=3),
        collective("all-gather", (0, 1), sent=2e9),
        collective("all-reduce", (0, 1), sent=45e9),
        collective("all-gather", (0, 1), axes=("tensor",)),
    ]
    places = [(0, i) for i in range(8)]
    first, second, third = link_uses(items, parse_target("h100:8"), places)
    assert (first.kind, first.seconds) == ("all-reduce", pytest.approx(0.1))
    assert (second.axes, second.kind, second.executions) == (("fsdp",), "all-gather", 4)
    assert second.sent_bytes == 5e9 and second.seconds == pytest.approx(5 / 450)
    assert third.axes == ("tensor",)


def test_a_roofline_by_hand():
    device = dataclasses.replace(accelerator("h100"), product_fraction=0.5, attention_fraction=0.25)
    target = Target(
        name="four", accelerator=device, shape=(1, 4), platform="cuda", attention="hopper"
    )
    work = work_32b(PRETRAIN, (1, 4, 1, 1), rows=4, remat_policy="none")
    places = [(0, i) for i in range(4)]
    sent = [collective("all-reduce", (0, 1, 2, 3), sent=450e9)]
    found = roofline(work, sent, target, places)
    tokens, count = 8192, flops(work)
    attention = count.attention + count.recomputed_attention
    assert found.products_s == pytest.approx(tokens * count.products / (0.5 * 989e12))
    assert found.attention_s == pytest.approx(tokens * attention / (0.25 * 989e12))
    assert found.memory_s == pytest.approx(sum(traffic(work).values()) / 3.35e12)
    assert found.collective_s == pytest.approx(1.0)
    computing = found.products_s + found.attention_s
    assert found.overlapped_s == max(computing, found.memory_s, 1.0)
    assert found.serial_s == pytest.approx(computing + found.memory_s + 1.0)
