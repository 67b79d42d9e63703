"""A whole checkpoint by its names alone: what the rules make of it, for tests."""

from __future__ import annotations

from idinit_ref.files import assemble
from idinit_ref.files.sources import Asked


def plans(tensors, own=(), **options):
    """Every weight as a plan, every bias as an array; what IDInit does not define is not there."""
    asked = {name: Asked(tuple(shape)) for name, shape in tensors.items()}
    values = assemble(asked, own=own, **options).values
    return {name: getattr(value, "array", value) for name, value in values.items()}
