"""The same bits from every namespace and framework: one table of SHA-256 digests for all."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest

import digests
import idinit_ref as ir

TABLE = json.loads(digests.PATH.read_text())
ROWS = pytest.mark.parametrize("case", digests.CASES, ids=digests.name)
EACH = pytest.mark.parametrize("dtype", digests.DTYPES)


def test_the_table_is_what_the_specification_says():
    names = map(digests.name, digests.CASES)
    assert dict(zip(names, digests.table(), strict=True)) == TABLE


def bits(array):
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


@ROWS
def test_namespaces(backend, x64, case):
    shape, role, options = case
    plan = ir.plan(shape, role, **options)
    for dtype in digests.DTYPES:
        to = backend.dtype(dtype)
        if to is None:
            assert backend.module == "array_api_strict"
            assert dtype in ("float16", "bfloat16")
            continue
        array = backend.call(lambda to=to: plan.build(backend.xp, to, backend.at()))
        assert digests.digest(backend.numpy(array)) == TABLE[digests.name(case)][dtype], dtype


@ROWS
@EACH
def test_torch_parameters(case, dtype):
    import torch

    import idinit_ref_torch as irt

    shape, role, options = case
    parameter = torch.nn.Parameter(torch.full(shape, 7.0, dtype=getattr(torch, dtype)))
    {"transit": irt.idi_, "zero": irt.idiz_}[role](parameter, **options)
    held = parameter.detach()
    held = held.view(torch.uint16) if dtype == "bfloat16" else held
    assert digests.digest(held.numpy()) == TABLE[digests.name(case)][dtype]


@ROWS
@EACH
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_jax_initializers(x64, case, dtype, jit):
    import jax

    import idinit_ref_jax as irj

    shape, role, options = case
    options = {"layout": {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)]} | options
    init = {"transit": irj.idi, "zero": irj.idiz}[role](**options)
    make = lambda: init(jax.random.key(0), shape, getattr(jax.numpy, dtype))  # noqa: E731
    array = (jax.jit(make) if jit else make)()
    assert digests.digest(bits(np.asarray(array))) == TABLE[digests.name(case)][dtype]


@ROWS
@EACH
def test_keras_initializers(case, dtype):
    irtf = importlib.import_module("idinit_ref_tensorflow")

    shape, role, options = case
    if dtype.startswith("complex"):
        import tensorflow as tf

        variable = tf.Variable(tf.zeros(shape, dtype))
        options = {"layout": {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)]} | options
        {"transit": irtf.idi_, "zero": irtf.idiz_}[role](variable, **options)
        array = variable.numpy()
    else:
        options = {"layout": {2: "OI", 3: "OIW", 4: "OIHW", 5: "OIDHW"}[len(shape)]} | options
        array = {"transit": irtf.IDI, "zero": irtf.IDIZ}[role](**options)(shape, dtype)
        array = np.asarray(array.numpy())
    assert digests.digest(bits(array)) == TABLE[digests.name(case)][dtype]
