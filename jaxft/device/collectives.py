"""Collectives of a compiled program, read from its text: kind, count, bytes, axis.

The text is that of XLA's optimised program. It has a loop's body once, so what is in a loop is
counted as often as the loop turns, by the bound in its condition.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PERMUTE = "collective-permute"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", PERMUTE)
# What jax calls those of which several that a program names share a channel.
NAMED = {PERMUTE: "ppermute", "all-to-all": "all_to_all"}
BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}  # else the digits of the type's name

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?[)\]}]) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONSTANT = re.compile(r"\b[su]\d+\[\]\S* constant\((\d+)\)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](.*?) \{([^}]*)\}")
_ORDER = re.compile(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_EVERY = re.compile(r"(?:source_target_pairs|replica_groups)=\{((?:\{[\d,]*\},?)*)\}")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_PAIRS = re.compile(r"source_target_pairs=\{\{(\d+),(\d+)\}")


@dataclass(frozen=True)
class Collective:
    """All of one kind along the same axes of the mesh, in one run of a program.

    Attributes:
        kind: one of `KINDS`.
        axes: the mesh axes whose devices talk to each other, joined by `+`; `?` where the devices
            are no line of the mesh.
        count: how many there are.
        sent: bytes that each device sends, were they sent round a ring.
        between_slices: whether any devices that talk to each other are of different slices.
    """

    kind: str
    axes: str
    count: int
    sent: int
    between_slices: bool = False


@dataclass(frozen=True)
class _Found:
    kind: str
    nbytes: int  # of the result, on one device
    group: tuple[int, ...]
    channel: str
    line: str
    straight: bool = False  # sent as it is, between slices

    @property
    def sent(self) -> int:
        """Return the bytes that a device sends, from those of its result."""
        group = len(self.group)
        return self.nbytes if self.straight else _over_a_ring(self.kind, self.nbytes, group)


def collectives(text: str, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program, largest first.

    Args:
        text: the program, as `Compiled.as_text()` gives it.
        mesh: axis -> devices along it, outermost first, as the program was compiled for.
        slices: how many equal parts of the outermost axis are TPU slices of their own.
    """
    size = math.prod(mesh.values()) // slices
    calls, matches = _read(text, mesh)
    times = _times(calls)
    # The parts of what is under way while others compute share one channel: it is sent once. So do
    # all permutations and exchanges that jax asks for by name, each of which is sent.
    shared = {one.channel for _, one in matches if one.kind != PERMUTE}
    sent: dict[tuple[str, ...], tuple[int, _Found]] = {}
    for computation, one in matches:
        named = one.kind in NAMED and NAMED[one.kind] in one.line
        of_its_own = one.kind == PERMUTE and one.channel not in shared
        alone = not one.channel or named or of_its_own
        key = (computation, str(len(sent))) if alone else (one.channel,)
        if times[computation] > sent.get(key, (0, one))[0]:
            sent[key] = (times[computation], one)
    counts: Counter[tuple[str, str, bool]] = Counter()
    nbytes: Counter[tuple[str, str, bool]] = Counter()
    for turns, one in sent.values():
        if len(one.group) > 1:
            of = (one.kind, _axes(one.group, mesh), _crosses(one, size))
            counts[of] += turns
            nbytes[of] += turns * one.sent
    totals = [
        Collective(kind, axes, counts[kind, axes, far], nbytes[kind, axes, far], far)
        for kind, axes, far in counts
    ]
    return sorted(totals, key=lambda one: -one.sent)


