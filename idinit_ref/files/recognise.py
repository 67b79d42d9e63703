"""Recognises the content of tensors from their numbers.

A tensor is read once, in blocks. IDI and IDIZ have few non-zeros; these are recorded. The options
come from the plan that the file claims, else from the rules by name, else from the positions of the
non-zeros. A plan is recognised only if its entries, rounded into the stored dtype, are exactly the
stored bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from math import prod
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from ..core.pattern import called
from ..core.plan import Plan
from ..core.text import short
from ..errors import IDInitError, RoundingError, printable
from ..roles.names import decide
from .bits import DTYPES, little, unsigned
from .metadata import table
from .patterns import first_difference, holds, levels_of, plain, search, sized, words
from .reading import Checkpoint
from .storage import (
    PlanTensor,
    Progress,
    Tell,
    Tensor,
    as_tensor,
    blocks,
    index_of,
    nbytes_of,
    obstacle,
    stream,
)
from .stored import Index
from .tally import Numbers, TensorContent, nonzero, values_of

Content = Literal["idi", "idiz", "idi+idiz", "zero", "constant", "other", "not decoded"]
Origin = Literal["claim", "rules", "pattern"]

_NOISE = 2**21  # the most columns of a loosened matrix whose noise is drawn again


@dataclass(frozen=True)
class Finding:
    """The content of one tensor.

    Parameters
    ----------
    kind : {"idi", "idiz", "idi+idiz", "zero", "constant", "other", "not decoded"}
        An IDI or IDIZ weight, or one with blocks of both; only zeros of either sign, or empty; one
        number everywhere; other numbers; or a dtype that cannot be decoded.
    plan : Plan, optional
        For the first three kinds: a plan whose entries, in the stored dtype, are the stored bits.
    source : {"claim", "rules", "pattern"}, optional
        The origin of its options: the file's metadata, the name rules, or the numbers alone.
    value : number, optional
        For "constant".
    numbers : Numbers, optional
        For "other".
    claim : bool, optional
        Whether the plan in the metadata holds; None without one, or if its noise is too large to
        check.
    digest : bool, optional
        Whether the SHA-256 digest in the metadata is right; None without one.
    detail : str
        All of this in words, without the kind.

    Examples
    --------
    >>> import idinit_ref as ir
    >>> finding = recognise(ir.idiz((4, 3), eps=0.5), claim={"role": "zero", "eps": 0.5})
    >>> finding.kind, finding.plan.eps, finding.source, finding.claim
    ('idiz', 0.5, 'claim', True)
    """

    kind: Content
    plan: Plan | None = None
    source: Origin | None = None
    value: complex | None = None
    numbers: Numbers | None = None
    claim: bool | None = None
    digest: bool | None = None
    detail: str = ""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class _Claim:
    """The plan in a tensor's metadata; None as soon as the tensor contradicts it."""

    def __init__(self, shape: tuple[int, ...], dtype: str, options: object) -> None:
        self.plan: Plan | None = None
        self.dtype, self.done, self.wrong, self.checked = dtype, 0, "", True
        known = {field.name for field in fields(Plan) if field.init} - {"shape"}
        if not isinstance(options, Mapping):
            self._fail(f"the claim is not a plan: {_line(options)}")
        elif unknown := sorted(map(repr, set(options) - known)):
            self._fail(f"the claim is not a plan: unknown options {_line(', '.join(unknown))}")
        else:
            try:
                self.plan = Plan(shape, **options)
                self.plan.check(dtype)
            except (IDInitError, TypeError, ValueError, OverflowError) as problem:
                self._fail(f"the claim is impossible: {_line(problem)}")
            else:
                if self.plan.loosen and prod(shape) and self.plan.axes.columns > _NOISE:
                    self.checked = False
                    self._fail(f"the claim is not checked: noise in rows of over {_NOISE:,}")

    def _fail(self, why: str) -> None:
        self.plan, self.wrong = None, why

    @property
    def sparse(self) -> bool:
        """Whether the check needs only the non-zeros."""
        return self.plan is not None and not self.plan.loosen

    def compare(self, index: Index, bits: NDArray[Any], where: NDArray[np.intp] | None) -> None:
        plan = self.plan
        if plan is None:
            return
        try:
            if where is None or plan.loosen:
                ours = little(PlanTensor(plan).read(index, self.dtype)).view(bits.dtype)
                wrong = np.flatnonzero(ours != bits)
                at = (int(wrong[0]), ours[wrong[0]]) if wrong.size else None
            else:
                at = first_difference(plan, index, self.dtype, where, bits[where])
        except RoundingError as problem:
            self._fail(f"the claim is impossible: {_line(problem)}")
            return
        if at is not None:
            place, planned = at
            numbers = values_of(np.stack([bits[place], planned]).astype(bits.dtype), self.dtype)
            stored, planned = numbers.tolist()
            entry = list(index_of(place + self.done, plan.shape))
            claimed = f"{called(plan.role)} {words(plan)}"
            self._fail(f"claimed {claimed}, but {entry} is {stored!r}, not {planned!r}")
        self.done += bits.size


