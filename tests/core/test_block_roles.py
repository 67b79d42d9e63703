"""A role for each block or matrix: each is what a plan of it alone would be."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

import by_hand
import idinit_ref as ir

ROLES = ("transit", "zero", "transit", "zero")
BLOCKS = (3, 7, 0, 2)
OF_ROLE = {
    "transit": {"gain": -0.75, "wide": "fold_rms"},
    "zero": {"eps": 0.5, "form": "shifted"},
}
STORED = [  # the shape with None for the outputs, and how it is stored
    ((None, 5), {}),
    ((1, None), {"layout": "IO"}),
    ((2, None, 5), {"layout": "EOI"}),
    ((None, 2, 4), {"taps": "diagonal"}),
    ((None, 4, 3), {"taps": "center", "tap": (2,)}),
    ((6, None, 3), {"layout": "IOW", "groups": 3, "transposed": True}),
    ((4, None, 3, 5), {"layout": "IOHW", "stride": (2, -3), "tap": (1, 2)}),
    ((2, 3, 2, None, 2), {"layout": "HWIOE", "taps": "spatial_major"}),
]


def whole(shape):
    return tuple(sum(BLOCKS) if size is None else size for size in shape)


def of(shape, **stored):
    options = {name: value for own in OF_ROLE.values() for name, value in own.items()}
    return ir.plan(whole(shape), ROLES, blocks=BLOCKS, **options, **stored)


def side_by_side(shape, **stored):
    """The blocks' own plans, one behind the other along the outputs."""
    parts = []
    for role, m in zip(ROLES, BLOCKS, strict=True):
        own = tuple(m if size is None else size for size in shape)
        parts.append(ir.plan(own, role, **OF_ROLE[role], **stored))
    arrays = [part.build() for part in parts]
    return np.concatenate(arrays, shape.index(None)), sum(part.nnz for part in parts)


@pytest.mark.parametrize(("shape", "stored"), STORED)
@pytest.mark.every
def test_blocks_are_their_own_plans_side_by_side(shape, stored):
    plan = of(shape, **stored)
    expected, count = side_by_side(shape, **stored)
    assert np.array_equal(plan.build(), expected)
    assert plan.nnz == count == np.count_nonzero(expected)
    middle = tuple(slice(size // 3, size) for size in plan.shape)
    assert np.array_equal(plan.block(middle), expected[middle])
    places, values = plan.entries(middle)
    assert np.array_equal(places, np.flatnonzero(expected[middle]))
    assert np.array_equal(values, expected[middle].reshape(-1)[places])
    memory = np.zeros(expected.size)  # the first axis last
    view = memory.reshape(*plan.shape[1:], plan.shape[0])
    view = np.moveaxis(view, -1, 0)
    plan.write(memory, [step // 8 for step in view.strides])
    assert np.array_equal(view, expected)


@pytest.mark.parametrize(("shape", "stored"), STORED)
def test_every_namespace_has_them(shape, stored, backend, x64):
    """JAX also under jit, where entries are comparisons; dask in chunks."""
    plan, dtype = of(shape, **stored), backend.dtype("float32")
    array = backend.call(lambda: plan.build(backend.xp, dtype, backend.at()))
    expected, _ = side_by_side(shape, **stored)
    assert np.array_equal(backend.numpy(array), expected.astype("float32"))


@pytest.mark.parametrize("where", ["all", "entries"])
def test_noise_is_that_of_the_transit_rows_in_the_whole_weight(where):
    noise = {"blocks": BLOCKS, "loosen": 0.5, "loosen_at": where, "seed": 4}
    plan = ir.plan((12, 5), ROLES, **noise)
    transit = by_hand.weight((12, 5), **noise)
    zero = by_hand.weight((12, 5), "zero", blocks=BLOCKS)
    of_block = np.repeat([role == "zero" for role in ROLES], BLOCKS)
    expected = np.where(of_block[:, None], zero, transit)
    assert np.array_equal(plan.build(), expected)
    assert plan.nnz == np.count_nonzero(expected)
    assert np.array_equal(plan.block((slice(2, 9), slice(1, 4))), expected[2:9, 1:4])


def test_blocks_that_groups_cut():
    """Each part of a block has its block's role; groups of 4 rows."""
    for roles in itertools.product(("transit", "zero"), repeat=2):
        plan = ir.plan((12, 3), roles, blocks=(6, 6), groups=3)
        parts = [(4, roles[0]), (2, roles[0]), (2, roles[1]), (4, roles[1])]
        make = {"transit": by_hand.idi_matrix, "zero": by_hand.idiz_matrix}
        value = {"transit": 1.0, "zero": 1e-6}
        expected = np.vstack([make[role](m, 3, value[role]) for m, role in parts])
        assert np.array_equal(plan.build(), expected)


def test_equal_roles_are_one():
    one = ir.plan((6, 3), "zero", blocks=(2, 4), eps=0.5)
    two = ir.plan((6, 3), ["zero", "zero"], blocks=[2, 4], eps=0.5)
    assert (one, hash(one), two.role) == (two, hash(two), "zero")
    assert ir.plan((6, 3), ("zero",), blocks=(6,)).role == "zero"
    assert one.roles == ("zero", "zero")
    assert ir.plan((6, 3)).roles == ("transit",)
    with pytest.raises(ir.errors.OptionError, match=r"gain = 2.0, but IDIZ \(role 'zero'\) has no"):
        ir.plan((6, 3), ("zero", "zero"), blocks=(2, 4), gain=2)


def test_it_is_made_again_by_its_options():
    plan = of((None, 5), loosen=0.5)
    assert plan.role == plan.options()["role"] == ROLES
    assert ir.plan(plan.shape, **plan.options()) == pickle.loads(pickle.dumps(plan)) == plan
    assert plan != ir.plan(plan.shape, **plan.options() | {"role": ROLES[::-1]})
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in plan.options().items()}
    assert ir.plan(plan.shape, **listed) == plan


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {},
            r"role = \('transit', 'zero'\), but .* as many roles as there are blocks, 0; write one",
        ),
        ({"blocks": (2, 2, 2)}, r"it should have as many roles as there are blocks, 3; write one"),
        ({"role": [], "blocks": ()}, r"role = \[\], but .* as many roles as there are blocks, 0"),
        ({"role": ("zero", "zeros"), "blocks": (2, 4)}, "role = 'zeros', but it should be one of"),
        ({"role": ("zero", None), "blocks": (2, 4)}, "role = None, but it should be one of"),
        ({"role": b"zero"}, "role = b'zero', but it should be one of 'transit', 'zero'"),
    ],
)
@pytest.mark.every
def test_roles_that_do_not_fit(options, said):
    shape = (0 if options.get("blocks") == () else 6, 3)
    with pytest.raises(ir.errors.OptionError, match=said):
        ir.plan(shape, **{"role": ("transit", "zero"), **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "eps = 1e-06.*float8_e4m3fn"),
        ({"eps": 0.5, "gain": 1e-9}, "gain = 1e-09"),
        ({"eps": 0.5, "gain": 0.002, "wide": "fold_mean"}, "gain after fold_mean"),
        ({"eps": 0.5, "loosen": 1e-9}, "loosen = 1e-09"),
    ],
)
@pytest.mark.every
def test_an_entry_that_is_lost_is_one_of_its_block(options, said):
    """IDI of 2 x 9 is folded, IDIZ of 9 x 9 is not."""
    plan = ir.plan((11, 9), ("zero", "transit"), blocks=(9, 2), **options)
    plan.check("float32")
    with pytest.raises(ir.errors.RoundingError, match=said):
        plan.check("float8_e4m3fn")