def _crosses(one: _Found, size: int) -> bool:
    """Return whether any group has devices of several slices, of `size` devices each."""
    written = _EVERY.search(one.line)
    groups = re.findall(r"\{([\d,]+)\}", written[1]) if written else []
    every = [tuple(_numbers(group)) for group in groups] or [one.group]
    return any(len({device // size for device in group}) > 1 for group in every)


def _over_a_ring(kind: str, nbytes: int, group: int) -> int:
    """Return the bytes that a device sends, from the bytes of its result."""
    rest = (group - 1) / group
    factors = {
        "all-gather": rest,
        "all-reduce": 2 * rest,
        "reduce-scatter": group - 1,
        "all-to-all": rest,
        "collective-permute": 1,
    }
    return round(nbytes * factors[kind])


def _read(text: str, mesh: Mapping[str, int]) -> tuple[Any, Any]:
    """Who calls whom and how often, and what is sent where.

    Returns:
        caller -> [(called, times)], with the entry under the empty name, and (computation, found).
    """
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    loops: list[tuple[str, str, str]] = []
    matches: list[tuple[str, _Found]] = []
    constants: dict[str, int] = {}
    here = ""
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            here = heading[1]
            if line.startswith("ENTRY"):
                calls[""].append((here, 1))
            continue
        if bound := _CONSTANT.search(line):
            constants[here] = max(constants.get(here, 0), int(bound[1]))
        matched = _INSTRUCTION.match(line)
        if matched is None:
            continue
        shape, operation = matched.groups()
        called = _CALLED.findall(line)
        if operation == "while":
            condition, body = (
                _one(f"{role}=%?([\\w.\\-]+)", line) for role in ("condition", "body")
            )
            loops.append((here, condition, body))
        else:
            branches = _BRANCHES.search(line)
            names = [n.strip().lstrip("%") for n in branches[1].split(",")] if branches else []
            calls[here] += [(name, 1) for name in (*called, *names)]
        if one := _collective(shape, operation, line, here, mesh):
            matches.append((here, one))
    for caller, condition, body in loops:
        calls[caller].append((body, max(constants.get(condition, 1), 1)))
    return calls, matches


def _one(pattern: str, line: str) -> str:
    matches = re.search(pattern, line)
    return matches[1] if matches else ""


def _collective(
    shape: str, operation: str, line: str, computation: str, mesh: Mapping[str, int]
) -> _Found | None:
    """Read an instruction's collective; None where it sends nothing, or ends an earlier one."""
    kind = operation.removesuffix("-start")
    arrays = [_nbytes(*array) for array in _ARRAY.findall(shape)]
    if operation == "send" and (between := _MEGASCALE.search(line)):
        # TPUs send through their hosts to the devices of the same place in other slices.
        devices = math.prod(mesh.values())
        others = devices - devices // next(iter(mesh.values()))
        kind = between[1].lower().replace("_", "-")
        return _Found(kind, arrays[0], (0, others), "", line, straight=True)
    if kind not in KINDS:
        return None
    if operation.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # A pair: what goes in and what comes out, and perhaps scalars.
        nbytes = arrays[1] if len(arrays) > 1 else arrays[0]
    else:
        nbytes = sum(arrays)
    group = _group(line, mesh)
    # A TPU's reduce-scatter is a sum of which the fusion around it keeps a part.
    if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
        kind, nbytes = "reduce-scatter", nbytes // max(len(group), 1)
    channel = _one(_CHANNEL.pattern, line)
    return _Found(kind, nbytes, group, channel, line)


def _nbytes(kind: str, sizes: str) -> int:
    digits = re.search(r"\d+", kind)
    bits = BITS.get(kind) or (int(digits[0]) if digits else 0)
    return math.prod(int(size) for size in sizes.split(",") if size) * bits // 8


def _times(calls: Mapping[str, Iterable[tuple[str, int]]]) -> Counter[str]:
    """Count how often each computation runs in one run of the program."""
    times: Counter[str] = Counter()

    def run(name: str, turns: int) -> None:
        times[name] += turns
        for called, each in calls.get(name, ()):
            run(called, turns * each)

    run("", 1)
    return times


def _group(line: str, mesh: Mapping[str, int]) -> tuple[int, ...]:
    """The devices, by their place in the mesh, that the first of them talks with."""
    everyone = tuple(range(math.prod(mesh.values())))
    if pairs := _PAIRS.search(line):
        return (int(pairs[1]), int(pairs[2]))
    if named := _MESH.search(line):
        sizes = [int(size) for _, size in re.findall(r"'(\w+)'=(\d+)", named[1])]
        names = [name for name, _ in re.findall(r"'(\w+)'=(\d+)", named[1])]
        places = _line(dict(zip(names, sizes, strict=True)), re.findall(r"'(\w+)'", named[3]))
        if order := _ORDER.search(named[2]):
            flat = _places(order[1], order[2])
            return tuple(flat[position] for position in places)
        return places
    if iota := _IOTA.search(line):
        return tuple(_places(iota[2], iota[3])[: _numbers(iota[1])[-1]])
    if listed := _LISTED.search(line):
        return tuple(_numbers(listed[1])) or everyone
    return everyone


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _places(sizes: str, axes: str | None) -> list[int]:
    """The places 0, 1, ... of a grid in row order, once its axes are put in another order."""
    dims = _numbers(sizes)
    order = _numbers(axes) if axes else range(len(dims))
    steps = [math.prod(dims[axis + 1 :]) for axis in order]
    return [
        sum(step * at for step, at in zip(steps, position, strict=True))
        for position in itertools.product(*(range(dims[axis]) for axis in order))
    ]


def _line(mesh: Mapping[str, int], axes: Iterable[str]) -> tuple[int, ...]:
    """The places of the devices that differ from the first along `axes` alone."""
    chosen = set(axes)
    ranges = [range(size) if axis in chosen else range(1) for axis, size in mesh.items()]
    sizes = list(mesh.values())
    steps = [math.prod(sizes[position + 1 :]) for position in range(len(sizes))]
    return tuple(
        sum(step * at for step, at in zip(steps, position, strict=True))
        for position in itertools.product(*ranges)
    )


def _axes(group: tuple[int, ...], mesh: Mapping[str, int]) -> str:
    """The axes of the mesh along which a group lies, or `?`."""
    true = [axis for axis, size in mesh.items() if size > 1]
    for count in range(1, len(true) + 1):
        for axes in itertools.combinations(true, count):
            line = _line(mesh, axes)
            if set(group) == set(line) or (len(group) == 2 and set(group) <= set(line)):
                return "+".join(axes)
    return "?"
