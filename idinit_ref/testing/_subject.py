"""An implementation under test: the form of its calls, and one call, made safe.

The form follows from its signature. Any fault of a call (it raises, returns a list, leaves NaN)
becomes a `Violation`; a fault of the request is an `OptionError`.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..core.dtypes import FORMATS, Format
from ..core.kernel import Taps
from ..core.noise import LoosenAt
from ..core.pattern import Form, Role, Wide
from ..core.plan import Plan
from ..errors import OptionError, OptionTypeError, message
from ._frameworks import Framework, framework, framework_of

_ARRAYS = "tensor weight weights w param parameter array out variable matrix weight_matrix kernel"
_FIRST: dict[str, Literal["key", "array"]] = {
    **dict.fromkeys(("key", "rng", "prng_key", "rng_key"), "key"),
    **dict.fromkeys(_ARRAYS.split(), "array"),
}
_SPELLINGS = {"tau": "gain", "epsilon": "eps"}
_DEFAULTS = {f.name: f.default for f in fields(Plan) if f.name not in ("shape", "axes", "layout")}
_FIXED = (  # options that an implementation may fix
    "role", "wide", "form", "layout", "transposed", "taps", "tap", "stride",
)  # fmt: skip
_OPTIONS = (*_DEFAULTS, "layout", "xp", "dtype", "device")
_WORDS = {
    "role": get_args(Role),
    "wide": get_args(Wide),
    "form": get_args(Form),
    "taps": get_args(Taps),
    "loosen_at": get_args(LoosenAt),
}
FIXTURE = (
    "write a test that takes the fixture: def test_mine(mine): "
    "report = make_oracle(mine).run(); assert report.ok, str(report)"
)
HOW = (
    "give f(shape), f(key, shape, dtype) as in JAX, f_(tensor) in place as in torch.nn.init, or a "
    "class or factory of one; wrap anything else: lambda shape: f(*shape)"
)


class Violation(AssertionError):  # noqa: N818
    """A fault of an implementation: ``what = got, but should be expected  [call]``.

    Parameters
    ----------
    what : str
        The wrong entry, norm, output, ...
    got, should : object
        Its value, and the right value.
    call : object
        The call that made the weight.

    Examples
    --------
    >>> print(Violation("entry [0, 0]", 0.5, 1.0, "mine((2, 2))"))
    entry [0, 0] = 0.5, but should be 1.0  [mine((2, 2))]
    """

    def __init__(self, what: str, got: object, should: object, call: object) -> None:
        super().__init__(f"{what} = {got}, but should be {should}  [{call}]")


class Raised(Violation):
    """The implementation raised an error."""


class Call(NamedTuple):
    """A call, as text and as a function."""

    text: str
    run: Callable[[], Any]

    def __str__(self) -> str:
        return self.text


class MadeWeight(NamedTuple):
    """The result of a call: the object, its exact numbers, its dtype and the call."""

    raw: Any
    values: NDArray[Any]
    dtype: str
    call: str

    @property
    def format(self) -> Format:
        """The number format of its dtype."""
        return FORMATS.get(self.dtype, FORMATS["float64"])


@dataclass
class Subject:
    """An implementation and the form of its calls."""

    implementation: Any
    xp: Any = None  # its namespace; by default that of its results
    name: str | None = None  # by default its own
    roles: tuple[Role, ...] = ()  # by default those of its signature
    source: tuple[str, str] | None = None  # the module and the attribute, for the snippets

    def __post_init__(self) -> None:
        if not callable(self.implementation):
            raise self._refused("it should be callable")
        if type(self.implementation).__module__ == "_pytest.fixtures" or hasattr(
            self.implementation, "_pytestfixturefunction"
        ):
            should = "it is a pytest fixture, which has a value only in a test"
            raise self._refused(should, FIXTURE)
        if self.name is None:
            name = getattr(self.implementation, "__name__", type(self.implementation).__name__)
            self.name = "f" if name == "<lambda>" else name
        self.listen: Callable[[str], None] = lambda _: None
        self._framework = None if self.xp is None else framework(self.xp)
        self.outer: Mapping[str, inspect.Parameter] = {}
        signature = self._signature(self.implementation)
        first = signature[0].name if signature else ""
        needed = [p.name for p in signature if _is_needed(p) and p.kind != p.KEYWORD_ONLY]
        opaque = any(p.kind is p.VAR_POSITIONAL for p in signature)
        shaped = needed or opaque or first in {*_FIRST, "shape", "size", "dims"}
        if isinstance(self.implementation, type) or not shaped:
            self.outer = self._options(signature)
            maker = self.implementation
            self._refuse(needed)
            try:
                sample = maker()
            except (Exception, KeyboardInterrupt, SystemExit) as problem:
                should = f"{self.name}() raised {problem!r}"
                raise OptionError(message("implementation", maker, should, HOW)) from problem
            if not callable(sample):
                kind = type(sample).__name__
                raise self._refused(
                    f"it takes no shape, and {self.name}() returned {kind}, not a callable"
                )
            signature = self._signature(sample)
        self._read(signature)
        if not self.roles:
            role: Role = "zero" if self.takes("eps") and not self.takes("gain") else "transit"
            self.roles = ("transit", "zero") if self.takes("role") else (role,)
        if self.style == "key":
            self._framework = framework("jax")

    def _signature(self, function: Any) -> list[inspect.Parameter]:
        try:
            return list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # builtins have no signature
            return [inspect.Parameter("shape", inspect.Parameter.POSITIONAL_ONLY)]

    def _options(self, signature: list[inspect.Parameter]) -> dict[str, inspect.Parameter]:
        named = {
            _SPELLINGS.get(p.name, p.name): p
            for p in signature
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        return {
            name: p for name, p in named.items() if name in _OPTIONS and _is_ours(name, p.default)
        }

    def _read(self, signature: list[inspect.Parameter]) -> None:
        """Derive the style and the options of the function that takes the shape."""
        if not signature:
            raise self._refused("it should take a shape")
        first, rest = signature[0], signature[1:]
        self.style: Literal["shape", "key", "array"] = "shape"
        if first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
            self.style = _FIRST.get(first.name, "shape")
        if self.style == "key":
            rest = rest[1:]
        self.inner = self._options(rest)
        known = {p.name for p in self.inner.values()}
        self._refuse([p.name for p in rest if _is_needed(p) and p.name not in known])

    def _refuse(self, names: list[str]) -> None:
        if names:
            should = f"the oracle does not know what to pass for {', '.join(map(repr, names))}"
            raise self._refused(should, f"{HOW}, or bind it with functools.partial")

    def _refused(self, should: str, cure: str | None = None) -> OptionTypeError:
        given = self.implementation
        return OptionTypeError(message("implementation", given, should, cure or HOW))

    def takes(self, option: str) -> bool:
        """Whether its signature has an option."""
        return option in self.inner or option in self.outer

    @property
    def has_dtype(self) -> bool:
        """Whether a dtype can be requested."""
        return self.takes("dtype") or self.style == "array"

    @property
    def framework(self) -> Framework:
        """The framework of its arrays; derived from its result if nothing else shows it."""
        if self._framework is None and self.style == "array":
            module = getattr(self.implementation, "__module__", None) or ""
            source = vars(sys.modules.get(module, np)).values()
            loaded = {getattr(v, "__name__", "") for v in source if inspect.ismodule(v)}
            names = [module.partition(".")[0], *(n.partition(".")[0] for n in loaded)]
            known = [n for n in names if n in ("torch", "jax", "tensorflow", "keras")]
            self._framework = framework(known[0] if known else "numpy")
        return self._framework or framework(np)

    def settle(self, plan: Plan) -> None:
        """Call it once, to determine its framework and to let it load its modules."""
        if self._framework is None and self.style == "shape":
            self._framework = framework_of(self.run(self.call(plan)))

    # One call -------------------------------------------------------------------------------

    def call(self, plan: Plan, dtype: str | None = None, device: Any = None, key: int = 0) -> Call:
        """Return the call for a plan's weight; raise an OptionError if it lacks an option."""
        values = dict(self._arguments(plan, dtype, device))
        outer = {self.outer[k].name: v for k, v in values.items() if k in self.outer}
        inner = {
            self.inner[k].name: v
            for k, v in values.items()
            if k in self.inner and (k not in self.outer or self._bare(k))
        }
        # The first parameters may be positional only.
        first: list[Any] = [plan.shape]
        shown = [repr(plan.shape)]
        if self.style == "key":
            jax: Any = importlib.import_module("jax")
            first, shown = [jax.random.key(key), plan.shape], [f"jax.random.key({key})", *shown]
        at = self.framework
        if self.style == "array":
            first, shown = [], [_array_text(at, plan.shape, dtype, device)]
        maker = f"{self.name}({_shown(outer)})" if self._is_maker else str(self.name)
        text = f"{maker}({', '.join(shown)}{', ' * bool(inner)}{_shown(inner)})"

        def run() -> Any:
            function = self.implementation(**outer) if self._is_maker else self.implementation
            if self.style != "array":
                return function(*first, **inner)
            array = at.empty(plan.shape, dtype, device)
            returned = function(array, **inner)
            return array if at.is_writable(array) else returned

        return Call(text, run)

    @property
    def _is_maker(self) -> bool:
        return isinstance(self.implementation, type) or bool(self.outer)

    def _arguments(self, plan: Plan, dtype: str | None, device: Any) -> Iterator[tuple[str, Any]]:
        """Yield the options to pass: those that differ from defaults or have none."""
        for name, default in _DEFAULTS.items():
            value = getattr(plan, name)
            if not self.takes(name):
                if name not in _FIXED and value != default:
                    should = f"{self.name} takes no {name}="
                    raise OptionError(message(name, value, should, "leave it out of the plan"))
                continue
            its_default = self.parameter(name).default
            if value != (its_default if name in ("role", "wide", "form", "taps") else default) or (
                its_default is inspect.Parameter.empty
            ):
                yield name, value
        # The default None may mean a framework's own order, so the layout is passed.
        if self.takes("layout") and plan.layout != self.parameter("layout").default:
            yield "layout", plan.layout
        if self.takes("xp") and (self.xp is not None or self._bare("xp")):
            yield "xp", self.framework.xp
        if self.takes("dtype"):
            if dtype is None and self._bare("dtype"):
                dtype = self.framework.dtypes()[0]
            if dtype is not None:
                by_name = self.framework.name == "torch" and isinstance(
                    self.parameter("dtype").default, str
                )
                yield "dtype", dtype if by_name else self.framework.dtype(dtype)
        elif dtype is not None and self.style != "array":
            should = f"{self.name} takes no dtype="
            raise OptionError(message("dtype", dtype, should, "leave it out"))
        if device is not None and self.takes("device"):
            yield "device", device

    def parameter(self, option: str) -> inspect.Parameter:
        return self.inner.get(option) or self.outer[option]

    def _bare(self, option: str) -> bool:
        return self.parameter(option).default is inspect.Parameter.empty

    def run(self, call: Call) -> Any:
        """Make a call and return its result; raise `Raised` if it raises."""
        self.listen(call.text)
        try:
            return call.run()
        except BaseException as problem:
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in `idinit check`
            if isinstance(problem, KeyboardInterrupt) and not ignored:  # from the user
                raise
            got = f"raised {type(problem).__name__}: {problem}".rstrip(": ")
            raise Raised(call.text, got, "an array", call) from problem

    def make(
        self, plan: Plan, dtype: str | None = None, device: Any = None, key: int = 0
    ) -> MadeWeight:
        """Make and read a weight; raise a `Violation` for a wrong type or shape, or for NaN."""
        call = self.call(plan, dtype, device, key)
        raw, at = self.run(call), self.framework
        if not at.owns(raw):
            kind = type(raw)
            got = f"an instance of {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
            raise Violation(call.text, got, f"an array of {at.name}", call)
        if tuple(raw.shape) != plan.shape:
            raise Violation("its shape", tuple(raw.shape), plan.shape, call)
        dtype = at.dtype_of(raw)
        if not at.can_read(raw):
            return MadeWeight(raw, np.zeros(plan.shape), dtype, call.text)
        try:
            values = at.numpy(raw)
        except (TypeError, ValueError, RuntimeError) as problem:
            if dtype in FORMATS:
                got = f"an array that cannot be read ({problem})"
                raise Violation(call.text, got, "a dense array", call) from None
            raise Violation("its dtype", dtype, "a floating dtype", call) from None
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            place = tuple(bad[0].tolist())
            untouched = self.style == "array" and len(bad) == values.size
            should = "written: the array passed in is unchanged" if untouched else "finite"
            raise Violation(f"W{list(place)}", values[place], should, call)
        return MadeWeight(raw, values, dtype, call.text)


def _is_needed(p: inspect.Parameter) -> bool:
    """Whether a parameter has to be passed."""
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def _is_ours(name: str, default: object) -> bool:
    """Whether a parameter with an option's name has a default that fits the option, or none."""
    if name == "layout" and isinstance(default, str):
        return bool({"O", "I"} <= set(default))
    if name in _WORDS and isinstance(default, str):
        return default in _WORDS[name]
    return not (name in (*_WORDS, "layout", "stride") and isinstance(default, (bool, int)))


def _array_text(at: Framework, shape: tuple[int, ...], dtype: str | None, device: Any) -> str:
    name = at.name
    more = "" if dtype is None else f", dtype={name}.{dtype}"
    more += "" if device is None else f", device={device!r}"
    if name == "torch":
        return f"torch.empty({shape}{more})"
    if name == "tensorflow":
        return f"tf.Variable(tf.zeros({shape}{more.replace('tensorflow', 'tf')}))"
    return f"np.empty({shape}{more.replace('numpy', 'np')})"


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={getattr(v, '__name__', None) or repr(v)}" for k, v in options.items())
