"""Bytes and turns of collectives, by hand: XLA's printed forms, and a program of eight devices."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from cwm_jax.config import MeshConfig
from cwm_jax.planning.collectives import HloError, collectives
from cwm_jax.sharding import MESH_AXES, make_mesh

SIZES = {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}  # device = 4 fsdp + 2 context + tensor
MIB = 2**20


def program(*lines: str) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule step\n\nENTRY %main.1 (p.1: f32[8]) -> f32[8] {{\n{body}\n}}\n"


def only(text: str):
    (found,) = collectives(text, SIZES)
    return found


GROUPS = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": (("tensor",), (0, 1)),
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": (("fsdp",), (0, 4)),
    "replica_groups={}": (("fsdp", "context", "tensor"), tuple(range(8))),
    "replica_groups=[4,2]<=[8]": (("tensor",), (0, 1)),
    "replica_groups=[4,2]<=[2,4]T(1,0)": (("fsdp",), (0, 4)),
    "replica_groups=[2,4]<=[2,2,2]T(1,0,2)": (("fsdp", "tensor"), (0, 1, 4, 5)),
    "replica_groups=mesh['a'=2,'b'=4] {'b'}": (("context", "tensor"), (0, 1, 2, 3)),
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}": (("fsdp", "tensor"), (0, 1, 4, 5)),
    "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}": (
        ("tensor",),
        (0, 1),
    ),
    "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}": (
        ("fsdp", "context"),
        (0, 2, 4, 6),
    ),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_every_form_of_groups_names_its_axes(groups):
    line = f'%x = f32[1024,256]{{1,0}} all-gather(%p.1), {groups}, metadata={{op_name="a/b"}}'
    found = only(program(line))
    assert (found.axes, found.group) == GROUPS[groups]
    n = len(found.group)
    assert found.sent_bytes == MIB * (n - 1) / n and found.name == "a/b"


@pytest.mark.parametrize(
    ("result", "kind", "sent"),
    [
        ("f32[1024,256]{1,0}", "all-gather", MIB / 2),
        ("bf16[1024,256]{1,0:T(8,128)(2,1)}", "all-gather", MIB / 4),
        ("f32[1024,256]{1,0}", "reduce-scatter", MIB),  # of 2 MiB
        ("f32[1024,256]{1,0}", "all-reduce", MIB),
        ("f32[1024,256]{1,0}", "all-to-all", MIB / 2),
        ("(f32[1024,256]{1,0}, f32[1024,256]{1,0})", "all-reduce", 2 * MIB),
        ("f32[]", "all-reduce", 4),
        # a start's result holds the operand too
        ("(f32[512,256]{1,0}, f32[1024,256]{1,0})", "all-gather-start", MIB / 2),
        ("f32[1024,256]{1,0}", "all-reduce-start", MIB),
        ("(f32[2048,256]{1,0}, f32[1024,256]{1,0})", "reduce-scatter-start", MIB),
    ],
)
def test_bytes_that_a_device_sends(result, kind, sent):
    text = program(
        f"%x = {result} {kind}(%p.1), replica_groups={{{{0,1}},{{2,3}}}}",
        f"%y = f32[1024,256] {kind.removesuffix('-start')}-done(%x)",  # counted at its start
    )
    assert only(text).sent_bytes == sent


@pytest.mark.parametrize(
    ("result", "start"),
    [("f32[1024,256]", ""), ("(f32[1024,256], f32[1024,256], u32[], u32[])", "-start")],
)
def test_a_permute_sends_its_operand(result, start):
    pairs = "source_target_pairs={{0,0},{1,3},{3,1}}"
    found = only(program(f"%x = {result} collective-permute{start}(%p.1), {pairs}"))
    assert (found.sent_bytes, found.group, found.axes) == (MIB, (1, 3), ("context",))


def test_what_stays_on_its_device_is_left_out():
    lines = (
        "%x = f32[8] all-reduce(%p.1), replica_groups={{0},{1}}",
        "%y = f32[8] collective-permute(%p.1), source_target_pairs={{0,0},{1,1}}",
    )
    assert collectives(program(*lines), SIZES) == []


LOOP = """HloModule step

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %step = s32[]{:T(128)} constant(STEP)
  %r = f32[256] all-reduce(%g), replica_groups={{0,1}}, to_apply=%add
  %next = s32[]{:T(128)} add(%c, %step), metadata={op_name="add"}
  ROOT %t = (f32[8]{0:T(128)}, /*index=1*/s32[]{:T(128)}) tuple(%r, /*index=1*/%next)
}

