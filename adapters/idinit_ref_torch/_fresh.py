"""Internal: operations that make tensors of a shape, whatever their arguments hold."""

from __future__ import annotations

from idinit_ref.tracing import Value, is_constant

from ._call import Call
from ._memory import shape_of
from ._words import names_in

__all__ = ["FRESH", "fresh"]

FRESH = names_in(
    (
        "zeros empty zeros_like ones_like full_like empty_like rand_like randn_like randint_like",
        "ones full scalar_tensor zero fill new_zeros new_ones new_full new_empty new_empty_strided",
        "normal uniform random bernoulli exponential cauchy geometric log_normal",
    )
)
"""Operations that use only the shape, dtype or device of their arguments."""

_ZEROS = names_in(("zeros zeros_like new_zeros zero empty empty_like new_empty",))
"""Operations that return zeros, or memory that is written later."""

_FILLS = {"aten::scalar_tensor": 0} | {
    name: 2 if "new" in name else 1 for name in names_in(("full full_like new_full fill",))
}
"""The position of the number that fills a tensor."""


def fresh(call: Call) -> list[Value]:
    value: float | None = 0 if call.name in _ZEROS else 1 if "ones" in call.what else None
    if call.name in _FILLS:
        filling = call.of(call.args[_FILLS[call.name]])
        value = filling.value if is_constant(filling) else None
    return [call.draw.constant(shape_of(tensor), value=value) for tensor in call.results]
