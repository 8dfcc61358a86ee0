"""Recipe of a config as plain arguments: schedules, groups, table, optimizer and phases."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import optax

from jaxft.config.load import Config
from jaxft.config.optimizer import OptimizerSection
from jaxft.config.phases import PhaseSection
from jaxft.config.recipe import Group as GroupSection
from jaxft.config.recipe import LayerDecaySection, ScheduleSection
from jaxft.config.sections import AdapterSection
from jaxft.durations import Pace
from jaxft.engine.compute import adapter_option
from jaxft.errors import UserError
from jaxft.layerwise.freeze_out import freeze_out_phases
from jaxft.layerwise.groups import Group
from jaxft.layerwise.moments import narrowed
from jaxft.layerwise.optimizer import make_optimizer, rules_of
from jaxft.layerwise.phases import Phase, PhaseSpec, make_phases, phase_specs
from jaxft.layerwise.rules import make_rule
from jaxft.layerwise.sampling import MISA, TRAINS_ENDS
from jaxft.layerwise.schedules import Schedule
from jaxft.layerwise.table import LayerTable, build_table
from jaxft.models.adapters.low_rank import is_adapter, is_start, kernels_of
from jaxft.models.load import CLASS_HEADS, HEADLESS, LoadOptions, Model
from jaxft.tasks.parts.contract import Facts, Task
from jaxft.tree import matches_of, natural_order, select

# Kinds of adapters that add no parameters -> the parameters of the model that train.
PATTERNS = {"bitfit": r".*/bias", "norms": r"(.*/)?([a-z]+_)?norm/(scale|bias)"}


def as_schedule(section: ScheduleSection | None) -> Schedule | None:
    """Convert a schedule section; None stays None."""
    return None if section is None else Schedule(**dict(section))


def as_group(section: GroupSection) -> Group:
    """Convert a group section.

    Raises:
        UserError: its parameters are still to be chosen.
    """
    if section.select is not None and section.match is None:
        raise UserError(
            f"Group '{section.name}' has select, and its parameters have not been chosen.",
            "jaxft train, plan, study and tune-rates choose them; match names them directly.",
        )
    fields = {name: value for name, value in section if name != "select"}
    return Group(**{**fields, "schedule": as_schedule(section.schedule)})


def as_phase(section: PhaseSection) -> PhaseSpec:
    """Convert a phase section."""
    return PhaseSpec(**dict(section) | {"schedule": as_schedule(section.schedule)})


def table_from(
    shapes: Mapping[str, Any],
    *,
    depths: Mapping[str, int],
    tops: Mapping[str, int],
    no_decay: Collection[str],
    groups: Sequence[GroupSection],
    layer_decay: LayerDecaySection,
    optimizer: OptimizerSection,
    schedule: ScheduleSection,
    only: Collection[str] | None = None,
    ratios: Mapping[str, float] | None = None,
    final_norms: tuple[str, ...] = ("norm/",),
    batch_factor: float = 1.0,
) -> LayerTable:
    """Build a LayerTable from the sections of a config.

    Args:
        shapes, depths, tops, only, ratios, final_norms, batch_factor: see `build_table`.
        no_decay: the names that weight decay skips where `optimizer.no_decay` is auto.
        groups, layer_decay, optimizer, schedule: the sections.

    Raises:
        UserError: see `build_table`.
    """
    if optimizer.no_decay != "auto":
        names, where = natural_order(shapes), "optimizer.no_decay"
        no_decay = [name for one in optimizer.no_decay for name in select(one, names, where)]
    return build_table(
        shapes,
        depths=depths,
        tops=tops,
        no_decay=no_decay,
        groups=[as_group(one) for one in groups],
        layer_decay=layer_decay.rate,
        preset=layer_decay.preset,
        lr=optimizer.lr,
        algorithm=optimizer.name,
        moments=optimizer.moments,
        adam_lr=optimizer.adam_lr,
        weight_decay=optimizer.weight_decay,
        schedule=Schedule(**dict(schedule)),
        only=only,
        ratios=ratios,
        final_norms=final_norms,
        batch_factor=batch_factor,
    )


def make_table(config: Config, model: Model) -> LayerTable:
    """Build a model's LayerTable under the config's groups, decay, optimizer and schedule."""
    try:
        return _table_of(config, model)
    except UserError:
        check_names(config, model)
        raise


def check_names(config: Config, model: Model) -> None:
    """Raise a UserError if a group's pattern is of Hugging Face's names of parameters."""
    ours_of = {theirs: ours for ours, theirs in model.names.items()}
    for index, group in enumerate(config.groups):
        patterns = [group.match] if isinstance(group.match, str) else group.match or []
        for pattern in patterns:
            where = f"groups[{index}] ({group.name}).match"
            own, theirs = (
                matches_of([one], names, where)[0]
                for one, names in (
                    (pattern, list(model.leaves)),
                    (rf"(.*\.)?(?:{pattern})", list(ours_of)),
                )
            )
            if theirs and not own:
                raise UserError(
                    f"{where}: '{pattern}' matches Hugging Face's names of parameters; jaxft has "
                    "names of its own.",
                    f"'{theirs[0]}' is '{ours_of[theirs[0]]}' here.",
                )


def _table_of(config: Config, model: Model) -> LayerTable:
    return table_from(
        model.params,
        depths=model.depths,
        tops=model.tops,
        no_decay=model.no_decay,
        groups=config.groups,
        layer_decay=config.layer_decay,
        optimizer=config.optimizer,
        schedule=config.schedule,
        only=_only(config, model),
        ratios=rate_ratios(config.adapter, model),
        final_norms=model.final_norms,
        batch_factor=config.optimizer.batch_factor(config.data.batch_size),
    )


def _only(config: Config, model: Model) -> frozenset[str] | None:
    """Choose the leaves that may train under an adapter or sampled blocks; None for all."""
    if config.sampling.method in (None, *TRAINS_ENDS):
        return chosen_leaves(config.adapter, model)
    blocks = [n for n, d in model.depths.items() if 0 < d < model.tops[n]]
    maps = {kernel.rpartition("/")[0] for kernel in kernels_of(model.towers)}
    of_maps = [name for name in blocks if name.rpartition("/")[0] in maps]
    return frozenset(of_maps if config.sampling.method == MISA else blocks) | _heads(model)


def _heads(model: Model) -> set[str]:
    """Return the leaves of new heads, of a head of named classes, and of what joins towers."""
    new = {name for name in model.matching.new if model.depths[name] == model.tops[name]}
    new |= {name for name in model.leaves if name.startswith(model.family.joins)}
    classes = {name for name in model.leaves if name.startswith(model.family.head)}
    return new | (classes if model.head in CLASS_HEADS else set())


def optimizer_from(
    table: LayerTable, section: OptimizerSection
) -> optax.GradientTransformationExtraArgs:
    """Make a LayerTable's optimizer by the `optimizer` section; a `Fused` one does not clip."""
    made = {name: make_rule(name, section.numbers(name)) for name in rules_of(table)}
    rules = {name: narrowed(rule, section.moments) for name, rule in made.items()}
    return make_optimizer(table, rules, None if section.fused else section.clip)


