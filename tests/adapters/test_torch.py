"""PyTorch tensors, filled in place as `torch.nn.init` fills them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

import by_hand
from idinit_ref import errors, plan
from idinit_ref_torch import idi_, idiz_
from idinit_ref_torch._tensor import fill_
from strategies import TAPS, weights

FORMATS = {
    torch.float64: (53, -1022),
    torch.float32: (24, -126),
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float8_e5m2: (3, -14),
    torch.float8_e5m2fnuz: (3, -15),
    torch.float8_e4m3fn: (4, -6),
    torch.float8_e4m3fnuz: (4, -7),
}
WIDE_ENOUGH = list(FORMATS)[:4]  # 1e-6 is not 0 in these
COMPLEX = {
    torch.complex32: torch.float16,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
half_warning = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def expected(shape, role, dtype, options):
    """The entries by hand, rounded once into the dtype, as a float64 array."""
    exact = by_hand.weight(shape, role, **options)
    if dtype is torch.float64:
        return exact
    flat = [by_hand.nearest(value, *FORMATS[dtype]) for value in exact.reshape(-1)]
    return np.array(flat, np.float64).reshape(shape)


def fill(tensor, role, options):
    if isinstance(role, tuple):  # one for each block: only a whole model decides them
        return fill_(tensor, plan(tuple(tensor.shape), role, **options))
    return {"transit": idi_, "zero": idiz_}[role](tensor, **options)


def numbers(tensor):
    return tensor.detach().to(torch.float64).numpy()


def exactly(tensor, array):
    """Equal values, and no zero with a sign."""
    got = numbers(tensor)
    return np.array_equal(got, array) and not np.signbit(got[got == 0]).any()


# The numbers --------------------------------------------------------------------------------------


@given(weights(), st.sampled_from(WIDE_ENOUGH))
def test_every_option_gives_the_numbers_of_the_specification(weight, dtype):
    shape, role, options = weight
    tensor = torch.full(shape, 7.0, dtype=dtype)
    assert fill(tensor, role, options) is tensor
    assert tensor.dtype == dtype
    assert exactly(tensor, expected(shape, role, dtype, options))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("gain", [1.0, -0.3])
def test_idi_in_every_dtype(dtype, gain):
    tensor = idi_(torch.full((5, 3), 7.0, dtype=dtype), gain=gain)
    assert tensor.dtype == dtype
    assert exactly(tensor, expected((5, 3), "transit", dtype, {"gain": gain}))


@half_warning
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize(
    ("role", "options"), [("transit", {"gain": 0.1}), ("zero", {}), ("transit", {"loosen": 0.5})]
)
def test_complex_tensors_keep_their_dtype_and_have_no_imaginary_part(dtype, role, options):
    tensor = torch.full((3, 5), 7 + 7j, dtype=dtype)
    fill(tensor, role, options)
    assert tensor.dtype == dtype
    parts = torch.view_as_real(tensor)
    assert exactly(parts[..., 0], expected((3, 5), role, COMPLEX[dtype], options))
    assert not parts[..., 1].any()


def test_a_gain_is_rounded_once():
    """Just above the tie between two bfloat16 numbers; by way of float32 it would be the tie."""
    gain = 1 + 2.0**-8 + 2.0**-40
    twice = torch.tensor(gain, dtype=torch.float64).float().bfloat16()
    assert twice.item() == 1.0
    assert idi_(torch.empty(2, 2, dtype=torch.bfloat16), gain=gain)[0, 0].item() == 1 + 2.0**-7


# What is kept -------------------------------------------------------------------------------------


def test_the_same_object_comes_back_as_it_was():
    weight = nn.Parameter(torch.full((4, 3), 7.0).t())
    address, version = weight.data_ptr(), weight._version
    assert idi_(weight) is weight
    assert type(weight) is nn.Parameter
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.grad_fn is None
    assert weight.data_ptr() == address
    assert weight.stride() == (1, 3)
    assert weight._version > version  # so that autograd notices a write to what it has saved
    assert torch.is_grad_enabled()


def test_autograd_notices_the_write():
    weight = nn.Parameter(torch.ones(2, 2))
    loss = (weight * weight).sum()
    idi_(weight)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_random_number_generator_moves():
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    idi_(torch.empty(4, 4), loosen=0.1)
    idiz_(torch.empty(4, 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@given(weights(), st.data())
def test_views_keep_their_strides_and_neighbours(weight, data):
    """Permuted and sliced views of a larger tensor; all else in it stays as it was."""
    shape, role, options = weight
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.integers(1, 3)) for _ in shape]
    spans = [slice(1, 1 + size * step, step) for size, step in zip(shape, steps, strict=True)]
    stored = [2 + shape[axis] * steps[axis] for axis in order]
    back = [order.index(axis) for axis in range(len(shape))]
    base = torch.full(stored, 7.0)
    view = base.permute(back)[tuple(spans)]
    assert tuple(view.shape) == shape
    strides = view.stride()
    fill(view, role, options)
    assert view.stride() == strides
    assert exactly(view, expected(shape, role, torch.float32, options))
    view.fill_(7.0)
    assert (base == 7.0).all()


@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [((6, 4, 3, 2), torch.channels_last), ((4, 6, 2, 3, 2), torch.channels_last_3d)],
)
@pytest.mark.parametrize(
    "options",
    [{}, *({"taps": taps} for taps in TAPS[1:]), {"groups": 2}, {"transposed": True}],
    ids=str,
)
@pytest.mark.parametrize("role", ["transit", "zero"])
def test_channels_last(shape, memory_format, options, role):
    tensor = torch.full(shape, 7.0).to(memory_format=memory_format)
    fill(tensor, role, options)
    assert tensor.is_contiguous(memory_format=memory_format)
    assert exactly(tensor, expected(shape, role, torch.float32, options))


def test_the_diagonal_of_a_stack_is_a_view_like_any_other():
    base = torch.full((3, 2, 3), 7.0)
    idi_(base.diagonal(dim1=0, dim2=2))
    assert base[1].tolist() == [[7, 0, 7], [7, 1, 7]]


def test_a_part_of_a_parameter():
    weight = nn.Parameter(torch.full((4, 2), 7.0))
    idi_(weight[2:])
    assert weight.tolist() == [[7, 7], [7, 7], [1, 0], [0, 1]]
    assert weight.is_leaf


LAZY = {
    "conjugated": lambda base: base.conj(),
    "adjoint": lambda base: base.mH,
    "sliced": lambda base: base[:, ::2].conj(),
    "negated": lambda base: base.conj().imag,
}


@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    "size", [3, 11]
)  # the one is written number by number, the other in vectors
@pytest.mark.parametrize(
    ("role", "options"), [("transit", {"gain": -0.5}), ("zero", {}), ("transit", {"loosen": 0.1})]
)
def test_views_that_conjugate_or_negate_lazily(name, dtype, size, role, options):
    """They read as any other tensor does, with +0 for every real and imaginary part of 0."""
    view = LAZY[name](torch.full((size, size + 2), 7 + 7j, dtype=dtype))
    assert view.is_conj() != view.is_neg()
    fill(view, role, options)
    read = torch.view_as_real(view.resolve_conj().resolve_neg().to(dtype))
    assert exactly(read[..., 0], expected(view.shape, role, COMPLEX[dtype], options))
    assert exactly(read[..., 1], np.zeros(view.shape))


def test_only_what_a_lazy_view_shows_is_written():
    base = torch.full((2, 3), 7 + 7j)
    idi_(base.conj().imag)
    assert base.tolist() == [[7 - 1j, 7, 7], [7, 7 - 1j, 7]]


@pytest.mark.parametrize(
    ("tensor", "options"),
    [
        (torch.ones(1000, 500), {}),
        (torch.ones(300, 2000), {"wide": "fold_rms"}),
        (torch.ones(1000, 500), {"loosen": 0.1}),
        (torch.ones(96, 64, 3, 3).to(memory_format=torch.channels_last), {}),
        (torch.ones(4, 300, 200).transpose(0, 2), {"layout": "OIE"}),
        (torch.ones(600, 500)[:, ::2], {}),
    ],
    ids=["tall", "fold", "loosened", "channels_last", "transposed", "sliced"],
)
def test_no_weight_sized_temporary(tensor, options):
    assert allocated(lambda: tensor.copy_(torch.ones(tensor.shape))) >= tensor.nbytes
    assert largest(lambda: idi_(tensor, **options)) < tensor.nbytes / 100
    if not options.get("loosen"):  # its noise is drawn row by row
        assert allocated(lambda: idi_(tensor, **options)) < tensor.nbytes / 100


@pytest.mark.parametrize("role", ["transit", "zero"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2100, 2050), {}),
        ((5200, 1100), {}),
        ((1200, 5000), {}),
        ((1100, 1050, 2, 2), {}),
        ((3 * 1100, 1400), {"blocks": (1100,) * 3}),
        ((2100, 2050), {"layout": "IO"}),
    ],
)
def test_a_large_weight_leaves_the_memory_beside_it_alone(shape, options, role):
    size = int(np.prod(shape))
    memory = torch.full((size + 7,), 7.0)
    tensor = memory[3 : size + 3].view(shape)
    fill(tensor, role, options)
    assert exactly(tensor, plan(shape, role, **options).build(dtype=np.float32))
    assert memory[:3].tolist() == [7] * 3
    assert memory[-4:].tolist() == [7] * 4


@pytest.mark.parametrize("role", ["transit", "zero"])
@pytest.mark.parametrize("shape", [(3072, 4096), (2048, 3072), (2688, 3927), (4096, 1031)])
def test_large_weights_whose_lines_come_in_another_order(shape, role):
    tensor = torch.full(shape, 7.0)
    fill(tensor, role, {})
    assert exactly(tensor, plan(shape, role).build(dtype=np.float32))


@pytest.mark.parametrize("shape", [(4, 3), (300, 300), (2100, 2050)])
def test_an_inference_tensor_outside_of_its_mode(shape):
    with torch.inference_mode():
        tensor = torch.full(shape, 7.0)
    assert exactly(idi_(tensor), plan(shape).build(dtype=np.float32))


@pytest.mark.parametrize("shape", [(4, 3), (2100, 2050)])
def test_within_functionalize(shape):
    with pytest.raises(errors.OptionTypeError, match="functionalize"):
        torch.func.functionalize(lambda x: idi_(x.clone()))(torch.full(shape, 7.0))


def recorded(work):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    return seen.events()


def allocations(work):
    return [0, *(max(event.self_cpu_memory_usage, 0) for event in recorded(work))]


def allocated(work):
    return sum(allocations(work))


def largest(work):
    return max(allocations(work))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 3, 0)])
def test_empty_tensors(shape):
    tensor = torch.empty(shape)
    assert idi_(tensor) is tensor
    assert idiz_(tensor) is tensor
    assert tensor.shape == shape
    expanded = torch.empty(1, 0).expand(3, 0)  # no place, so none that is shared
    assert idi_(expanded) is expanded


# Where it runs ------------------------------------------------------------------------------------


def test_meta_tensors_are_validated_and_left_alone():
    tensor = torch.empty(10**6, 10**6, device="meta")
    assert idi_(tensor) is tensor
    assert idiz_(tensor) is tensor
    assert tensor._version == 0
    with pytest.raises(errors.OptionError, match="gain"):
        idi_(tensor, gain=0.0)
    with pytest.raises(errors.RoundingError, match="eps"):
        idiz_(torch.empty(3, 3, device="meta", dtype=torch.float8_e5m2))


@pytest.mark.parametrize("options", [{}, {"loosen": 0.1}], ids=str)
def test_a_default_device_or_dtype_changes_nothing(options):
    tensor = torch.empty(3, 3)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            idi_(tensor, **options)
            assert nn.Linear(3, 3).weight.is_meta
    finally:
        torch.set_default_dtype(before)
    assert exactly(tensor, expected((3, 3), "transit", torch.float32, options))


def test_inference_mode():
    with torch.inference_mode():
        inside = idi_(torch.empty(2, 2))
        outside = idi_(torch.empty(2, 2).requires_grad_())
    assert inside.tolist() == outside.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("options", [{}, {"loosen": 0.1}], ids=str)
def test_fake_tensors_within_their_mode(options):
    """Outside it they refuse to meet the numbers, as they refuse any real tensor."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        tensor = torch.empty(3, 4)
        assert idi_(tensor, **options) is tensor
        assert idiz_(tensor) is tensor
    assert isinstance(tensor, FakeTensor)
    assert tensor.shape == (3, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("verb", [idi_, idiz_])
def test_a_recorded_fill_is_replayed(verb, dtype):
    """Whatever looks on must see every write, though the fastest are NumPy's."""
    from torch.fx.experimental.proxy_tensor import make_fx

    recorded = make_fx(lambda tensor: verb(tensor))(torch.empty(3, 2, dtype=dtype))
    found = recorded(torch.full((3, 2), 7.0, dtype=dtype))
    assert torch.equal(found, verb(torch.empty(3, 2, dtype=dtype)))


# What is refused ----------------------------------------------------------------------------------


def refused(error, tensor, *words, verb=idi_, **options):
    """The error's message holds all the words, and the tensor is untouched."""
    before = tensor._version
    with pytest.raises(error) as caught:
        verb(tensor, **options)
    for word in words:
        assert word in str(caught.value)
    assert tensor._version == before


@pytest.mark.parametrize("value", [[[1.0, 2.0]], np.ones((2, 2)), None, nn.Linear(2, 2)], ids=type)
def test_what_is_no_tensor(value):
    with pytest.raises(errors.OptionTypeError) as caught:
        idi_(value)
    assert f"tensor = {type(value)!r}" in str(caught.value)
    assert "for a layer use idi_layer_" in str(caught.value)


def test_a_lazy_parameter():
    with pytest.raises(errors.ShapeError) as caught:
        idi_(nn.LazyLinear(3).weight)
    assert "UninitializedParameter" in str(caught.value)
    assert "run one forward pass" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e8m0fnu], ids=str)
