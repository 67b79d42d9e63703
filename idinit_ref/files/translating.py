"""Translates a PyTorch checkpoint into the names and axes of another framework.

A plan becomes a plan with other axes, any other tensor a lazy view of itself.
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
    axes_rule,
    kernel_kind,
    kind_of,
    letters_of,
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
    """Translate a PyTorch checkpoint into another framework's names and axes.

    Parameters
    ----------
    tensors : mapping of str to Plan, numpy.ndarray, Tensor or None
        By PyTorch or Hugging Face names. None is a tensor of the model that is left out.
    dialect : str or Dialect
        As in `load`.
    tables : collection of str, optional
        Names of embedding tables, if known, for example from a traced report.
    metadata : mapping of str to str, optional
        Metadata of the tensors' file (``open_checkpoint(...).metadata``). A plan in its
        ``idinit_ref.plans`` is used if it has the tensor's shape.

    Returns
    -------
    dict
        By the dialect's names, in the same order. A plan whose axes are permuted is a plan.

    Raises
    ------
    OptionError, OptionTypeError, LayoutError, ShapeError, OSError
        If a tensor's kind is unknown, two tensors get one name, a Keras layer lacks its first
        tensors, or a rule matches nothing or contradicts a plan; also as in `load`.

    Examples
    --------
    >>> import numpy as np
    >>> import idinit_ref as ir
    >>> model = {"fc.weight": ir.plan((6, 4)), "fc.bias": np.zeros(6, "float32")}
    >>> tensors = translate(model, "keras")
    >>> list(tensors), tensors["fc/vars/0"].layout, tensors["fc/vars/0"].shape
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
            item = replace(
                item, known_plan=_known_plan(value, claims.get(own)), table=own in tables
            )
        renamed = _rename(item, dialect, used, value is None)
        if renamed is None:
            continue
        if renamed.name in items:
            raise _same_name(renamed.name, [items[renamed.name].own, own])
        present.add(renamed.name)
        if value is not None:
            _check_axes(renamed)
            items[renamed.name] = renamed
    model = Model(_consistent(items, tensors.keys()), present, tensors.keys(), dialect)
    _check_rules(model, used)
    sources_of: dict[str, list[tuple[str, Plan | Tensor, str]]] = {}
    for item in model.items.values():
        for name, part, join in _translate(item, model):
            sources = sources_of.setdefault(check_name(name), [])
            # The input's bias comes first, in any order of the file.
            first = join and "_ih" in item.leaf
            sources.insert(0 if first else len(sources), (item.own, part, join))
    translated = {name: _join(name, sources) for name, sources in sources_of.items()}
    if dialect.separator == "/":
        _check_numbers({name: [own for own, _, _ in srcs] for name, srcs in sources_of.items()})
    return translated


def _known_plan(value: Plan | Tensor, claim: object) -> Plan | None:
    """Return a tensor's plan: itself, or the one in the metadata."""
    if isinstance(value, Plan):
        return value
    if not isinstance(claim, dict):
        return None
    try:
        return Plan(value.shape, **claim)
    except (IDInitError, TypeError):  # another shape, or unknown options
        return None


def _rename(
    item: NamedTensor, dialect: Dialect, used: set[int], left_out: bool
) -> NamedTensor | None:
    """Apply all rules to a tensor; None if a rule drops it. `used` collects the matching rules."""
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


def _check_axes(item: NamedTensor) -> None:
    """Raise if a rule contradicts the known axes of a tensor."""
    before = item.axes.partition("->")[0]
    layout = item.known_plan.layout if item.known_plan else ""
    if layout and item.moved and not re.fullmatch("[A-Z]+", before):
        return  # axes that are split or dropped
    if item.table and not item.known_plan and not item.moved and item.layer != "Embedding":
        layout = "IO"
    if item.axes and layout and before != layout:
        what = "plan" if item.known_plan else "embedding table"
        should = f"the {what} {item.own}, shape {item.value.shape}, has axes {layout}"
        raise LayoutError(message("axes", item.axes, should, "correct the rule, or its pattern"))


