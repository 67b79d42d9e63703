"""The plain names of TensorFlow's and Keras' operations; by default their own in lower case."""

from __future__ import annotations

__all__ = ["plain"]

_NAMES = {
    "linear": "Diff Fold MatrixBandPart Scatter ScatterNd Tril Triu ZerosLike",
    "abs": "Absolute ComplexAbs Fabs",
    "add": "BiasAdd",
    "attention": "DotProductAttention",
    "conj": "Conjugate",
    "crop": "CenterCrop",
    "div": "DivideNoNan RealDiv Xdivy",
    "fmod": "FloorMod Mod",
    "hardswish": "HardSilu",
    "join": "Append DynamicStitch Dstack Hstack Vstack",
    "move": """
        Array BatchToSpaceND ConvertToTensor DepthToSpace Diag Diagflat Diagonal DiagPart
        ExtractImagePatches ExtractPatches MatrixDiagPartV3 MatrixDiagV3 Meshgrid RepeatVector
        ReverseSequence SpaceToDepth TensorListFromTensor TensorListStack Unfold View
        ViewAsComplex ViewAsReal
    """,
    "mul": "Cross Kron MulNoNan Outer",
    "neg": "Negative",
    "norm": "LRN UnitNormalization",
    "pad": "SpaceToBatchND",
    "pool": "Max Min Moments",
    "reciprocal": "Inv",
    "resize": "ImageProjectiveTransformV3 Resizing",
    "scatter": "ScatterUpdate SliceUpdate TensorListSetItem",
    "select": "DynamicPartition GatherNd Hsplit Masking Slice TensorListGetItem Vsplit",
    "softmax": "Sparsemax",
    "square": "L2Loss",
    "std": "Norm Std",
    "sum": "Trace",
    "topk": "TopKV2",
    "where": "Select SelectV2",
}
_WORDS = {name: word for word, names in _NAMES.items() for name in names.split()}
_KINDS = {
    "Norm": "norm", "Pool": "pool", "Resize": "resize", "UpSampling": "resize", "Segment": "pool",
    "Cropping": "crop", "FFT": "fft", "Dropout": "dropout", "TensorScatter": "scatter",
}  # fmt: skip


def plain(kind: str) -> str:
    """Return the plain name of an operation.

    >>> plain("LeakyRelu"), plain("MaxPool3D"), plain("RealDiv")
    ('leakyrelu', 'pool', 'div')
    """
    if kind in _WORDS:
        return _WORDS[kind]
    return next((word for part, word in _KINDS.items() if part in kind), kind.lower())