def _line(text: object) -> str:
    return str(short(printable(" ".join(str(text).split())), 300))


def _find(
    seen: TensorContent, name: str | None, names: Collection[str] | None
) -> tuple[Plan, Origin, str] | None:
    """Return the plan of the recorded non-zeros, the origin of its options, and a note."""
    levels = levels_of(seen)
    if not levels:
        return None
    if name is not None:
        with suppress(IDInitError):
            role, options, _ = decide(name, seen.shape, names=names)
            for plan in sized(seen.shape, options, seen.bits.size, levels, seen.dtype):
                if plan.role == role and holds(plan, seen):
                    return plan, "rules", ""
    if seen.same:
        default = plain(seen, levels)
        return None if default is None else (default, "pattern", "")
    result = search(seen, levels)
    return None if result is None else (result[0], "pattern", result[1])


def recognise(
    tensor: Tensor,
    *,
    name: str | None = None,
    claim: Mapping[str, Any] | None = None,
    names: Collection[str] | None = None,
    digest: str | None = None,
    count: Callable[[int], object] = lambda _: None,
) -> Finding:
    """Recognise the content of a tensor from its numbers, in one pass and bounded memory.

    A plan is recognised only if all its entries are the stored bits. If several plans fit, the
    claim comes first, then that of the name rules, then the one of fewest options. ``gain`` and
    ``eps`` are the shortest decimals that round to the stored numbers. Layouts that are tried
    without a claim have batch axes first, and kernel axes before or after O and I; kernels have up
    to 4,096 taps, in every order. At most 16 pairs of a stride and an identity tap are tried for
    the entries of each sign, fewer for kernels of more than 256 taps: first those that explain
    each entry of row 0 by a phase of its own, then those equal on all axes. A loosened weight is
    recognised only by its claim: its noise has to be drawn again. So is one whose blocks have
    several roles.

    Parameters
    ----------
    tensor : Tensor, Plan or numpy.ndarray
        Of any shape, and a dtype of `idinit_ref.files.bits.DTYPES`.
    name, names : str and collection of str, optional
        Its name, and all names of the checkpoint, for the rules of `idinit_ref.roles.names`.
    claim : mapping, optional
        Options of `idinit_ref.plan` in the file's metadata, without the shape.
    digest : str, optional
        The SHA-256 of its bytes in the file's metadata, in hexadecimal.
    count : callable, optional
        Called with the number of bytes of each block.

    Examples
    --------
    >>> import numpy as np
    >>> import idinit_ref as ir
    >>> print(recognise(ir.idiz((64, 16, 3, 3), dtype="float16")))
    idiz: OIHW, eps 1e-06
    >>> print(recognise(np.ones(8)), recognise(np.zeros(3)), sep=", ")
    constant: 1.0, zero
    """
    tensor = as_tensor(name or "tensor", tensor)
    shape, dtype = tensor.shape, tensor.dtype or "float64"
    if why := obstacle(tensor):
        return _not_decoded(tensor, why, digest, count)
    seen = TensorContent(shape, dtype)
    claimed = None if claim is None else _Claim(shape, dtype, claim)
    sha = None if digest is None else hashlib.sha256()
    for index, part in zip(blocks(shape), stream(tensor, dtype), strict=True):
        bits = part.view(unsigned(dtype))
        if sha is not None:
            sha.update(bits.view(np.uint8).data)
        sparse = seen.sparse or (claimed is not None and claimed.sparse)
        where = nonzero(bits) if sparse else None
        seen.add(bits, where)
        if claimed is not None:
            claimed.compare(index, bits, where)
        count(bits.nbytes)
    right, wrong = _check_digest(sha, digest)
    notes = [claimed.wrong if claimed is not None else "", wrong]
    holds = claimed.plan is not None if claimed is not None and claimed.checked else None

    def finding(kind: Content, detail: str, **more: Any) -> Finding:
        text = "; ".join(filter(None, [detail, *notes]))
        return Finding(kind, claim=holds, digest=right, detail=text, **more)

    if claimed is not None and claimed.plan is not None:
        return _planned(finding, claimed.plan, "claim", "")
    if seen.first is None:
        return finding("zero", "no entries")
    recognised = _find(seen, name, names)
    return _numeric(finding, seen) if recognised is None else _planned(finding, *recognised)


