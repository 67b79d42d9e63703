"""Published models of pictures under `init_`, as Keras has them: none is dead, a U-Net trains."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from keras import layers as kl

from idinit_ref_tensorflow import init_


def application(name, size):
    """A model of keras.applications, with ten classes."""
    make = getattr(keras.applications, name)
    options = {"weights": None, "classes": 10, "classifier_activation": None}
    return lambda: make(input_shape=(size, size, 3), **options)


def two(x, width):
    """Two convolutions with batch norm and ReLU."""
    for _ in range(2):
        x = kl.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = kl.ReLU()(kl.BatchNormalization()(x))
    return x


def unet(size, learned=False, widths=(8, 16, 32, 64, 64), order=1):
    """Two convolutions a level, and a concatenation on the way up (Ronneberger 2015, padded)."""
    x = keras.Input((size, size, 3))
    h, skips = x, []
    for level, width in enumerate(widths):
        h = two(kl.MaxPooling2D()(h) if level else h, width)
        skips.append(h)
    for width, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        up = kl.Conv2DTranspose(width, 2, 2) if learned else kl.UpSampling2D()
        h = two(kl.Concatenate()([up(h), skip][::order]), width)
    return keras.Model(x, kl.Conv2D(3, 3, padding="same")(h))


def dcgan():
    """Radford 2016: the generator, from noise of 1 x 1 to pictures of 64 x 64."""
    h = x = keras.Input((1, 1, 100))
    for k, width in enumerate((64, 32, 16, 8)):
        padding = {"strides": 2, "padding": "same"} if k else {}
        h = kl.Conv2DTranspose(width, 4, use_bias=False, **padding)(h)
        h = kl.ReLU()(kl.BatchNormalization()(h))
    return keras.Model(x, kl.Conv2DTranspose(3, 4, 2, "same", activation="tanh")(h))


MODELS = {"unet-16": lambda: unet(16, widths=(8, 16, 32)), "dcgan": dcgan}
LARGE = {
    "MobileNet-64": application("MobileNet", 64),
    "unet-32": lambda: unet(32),
    "unet-64": lambda: unet(64),
    "unet-64-transposed": lambda: unet(64, learned=True),
    "unet-64-skip-first": lambda: unet(64, order=-1),
    "VGG16-64": application("VGG16", 64),
    "VGG19-64": application("VGG19", 64),
    "InceptionV3-96": application("InceptionV3", 96),
}


def draw(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gradients(model, x):
    """Of cross entropy with random labels, or for pictures of the distance to random ones."""
    with tf.GradientTape() as tape:
        y = model(x, training=True)
        if len(y.shape) == 2:
            labels = np.arange(len(y)) % y.shape[1]
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, y)
        else:
            loss = tf.reduce_mean(tf.square(y - draw(y.shape, seed=2)))
    return tape.gradient(loss, [v.value for v in model.trainable_variables])


def is_alive(model):
    x = draw((4, *model.input_shape[1:]))
    init_(model)
    y = model(x, training=False).numpy()
    assert np.isfinite(y).all()
    assert np.abs(y - y[:1]).max() > y.std() / 100 > 0, "does not depend on the input"
    optimizer = keras.optimizers.AdamW(1e-3)
    optimizer.apply_gradients(zip(gradients(model, x), model.trainable_variables, strict=True))
    after = zip(model.trainable_variables, gradients(model, x), strict=True)
    dead = [v.path for v, g in after if g is None or not np.any(g)]
    assert len(dead) <= len(model.trainable_variables) / 4, dead


@pytest.mark.parametrize("name", MODELS)
def test_no_model_is_dead(name):
    is_alive(MODELS[name]())


@pytest.mark.nightly
@pytest.mark.parametrize("name", LARGE)
def test_no_large_model_is_dead(name):
    is_alive(LARGE[name]())


@pytest.mark.nightly
def test_a_vgg_of_small_pictures_is_alive():
    """VGG19 without its head; in the corner order it is 0 for every input, as are its gradients."""
    options = {"include_top": False, "pooling": "avg", "input_shape": (64, 64, 3)}
    model = keras.applications.VGG19(weights=None, **options)
    x = np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
    found = {}
    for taps in ("channel_major", "outward"):
        init_(model, taps=taps)
        with tf.GradientTape() as tape:
            y = model(x)
            loss = tf.reduce_mean(y**2 + y)
        slopes = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found[taps] = float(tf.norm(y[0] - y[1])), sum(bool(np.any(g)) for g in slopes)
    assert found["channel_major"][0] == 0
    moved, alive = found["outward"]
    assert moved > 0
    assert alive >= 0.75 * len(model.trainable_variables)


@pytest.mark.nightly
def test_a_u_net_trains():
    """Which of three classes a place has can be read off two channels of the picture there."""
    x = draw((8, 32, 32, 3))
    labels = (x[..., 0] > 0).astype(int) + (x[..., 1] > 0)
    model = unet(32)
    init_(model)
    optimizer = keras.optimizers.AdamW(1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            found = loss(labels, model(x, training=True))
        slopes = tape.gradient(found, [v.value for v in model.trainable_variables])
        optimizer.apply_gradients(zip(slopes, model.trainable_variables, strict=True))
        return found

    for _ in range(100):
        step()
    assert float(loss(labels, model(x, training=True))) < 0.6  # ln 3 = 1.10 if it is dead
