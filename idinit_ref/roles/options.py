"""The options of a whole model, for `decide` and every adapter's `init`, with their validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args, get_type_hints

from ..core.kernel import Taps
from ..core.options import choice
from ..core.pattern import Form, Wide
from ..core.weights import either
from ..errors import OptionTypeError, message
from .names import Kind

__all__ = ["Head", "ModelOptions", "Override", "settled"]

Head = Literal["transit", "zero", "keep"]
Override = Kind | Mapping[str, Any]
"""A role, or options of `idinit_ref.plan`, `role` among them."""


class ModelOptions(TypedDict, total=False):
    """Keyword options of a whole model; all are optional (spec section 6).

    Attributes
    ----------
    gain : float
        tau of the weights in role "transit"; 1.0 by default.
    eps : float
        eps of the weights in role "zero"; 1e-6 by default.
    wide : {"truncate", "fold_rms", "fold_mean"}, optional
        How a transit weight with more columns than rows is filled. The default None is
        "truncate", but "fold_mean" for a weight that would leave a part of a concatenation without
        gradient; T4 holds for both.
    form : {"pair", "shifted"}
        How the entries of a wide zero weight are spread.
    taps : {"outward", "diagonal", "center", "channel_major", "spatial_major"}
        How a kernel is flattened into a matrix (section 3). The first three start at the layer's
        identity tap, in each phase of a transposed convolution.
    head : {"transit", "zero", "keep"}
        The role of the weights whose result the model returns, unless they end a branch.
    embeddings : {"keep", "transit"}
        The role of embedding tables, and of heads that are tied to them.
    norms : {"keep", "zero"}
        With "zero" the scale of a normalisation that ends a residual branch becomes eps, and the
        weight before it is transit: the normalisation would undo that weight's eps.
    biases : {"auto", "zero", "keep"}
        "auto" sets a bias to 0 unless its values are set on purpose: runs of equal values that are
        not 0 (forget gates, priors), values beside a weight that is exactly 0 (sampling offsets),
        values whose sum enters softplus, exp or log (time steps), or a bias marked `_no_reinit`.
        "zero" sets all of them to 0, "keep" none.
    overrides : mapping of str to role or options, optional
        Shell patterns of names (``"*.gate.weight"``), each with a role ("transit", "zero", "bias"
        for zeros, "keep") or with options of `idinit_ref.plan`
        (``{"role": "transit", "gain": 0.5}``). All matches apply; a later one wins.
    strict : bool
        Whether a used matrix that would be kept without an override is an error; by default it is
        a warning of the report.

    Examples
    --------
    >>> options: ModelOptions = {"gain": 0.5, "biases": "keep"}
    >>> options["gain"]
    0.5
    """

    gain: float
    eps: float
    wide: Wide | None
    form: Form
    taps: Taps
    head: Head
    embeddings: Literal["keep", "transit"]
    norms: Literal["keep", "zero"]
    biases: Literal["auto", "zero", "keep"]
    overrides: Mapping[str, Override] | None
    strict: bool


_DEFAULTS: ModelOptions = {
    "gain": 1.0,
    "eps": 1e-6,
    "wide": None,
    "form": "pair",
    "taps": "outward",
    "head": "transit",
    "embeddings": "keep",
    "norms": "keep",
    "biases": "auto",
    "overrides": None,
    "strict": False,
}


def settled(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options, completed by the defaults; raise if one is not valid.

    `decide`, which knows the names, validates the patterns of `overrides`.

    >>> settled({"gain": 2.0})["gain"], settled({})["eps"]
    (2.0, 1e-06)
    """
    for name, value in options.items():
        if name not in _DEFAULTS:
            known = ", ".join(_DEFAULTS)
            should = f"{name} is not an option of a whole model; the options are {known}"
            raise OptionTypeError(message(name, value, should, "leave it out, or name one of them"))
    found: dict[str, Any] = {**_DEFAULTS, **options}
    hints = get_type_hints(ModelOptions)
    choice("taps", found["taps"], get_args(Taps))
    for name in ("head", "embeddings", "norms", "biases"):
        choice(name, found[name], get_args(hints[name]))
    if not isinstance(found["strict"], bool):
        should = "it should be True or False"
        raise OptionTypeError(message("strict", found["strict"], should, "write one"))
    given = {name: found[name] for name in ("gain", "eps", "wide", "form")}
    given["wide"] = "truncate" if given["wide"] is None else given["wide"]
    either((0, 0), "transit", **given)
    return found