def _not_decoded(
    tensor: Tensor, why: str, digest: str | None, count: Callable[[int], object]
) -> Finding:
    """Return the finding of a tensor whose numbers cannot be read: its bytes and digest."""
    size, sha = nbytes_of(tensor, ""), hashlib.sha256()
    for part in stream(tensor, "") if digest is not None else ():
        sha.update(part.data)
        count(part.size)
    right, wrong = _check_digest(sha, digest)
    notes = [why if tensor.dtype in DTYPES else "", f"{size:,} bytes", wrong]
    return Finding("not decoded", digest=right, detail="; ".join(filter(None, notes)))


def _check_digest(sha: hashlib._Hash | None, digest: str | None) -> tuple[bool | None, str]:
    """Return whether a digest is right, None without one, and a note if it is wrong."""
    if sha is None or digest is None:
        return None, ""
    if sha.hexdigest() == digest.lower():
        return True, ""
    return False, f"SHA-256 is {sha.hexdigest()}, not {_line(digest)} as in the metadata"


def _planned(finding: Callable[..., Finding], plan: Plan, source: Origin, note: str) -> Finding:
    detail = "; ".join(filter(None, [words(plan), note]))
    kind = cast("Content", called(plan.role).lower())
    return finding(kind, detail, plan=plan, source=source)


def _numeric(finding: Callable[..., Finding], seen: TensorContent) -> Finding:
    """Return the finding of numbers that no plan has."""
    seen.give_up()
    numbers, first = seen.tally.result(), cast("NDArray[Any]", seen.first)
    if numbers.nonzero == 0:
        if not seen.same:
            return finding("zero", "0.0 and -0.0")
        return finding("zero", "-0.0" if first.any() else "")
    if seen.same:
        value = values_of(first, seen.dtype)[0].item()
        return finding("constant", repr(value), value=value)
    return finding("other", str(numbers), numbers=numbers)


def inspect(
    checkpoint: Checkpoint, progress: Tell | None = None
) -> Iterator[tuple[str, Tensor, Finding]]:
    """Recognise every tensor of a checkpoint, in its order.

    Claims are in the metadata's ``idinit_ref.plans``, digests in ``idinit_ref.sha256``; metadata of
    another form is ignored.

    Parameters
    ----------
    checkpoint : Checkpoint
        With ``tensors`` and ``metadata``.
    progress : callable, optional
        Called as ``progress(bytes_read, bytes_in_all)`` after each block.

    Yields
    ------
    name : str
        The tensor's name.
    tensor : Tensor
        The tensor itself.
    finding : Finding
        Its content, as in :class:`Finding`.

    Raises
    ------
    OSError, CheckpointError
        If reading fails.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> import idinit_ref as ir
    >>> file = SimpleNamespace(metadata={}, tensors={"a": ir.idi((4, 3)), "b": np.zeros(4)})
    >>> for name, tensor, finding in inspect(file):
    ...     print(name, tensor.dtype, finding)
    a float64 idi: OI, gain 1.0
    b float64 zero
    """
    claims = table(checkpoint.metadata.get("idinit_ref.plans"))
    digests = table(checkpoint.metadata.get("idinit_ref.sha256"))
    tensors = {name: as_tensor(name, tensor) for name, tensor in checkpoint.tensors.items()}
    read = Progress(progress, sum(nbytes_of(t, t.dtype or "float64") for t in tensors.values()))
    for name, tensor in tensors.items():
        digest = digests.get(name)
        finding = recognise(
            tensor,
            name=name,
            claim=claims.get(name),
            names=tensors.keys(),
            digest=digest if isinstance(digest, str) else None,
            count=read.add,
        )
        yield name, tensor, finding
