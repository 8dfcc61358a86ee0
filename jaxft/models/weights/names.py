"""Name tables applied to weight files, strictly and in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxft.errors import UserError
from jaxft.models.layers.modules import Leaf
from jaxft.models.weights.tensor import (
    EACH,
    FLOATS,
    Index,
    Span,
    Tensor,
    part_of,
    slice_of,
    with_stacks,
)
from jaxft.models.weights.vocab import grown
from jaxft.tree import matches_of, natural_order


@dataclass(frozen=True)
class Name:
    """Line of a family's name table; `{i}` in both names stands for a block's number.

    Args:
        hf: the tensor's name in a Hugging Face file; with `EACH` in it, each expert's.
        ours: the parameter's name.
        transpose: the tensor is stored (out, in), or (out, in, height, width) where it is a
            convolution's: its first axis is our last one.
        part: which part of the tensor's outputs, of how many side by side: along its last axis, or
            its first one where it is transposed; None for the whole.
        heads: how often such parts take turns: a head's query, key and value, then the next's.
        stacked: the parameter is one slice of the first axis; `part` follows from the blocks.
        span: the outputs of that part, which follow from the shapes of all of them.
    """

    hf: str
    ours: str
    transpose: bool = False
    part: tuple[int, int] | None = None
    heads: int = 1
    stacked: bool = False
    span: Span | None = None

    @property
    def axis(self) -> int:
        """Return the axis of the tensor along which it has parts."""
        return 0 if self.transpose else -1

    def own_part(self, tensor: Tensor) -> Tensor:
        """Return what of the tensor is the parameter's."""
        if self.stacked:
            assert self.part is not None  # since `resolve_names`
            return slice_of(tensor, self.part[0])
        return tensor if self.span is None else part_of(tensor, self.span, self.axis)


