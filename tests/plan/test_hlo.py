"""Collectives and loops of short programs written by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from iddpm_jax.plan.hlo import Collective, Module

PLAIN = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (p: f32[8,4], q: bf16[6]) -> f32[8,4] {
  %p = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %q = bf16[6]{0:T(128)} parameter(1)
  %all-reduce.1 = (f32[8,4]{1,0:T(8,128)S(1)}, /*index=1*/bf16[6]{0:T(128)}) all-reduce(%p, /*index=1*/%q), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="f(g)/psum"}
  %sum = f32[8,4]{1,0} get-tuple-element(%all-reduce.1), index=0
  %gather = f32[32,4]{1,0} all-gather(%sum), channel_id=2, replica_groups=[2,4]<=[8], dimensions={0}
  %start = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[], u32[]) collective-permute-start(%sum), channel_id=3, source_target_pairs={{0,1}}
  ROOT %done = f32[8,4]{1,0} collective-permute-done(%start)
}
"""  # noqa: E501

LOOP = """\
HloModule jit_g

%body (t: (s32[], f32[100])) -> (s32[], f32[100]) {
  %t = (s32[], f32[100]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[100] get-tuple-element(%t), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %twice = f32[100] add(%x, %x)
  %moved = f32[100] all-to-all(%twice), channel_id=7, replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %r = (s32[], f32[100]) tuple(%next, %moved)
}

%condition (t: (s32[], f32[100])) -> pred[] {
  %t = (s32[], f32[100]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[100]) -> f32[100] {
  %p = f32[100] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[100]) tuple(%zero, %p)
  %loop = (s32[], f32[100]) while(%start), condition=%condition, body=%body
  %x = f32[100] get-tuple-element(%loop), index=1
  ROOT %minus = f32[100] negate(%x)
}
"""


def test_collectives_are_found_with_their_bytes_and_groups():
    assert Module(PLAIN).collectives(1) == [
        Collective("all-reduce", 8 * 4 * 4 + 6 * 2, 4, 1),
        Collective("all-gather", 8 * 4 * 4, 4, 1),
        Collective("collective-permute", 8 * 4 * 4, 0, 1),
    ]


def test_a_collective_in_a_loop_runs_as_often_as_the_loop():
    assert Module(LOOP).collectives(5) == [Collective("all-to-all", 400, 2, 5)]


def test_pieces_that_share_a_channel_are_collectives_of_their_own():
    # XLA splits one all-reduce into several, and leaves them their channel.
    piece = "%g2 = f32[32,4] all-gather(%sum), channel_id=2\n"
    more = PLAIN.replace("ROOT %done", f"{piece}  ROOT %done")
    assert len(Module(more).collectives(1)) == 4


def test_loop_share_is_that_of_the_bytes():
    # The body: 3 integers of 4 bytes; two adds of vectors; two of the exchange. Outside: two.
    body = 3 * 4 + 3 * 400 + 2 * 400
    assert Module(LOOP).loop_share() == pytest.approx(body / (body + 800 + 2 * 4 + 1), rel=1e-9)


@pytest.mark.parametrize(
    "layout, size, in_hbm",
    [
        ("1,0", 3 * 5 * 4, True),
        ("1,0:T(8,128)", 8 * 128 * 4, True),
        ("0,1:T(4,128)", 8 * 128 * 4, True),
        ("1,0:T(8,128)(2,1)S(1)", 8 * 128 * 4, False),
    ],
)
def test_traffic_counts_tiles_and_tells_memories_apart(layout, size, in_hbm):
    array = f"f32[3,5]{{{layout}}}"
    text = f"ENTRY %main (p: f32[3,5]) -> f32[3,5] {{\n  %p = {array} parameter(0)\n"
    module = Module(text + f"  ROOT %r = {array} negate(%p)\n}}\n")
    assert module._traffic("main") == 2 * size
    assert module.hbm_bytes(1) == (2 * size if in_hbm else 0)


def test_moves_between_memories_cost_what_moves():
    text = """\
ENTRY %main (p: f32[512,512]) -> f32[128,512] {
  %p = f32[512,512]{1,0:T(8,128)} parameter(0)
  %s = ((f32[512,512]{1,0:T(8,128)}), f32[128,512]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p)
  %d = f32[128,512]{1,0:T(8,128)S(1)} slice-done(%s)
  %c = (f32[128,512]{1,0:T(8,128)}, f32[128,512]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) copy-start(%d)
  ROOT %r = f32[128,512]{1,0:T(8,128)} copy-done(%c)
}
"""
    module = Module(text)
    assert module._traffic("main") == 4 * 128 * 512 * 4
    assert module.hbm_bytes(1) == 2 * 128 * 512 * 4  # read once, written once
    assert module.operation_bytes(1) == 0


def test_operations_are_told_from_pieces_seen_as_one_array():
    text = """\
ENTRY %main (p: f32[512,512], q: f32[512,512]) -> f32[1024,512] {
  %p = f32[512,512]{1,0:T(8,128)S(1)} parameter(0)
  %q = f32[512,512]{1,0:T(8,128)S(1)} parameter(1)
  %v = f32[1024,512]{1,0:T(8,128)S(1)} custom-call(%p, %q), custom_call_target="ConcatBitcast"
  ROOT %r = f32[1024,512]{1,0:T(8,128)} negate(%v)
}
"""
    module = Module(text)
    assert module.operation_bytes(1) == 2 * 1024 * 512 * 4  # negate reads and writes
    assert module.hbm_bytes(1) == 1024 * 512 * 4


def test_traffic_in_a_loop_runs_as_often_as_the_loop():
    body, outside = 3 * 4 + 5 * 400, 2 * 400 + 2 * 4 + 1
    assert Module(LOOP).hbm_bytes(3) == pytest.approx(3 * body + outside, abs=2 * 9)
    assert Module(LOOP).hbm_bytes(1) == body + outside


def test_a_program_of_xla_is_understood():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    share = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def f(x):
        doubled = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) * 2, x)
        return doubled.sum()

    compiled = f.lower(jax.ShapeDtypeStruct((1024,), jnp.float32, sharding=share)).compile()
    module = Module(compiled.as_text())
    (found,) = module.collectives(3)
    # All devices may also be written as none in particular.
    assert (*found[:2], found.times) == ("all-reduce", 4, 1) and found.group in (0, 4)
    assert 0.3 < module.loop_share() < 0.95


def test_a_program_without_loops_or_collectives_is_fine():
    compiled = jax.jit(lambda x: x + 1).lower(1.0).compile()
    module = Module(compiled.as_text())
    assert module.collectives(7) == []
    assert module.loop_share() == 0.0
