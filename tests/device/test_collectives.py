"""What a program sends, read from its text: XLA's own for fake devices, and lines of a TPU's."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxft.device.collectives import Collective, collectives
from jaxft.device.mesh import make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


WHOLE = P()


def compiled(function, *specs, out=WHOLE):
    """The text of `function` of float32 [8, 16] arrays that lie by `specs` on 2x2x2 devices."""
    mesh = make_mesh(2, 2, 2)
    places = [NamedSharding(mesh, spec) for spec in specs]
    step = jax.jit(function, in_shardings=places, out_shardings=NamedSharding(mesh, out))
    shapes = [jax.ShapeDtypeStruct((8, 16), jnp.float32)] * len(specs)
    return step.lower(*shapes).compile().as_text()


@pytest.mark.parametrize(
    ("axes", "group"), [("tensor", 2), ("fsdp", 2), ("data", 2), (("data", "fsdp"), 4)]
)
def test_a_gather_is_found_with_its_axis_and_bytes(axes, group):
    text = compiled(lambda x: x * 2, P(axes))
    name = axes if isinstance(axes, str) else "+".join(axes)
    sent = 8 * 16 * 4 * (group - 1) // group  # each device sends its part round a ring
    assert collectives(text, MESH) == [Collective("all-gather", name, 1, sent)]


def test_a_sum_is_sent_twice_round():
    text = compiled(lambda x: x.sum(0), P("fsdp"))
    (found,) = collectives(text, MESH)
    assert (found.kind, found.axes, found.sent) == ("all-reduce", "fsdp", 16 * 4)


def test_what_is_in_a_loop_counts_once_a_turn():
    def loop(x, w):
        return jax.lax.scan(lambda s, _: (jnp.tanh(s @ w.T @ w), None), x, length=5)[0]

    text = compiled(loop, P(None, "tensor"), P(None, "tensor"), out=P(None, "tensor"))
    within = [one for one in collectives(text, MESH) if one.axes == "tensor"]
    assert sum(one.count for one in within) % 5 == 0
    assert within


def test_nothing_is_sent_on_one_device():
    text = jax.jit(lambda x: x.sum()).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives(text, {"data": 1, "fsdp": 1, "tensor": 1}) == []


TPU = """HloModule jit_step

%all-reduce-scatter.1 (p: bf16[64,1024]) -> bf16[4,1024] {
  %p = bf16[64,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.7 = bf16[64,1024]{1,0:T(8,128)(2,1)S(1)} all-reduce(%p), channel_id=3, \
replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}, use_global_device_ids=true, to_apply=%add
}

%cond (q: (s32[], f32[8])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%start (a: bf16[1,64]) -> bf16[16,64] {
  ROOT %all-gather.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=9, \
replica_groups=[1,16]<=[16], dimensions={0}, use_global_device_ids=true
}

%end (a: bf16[1,64]) -> bf16[16,64] {
  ROOT %all-gather.2 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=9, \
replica_groups=[1,16]<=[16], dimensions={0}, use_global_device_ids=true
}

%body (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f.1 = bf16[16,64]{1,0} fusion(%a), kind=kCustom, calls=%start
  %f.2 = bf16[16,64]{1,0} fusion(%a), kind=kCustom, calls=%end
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %w = (s32[]{:T(128)}, f32[8]{0}) while(%t), condition=%cond, body=%body
  %s = bf16[4,1024]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %collective-permute-start = (bf16[4,2]{1,0}, bf16[4,2]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%z), channel_id=4, source_target_pairs={{0,1},{1,2},{15,0}}
}
"""


def test_a_tpus_program_is_read():
    found = collectives(TPU, {"data": 1, "fsdp": 16, "tensor": 1})
    assert found == [
        Collective("reduce-scatter", "fsdp", 1, 64 * 1024 * 2 // 16 * 15),
        # Its parts, start and end, are one; 24 turns of 15 sixteenths of 16 x 64 bfloat16.
        Collective("all-gather", "fsdp", 24, 24 * 16 * 64 * 2 * 15 // 16),
        Collective("collective-permute", "fsdp", 1, 4 * 2 * 2),
    ]


PERMUTED = """
ENTRY %main (x: f32[4]) -> f32[4] {
  %g = f32[8]{0} all-gather(%x), channel_id=1, replica_groups={{0,1}}
  %part = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %ppermute.1 = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %ppermute.2 = f32[4]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}
}
"""


def test_permutations_that_jax_asks_for_are_each_sent():
    """All have one channel on CPUs; what is a part of another collective is not sent again."""
    assert collectives(PERMUTED, {"data": 2}) == [
        Collective("collective-permute", "data", 2, 2 * 4 * 4),
        Collective("all-gather", "data", 1, 8 * 4 // 2),
    ]