def dense(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a `torch.nn.Linear`, or of a convolution."""
    return Name(f"{hf}.weight", f"{ours}/kernel", True), Name(f"{hf}.bias", f"{ours}/bias")


def fused(hf: str, *ours: str, heads: int = 1) -> tuple[Name, ...]:
    """Return the lines of a `torch.nn.Linear` whose outputs are those of several linear maps."""
    parts = [(name, (index, len(ours))) for index, name in enumerate(ours)]
    return tuple(
        line
        for name, part in parts
        for line in (
            Name(f"{hf}.weight", f"{name}/kernel", True, part, heads),
            Name(f"{hf}.bias", f"{name}/bias", False, part, heads),
        )
    )


def norm(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a `torch.nn.LayerNorm`."""
    return Name(f"{hf}.weight", f"{ours}/scale"), Name(f"{hf}.bias", f"{ours}/bias")


def batch_norm(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the lines of a `torch.nn.BatchNorm2d`; the count beside its mean has none."""
    mean, variance = f"{hf}.running_mean", f"{hf}.running_var"
    return *norm(hf, ours), Name(mean, f"{ours}/mean"), Name(variance, f"{ours}/variance")


def embedding(hf: str, ours: str) -> tuple[Name, ...]:
    """Return the line of a `torch.nn.Embedding`."""
    return (Name(f"{hf}.weight", f"{ours}/embedding"),)


def resolve_names(names: Sequence[Name], leaves: Mapping[str, Leaf]) -> dict[str, Name]:
    """Return the table's line for each parameter, with its block number and its part filled in."""
    patterns = [(re.compile(re.escape(n.ours).replace(r"\{i\}", r"(\d+)")), n) for n in names]
    resolved = {}
    for leaf in leaves:
        matches = [(m, name) for pattern, name in patterns if (m := pattern.fullmatch(leaf))]
        if len(matches) != 1:
            raise ValueError(f"{leaf} is in {len(matches)} lines of the name table, not in one")
        match, name = matches[0]
        hf = name.hf.replace("{i}", match.group(1) if match.groups() else "")
        resolved[leaf] = replace(name, hf=hf, ours=leaf)
    return resolved | _stacked(resolved) | _side_by_side(resolved, leaves)


def _stacked(lines: Mapping[str, Name]) -> dict[str, Name]:
    """Return the lines of parameters that are slices of one tensor, with the index of each."""
    together: dict[str, list[str]] = {}
    for leaf in natural_order(leaf for leaf, line in lines.items() if line.stacked):
        together.setdefault(lines[leaf].hf, []).append(leaf)
    parts = [(leaf, (i, len(all_))) for all_ in together.values() for i, leaf in enumerate(all_)]
    return {leaf: replace(lines[leaf], part=part) for leaf, part in parts}


def _side_by_side(lines: Mapping[str, Name], leaves: Mapping[str, Leaf]) -> dict[str, Name]:
    """Return the lines of parameters that are parts of a tensor's outputs, each with its span."""
    together: dict[str, list[tuple[int, str]]] = {}
    for leaf, line in lines.items():
        if line.part is not None and not line.stacked:
            together.setdefault(line.hf, []).append((line.part[0], leaf))
    spans = {}
    for parts in together.values():
        widths = [leaves[leaf].shape[-1] for _, leaf in sorted(parts)]
        for number, leaf in parts:
            spans[leaf] = Span(sum(widths[:number]), widths[number], sum(widths), lines[leaf].heads)
    return {leaf: replace(lines[leaf], span=span) for leaf, span in spans.items()}


@dataclass(frozen=True)
class Matching:
    """Assignment of a checkpoint's tensors to parameters.

    Args:
        loaded: parameter -> the tensor it is read from.
        new: parameters that are not in the checkpoint, in order.
        unused: tensors of the checkpoint that no parameter reads, in order.
        notes: a sentence on each parameter that differs from the checkpoint's tensor.
        grown: whether a table of words has more rows than the checkpoint's.
    """

    loaded: Mapping[str, Tensor]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()
    grown: bool = False


def match(
    tensors: Mapping[str, Tensor],
    names: Mapping[str, Name],
    leaves: Mapping[str, Leaf],
    *,
    canonical: Callable[[str], str],
    fresh: Sequence[str],
    refuse: Sequence[str],
    unused: Sequence[str],
    refit: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    grow: bool = False,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> Matching:
    """Pair every parameter with a tensor, and account for every tensor.

    Args:
        tensors: the checkpoint's.
        names: parameter -> its line of the name table.
        leaves: parameter -> its description.
        canonical: a name as found in a file -> as the table spells it.
        fresh: patterns of beginnings of names that may be absent (whole), such as `head/`.
        refuse: those of them that are new even if the checkpoint has them.
        unused: patterns of tensors that may go unused.
        refit: parameter -> the function that makes a tensor of another shape fit: it maps the
            whole stored tensor, in float32, to one of the parameter's shape.
        grow: add the missing rows to parameters that have a row for each word.
        aliases: a tensor -> those that a checkpoint may hold instead, first choice first.

    Raises:
        UserError: a tensor is missing, unknown, of the wrong shape, or no float.
    """
    counts = {line.hf: leaves[p].shape[0] for p, line in names.items() if EACH in line.hf}
    tensors = with_stacks(tensors, counts, canonical) if counts else tensors
    by_name: dict[str, str] = {}
    for stored in tensors:
        if (known := canonical(stored)) in by_name:
            raise UserError(f"The checkpoint holds '{known}' twice (as '{stored}' too).")
        by_name[known] = stored
    for name, others in (aliases or {}).items():
        first = next((one for one in (name, *others) if one in by_name), None)
        by_name |= {} if first is None else {name: by_name[first]}
    wanted = {p: by_name[n.hf] for p, n in names.items() if n.hf in by_name}
    wanted = {p: n for p, n in wanted.items() if not p.startswith(tuple(refuse))}
    new = tuple(name for name in names if name not in wanted)
    _check_missing(new, wanted, names, fresh)
    left = tuple(stored for stored in tensors if stored not in set(wanted.values()))
    passed = set().union(*matches_of(unused, map(canonical, left), "model.ignore"))
    _check_unknown([n for n in left if canonical(n) not in passed])
    whole = {p: tensors[n] for p, n in wanted.items()}
    shapes = {parameter: stored_shape(names[parameter], leaves[parameter]) for parameter in whole}
    words = [p for p in whole if "vocab" in leaves[p].axes] if grow else []
    notes, growth = [*_refit(whole, shapes, refit or {})], [*_grow(whole, shapes, words)]
    _check_shapes(whole, names, shapes)
    loaded = {parameter: names[parameter].own_part(tensor) for parameter, tensor in whole.items()}
    return Matching(loaded, new, left, (*notes, *growth), bool(growth))


def stored_shape(name: Name, leaf: Leaf) -> tuple[int, ...]:
    """Return the shape of a tensor in a file."""
    shape = (leaf.shape[-1], *leaf.shape[:-1]) if name.transpose else leaf.shape
    if name.stacked:
        assert name.part is not None  # since `resolve_names`
        return (name.part[1], *shape)
    if name.span is None:
        return shape
    whole = list(shape)
    whole[name.axis] = name.span.whole
    return tuple(whole)


def _refit(
    whole: dict[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    refit: Mapping[str, Callable[[np.ndarray], np.ndarray]],
) -> Iterator[str]:
    """Replace tensors of another shape by computed ones, and yield a note on each."""
    for parameter, compute in refit.items():
        if parameter in whole and (stored := whole[parameter]).shape != shapes[parameter]:
            whole[parameter] = _refitted(stored, shapes[parameter], compute)
            yield (
                f"{parameter} is computed from the checkpoint's, which is {list(stored.shape)} "
                f"and not {list(shapes[parameter])}."
            )


def _grow(
    whole: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]], words: Sequence[str]
) -> Iterator[str]:
    """Replace tensors that lack rows, and differ in nothing else, by longer ones; yield notes."""
    for parameter in words:
        stored, wanted = whole[parameter], shapes[parameter]
        if stored.shape[0] < wanted[0] and stored.shape[1:] == wanted[1:]:
            whole[parameter] = grown(stored, wanted[0])
            yield (
                f"{parameter} grew from {stored.shape[0]:,} words to {wanted[0]:,}; each new one "
                "is the mean of the old."
            )


def _refitted(
    tensor: Tensor, shape: tuple[int, ...], compute: Callable[[np.ndarray], np.ndarray]
) -> Tensor:
    """Return a tensor that is computed from a stored one whenever it is read."""

    def read(index: Index) -> np.ndarray:
        return compute(tensor.whole().astype(np.float32)).astype(FLOATS[tensor.dtype])[index]

    return replace(tensor, shape=shape, read=read)


def _check_missing(
    new: Sequence[str], wanted: Mapping[str, str], names: Mapping[str, Name], fresh: Sequence[str]
) -> None:
    """Raise a UserError unless what is missing is a whole part that may be new."""
    for name in new:
        part = next((matched[0] for pattern in fresh if (matched := re.match(pattern, name))), None)
        if part is None or any(other.startswith(part) for other in wanted):
            raise UserError(
                f"The checkpoint lacks the tensor '{names[name].hf}' ({len(new)} missing in all)."
            )


def _check_unknown(names: Sequence[str]) -> None:
    if names:
        raise UserError(
            f"The checkpoint holds '{names[0]}', which no parameter of the model reads "
            f"({len(names)} unread in all).",
            "If it may go unused, set model.ignore=[NAME].",
        )


def _check_shapes(
    loaded: Mapping[str, Tensor],
    names: Mapping[str, Name],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    for parameter, tensor in loaded.items():
        name, wanted = names[parameter], shapes[parameter]
        if tensor.shape != wanted:
            raise UserError(
                f"{tensor.file}: '{name.hf}' has the shape {list(tensor.shape)}, "
                f"but config.json makes it {list(wanted)}."
            )
        if tensor.dtype not in FLOATS:
            raise UserError(f"{tensor.file}: '{name.hf}' is of type {tensor.dtype}, not a float.")