def phases_from(
    config: Config, model: Model, whole: LayerTable, total_steps: int, pace: Pace
) -> tuple[Phase, ...]:
    """Make a run's phases, each with its own peak rate if it sets one.

    Args:
        config: the run.
        model: described or loaded.
        whole: its LayerTable without phases (`make_table`).
        total_steps: optimizer steps in the run.
        pace: through the examples.
    """

    def table(rate: float | None) -> LayerTable:
        if rate is None:
            return whole
        optimizer = config.optimizer.model_copy(update={"lr": rate})
        return make_table(config.model_copy(update={"optimizer": optimizer}), model)

    if config.phases == "auto_freeze" and len(model.towers) > 1:
        raise UserError(
            "phases: auto_freeze compares the layers of one tower, and this model has several.",
            "Use freeze_out, which treats each tower separately.",
        )
    freezing, asked = config.freezing, config.phases
    if config.phases == "freeze_out":
        first, power, scaled = freezing.first, freezing.power, freezing.scaled
        run = whole, model.tops, total_steps
        return freeze_out_phases(*run, first=first, power=power, scaled=scaled)
    specs = phase_specs(
        asked if isinstance(asked, str) else [as_phase(one) for one in asked],
        top=max(model.depths.values()),
        epochs=pace.whole_epochs(total_steps),
        share=freezing.share,
    )
    return make_phases(specs, table=table, total_steps=total_steps, pace=pace)


