"""Compiled programs, read: texts as the TPU's compiler writes them, and real ones of the CPU's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.planning._costs import Collective, program_costs
from gr_jax.planning._hlo import Program, pieces
from gr_jax.training import make_mesh

LOOP = """\
HloModule small

%body (state: (s32[], f32[4,8], bf16[6,128])) -> (s32[], f32[4,8], bf16[6,128]) {
  %state = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, bf16[6,128]{1,0}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%turn, %two)
  %x = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %w = bf16[6,128]{1,0} get-tuple-element(%state), index=2
  %fusion.1 = f32[4,8]{1,0:T(8,128)} fusion(%x, %w, %turn), kind=kLoop, calls=%fused.1
  %scattered = f32[1,8]{1,0} fusion(%fusion.1), kind=kCustom, calls=%all-reduce-scatter.1
  %sent = (f32[4,8]{1,0}, f32[4,8]{1,0:S(1)}, u32[], u32[]) collective-permute-start(%fusion.1), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %got = f32[4,8]{1,0:S(1)} collective-permute-done(%sent)
  ROOT %out = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, bf16[6,128]{1,0}) tuple(%next, %fusion.1, %w)
}

%test (state.2: (s32[], f32[4,8], bf16[6,128])) -> pred[] {
  %state.2 = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, bf16[6,128]{1,0}) parameter(0)
  %turn.2 = s32[]{:T(128)} get-tuple-element(%state.2), index=0
  %end = s32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%turn.2, %end), direction=LT
}

%fused.1 (a: f32[4,8], b: bf16[6,128], i: s32[]) -> f32[4,8] {
  %a = f32[4,8]{1,0:T(8,128)} parameter(0)
  %b = bf16[6,128]{1,0} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %row = bf16[1,128]{1,0} dynamic-slice(%b, %i, %zero), dynamic_slice_sizes={1,128}
  %cast = f32[4,8]{1,0:T(8,128)} custom-call(%row), custom_call_target="x"
  ROOT %sum = f32[4,8]{1,0:T(8,128)} add(%a, %cast)
}

%all-reduce-scatter.1 (c: f32[4,8]) -> f32[1,8] {
  %c = f32[4,8]{1,0} parameter(0)
  %all-reduce.3 = f32[4,8]{1,0} all-reduce(%c), channel_id=5, replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add
  ROOT %part = f32[1,8]{1,0} dynamic-slice(%all-reduce.3, %c)
}

ENTRY %main (p: f32[4,8], q: bf16[6,128]) -> f32[4,8] {
  %p = f32[4,8]{1,0:T(8,128)} parameter(0)
  %q = bf16[6,128]{1,0} parameter(1)
  %one = s32[]{:T(128)} constant(1)
  %start = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, bf16[6,128]{1,0}) tuple(%one, %p, %q)
  %loop = (s32[]{:T(128)}, f32[4,8]{1,0:T(8,128)}, bf16[6,128]{1,0}) while(%start), condition=%test, body=%body
  %part.1 = f32[4,8]{1,0} fusion(%p), kind=kCustom, calls=%async.1
  %part.2 = f32[4,8]{1,0} fusion(%p), kind=kCustom, calls=%async.2
  ROOT %y = f32[4,8]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}

%async.1 (d: f32[4,8]) -> f32[4,8] {
  %d = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = f32[8,8]{1,0} all-gather(%d), channel_id=9, replica_groups=[4,2]<=[8], dimensions={0}
}