def _consistent(items: Mapping[str, NamedTensor], names: Collection[str]) -> dict[str, NamedTensor]:
    """If one weight contradicts its name rule, stop trusting name rules for IO weights."""

    def by_name(item: NamedTensor) -> bool:
        rule = None if item.ndim != 2 else find(item.own, names=names)
        return rule is not None and rule.options.get("layout") == "IO"

    if not any(item.axes.startswith("OI") and by_name(item) for item in items.values()):
        return dict(items)
    return {
        name: replace(item, doubted=item.known_plan is None and not item.axes and by_name(item))
        for name, item in items.items()
    }


def _check_rules(model: Model, used: Collection[int]) -> None:
    """Raise if a rule matches nothing."""
    dialect = model.dialect
    for k, rule in enumerate(dialect.rules):
        if isinstance(rule, Items):
            if dialect.leaves and any(fits(rule, name) for name in model.present):
                continue
            label, got, kind = "list", rule.list, "a list's entry"
            should = f"it matches no list entry that {dialect.name} names by its class"
        elif k in used:
            continue
        else:
            label, got, kind = "pattern", rule.pattern, "a tensor"
            of = f" of {ndim_of(rule)} axes ({rule.axes})" if rule.axes else ""
            should = f"it matches no tensor{of}"
        near = ", ".join(get_close_matches(got, model.names, 3, 0.0)) or "none"
        cure = f"name {kind}, or leave the rule out"
        raise OptionError(message(label, got, f"{should}; the nearest names are {near}", cure))


def _check_numbers(sources: Mapping[str, list[str]]) -> None:
    """Raise if a Keras layer has a tensor, but lacks one before it."""
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
            cure = "copy or fill the missing tensors, or leave out the whole layer"
            raise OptionError(message("layer", layer, should, cure))


def _translate(item: NamedTensor, model: Model) -> list[tuple[str, Plan | Tensor, str]]:
    """Translate one tensor: names, tensors, and how each is joined to others of its name."""
    value, dialect = item.value, model.dialect
    if not dialect.leaves:
        moved = rearrange(value, item.moved, item.sizes) if item.moved else value
        return [(item.name, moved, "")]
    kind, path = kind_of(item, model)
    letters = letters_of(item, kind, model) if item.ndim > 1 else ""
    if kind == "kernel" and not item.moved:
        kind = kernel_kind(item, letters, model) if letters else "other"
    unchanged = Leaf(item.leaf) if re.fullmatch(dialect.others, item.leaf) else Leaf("")
    leaf = unchanged if kind == "other" else dialect.leaves.get(kind, Leaf(""))
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
        should = f"attention in {dialect.name} should have an axis of heads"
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
            should = f"{dialect.name} names the entries of the list {before!r} by their class"
            cure = f"add a rule, e.g. {{'list': '{before}', 'class': 'MyBlock'}}"
            raise OptionError(message("name", item.own, should, cure))
        if entry is None and dialect.index != dialect.separator and words:
            words[-1] += f"{dialect.index}{part}"
        else:
            words.append(entry or part)
    return words


def _join(name: str, sources: list[tuple[str, Plan | Tensor, str]]) -> Plan | Tensor:
    """Join the tensors of one name; raise if they should not be joined."""
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
        raise _same_name(name, own)
    if join == "sum but last":
        size = tensors[-1].shape[0]
        if tensors[-1].read((slice(size - size // 3, size),), "float64").any():
            should = f"the last third of {own[-1]} should be 0: Flax's GRUCell has no such bias"
            raise OptionError(message("name", name, should, "set it to 0, or leave it out"))
        if len(tensors) == 1:
            return values[0]
    return stacked(tensors) if join == "stack" else added(tensors)


def _same_name(name: str, own: list[str]) -> OptionError:
    should = f"it should be the name of only one of {', '.join(own)}"
    return OptionError(message("name", name, should, "rename or drop one of them by a rule"))


def _unknown(item: NamedTensor, model: Model) -> OptionError:
    letters = "ABCDEFGH"[: item.ndim]
    name = item.leaf
    if not re.fullmatch(model.dialect.others, name):
        beside = [other.leaf for other in model.items.values() if other.path == item.path]
        name = f"vars/{beside.index(item.leaf)}"
    rule = {**axes_rule(item, f"{letters}->{letters}"), "name": item.sibling(name)}
    should = f"its form in {model.dialect.name} is unknown (shape {item.value.shape})"
    return OptionError(message("name", item.own, should, f"state it by a rule, e.g. {rule}"))
