"""The plain names of TensorFlow's and Keras' operations, where they are not these in lower case."""

from __future__ import annotations

__all__ = ["plain"]

_WORDS = {
    "Absolute": "abs", "BatchToSpaceND": "move", "BiasAdd": "add", "Inv": "reciprocal",
    "L2Loss": "square", "Log1P": "log1p", "Max": "pool", "Min": "pool", "Mod": "fmod",
    "MulNoNan": "mul", "Norm": "std",
    "RealDiv": "div", "SelectV2": "where", "Select": "where", "SpaceToBatchND": "pad",
    "Std": "std", "TopKV2": "topk", "Xdivy": "div", "FloorMod": "fmod", "Negative": "neg",
    "DepthToSpace": "move", "SpaceToDepth": "move", "Masking": "select", "Argmax": "",
    "TensorScatterUpdate": "scatter", "TensorScatterAdd": "scatter", "ScatterUpdate": "scatter",
    "DotProductAttention": "attention", "GatherNd": "select", "UnitNormalization": "norm",
}  # fmt: skip
_KINDS = {
    "Norm": "norm", "Pool": "pool", "Resize": "resize", "UpSampling": "resize",
    "Cropping": "crop", "FFT": "fft", "Dropout": "dropout",
}  # fmt: skip


def plain(kind: str) -> str:
    """Return the plain name of an operation.

    >>> plain("LeakyRelu"), plain("MaxPool3D"), plain("RealDiv")
    ('leakyrelu', 'pool', 'div')
    """
    if kind in _WORDS:
        return _WORDS[kind]
    return next((word for part, word in _KINDS.items() if part in kind), kind.lower())