%outer (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[] constant(1)
  %w.2 = (f32[8], s32[]) while(%t), condition=%until, body=%body, INNER
  %next = s32[] add(%c, %one)
  ROOT %t = (f32[8]{0:T(128)}, s32[]{:T(128)}) tuple(%w.2, %next)
}

%until (c: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %counter = s32[]{:T(128)} get-tuple-element(%c), index=1
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (f32[8], s32[]) while(%t), condition=%until, body=%outer, OUTER
}
"""


def loop(outer: str, inner: str, step: int = 1) -> str:
    return LOOP.replace("OUTER", outer).replace("INNER", inner).replace("STEP", str(step))


def test_loops_multiply_by_known_trip_counts_or_from_their_counters():
    known = 'backend_config={"known_trip_count":{"n":"3"}}'
    assert only(loop(known, known)).executions == 9
    assert only(loop(known, "")).executions == 21
    assert only(loop("", "")).total_bytes == 49 * 1024
    # products that gather as they go, on a TPU, count unsigned and by twos
    assert only(loop("", "", step=2)).executions == 7 * 4
    assert only(loop("", "").replace("s32", "u32")).executions == 49


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (loop("", "").replace("direction=LT", "direction=NE"), "loop of unknown length"),
        (loop("", "").replace("add(%c, %step)", "fusion(%c)"), "loop of unknown length"),
        (loop("", "").replace("index=1\n", "index=5\n"), "loop of unknown length"),
        (loop("", "").replace("constant(7)", "parameter(1)"), "loop of unknown length"),
        (program("%x = f32[8] all-reduce(%p.1), replica_groups=(0,1)"), "unknown form"),
        (program("%x = f32[8] all-reduce(%p.1), replica_groups=mesh['a'=8] {'b'}"), "unknown form"),
        (
            program(
                "%x = f32[8] all-reduce(%p.1), replica_groups=mesh['a'=8], device_ids=(0,1) {'a'}"
            ),
            "unknown form",
        ),
        (program("%x = f32[8] collective-permute(%p.1)"), "without pairs"),
        (program("%x = token[8] all-reduce(%p.1), replica_groups={}"), "element type 'token'"),
        ("HloModule nothing", "no ENTRY"),
    ],
)
def test_unknown_forms_are_refused(text, message):
    with pytest.raises(HloError, match=message):
        collectives(text, SIZES)


def test_a_compiled_program_of_eight_devices():
    """Five turns of a gather, a sum and a permute, each along an axis of its own."""
    mesh = make_mesh(MeshConfig(**SIZES))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )
    def turn(x):  # [512, 8] of float32: 16 KiB
        whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
        x = jax.lax.psum(whole[:512] * x, "tensor")
        return jax.lax.ppermute(x, "context", [(0, 1), (1, 0)])

    def run(x):
        return jax.lax.scan(lambda x, _: (turn(x), None), x, length=5)[0]

    text = jax.jit(run).lower(jnp.ones((1024, 8))).compile().as_text()
    kib = 2**10
    assert {(c.kind, c.axes): (c.sent_bytes, c.executions) for c in collectives(text, SIZES)} == {
        ("all-gather", ("fsdp",)): (16 * kib, 5),
        ("all-reduce", ("tensor",)): (16 * kib, 5),
        ("collective-permute", ("context",)): (16 * kib, 5),
    }
    assert tuple(SIZES) == MESH_AXES
