from dataclasses import replace

import atrous_heads
import pytest
import torch
from atrous_heads import Head, live_pairs

RATES = (6, 12, 18, 24)


def small(fuse: str, backward: bool = False, **others: object) -> Head:
    return Head(channels=5, outputs=3, side=20, fuse=fuse, backward=backward, **others)


@pytest.mark.parametrize("rates", [RATES, (12, 24, 36)])
@pytest.mark.parametrize("side", [1, 7, 20, 41])
def test_live_pairs_are_the_taps_that_a_convolution_of_ones_finds_within_the_map(side, rates):
    ones, taps = torch.ones(1, 1, side, side), torch.ones(1, 1, 3, 3)
    maps = [torch.nn.functional.conv2d(ones, taps, padding=rate, dilation=rate) for rate in rates]
    counted = int(sum(map_.sum() for map_ in maps))
    assert live_pairs(side, rates, "concat") == counted
    assert live_pairs(side, rates, "sum") == counted - (len(rates) - 1) * side**2


def test_the_backward_needs_three_times_the_operations_and_more_bytes():
    forward = atrous_heads.cost(small("sum"))
    both = atrous_heads.cost(small("sum", backward=True))
    assert both.operations == 3 * forward.operations
    assert both.bytes > 2 * forward.bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fuse", "normalised"), [("sum", False), ("concat", False), ("concat", 1)])
def test_bytes_count_every_tensor_of_the_forward_once(fuse, normalised, dtype):
    head = small(fuse, normalised=bool(normalised), batch=2, dtype=dtype)
    made = atrous_heads.operands(head, "cpu")
    output = made.upstream  # of the same size
    read = (made.input, *made.weights, *made.biases, *made.scales, *made.shifts)
    assert {tensor.dtype for tensor in read} == {dtype}
    assert atrous_heads.cost(head).bytes == sum(t.nbytes for t in (*read, output))


def test_operations_count_the_batch_and_the_merged_centre():
    head = small("sum", batch=2, rates=(20, 30))  # both rates leave the map: one live tap a pixel
    assert atrous_heads.cost(head).operations == 2 * 2 * 5 * 3 * 20**2


@pytest.mark.parametrize("fuse", ["sum", "concat"])
@pytest.mark.parametrize("normalised", [False, True])
def test_both_ways_to_write_a_head_are_the_same_function(fuse, normalised):
    head = small(fuse, normalised=normalised and fuse == "concat", batch=2, rates=(1, 2, 19))
    made = atrous_heads.operands(head, "cpu")
    stacked, apart = made.double(), made.apart().double()
    ours = atrous_heads.call(head, atrous_heads.ours, stacked)()
    theirs = atrous_heads.call(head, atrous_heads.one_convolution_a_rate, apart)()
    assert ours.shape == made.upstream.shape
    assert not ours.requires_grad
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_the_peers_weights_are_tensors_of_their_own_and_so_are_their_gradients(fuse):
    head = small(fuse, backward=True)
    apart = atrous_heads.operands(head, "cpu").apart()
    assert len({w.untyped_storage().data_ptr() for w in apart.weights}) == len(RATES)
    found = atrous_heads.call(head, atrous_heads.one_convolution_a_rate, apart)()
    assert [tuple(d.shape) for d in found["d weight"]] == [(3, 5, 3, 3)] * len(RATES)
    assert [tuple(d.shape) for d in found["d bias"]] == [(3,)] * len(RATES)


def test_the_peer_is_compiled_whole_with_and_without_its_backward():
    for head in (small("concat", normalised=True), small("sum", backward=True)):
        made = atrous_heads.operands(head, "cpu").apart()
        forward = atrous_heads.compiled(backend="aot_eager")
        compiled = atrous_heads.call(head, forward, made)()
        eager = atrous_heads.call(head, atrous_heads.one_convolution_a_rate, made)()
        if head.backward:
            compiled, eager = compiled["d input"], eager["d input"]
        assert torch.allclose(compiled, eager, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("normalised", [False, True])
def test_on_a_gpu_everything_is_channels_last(normalised):
    head = replace(small("concat", normalised=normalised), channels=16, dtype=torch.bfloat16)
    stacked = atrous_heads.operands(head, "cuda")
    (weight,) = stacked.weights
    apart = stacked.apart()
    for tensor in (stacked.input, stacked.upstream, weight[1], *apart.weights):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert weight.permute(0, 1, 3, 4, 2).is_contiguous()
    output = atrous_heads.call(head, atrous_heads.one_convolution_a_rate, apart)()
    assert output.is_contiguous(memory_format=torch.channels_last)
