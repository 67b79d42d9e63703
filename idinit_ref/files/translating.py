"""A PyTorch checkpoint said in the words of another framework.

Nothing is made here: a plan becomes a plan of other axes, any other tensor a `View` of itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from numpy.typing import NDArray

from ..core.layout import SPATIAL
from ..core.plan import Plan
from ..errors import IDInitError, LayoutError, OptionError, ShapeError, message
from ..roles.names import find
from .dialects import Dialect, Leaf, load
from .kinds import (
    AS_IT_IS,
    Model,
    NamedTensor,
    kernel_kind,
    kind_of,
    letters_of,
    says,
    stored_before,
)
from .metadata import table
from .naming import check_name
from .renaming import Items, entry_of, fits, ndim_of
from .storage import PlanTensor, Tensor, as_tensor
from .views import added, rearrange, stacked, take


def translate(
    tensors: Mapping[str, Plan | NDArray[Any] | Tensor | None],
    dialect: str | Dialect,
    *,
    tables: Collection[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Plan | Tensor]:
    """Say a PyTorch checkpoint in the words of another framework.

    Parameters
    ----------
    tensors : mapping of str to Plan, numpy.ndarray, Tensor or None
        By PyTorch or Hugging Face names. None is one that the model has, but that is left out.
    dialect : str or Dialect
        As in `load`.
    tables : collection of str, optional
        Names of embedding tables, where that is known otherwise (as a traced report knows it).
    metadata : mapping of str to str, optional
        Of the file that the tensors are from (``open_checkpoint(...).metadata``): what its
        ``idinit_ref.plans`` says of a tensor, a plan of its shape, is believed.

    Returns
    -------
    dict
        By the dialect's names, in the same order. A plan whose axes are permuted is a plan.

    Raises
    ------
    OptionError, OptionTypeError, LayoutError, ShapeError, OSError
        If a tensor's kind is not known, two get one name, a Keras layer lacks its first tensors,
        a rule fits nothing or contradicts a plan, or as in `load`.

    Examples
    --------
    >>> import numpy as np
    >>> import idinit_ref as ir
    >>> model = {"fc.weight": ir.plan((6, 4)), "fc.bias": np.zeros(6, "float32")}
    >>> made = translate(model, "keras")
    >>> list(made), made["fc/vars/0"].layout, made["fc/vars/0"].shape
    (['fc/vars/0', 'fc/vars/1'], 'IO', (4, 6))
    """
    if not isinstance(dialect, Dialect):
        dialect = load(dialect)
    claims = table((metadata or {}).get("idinit_ref.plans"))
    items: dict[str, NamedTensor] = {}
    present: set[str] = set()
    used: set[int] = set()
    for own, given in tensors.items():
        check_name(own)
        value = given if given is None or isinstance(given, Plan) else as_tensor(own, given)
        item = NamedTensor(own, own, PlanTensor(Plan((0, 0))) if value is None else value)
        if value is not None:
            item = replace(item, said=_said(value, claims.get(own)), table=own in tables)
        renamed = _renamed(item, dialect, used, value is None)
        if renamed is None:
            continue
        if renamed.name in items:
            raise _twice(renamed.name, [items[renamed.name].own, own])
        present.add(renamed.name)
        if value is not None:
            items[renamed.name] = _agreed(renamed)
    model = Model(_consistent(items, tensors.keys()), present, tensors.keys(), dialect)
    _check_rules(model, used)
    sources_of: dict[str, list[tuple[str, Plan | Tensor, str]]] = {}
    for item in model.items.values():
        for name, part, join in _translated(item, model):
            sources = sources_of.setdefault(check_name(name), [])
            # The bias of the input comes first, whatever the order of the file.
            first = join and "_ih" in item.leaf
            sources.insert(0 if first else len(sources), (item.own, part, join))
    translated = {name: _joined(name, sources) for name, sources in sources_of.items()}
    if dialect.separator == "/":
        _check_numbers({name: [own for own, _, _ in each] for name, each in sources_of.items()})
    return translated


def _said(value: Plan | Tensor, claim: object) -> Plan | None:
    """Return the plan that says what the axes are."""
    if isinstance(value, Plan):
        return value
    if not isinstance(claim, dict):
        return None
    try:
        return Plan(value.shape, **claim)
    except (IDInitError, TypeError):  # of another shape, or no plan's options
        return None


def _renamed(
    item: NamedTensor, dialect: Dialect, used: set[int], left_out: bool
) -> NamedTensor | None:
    """Return a tensor with all that the rules say of it, or None if one drops it."""
    for k, rule in enumerate(dialect.rules):
        if isinstance(rule, Items) or not re.search(rule.pattern, item.name):
            continue
        if rule.name is None:
            used.add(k)
            return None
        concerned = ndim_of(rule) in (None, item.ndim) or left_out
        if concerned:
            used.add(k)
        item = replace(
            item,
            name=check_name(re.sub(rule.pattern, rule.name, item.name)),
            axes=(concerned and rule.axes) or item.axes,
            sizes={**item.sizes, **rule.sizes},
            layer=rule.layer or item.layer,
        )
    return item


def _agreed(item: NamedTensor) -> NamedTensor:
    """Return a tensor, unless a rule says other axes than what is known of it."""
    before = item.axes.partition("->")[0]
    layout = item.said.layout if item.said else ""
    if layout and item.moved and not re.fullmatch("[A-Z]+", before):
        return item  # axes that are split or dropped
    if item.table and not item.said and not item.moved and item.layer != "Embedding":
        layout = "IO"
    if item.axes and layout and before != layout:
        what = "its plan says" if item.said else "it is an embedding table:"
        should = f"{what} {layout} of {item.own}, shape {item.value.shape}"
        raise LayoutError(message("axes", item.axes, should, "correct the rule, or its pattern"))
    return item


def _consistent(items: Mapping[str, NamedTensor], names: Collection[str]) -> dict[str, NamedTensor]:
    """If one weight contradicts its name rule, stop trusting name rules for IO weights."""

    def by_name(item: NamedTensor) -> bool:
        rule = None if item.ndim != 2 else find(item.own, names=names)
        return rule is not None and rule.options.get("layout") == "IO"

    if not any(item.axes.startswith("OI") and by_name(item) for item in items.values()):
        return dict(items)
    return {
        name: replace(item, doubted=item.said is None and not item.axes and by_name(item))
        for name, item in items.items()
    }


def _check_rules(model: Model, used: Collection[int]) -> None:
    """Raise if a rule fits nothing."""
    dialect = model.dialect
    for k, rule in enumerate(dialect.rules):
        if isinstance(rule, Items):
            if dialect.leaves and any(fits(rule, name) for name in model.present):
                continue
            label, got, kind = "list", rule.list, "a list's entry"
            should = f"it fits no entry of a list that {dialect.name} names"
        elif k in used:
            continue
        else:
            label, got, kind = "pattern", rule.pattern, "a tensor"
            of = f" of {ndim_of(rule)} axes ({rule.axes})" if rule.axes else ""
            should = f"it fits no tensor{of}"
        near = ", ".join(get_close_matches(got, model.names, 3, 0.0)) or "none"
        cure = f"name {kind}, or leave the rule out"
        raise OptionError(message(label, got, f"{should}; the nearest names are {near}", cure))


def _check_numbers(sources: Mapping[str, list[str]]) -> None:
    """Raise if a Keras layer would have a tensor, but not the ones before it."""
    layers: dict[str, dict[int, list[str]]] = {}
    for name, own in sources.items():
        if match := re.fullmatch(r"(?:(.*)/)?vars/(\d+)", name):
            layers.setdefault(match[1] or "", {})[int(match[2])] = own
    for layer, numbers in layers.items():
        last = max(numbers)
        if missing := [str(k) for k in range(last) if k not in numbers]:
            should = (
                f"before vars/{last} ({', '.join(numbers[last])}) it should have "
                f"vars/{', vars/'.join(missing)}"
            )
            cure = "copy or fill what is missing, or leave out the whole layer"
            raise OptionError(message("layer", layer, should, cure))


def _translated(item: NamedTensor, model: Model) -> list[tuple[str, Plan | Tensor, str]]:
    """Return what becomes of one tensor: names, tensors, and how they join others of the name."""
    value, dialect = item.value, model.dialect
    if not dialect.leaves:
        moved = rearrange(value, item.moved, item.sizes) if item.moved else value
        return [(item.name, moved, "")]
    kind, path = kind_of(item, model)
    letters = letters_of(item, kind, model) if item.ndim > 1 else ""
    if kind == "kernel" and not item.moved:
        kind = kernel_kind(item, letters, model) if letters else "other"
    own = Leaf(item.leaf) if re.fullmatch(dialect.others, item.leaf) else Leaf("")
    leaf = own if kind == "other" else dialect.leaves.get(kind, Leaf(""))
    if leaf is None:
        return []
    stays = item.moved or leaf.axes or kind == "embedding" or AS_IT_IS.search(item.own)
    if not leaf.name or (item.ndim > 1 and not stays):
        raise _unknown(item, model)
    count = len(leaf.parts or leaf.order) or 1
    axis = max(letters.find("O"), 0)
    size, rest = divmod(value.shape[axis], count) if value.shape else (0, 0)
    if rest:
        should = f"{item.own} should hold {count} equal parts along axis {axis}"
        raise ShapeError(message("shape", value.shape, should, "add a rule for it"))
    spans = [(k * size, (k + 1) * size) for k in range(count)]
    parts: list[tuple[str, Plan | Tensor, str]] = []
    for k, part in enumerate(leaf.parts or ("",)):
        cut = [spans[gate] for gate in ((k,) if leaf.parts else leaf.order)]
        piece = take(value, axis, cut) if cut else value
        end = leaf.name
        if kind != "other":
            present = (item.sibling(other) in model.present for other in stored_before(item.leaf))
            end = end.format(part, rank=sum(present))
        words = [leaf.within, *_path(item, path, dialect), end]
        name = dialect.separator.join(word for word in words if word)
        parts.append((name, _placed(piece, item, letters, leaf, dialect), leaf.join))
    return parts


def _placed(
    value: Plan | Tensor, item: NamedTensor, letters: str, leaf: Leaf, dialect: Dialect
) -> Plan | Tensor:
    """Return a tensor with the dialect's axes."""
    if item.moved:
        return rearrange(value, item.moved, item.sizes)
    if not leaf.axes or (item.ndim < 2 and "*" in leaf.axes):
        return value
    if "*" in leaf.axes:
        batch = "".join(c for c in letters if c not in "OI" + SPATIAL)
        mark = "~" * leaf.axes.startswith("~")
        kernel = "".join(mark + c for c in SPATIAL if c in letters)
        return rearrange(value, f"{letters}->{batch}{kernel}{leaf.axes[-2:]}")
    if "N" not in item.sizes:
        should = f"attention in {dialect.name} has an axis of heads"
        cure = (
            "give their number by a rule, e.g. "
            f"{{'pattern': '^{re.escape(item.own.rpartition('.')[0])}', 'sizes': {{'N': 12}}}}"
        )
        raise OptionError(message("name", item.own, should, cure))
    if item.ndim == 2:
        value = rearrange(value, f"{letters}->OI")
    return rearrange(value, leaf.axes, item.sizes)


