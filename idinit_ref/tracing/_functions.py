"""Internal: the facts on operations that roles need, such as which functions are 0 at 0."""

from __future__ import annotations

from math import inf
from typing import Literal, NamedTuple

from ..roles.graph import Does
from ._made import Made
from ._values import Data, Signal, Value

__all__ = ["Fact", "clamped", "fact_of", "is_entrywise", "power"]


class Fact(NamedTuple):
    """The kind of an operation, and when its result is zero.

    Parameters
    ----------
    does : str
        A word of :data:`idinit_ref.roles.graph.Does`.
    vanishes : {"all", "sum", "max", "min", "each", "never"} or tuple of int
        When its result is zero: if all signals are zero, whatever the other operands ("all"); if
        all operands are zero, constants too ("sum"), or are not positive ("max") or not negative
        ("min"); if any one signal is zero ("each"), or any signal at these positions.
    of : int, optional
        The number of leading operands that matter; the others choose, or belong to its weight.
    """

    does: Does = ""
    vanishes: Literal["all", "sum", "max", "min", "each", "never"] | tuple[int, ...] = "all"
    of: int | None = None


_WORDS: dict[Fact, str] = {
    # f(0) = 0, and operations that are zero if all their operands are
    Fact("map"): """
        abs angle arcsin arcsinh arctan arctanh asin asinh atan atanh bessel_i1 bessel_i1e bessel_j1
        cbrt ceil celu conj conj_physical deg2rad elu entr erf erfinv expm1 fix floor frac
        gelu hardswish hardtanh i1 i1e identity leaky_relu log1p mish
        modified_bessel_i1 nan_to_num positive rad2deg relu relu6 rint round
        rrelu rrelu_with_noise selu sgn sign silu sin sinh softsign sqrt swish tan tanh trunc
    """,
    # f(0) = 0 and f'(0) = 0, as for a product of a signal with itself
    Fact("product"): "hardshrink softshrink square tanhshrink",
    Fact("product", "sum"): "squared_difference",
    Fact("product", "all", 1): "prod var",
    # f(0) is not 0
    Fact("map", "never"): """
        acos acosh airy_ai arccos arccosh bessel_j0 bessel_y0 bessel_y1 cos cosh digamma erfc
        erfcx exp exp2 hardsigmoid i0 i0e igammac lgamma log log10 log2 log_ndtr log_sigmoid
        logaddexp logaddexp2 logit logsigmoid modified_bessel_i0 modified_bessel_k0
        modified_bessel_k1 ndtr ndtri offset polygamma pow reciprocal rsqrt
        scaled_modified_bessel_k0 scaled_modified_bessel_k1 sigmoid sinc softplus
        sparse_plus sparse_sigmoid spherical_bessel_j0 squareplus zeta
    """,
    Fact("map", "sum"): "heaviside hypot nextafter",
    Fact("map", "max"): "clamp_min fmax max maximum",
    Fact("map", "min"): "clamp_max fmin min minimum",
    Fact("map", (0,)): """
        arctan2 atan2 copysign floor_divide fmod ldexp mod polar prelu prelu_kernel rem
        remainder xlog1py xlogy
    """,
    Fact("map", (1,)): "igamma weight_norm",
    Fact("map", (2,)): "betainc regularized_incomplete_beta",
    Fact("", "sum", 2): "add distance lerp sub subtract",
    Fact("product", "each"): "mul multiply",
    Fact("product", (0,)): "div divide true_divide div_no_nan",
    Fact("scale"): "dropout neg negative scale",
    Fact("select", "sum", 2): "masked_fill scatter where",
    Fact("select", (0,)): "gather select topk",
    Fact("move"): "move repeat",
    Fact("move", (0,)): "sort",  # by the other operands
    Fact("softmax", "never"): "log_softmax logsumexp softmax",
    Fact("norm"): "norm",
    Fact("pool"): """
        amax amin mean median nanmedian nansum pool segment_max segment_mean segment_min segment_sum
        sparse_segment_mean sparse_segment_sqrt_n sparse_segment_sum std sum unsorted_segment_max
        unsorted_segment_min unsorted_segment_sum
    """,
    Fact("pool", (0,)): "average",
    Fact("pad"): "pad",
    Fact("resize", (0,)): "resize unpool",
    Fact("crop"): "crop",
    Fact("join", "sum"): "complex join",
    Fact("attention", (2,)): "attention",
    Fact("mix"): "cumsum fft imag linear real",
    Fact(""): "cummax cummin cumprod glu",
    Fact("", (0,)): "by_first",
    Fact("", (1,)): "by_second solve triangular_solve",
    Fact("", (2,)): "by_third",
    Fact("", (3,)): "tridiagonal_solve",
    Fact("", "never"): "basis logcumsumexp",
}
_FACTS = {word.replace("_", ""): fact for fact, words in _WORDS.items() for word in words.split()}
_FACTS[""] = Fact()


def is_entrywise(word: str) -> bool:
    """Whether an operation is a function of each entry, by its plain name.

    >>> is_entrywise("relu"), is_entrywise("softmax")
    (True, False)
    """
    return fact_of(word).does == "map"


def fact_of(word: str) -> Fact:
    """Return the facts on an operation by its plain name.

    An operation named "" is zero if all its operands are. An unknown operation is never zero.
    Underscores are ignored: soft_sign is softsign.

    >>> fact_of("relu").vanishes, fact_of("sigmoid").vanishes, fact_of("mul").vanishes
    ('all', 'never', 'each')
    >>> fact_of("my_kernel")
    Fact(does='unknown', vanishes='never', of=None)
    """
    return _FACTS.get(word.replace("_", ""), Fact("unknown", "never"))


def power(exponent: float | None) -> str:
    """Return the plain name of a function with the facts of x to this power.

    Of several exponents, the smallest decides. An exponent of None is unknown: it may be 0.

    >>> power(2), power(0.5), power(-0.5), power(None)
    ('square', 'sqrt', 'rsqrt', 'pow')
    """
    if exponent is None:
        return "pow"
    if exponent == 1:
        return "identity"
    return "square" if exponent > 1 else "sqrt" if exponent > 0 else "rsqrt"


def clamped(
    low: Value | float | None, high: Value | float | None, value: Value | None = None
) -> str:
    """Return the plain name of a function with the facts of a clamp of a value to this range.

    A bound that is not known (None, or an array without values) counts as one beyond 0. No bound
    that is computed from the inputs makes any other value a function of these that vanishes.

    >>> clamped(0, 6), clamped(1e-6, None), clamped(-1, 1)
    ('relu', 'offset', 'hardtanh')
    >>> clamped(Made((3,), span=(-2, -1)), Made((3,)))
    'hardtanh'
    """

    def extent(bound: Value | float | None) -> tuple[float, float] | None:
        if isinstance(bound, (int, float)):
            return bound, bound
        return bound.extent if isinstance(bound, Made) else None

    is_signal = value is None or isinstance(value, Signal)
    if not is_signal and any(isinstance(bound, (Signal, Data)) for bound in (low, high)):
        return "offset"
    below, above = extent(low) or (-inf, -inf), extent(high) or (inf, inf)
    if below[1] < 0 < above[0]:
        return "hardtanh"
    return "relu" if below[1] <= 0 <= above[0] else "offset"
