"""What compiled programs send and move, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from swerl_jax.learn import hlo_count
from swerl_jax.policy.mesh import make_mesh

LOOP = """HloModule m, num_partitions=8

%fused (p0: f32[10,4], p1: s32[], p2: f32[4]) -> f32[4] {
  %p0 = f32[10,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %slice = f32[1,4]{1,0} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,4}
  %flat = f32[4]{0} bitcast(%slice)
  %p2 = f32[4]{0} parameter(2)
  ROOT %sum = f32[4]{0} add(%flat, %p2)
}

%body (arg: (s32[], f32[10,4], f32[4])) -> (s32[], f32[10,4], f32[4]) {
  %arg = (s32[]{:T(128)}, f32[10,4]{1,0}, f32[4]{0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%arg), index=0
  %all = f32[10,4]{1,0} get-tuple-element(%arg), index=1
  %x = f32[4]{0} get-tuple-element(%arg), index=2
  %y = f32[4]{0} fusion(%all, %i, %x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  %z = f32[4]{0:T(128)S(1)} all-reduce(%y), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
  %tile.3 = f32[4]{0:T(128)S(1)} custom-call(%z), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[]{:T(128)}, f32[10,4]{1,0}, f32[4]{0}) tuple(%i, %all, %tile.3)
}

%condition (arg.1: (s32[], f32[10,4], f32[4])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, f32[10,4]{1,0}, f32[4]{0}) parameter(0)
  %limit = s32[]{:T(128)} constant(10)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (p: f32[10,4], q: f32[4]) -> f32[4] {
  %p = f32[10,4]{1,0} parameter(0)
  %q = f32[4]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[10,4]{1,0}, f32[4]{0}) tuple(%zero, %p, %q)
  %w = (s32[]{:T(128)}, f32[10,4]{1,0}, f32[4]{0}) while(%start), condition=%condition, body=%body
  ROOT %r = f32[4]{0} get-tuple-element(%w), index=2
}
"""


def test_a_loops_body_counts_as_often_as_it_runs():
    work = hlo_count.count(LOOP)
    assert work.cycles == 10 * 7
    assert work.kernels == {"tile": 10}
    # A sum over 4 chips sends 2 · 3/4 of 16 bytes; the groups are the columns of a box of 4 × 2 numbers.
    assert work.sent == {hlo_count.Transfer("all-reduce", (0, 2, 4, 6)): 10 * 1.5 * 16}
    # A turn reads one row of the stack (16) and x (16) and writes y (16); the kernel's part is in fast memory, as is the
    # counter. The condition reads its limit and writes its result: 4 + 1.
    assert work.memory_bytes == 10 * (16 + 16 + 16 + 4 + 1)


def test_a_loop_that_the_compiler_unrolled():
    """Its counter grows by 3: 10 turns become 4."""
    grown = LOOP.replace("tuple(%i, %all", "tuple(%next, %all").replace(
        "  %all =", "  %three = s32[]{:T(128)} constant(3)\n  %next = s32[]{:T(128)S(6)} add(%i, %three)\n  %all =")
    assert hlo_count.count(grown).cycles == 4 * 7


@pytest.mark.parametrize("text, group", [
    ("replica_groups={{0,3},{1,2}}, x", (0, 3)),
    ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,4]T(1,0), x", (0, 4)),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=4] {'a'}, x", (0, 4)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", (0, 4)),
    ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, x", (0, 1, 2, 3)),
    ("source_target_pairs={{4,0},{0,4}}, x", (0, 4)),
    ("replica_groups={}, x", tuple(range(8))),
])
def test_all_ways_to_write_groups(text, group):
    assert hlo_count.first_group(text, 8) == group


def test_bytes_of_arrays():
    assert hlo_count.array_bytes("bf16[2,3]{1,0:T(8,128)(2,1)}") == 12
    assert hlo_count.array_bytes("(f32[4]{0}, pred[3]{0}, s4[4]{0}, f8e4m3fn[5]{0}, u32[])") == 16 + 3 + 2 + 5 + 4
    assert hlo_count.array_bytes("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}") == 0
    assert hlo_count.array_bytes("bf16[2,3]{1,0:T(8,128)(2,1)S(1)}", everywhere=True) == 12


def compiled(function, mesh, specs, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
                 for shape, spec in zip(shapes, specs, strict=True)]
    return jax.jit(function).trace(*arguments).lower().compile().as_text()


def test_what_real_programs_send():
    """Layers under two scans whose matrices are gathered: 3 × 5 times 7/8 of a matrix of 32 × 32."""
    mesh = make_mesh({"fsdp": 8})

    def layers(x, w):
        def gathered(x, w):
            return x @ jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec())), None

        return jax.lax.scan(lambda x, _: (jax.lax.scan(gathered, x, w)[0] * 2, None), x, None, length=3)[0]

    specs = PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")
    work = hlo_count.count(compiled(layers, mesh, specs, (8, 32), (5, 32, 32)))
    gathers = {transfer: sent for transfer, sent in work.sent.items() if transfer.kind == "all-gather"}
    assert gathers == {hlo_count.Transfer("all-gather", tuple(range(8))): pytest.approx(3 * 5 * 7 / 8 * 32 * 32 * 4)}


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo_count.count("HloModule nothing")


@pytest.mark.parametrize("kind, collective, times", [
    ("ALL_REDUCE", "all-reduce", 4 / 3), ("ALL_GATHER", "all-gather", 2), ("REDUCE_SCATTER", "reduce-scatter", 2 / 3)])
def test_what_hosts_send_between_slices(kind, collective, times):
    """Three slices of eight chips; a chip hands 16 bytes over."""
    text = f"""HloModule m, num_partitions=8

ENTRY %main (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  %token = token[] after-all()
  %send = (f32[4]{{0:T(128)}}, u32[], token[]) send(%p, %token), is_host_transfer=true, frontend_attributes={{_xla_megascale_target="{{1,2,3}}x{{0:7}}",_xla_megascale_transfer_type="{kind}"}}
  %recv = (f32[4]{{0:T(128)}}, u32[], token[]) recv(%token), is_host_transfer=true, frontend_attributes={{_xla_megascale_target="{{1,2,3}}x{{0:7}}",_xla_megascale_transfer_type="{kind}"}}
  %sent = token[] send-done(%send), is_host_transfer=true
  %come = (f32[4]{{0}}, token[]) recv-done(%recv), is_host_transfer=true
  ROOT %r = f32[4]{{0}} get-tuple-element(%come), index=0
}}
"""
    assert hlo_count.count(text).sent == {hlo_count.Transfer(collective, (0, 8, 16)): pytest.approx(times * 16)}