def _path(item: NamedTensor, path: str, dialect: Dialect) -> list[str]:
    """Return the words of a layer's name in the dialect."""
    parts = path.split(".")
    words: list[str] = []
    for k, part in enumerate(parts):
        if not part.isdecimal():
            words.append(part)
            continue
        before = ".".join(parts[:k])
        rules = [r for r in dialect.rules if isinstance(r, Items) and fnmatchcase(before, r.list)]
        entry = next(filter(None, (entry_of(rule, int(part)) for rule in rules)), None)
        if entry is None and dialect.index is None:
            should = f"{dialect.name} calls the entries of the list {before!r} by their class"
            cure = f"add a rule, e.g. {{'list': '{before}', 'class': 'MyBlock'}}"
            raise OptionError(message("name", item.own, should, cure))
        if entry is None and dialect.index != dialect.separator and words:
            words[-1] += f"{dialect.index}{part}"
        else:
            words.append(entry or part)
    return words


def _joined(name: str, sources: list[tuple[str, Plan | Tensor, str]]) -> Plan | Tensor:
    """Return the one tensor that several become, or raise if they may not."""
    own = [source for source, _, _ in sources]
    values = [value for _, value, _ in sources]
    joins = {join for _, _, join in sources}
    join = joins.pop() if len(joins) == 1 else ""
    if join == "stack" and len(sources) == 1:
        should = f"{own[0]} should come with the layer's other bias"
        raise OptionError(message("name", name, should, "add it, or leave both out"))
    if len(sources) == 1 and not (join == "sum but last" and "_hh" in own[0]):
        return values[0]
    tensors = tuple(PlanTensor(value) if isinstance(value, Plan) else value for value in values)
    if not join or len(tensors) > 2 or tensors[0].shape != tensors[-1].shape:
        raise _twice(name, own)
    if join == "sum but last":
        size = tensors[-1].shape[0]
        if tensors[-1].read((slice(size - size // 3, size),), "float64").any():
            should = f"the last third of {own[-1]} should be 0: Flax's GRUCell has no such bias"
            raise OptionError(message("name", name, should, "set it to 0, or leave it out"))
        if len(tensors) == 1:
            return values[0]
    return stacked(tensors) if join == "stack" else added(tensors)


def _twice(name: str, own: list[str]) -> OptionError:
    should = f"it should be one tensor, not each of {', '.join(own)}"
    return OptionError(message("name", name, should, "rename or drop one of them by a rule"))


def _unknown(item: NamedTensor, model: Model) -> OptionError:
    letters = "ABCDEFGH"[: item.ndim]
    name = item.leaf
    if not re.fullmatch(model.dialect.others, name):
        beside = [other.leaf for other in model.items.values() if other.path == item.path]
        name = f"vars/{beside.index(item.leaf)}"
    rule = {**says(item, f"{letters}->{letters}"), "name": item.sibling(name)}
    should = f"what it is in {model.dialect.name} cannot be told (shape {item.value.shape})"
    return OptionError(message("name", item.own, should, f"say it by a rule, e.g. {rule}"))