%async.2 (e: f32[4,8]) -> f32[4,8] {
  %e = f32[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = f32[8,8]{1,0} all-gather(%e), channel_id=9, replica_groups=[4,2]<=[8], dimensions={0}
}
"""  # noqa: E501
TURNS = 3  # 1, 3, 5

# In a loop of 5 turns a gradient is summed over 3 slices. After it what two slices of four have is
# gathered, and a send that is none of the network's.
SLICES = """\
HloModule slices, num_partitions=4

%turn (state: (s32[], bf16[2,128])) -> (s32[], bf16[2,128]) {
  %state = (s32[]{:T(128)}, bf16[2,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %g = bf16[2,128]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %now = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="all-reduce.3_0"}
  %send.3 = (bf16[2,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%g, %now), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.3_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE",is_spmd_generated="true"}, backend_config={"flag_configs":[]}
  %recv.3 = (bf16[2,128]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%now), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent.3 = token[] send-done(%send.3), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %got.3 = (bf16[2,128]{1,0:T(8,128)(2,1)}, token[]) recv-done(%recv.3), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %sum = bf16[2,128]{1,0:T(8,128)(2,1)} get-tuple-element(%got.3), index=0
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %out = (s32[]{:T(128)}, bf16[2,128]{1,0:T(8,128)(2,1)}) tuple(%i, %sum)
}

ENTRY %main (p: (s32[], bf16[2,128]), x: f32[4,8]) -> (s32[], bf16[2,128]) {
  %p = (s32[]{:T(128)}, bf16[2,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = f32[4,8]{1,0:T(4,128)} parameter(1)
  %first = token[] after-all()
  %send.4 = (f32[4,8]{1,0:T(4,128)}, u32[]{:S(2)}, token[]) send(%x, %first), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target={{100000,300000},{200000,400000}},_xla_megascale_transfer_type="ALL_GATHER"}, backend_config={"flag_configs":[]}
  %send.5 = (f32[4,8]{1,0:T(4,128)}, u32[]{:S(2)}, token[]) send(%x, %first), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="tf_rendezvous"}
  ROOT %loop = (s32[]{:T(128)}, bf16[2,128]{1,0:T(8,128)(2,1)}) while(%p), condition=%test, body=%turn, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def costs_of(compiled):
    text = compiled.as_text()
    assert text is not None
    return program_costs(Program(text))


def test_shapes_have_sizes_and_places():
    assert pieces("(bf16[3,4]{1,0:T(8,128)(2,1)S(1)}, /*index=5*/pred[7]{0}, s32[]{:T(128)})") == [
        (24, False),
        (7, True),
        (4, True),
    ]
    assert pieces("s4[3]{0}") == [(2, True)]
    assert pieces("f8e4m3fn[3]") == [(3, True)]


def test_a_loop_counts_from_its_start_to_its_end_by_its_step():
    program = Program(LOOP)
    main = program.computations[program.entry]
    assert program.trips(main.instructions["loop"], main) == TURNS
    other = Program(
        LOOP.replace("constant(7)", "constant(8)").replace("constant(2)", "constant(3)")
    )
    main = other.computations[other.entry]
    assert other.trips(main.instructions["loop"], main) == 3  # 1, 4, 7
    assert other.trips(main.instructions["loop"], main) == 3


def test_a_loop_that_does_not_say_counts_once_and_is_reported():
    costs = program_costs(Program(LOOP.replace("direction=LT", "direction=NE")))
    assert costs.unknown_loops == 1
    assert costs.collectives[Collective("collective-permute", 128, "{{0,1},{1,0}}")] == 1


def test_collectives_are_counted_with_their_loops_and_once_per_channel():
    assert program_costs(Program(LOOP)).collectives == {
        Collective("collective-permute", 128, "{{0,1},{1,0}}"): TURNS,
        Collective("reduce-scatter", 128, "[2,4]<=[8]"): TURNS,
        Collective("all-gather", 128, "[4,2]<=[8]"): 1,
    }


def test_what_is_sent_to_other_slices_is_counted_with_its_loops():
    assert program_costs(Program(SLICES)).collectives == {
        Collective("cross-slice-all-reduce", 512, "{1,2,3}x{0:3}"): 5,
        Collective("cross-slice-all-gather", 128, "{{100000,300000},{200000,400000}}"): 1,
    }


def test_what_is_sent_is_read_once_and_what_comes_is_written_once():
    # in 5 turns 512 bytes each way; and two sends of 128 bytes
    assert program_costs(Program(SLICES)).memory_bytes == 5 * 2 * 512 + 2 * 128


def test_a_slice_is_all_that_is_read_of_a_stack():
    without = LOOP.replace(", calls=%all-reduce-scatter.1", "").replace("calls=%async", "x=%async")
    whole = program_costs(Program(without)).memory_bytes
    sliced = program_costs(Program(without.replace("dynamic-slice(%b", "negate(%b"))).memory_bytes
    assert sliced - whole == TURNS * (6 - 1) * 256


def test_what_stays_on_the_chip_is_no_traffic():
    # sent from main memory (128 bytes read), received into the chip's
    before = program_costs(Program(LOOP)).memory_bytes
    after = program_costs(
        Program(
            LOOP.replace("%fusion.1 = f32[4,8]{1,0:T(8,128)}", "%fusion.1 = f32[4,8]{1,0:S(1)}")
        )
    ).memory_bytes
    assert after < before


@pytest.mark.parametrize("branches", [2, 3])
def test_of_a_conditional_the_costliest_branch_counts(branches):
    def run(i, x):
        large = [lambda x: x + 1] + [lambda x: jnp.sort(x * 2, axis=0) + x.T] * (branches - 1)
        return jax.lax.switch(i, large, x)

    x = jnp.zeros((64, 64))
    compiled = jax.jit(run).lower(1, x).compile()
    both = costs_of(compiled).memory_bytes
    small = jax.jit(lambda x: x + 1).lower(x).compile()
    assert both > costs_of(small).memory_bytes


def test_all_reduces_of_a_real_program_on_eight_devices():
    mesh = make_mesh(2)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec("data", "model"),
        out_specs=PartitionSpec("data", "model"),
        check_vma=False,
    )
    def run(x):
        def turn(x, _):
            return jax.lax.psum(x * 0.5, "model"), None

        x, _ = jax.lax.scan(turn, x, None, length=5)
        return jax.lax.psum(x, ("data", "model"))

    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    x = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=sharding)
    costs = costs_of(jax.jit(run).lower(x).compile())
    assert costs.unknown_loops == 0
    found = sorted((c.kind, c.operand_bytes, n) for c, n in costs.collectives.items())
    each = 16 // 4 * 6 // 2 * 4
    assert found == [("all-reduce", each, 1), ("all-reduce", each, 5)]


def test_memory_of_a_real_program_is_about_what_the_compiler_says():
    x = jnp.zeros((256, 256))
    compiled = jax.jit(lambda x: jnp.sin(x) @ x).lower(x).compile()
    said: Any = compiled.cost_analysis()
    assert costs_of(compiled).memory_bytes == pytest.approx(said["bytes accessed"], rel=0.35)