def test_a_dtype_that_holds_no_weight(dtype):
    name = str(dtype).removeprefix("torch.")
    refused(errors.DTypeError, torch.ones(3, 3).to(dtype), f"dtype = {name!r}", "choose float64")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor():
    refused(
        errors.DTypeError,
        torch.quantize_per_tensor(torch.ones(3, 3), 1.0, 0, torch.qint8),
        "dtype = 'qint8'",
        "choose float64",
    )


@pytest.mark.parametrize("dtype", list(FORMATS)[4:], ids=str)
def test_an_eps_that_is_0_in_the_dtype(dtype):
    tensor = torch.ones(3, 3).to(dtype)
    refused(errors.RoundingError, tensor, "eps = 1e-06", "rounds to 0", "use at least", verb=idiz_)
    assert (tensor.float() == 1).all()


def test_a_gain_that_overflows():
    tensor = torch.ones(3, 3, dtype=torch.float16)
    refused(errors.RoundingError, tensor, "gain = 100000.0", "65504", "smaller", gain=1e5)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (torch.Tensor.to_sparse, "torch.sparse_coo"),
        (torch.Tensor.to_sparse_csr, "torch.sparse_csr"),
        (torch.Tensor.to_mkldnn, "torch._mkldnn"),
    ],
    ids=["coo", "csr", "mkldnn"],
)
def test_tensors_that_are_not_dense(make, word):
    refused(errors.OptionTypeError, make(torch.ones(3, 3)), f"tensor = {word}", "not sparse")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_tensors(layout):
    rows = [torch.ones(2, 3), torch.ones(4, 3)]
    refused(
        errors.OptionTypeError,
        torch.nested.nested_tensor(rows, layout=layout),
        "tensor = 'nested'",
        "initialise the dense tensor first",
    )