IN_STACKS = [  # with L and E as the batch axes
    ("LOI", (3, 5, 2), None),
    ("OIL", (4, 3, 2), None),
    ("LOEIW", (2, 6, 3, 2, 3), (4, 2)),
    ("HEWOIL", (3, 2, 1, 3, 5, 2), (1, 2)),
]


def _in_stacks(letters, shape, blocks):
    """Return all roles, and the place, role and own plan of each matrix."""
    sizes = dict(zip(letters, shape, strict=True))
    batch = [letter for letter in letters if letter in "LE"]
    own = blocks or (sizes["O"],)
    places = [*itertools.product(*(range(sizes[letter]) for letter in batch))]
    roles = [("zero", "transit", "transit")[k % 3] for k in range(len(places) * len(own))]
    rest = "".join(letter for letter in letters if letter not in batch)
    parts = []
    for k, (place, b) in enumerate(itertools.product(places, range(len(own)))):
        start, role = sum(own[:b]), roles[k]
        spans = dict(zip(batch, place, strict=True), O=slice(start, start + own[b]))
        plan = ir.plan([own[b] if c == "O" else sizes[c] for c in rest], role, layout=rest)
        parts.append((tuple(spans.get(c, slice(None)) for c in letters), role, plan))
    return roles, parts


@pytest.mark.parametrize(("letters", "shape", "blocks"), IN_STACKS)
def test_matrices_of_a_stack_are_their_own_plans(letters, shape, blocks, backend, x64):
    roles, parts = _in_stacks(letters, shape, blocks)
    plan = ir.plan(shape, roles, layout=letters, blocks=blocks)
    assert plan.role == plan.roles == tuple(roles)
    expected = np.zeros(shape)
    for place, _, own in parts:
        expected[place] = own.build()
    assert plan.nnz == sum(own.nnz for *_, own in parts)
    array = backend.call(lambda: plan.build(backend.xp, backend.dtype("float32"), backend.at()))
    assert np.array_equal(backend.numpy(array), expected.astype("float32"))
    middle = tuple(slice(size // 3, size) for size in shape)
    assert np.array_equal(plan.block(middle), expected[middle])
    places, values = plan.entries(middle)
    assert np.array_equal(places, np.flatnonzero(expected[middle]))
    assert np.array_equal(values, expected[middle].reshape(-1)[places])
    assert ir.plan(shape, **plan.options()) == plan


@pytest.mark.parametrize(("letters", "shape", "blocks"), IN_STACKS)
@pytest.mark.parametrize("where", ["all", "entries"])
def test_noise_is_in_the_transit_matrices_of_a_stack(letters, shape, blocks, where):
    roles, parts = _in_stacks(letters, shape, blocks)
    stored = {"layout": letters, "blocks": blocks}
    noise = {"loosen": 0.5, "loosen_at": where, "seed": 4}
    expected = ir.plan(shape, **stored, **noise).build()  # as if all were transit
    for place, role, own in parts:
        if role == "zero":
            expected[place] = own.build()
    assert np.array_equal(ir.plan(shape, roles, **stored, **noise).build(), expected)


def test_equal_matrices_of_a_stack_have_the_fewest_words():
    packed = {"layout": "LOI", "blocks": (2, 2)}
    assert ir.plan((3, 4, 2), ("zero", "transit") * 3, **packed).role == ("zero", "transit")
    assert ir.plan((3, 4, 2), ("zero",) * 6, **packed).role == "zero"
    assert ir.plan((3, 4, 2), ("zero",) * 3, layout="LOI").role == "zero"
    with pytest.raises(ir.errors.OptionError, match=r"blocks, 2, or as all matrices .* have, 6;"):
        ir.plan((3, 4, 2), ("zero",) * 3, **packed)
