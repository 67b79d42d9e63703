"""Three logical CPUs that mirror a model: every copy gets the same bits, and training goes on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import keras, numpy as np, tensorflow as tf
import idinit_ref as ir, idinit_ref_tensorflow as irk

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
assert strategy.num_replicas_in_sync == 3

def make():
    x = keras.Input((4,))
    inner = keras.layers.Dense(6, kernel_initializer=irk.IDI())(x)
    branch = keras.layers.Dense(4, kernel_initializer=irk.IDIZ(0.25))(inner)
    return keras.Model(x, keras.layers.Dense(2)(keras.layers.Add()([x, branch])))

def copies(variable):
    return [copy.numpy() for copy in variable.value.values]

with strategy.scope():
    model = make()
for layer, role, eps in ((1, "transit", {}), (2, "zero", {"eps": 0.25})):
    kernel = model.layers[layer].kernel
    expected = ir.plan(tuple(kernel.shape), role, layout="IO", **eps).build(dtype="float32")
    assert len(copies(kernel)) == 3
    assert all(np.array_equal(copy, expected) for copy in copies(kernel))

plain, x = make(), np.random.default_rng(0).standard_normal((12, 4)).astype("float32")
assert str(irk.init_(model, x, eps=0.5)).count("zero") == str(irk.init_(plain, x, eps=0.5)).count(
    "zero"
)
for mirrored, variable in zip(model.variables, plain.variables, strict=True):
    assert all(np.array_equal(copy, variable.numpy()) for copy in copies(mirrored))

with strategy.scope():
    assert str(irk.init_(model, x, eps=0.5)).count("zero") > 1

with strategy.scope():
    variable = tf.Variable(tf.ones((3, 5)))
assert irk.idiz_(variable, eps=0.5) is variable
expected = ir.idiz((3, 5), layout="IO", eps=0.5, dtype="float32")
assert all(np.array_equal(copy.numpy(), expected) for copy in variable.values)
"""
TRAINING = """
with strategy.scope():
    model.compile("sgd", "mse")
plain.compile("sgd", "mse")
for net in (model, plain):
    net.fit(x, np.zeros((12, 2), "float32"), batch_size=12, verbose=0)
for mirrored, variable in zip(model.variables, plain.variables, strict=True):
    assert all(np.allclose(copy, variable.numpy(), atol=1e-6) for copy in copies(mirrored))
"""


@pytest.mark.parametrize(
    "more", ["", pytest.param(TRAINING, marks=pytest.mark.nightly)], ids=["made", "trained"]
)
def test_every_copy_of_a_mirrored_model(more):
    run = subprocess.run(
        [sys.executable, "-c", f'{CODE}{more}print("all is well")'],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"},
    )
    assert run.stdout == "all is well\n", run.stderr[-3000:]
