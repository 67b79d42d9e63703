"""The weights that an implementation is called for, and the reasons to skip a property."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

from hypothesis import strategies as st

from ..core.dtypes import FORMATS
from ..core.kernel import Taps
from ..core.layout import SPATIAL
from ..core.noise import LoosenAt
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ._property import Property
from ._strategies import plans
from ._subject import Raised, Subject, Violation

Case = tuple[Plan, str | None]  # a weight, and the dtype to request

_GAINS = (1.0, -0.75, 2.5, 1 / 3, 1 + 2**-8 + 2**-30)  # the last reveals a double rounding
_EPSILONS = (1e-6, 0.5, -1e-3)
_LARGE = ((300, 3), (3, 300), (24, 17))  # outputs and inputs, larger than drawn ones
_OF_LARGE = ("exact", "transit", "row_norm", "layout")
_NOT_FOLDED = {("variance", "fold_mean"), ("composition", "fold_rms")}
_NOT_FOLDED |= {("image", "fold_rms"), ("image", "fold_mean")}
_UPRIGHT = ("outward", "center")  # the first outputs are the image: T14, T15
_OF_KERNELS = ("groups", "image")


@dataclass
class WeightCases:
    """The weights that one implementation can be called for."""

    subject: Subject
    letters: Sequence[str]  # the layouts of its matrices and kernels
    fixed: Mapping[str, Any]  # its taps, wide, form and stride, if it has no such parameters
    only: Callable[[Plan], bool] | None  # whether it supports a weight; None for all

    @property
    def smallest(self) -> Plan:
        """The weight of the first call."""
        letters, taps = self.letters[0], self.fixed["taps"]
        return Plan((1,) * len(letters), self.subject.roles[0], layout=letters, taps=taps)

    def why_not(self, each: Property) -> str | None:
        """Return why a property cannot be tested; None if it can."""
        takes, taps = self.subject.takes, self.fixed["taps"]
        if not set(each.roles) & set(self.subject.roles):
            return f"it is about {'IDI' if each.roles == ('transit',) else 'IDIZ'}"
        wide = "truncate" if takes("wide") else self.fixed["wide"]
        if each.name == "groups" and takes("groups") and not self._letters(each):
            return "groups are of convolutions: ask with conv="
        if each.name == "image" and not self._letters(each):
            return "it is about kernels: ask with conv="
        if each.name == "image" and taps not in _UPRIGHT and not takes("taps"):
            return f"it does not hold for {taps}"
        if (each.name, wide) in _NOT_FOLDED:
            return f"it does not hold for {wide}"
        return each.needs(self.subject)

    def cases(self, each: Property) -> st.SearchStrategy[Case]:
        """Return a strategy of weights, and dtypes to request, for a property."""
        names: list[str | None] = [None]
        if each.name in ("exact", "dtype") and self.subject.has_dtype:
            has_complex = self._has_complex()
            dtypes = self.subject.framework.dtypes()
            names += [name for name in dtypes if has_complex or not FORMATS[name].is_complex]
        drawn = [self._drawn(r, letters) for r, letters in product(*self._asked(each))]
        weights = st.one_of(drawn).map(each.fit)
        if self.only is not None:
            weights = weights.filter(self.only)
        return st.tuples(weights, st.sampled_from(names))

    def large(self, each: Property) -> list[Plan]:
        """Return a few weights that are larger than drawn ones."""
        plans = []
        for (role, letters), (m, n) in product(product(*self._asked(each)), _LARGE):
            names = ["taps", "stride"] if set(letters) & set(SPATIAL) else []
            names.append("wide" if role == "transit" else "form")
            sizes = {"O": m, "I": n} | dict.fromkeys(SPATIAL, 2)
            shape = tuple(sizes.get(c, 1) for c in letters)
            options = {name: self.fixed[name] for name in names}
            plan = each.fit(Plan(shape, role, layout=letters, **options))
            if plan.shape == shape and (self.only is None or self.only(plan)):
                plans.append(plan)
        return plans if each.name in _OF_LARGE else []

    def _asked(self, each: Property) -> tuple[list[Role], list[str]]:
        """Return the roles and the layouts for which a property is tested."""
        return [role for role in self.subject.roles if role in each.roles], self._letters(each)

    def _letters(self, each: Property) -> list[str]:
        kernels = each.name in _OF_KERNELS
        return [a for a in self.letters if not kernels or set(a) & set(SPATIAL)]

    def _has_complex(self) -> bool:
        """Whether complex dtypes are requested: only if they are not refused."""
        names = [name for name in self.subject.framework.dtypes() if FORMATS[name].is_complex]
        try:
            for name in names:
                self.subject.make(self.smallest, name)
        except Raised:
            return False
        except Violation:
            pass
        return True

    def _drawn(self, role: Role, letters: str) -> st.SearchStrategy[Plan]:
        """Draw the weights of a layout that this implementation supports."""
        takes, fixed = self.subject.takes, self.fixed

        def any_of(name: str, words: Any) -> Any:
            return st.sampled_from(get_args(words)) if takes(name) else fixed[name]

        more: dict[str, Any] = {"role": role, "blocks": None, "tap": None, "groups": 1}
        more |= {"transposed": False, "loosen": 0.0, "loosen_at": "all", "seed": 0}
        if role == "transit":
            more["gain"] = st.sampled_from(_GAINS) if takes("gain") else 1.0
            more["wide"] = any_of("wide", Wide)
            if takes("loosen") and takes("seed"):
                more["loosen"] = st.sampled_from([0.0, 0.125])
                more["seed"] = st.integers(0, 2**32)
                if takes("loosen_at"):
                    more["loosen_at"] = st.sampled_from(get_args(LoosenAt))
        else:
            more["eps"] = st.sampled_from(_EPSILONS) if takes("eps") else 1e-6
            more["form"] = any_of("form", Form)
        more["layout"] = letters
        if takes("layout"):
            more["layout"] = st.permutations(letters).map("".join)
        if takes("blocks"):
            del more["blocks"]
        if set(letters) & set(SPATIAL):
            more["taps"] = any_of("taps", Taps)
            if not takes("stride"):
                more["stride"] = fixed["stride"]
            if takes("tap"):
                del more["tap"]
            if takes("groups"):
                more["groups"] = st.integers(1, 3)
                if takes("transposed"):
                    more["transposed"] = st.booleans()
        return plans(**more)
