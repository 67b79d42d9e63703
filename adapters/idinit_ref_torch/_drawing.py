"""The drawing of a PyTorch model: modules name the operations that run in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from idinit_ref.roles.graph import NodeKind
from idinit_ref.tracing import Drawing, Made, Moving, Parameter, Signal, Value

from ._layers import is_layer
from ._memory import shape_of

__all__ = ["ModuleDrawing"]


class ModuleDrawing(Drawing):
    """A drawing in which modules name the operations that run in them."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        owners: Mapping[nn.Module, str],
        notes: Mapping[str, str],
    ) -> None:
        given = [
            Parameter(name, shape_of(tensor), str(tensor.dtype)[6:], notes.get(name, ""))
            for name, tensor in parameters.items()
        ]
        super().__init__(given, "torch.Tensor.detach", prefixed=False, batch="E")
        self.running: list[nn.Module] = []
        self._names = {id(tensor): name for name, tensor in parameters.items()}
        self._owners = owners
        self._labelled = ""  # the latest name of a weight operation
        self._ended = ""  # the latest node, if it is a weight operation that no move follows yet

    @property
    def module(self) -> nn.Module | None:
        """The innermost running module."""
        return self.running[-1] if self.running else None

    @property
    def path(self) -> str:
        """Its name in the model."""
        names = (self._owners.get(module, "") for module in reversed(self.running))
        return next(filter(None, names), "")

    def says(self, what: str) -> str:
        """Return the name of an operation, after the running module's name."""
        return f"{self.path}: {what}" if self.path else what

    def owns(self, name: str) -> bool:
        """Whether a parameter belongs to the innermost module."""
        kept = {} if self.module is None else self.module._parameters
        return any(self._names.get(id(tensor)) == name for tensor in kept.values())

    def applies(self, base: str, weight: Made, data: Made) -> bool:
        """Whether the running module is a known layer that applies its own weight."""
        is_used = bool(weight.parts) and is_layer(self.module)
        return is_used and all(self.owns(part.name) for part in weight.parts)

    # What modules change --------------------------------------------------------------------

    def draw(
        self,
        kind: NodeKind,
        base: str,
        inputs: Iterable[str],
        shape: tuple[int, ...] | None,
        *facts: Any,
        **more: Any,
    ) -> str:
        """Add a node, named after the running module."""
        if kind == "add" and isinstance(self.module, (nn.RNNBase, nn.RNNCellBase)):
            kind = "other"  # one dense operation on the input and the state together
        if base != self._labelled and self.running:
            base = self.says(base)
        name = super().draw(kind, base, inputs, shape, *facts, **more)
        self._ended = name if kind == "weight" else ""
        return name

    def label(self, base: str, weight: str) -> str:
        """Name a weight operation after its layer, or else after its weight."""
        module = self.module
        owner, _, local = weight.rpartition(".")
        if module and self.path and self.owns(weight) and len(module._parameters) <= 2:
            self._labelled = self.path
        elif owner:
            self._labelled = owner if local == "weight" else f"{owner}: {local}"
        else:
            self._labelled = f"{base} with {local}"
        return self._labelled

    def reshape(self, name: str, value: Value, shape: tuple[int, ...] | None) -> Value:
        """Draw a reshape; a layer's own one, which gives the rows their axes back, is no node."""
        ended, self._ended = self._ended, ""
        if not (isinstance(value, Signal) and ended and value.node == ended):
            return super().reshape(name, value, shape)
        rows = self.node(self.nodes[-1].inputs[0])
        given = self.node(rows.inputs[0]).shape if rows.does == "move" else None
        if shape is None or given is None or given[:-1] != shape[:-1]:
            return super().reshape(name, value, shape)
        self.nodes[-1] = replace(self.nodes[-1], shape=shape)
        old = value.shape or ()
        by = Moving(name, shape, lambda view: view.reshape(old, shape), quiet=True)
        out = self.move(value, by)
        return out._replace(places=()) if isinstance(out, Signal) else out