@pytest.fixture
def mesh():
    """A mesh of one process."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_a_sharded_tensor(mesh):
    """On one rank; several are in test_torch_sharded.py."""
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    sharded = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
    assert idi_(sharded, gain=2.0) is sharded
    assert torch.equal(sharded.to_local(), idi_(torch.empty(4, 3), gain=2.0))
    partial = DTensor.from_local(torch.ones(4, 4), mesh, [Partial()])
    with pytest.raises(errors.OptionError) as caught:
        idi_(partial)
    assert "tensor.placements = (Partial(sum),)" in str(caught.value)
    assert "redistribute it first" in str(caught.value)
    assert (partial.to_local() == 1).all()


@pytest.mark.parametrize(
    "view",
    [
        torch.ones(1, 3).expand(3, 3),
        torch.ones(5).unfold(0, 3, 1),
        torch.ones(9).as_strided((3, 3), (1, 2)),
    ],
    ids=["expanded", "unfolded", "interleaved"],
)
def test_places_that_share_memory(view):
    refused(errors.OptionError, view, f"tensor.stride() = {view.stride()}", "clone() it first")
    assert (view == 1).all()


@pytest.mark.parametrize("conjugated", [False, True])
def test_a_complex_view_that_negates_lazily(conjugated):
    """PyTorch negates one 0 to -0 and another to +0, in vectors and number by number."""
    base = torch.zeros(3, 3, dtype=torch.complex64)
    view = torch.view_as_complex(base.conj().imag.as_strided((3, 3, 2), (6, 2, 1), 0))
    signs = torch.signbit(torch.view_as_real(view.resolve_neg()))
    assert signs.any()
    assert not signs.all()
    view = view.conj() if conjugated else view
    refused(errors.OptionError, view, "tensor = 'lazily negated'", "base tensor of this view")
    assert (base == 0).all()


def test_a_stride_of_0_on_an_axis_of_one_place_shares_nothing():
    tensor = torch.full((3, 2), 7.0).as_strided((1, 3, 2), (0, 2, 1))
    assert idi_(tensor, layout="EOI").tolist() == [[[1, 0], [0, 1], [1, 0]]]


def test_memory_that_was_freed():
    """As sharding frees that of the parameters it has flattened; a write would crash."""
    tensor = torch.ones(3, 3)
    tensor.untyped_storage().resize_(0)
    refused(errors.OptionError, tensor, "tensor.untyped_storage().nbytes() = 0", "gather it first")


@pytest.mark.parametrize(
    ("verb", "error", "options", "word"),
    [
        (idi_, errors.OptionError, {"gain": 0.0}, "gain = 0.0"),
        (idi_, errors.OptionError, {"wide": "fold"}, "wide = 'fold'"),
        (idi_, errors.OptionError, {"taps": "centre"}, "taps = 'centre'"),
        (idi_, errors.OptionError, {"loosen": -1.0}, "loosen = -1.0"),
        (idi_, errors.OptionTypeError, {"seed": 0.5}, "seed = 0.5"),
        (idiz_, errors.OptionError, {"eps": 0.0}, "eps = 0.0"),
        (idiz_, errors.LayoutError, {"layout": "OIH"}, "layout = 'OIH'"),
        (idiz_, errors.LayoutError, {"groups": 3}, "groups = 3"),
        (idiz_, errors.LayoutError, {"blocks": (1, 2)}, "blocks = (1, 2)"),
        (idiz_, errors.OptionError, {"taps": "channel_major", "tap": (0, 0)}, "tap = (0, 0)"),
        (idiz_, errors.OptionError, {"tap": (3, 0)}, "tap = (3, 0)"),
        (idiz_, errors.OptionError, {"form": "even"}, "form = 'even'"),
        (idi_, errors.OptionError, {"loosen_at": "entries"}, "loosen_at = 'entries'"),
        (idi_, errors.OptionError, {"loosen": 0.1, "loosen_at": "rows"}, "loosen_at = 'rows'"),
        (idi_, errors.OptionError, {"stride": (2,)}, "stride = (2,)"),
        (idi_, errors.OptionError, {"stride": (2, 0)}, "stride = (2, 0)"),
        (idi_, errors.OptionTypeError, {"stride": 2}, "stride = 2"),
        (idiz_, errors.OptionTypeError, {"stride": (2, 0.5)}, "stride = (2, 0.5)"),
        (idiz_, errors.OptionTypeError, {"stride": (2, True)}, "stride = (2, True)"),
        (idiz_, errors.OptionTypeError, {"transposed": 1}, "transposed = 1"),
    ],
)
def test_options_that_do_not_fit(verb, error, options, word):
    tensor = torch.ones(4, 4, 3, 3)
    refused(error, tensor, word, verb=verb, **options)


def test_the_stride_of_a_matrix():
    cure = "has no phases; leave it out"
    refused(errors.OptionError, torch.ones(4, 4), "stride = (2,)", cure, stride=(2,))


def test_a_bias():
    refused(errors.ShapeError, torch.ones(4), "shape = (4,)", "set it to 0")


@pytest.mark.parametrize("verb", [idi_, idiz_])
def test_options_are_given_by_name(verb):
    with pytest.raises(TypeError, match="positional"):
        verb(torch.ones(2, 2), 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_memory_that_was_filled_can_be_resized(dtype):
    """FSDP drops and makes anew the memory of what it has gathered."""
    tensor = idi_(torch.empty(4, 4, dtype=dtype))
    assert tensor.untyped_storage().resizable()
    tensor.resize_(8, 8)


@pytest.mark.parametrize(
    "wrong",
    [{"gain": True}, {"gain": [1.0]}, {"groups": 1.0}, {"transposed": 0}, {"seed": False}],
    ids=str,
)
def test_an_option_that_equals_a_right_one_is_refused_after_it(wrong):
    tensor = torch.full((4, 4), 7.0)
    idi_(torch.empty(4, 4))
    with pytest.raises(TypeError):
        idi_(tensor, **wrong)
    assert (tensor == 7).all()
