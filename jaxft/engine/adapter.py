"""What a config's `adapter` section means for a model: what is put in, and what alone trains."""

from __future__ import annotations

from jaxft.config.adapter import AdapterSection
from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import Adapter, is_adapter
from jaxft.models.load import CLASS_HEADS, Model


def asked_adapter(section: AdapterSection) -> Adapter | str | None:
    """What to load a model with: new adapters, PEFT's folder of some, or none."""
    if section.kind in (None, "bitfit"):
        return None
    if section.checkpoint is not None:
        return section.checkpoint
    match = None if section.match is None else tuple(section.match)
    dora = section.kind == "dora"
    return Adapter(section.rank, section.alpha, match, dora, section.dropout)


def chosen_leaves(section: AdapterSection, model: Model) -> frozenset[str] | None:
    """What alone may train under an adapter: it, or biases, and the head; None for everything.

    The head is that of named classes, and whatever else the model ends in that is new: scores of
    words come from the checkpoint and stay.

    Raises:
        UserError: the model has none of what the section's kind trains.
    """
    if section.kind is None:
        return None
    if section.kind == "bitfit":
        own = {name for name in model.leaves if name.endswith("/bias")}
        if not own:
            raise UserError(
                f"adapter.kind: bitfit trains biases, and a {model.model_type} has none.",
                "Take lora.",
            )
    else:
        own = {name for name in model.leaves if is_adapter(name)}
        _check_kind(section, model)
    new = {name for name in model.matching.new if model.depths[name] == model.tops[name]}
    classes = {name for name in model.leaves if name.startswith("head/")}
    return frozenset(own | new | (classes if model.head in CLASS_HEADS else set()))


def _check_kind(section: AdapterSection, model: Model) -> None:
    found = {one.dora for one in model.adapted.kernels.values()} if model.adapted else set()
    if found != {section.kind == "dora"}:
        there = "dora" if True in found else "lora"
        raise UserError(
            f"adapter.kind is {section.kind}, but '{section.checkpoint}' holds {there}.",
            f"Write adapter.kind={there}.",
        )


def rate_ratios(section: AdapterSection, model: Model) -> dict[str, float]:
    """What LoRA+ multiplies rates by: parameter -> ratio.

    Source: Hayou et al. (2024), https://arxiv.org/abs/2402.12354; as in their code, what is no
    matrix goes with B.
    """
    faster = [n for n, leaf in model.leaves.items() if n.endswith("/lora_b") or len(leaf.shape) < 2]
    return dict.fromkeys(faster, section.lr_ratio)
