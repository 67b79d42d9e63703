"""All options of one weight: each checked, and those of the role against the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, get_args

import numpy as np

from ..errors import OptionError, OptionTypeError, ShapeError, message
from .kernel import Taps
from .layout import SPATIAL
from .noise import LoosenAt
from .options import choice, integer, letters, real, sizes
from .pattern import Form, Role, Wide, called

__all__ = ["checked"]

_OPTIONS: dict[str, dict[str, object]] = {  # of one role, with their defaults
    "transit": {"gain": 1.0, "wide": "truncate", "loosen": 0.0, "loosen_at": "all", "seed": 0},
    "zero": {"eps": 1e-6, "form": "pair"},
}
_MATRIX = "OI" + SPATIAL
_WORDS = {"role": Role, "wide": Wide, "form": Form, "taps": Taps, "loosen_at": LoosenAt}


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the validated fields of a plan, or raise for the first that does not fit."""
    shape = sizes("shape", given["shape"], ShapeError)
    role = given["role"]
    packed = isinstance(role, Sequence) and not isinstance(role, (str, bytes))
    for name, words in _WORDS.items():
        model = ": only a whole model's own wide= may be None" if name == "wide" else ""
        cure = f"leave it out{model}" if given[name] is None else "pick one"
        for word in role if packed and name == "role" else (given[name],):
            choice(name, word, get_args(words), cure)
    transposed = given["transposed"]
    if not isinstance(transposed, (bool, np.bool_)):
        should = "it should be True or False"
        raise OptionTypeError(message("transposed", transposed, should, "write one"))
    values: dict[str, Any] = {
        "shape": shape,
        "gain": real("gain", given["gain"]),
        "eps": real("eps", given["eps"]),
        "loosen": real("loosen", given["loosen"], zero=True),
        "groups": integer("groups", given["groups"], low=1),
        "seed": integer("seed", given["seed"], low=0, high=2**63),  # beyond, see standard_normal
        "transposed": bool(transposed),
    }
    if given["blocks"] is not None:
        values["blocks"] = sizes("blocks", given["blocks"], OptionError)
    if given["tap"] is not None:
        values["tap"] = sizes("tap", given["tap"], OptionError, "count from 0 to k - 1")
    if given["stride"] is not None:
        cure = "write the strides of the layer as integers"
        values["stride"] = sizes("stride", given["stride"], OptionError, cure, low=None)
    values["layout"] = letters(given["layout"], shape)
    if packed:
        batch = prod(n for n, c in zip(shape, values["layout"], strict=False) if c not in _MATRIX)
        values["role"] = _role_of_each(role, values.get("blocks"), batch)
    _check_role({**given, **values})
    return values


def _role_of_each(
    given: Sequence[Role], blocks: Sequence[int] | None, batch: int
) -> Role | tuple[Role, ...]:
    """Return a role for each block or matrix, in the fewest words; raise if they are not as many.

    `batch` is the number of matrices along the batch axes.
    """
    roles, count = tuple(given), len(blocks or (0,))
    own, others = roles[:count], {roles[at : at + count] for at in range(0, len(roles), count)}
    if len(roles) not in (count, count * batch) or not roles or (not blocks and batch == 1):
        should = f"it should have as many roles as there are blocks, {len(blocks or ())}"
        if batch > 1:
            should = f"{should}, or as all matrices along the batch axes have, {batch * count}"
            if not blocks:
                should = f"it should have a role for each matrix along the batch axes, {batch}"
        cure = "write one role as a string, or the sizes of all blocks with blocks="
        raise OptionError(message("role", given, should, cure))
    if len(others) > 1:
        return roles
    return own[0] if len({*own}) == 1 else own


def _check_role(given: Mapping[str, Any]) -> None:
    """Raise for an option of another role, or of noise where there is none."""
    role = given["role"]
    for other in _OPTIONS.keys() - ({role} if isinstance(role, str) else {*role}):
        for name, default in _OPTIONS[other].items():
            if given[name] != default:
                should = f"{called(role)} (role {role!r}) has no such option"
                cure = f"leave it out, or use role={other!r}"
                raise OptionError(message(name, given[name], should, cure))
    if given["loosen_at"] != "all" and not given["loosen"]:
        should = "there is no noise to place: loosen is 0"
        cure = "give a standard deviation with loosen=, or leave it out"
        raise OptionError(message("loosen_at", given["loosen_at"], should, cure))