def chosen_leaves(section: AdapterSection, model: Model) -> frozenset[str] | None:
    """Choose the leaves that may train under an adapter; None for all.

    They are the adapter's leaves, biases, or the norms', and the head: that of named classes, what
    joins two towers, and all new leaves at the top. A checkpoint's output embedding stays frozen.

    Raises:
        UserError: the model has none of what the section's kind trains.
    """
    if section.kind is None:
        return None
    if section.kind in PATTERNS:
        pattern, kind = PATTERNS[section.kind], section.kind
        own = {name for name in model.leaves if re.fullmatch(pattern, name)}
        if not own:
            trained = "biases" if kind == "bitfit" else "scales and biases of norms"
            raise UserError(
                f"adapter.kind: {kind} trains {trained}, and a {model.model_type} has none.",
                "Use lora.",
            )
    else:
        own = {name for name in model.leaves if is_adapter(name) and not is_start(name)}
        _check_kind(section, model)
    return frozenset(own | _heads(model))


def _check_kind(section: AdapterSection, model: Model) -> None:
    kinds = {one.dora for one in model.adapted.kernels.values()} if model.adapted else set()
    if kinds != {section.kind == "dora"}:
        stored = "dora" if True in kinds else "lora"
        raise UserError(
            f"adapter.kind is {section.kind}, but '{section.checkpoint}' holds {stored}.",
            f"Set adapter.kind={stored}.",
        )


def rate_ratios(section: AdapterSection, model: Model) -> dict[str, float]:
    """Compute the ratios that LoRA+ multiplies rates by: parameter -> ratio.

    Source: Hayou et al. (2024), https://arxiv.org/abs/2402.12354; as in their code, parameters
    that are no matrix are treated like B.
    """
    faster = [n for n, leaf in model.leaves.items() if n.endswith("/lora_b") or len(leaf.shape) < 2]
    return dict.fromkeys(faster, section.lr_ratio)


def make_task(config: Config, facts: Facts | None = None) -> Task:
    """Make the task that `task.kind` names, with what it knew when its run started, if it did."""
    task = import_module(f"jaxft.tasks.{config.task.kind}.task").make(config.task)
    return task if facts is None else task.fitted(facts)


def model_options(config: Config, names: Sequence[str], new: Sequence[str] = ()) -> LoadOptions:
    """Return the options that the config loads or describes its checkpoint with.

    Args:
        config: the run.
        names: the classes.
        new: parameters that were new when the run started.
    """
    return LoadOptions(
        task=make_task(config).head or HEADLESS,
        labels=names or None,
        dropout=config.model.dropout,
        ignore=config.model.ignore,
        resize_vocab=config.model.resize_vocab,
        reinit=config.model.reinit,
        image_size=config.model.image_size,
        detection_tokens=config.model.detection_tokens,
        router_aux_loss_coef=config.model.router_aux_loss_coef,
        adapter=adapter_option(config.adapter),
        new=new,
        cache=config.model.cache,
        tokenizer=config.model.tokenizer,
    )
