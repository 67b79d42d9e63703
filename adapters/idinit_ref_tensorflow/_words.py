"""The plain names of TensorFlow's and Keras' operations; by default their own in lower case."""

from __future__ import annotations

__all__ = ["SPECTRA", "plain"]

SPECTRA = {"Eig", "Eigh", "SVD", "SelfAdjointEigV2", "Svd"}
"""Operations whose results are the values of a matrix, and its vectors."""

_NAMES = {
    "linear": """
        Diff Fold HSVToRGB ISTFT RGBToGrayscale RGBToHSV STFT Scatter ScatterNd Trapezoid
    """,
    "abs": "Absolute ComplexAbs Fabs",
    "add": "BiasAdd",
    "by_first": """
        EluGrad FusedBatchNormGradV3 LRNGrad LeakyReluGrad Relu6Grad ReluGrad ResizeBicubicGrad
        ResizeBilinearGrad ResizeNearestNeighborGrad SeluGrad SoftplusGrad SoftsignGrad
    """,
    "by_second": """
        AvgPool3DGrad AvgPoolGrad InvGrad MaxPoolGradWithArgmax ReciprocalGrad RsqrtGrad SigmoidGrad
        SqrtGrad TanhGrad
    """,
    "by_third": "MaxPool3DGrad MaxPool3DGradGrad MaxPoolGrad MaxPoolGradGrad MaxPoolGradV2",
    "attention": "DotProductAttention",
    "conj": "Conjugate",
    "crop": "BatchToSpaceND CenterCrop",
    "cumprod": "Nancumprod",
    "cumsum": "Nancumsum",
    "distance": "Cdist",
    "div": "DivideNoNan RealDiv Xdivy",
    "floor_divide": "FloorDiv TruncateDiv",
    "fmod": "FloorMod Mod TruncateMod",
    "hardswish": "HardSilu",
    "join": "Append DynamicStitch Dstack Hstack Vstack",
    "move": """
        Array ConvertToTensor DepthToSpace Diag Diagflat Diagonal DiagPart
        ExtractPatches MatrixDiagPartV3 MatrixDiagV3 Meshgrid RepeatVector
        ReverseSequence SpaceToDepth TensorListStack Unfold View
        ViewAsComplex ViewAsReal
    """,
    "mul": """
        Conv2DBackpropFilter Conv3DBackpropFilterV2 Correlate Cross
        DepthwiseConv2dNativeBackpropFilter DepthwiseConv2dNativeBackpropInput Kron MulNoNan Outer
    """,
    "neg": "Negative",
    "norm": "LRN UnitNormalization",
    "pad": "SpaceToBatchND",
    "pool": """
        Max Min Moments Nanmax Nanmean Nanmin Nanpercentile Nanquantile Percentile Ptp Quantile
    """,
    "prod": "Det MatrixDeterminant Nanprod",
    "reciprocal": "Inv",
    "resize": """
        AffineTransform CropAndResize ImageProjectiveTransformV3 MapCoordinates
        PerspectiveTransform Resizing ScaleAndTranslate
    """,
    "scatter": "ScatterUpdate SliceUpdate",
    "select": """
        Dsplit DynamicPartition GatherNd Hsplit Masking Slice Unique UniqueV2
        Vsplit
    """,
    "softmax": "Sparsemax",
    "solve": """
        BandedTriangularSolve MatrixSolve MatrixSolveLs MatrixTriangularSolve SolveTriangular
        TridiagonalSolve
    """,
    "square": "L2Loss",
    "std": "Nanstd Norm Std",
    "sum": "Trace",
    "topk": "TopKV2",
    "var": "Nanvar",
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
