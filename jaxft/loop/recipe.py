"""The layer table and the optimizer of a loop of one's own, from plain arguments."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxft.config.recipe import OF_PRESETS
from jaxft.errors import UserError
from jaxft.layerwise.block_types import TYPE_PRESETS
from jaxft.layerwise.depth import DEPTH_PRESETS
from jaxft.layerwise.groups import Group
from jaxft.layerwise.optimizer import make_optimizer, rules_of
from jaxft.layerwise.rules import descends
from jaxft.layerwise.schedules import Multiplier, Schedule
from jaxft.layerwise.table import LayerTable, build_table
from jaxft.models.model import Model
from jaxft.tree import natural_order, select

DEFAULT = "default"  # the rule of groups that name none


def layer_table(
    model: Model,
    *,
    groups: Sequence[Group] = (),
    layer_decay: float | None = None,
    preset: str = "mae",
    lr: float,
    no_decay: Sequence[str] | None = None,
    only: Collection[str] | None = None,
) -> LayerTable:
    """Put every parameter of a model into one group: its rate, decay, and does it train.

    Args:
        model: loaded or described.
        groups: in order; the first that matches a parameter owns it, the group `rest` the others.
        layer_decay: multiplies the rate once a layer down, above 0 and up to 1, which is off; None
            is the preset's own: 1 / 2.6 of ulmfit, 1 of all others.
        preset: counts layers and exponents (timm, mae, electra, ulmfit), or multiplies rates by
            type (sharpness, fan_in), which leaves no decay by layer.
        lr: peak learning rate of groups without their own.
        no_decay: patterns of the parameters that weight decay skips; None skips biases, norms,
            position embeddings and scalars.
        only: the names that may train, as for an adapter; None for all.

    Raises:
        UserError: a pattern or depth range that matches nothing, a group that owns nothing, two
            groups of one name, a preset that is none of these, a decay that is none or that the
            preset does not read, a name that the model does not have, or nothing left to train.
    """
    names = natural_order(model.params)
    if only is not None and (unknown := set(only) - set(names)):
        raise UserError(
            f"layer_table: only has '{min(unknown)}', which is no parameter of the model.",
            "It holds whole names; groups and no_decay take patterns.",
        )
    skipped = [n for pattern in no_decay or () for n in select(pattern, names, "no_decay")]
    return build_table(
        model.params,
        depths=model.depths,
        tops=model.tops,
        no_decay=model.no_decay if no_decay is None else skipped,
        groups=groups,
        layer_decay=_decay_of(preset, layer_decay),
        preset=preset,
        lr=lr,
        algorithm=DEFAULT,
        schedule=None,
        only=only,
        final_norms=model.final_norms,
    )


def _decay_of(preset: str, layer_decay: float | None) -> float:
    """Return the decay of rates a layer under a preset."""
    known = (*DEPTH_PRESETS, *TYPE_PRESETS)
    if preset not in known:
        raise UserError(f"layer_table: the preset is '{preset}'.", f"Known: {', '.join(known)}.")
    if layer_decay is None:
        return float(OF_PRESETS.get(preset, {}).get("rate", 1.0))
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_table: layer_decay is {layer_decay}, and must be in (0, 1].")
    if preset in TYPE_PRESETS and layer_decay != 1:
        raise UserError(
            f"layer_table: layer_decay and the preset {preset} both set the multipliers of lower "
            "layers.",
            "Remove one of the two.",
        )
    return layer_decay


class OptimizerState(NamedTuple):
    """The state of `optimizer`.

    Attributes:
        step: updates so far, int32 scalar, from which schedules are computed.
        groups: of the rules, group by group.
    """

    step: jax.Array
    groups: Any


def optimizer(
    table: LayerTable,
    rule: optax.GradientTransformation | Mapping[str, optax.GradientTransformation],
    *,
    weight_decay: float = 0.0,
    clip: float | None = None,
    schedule: Multiplier | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Make an optax optimizer that moves each leaf of a table at its own rate.

    Args:
        table: of the model.
        rule: gradients -> directions, neither negated nor scaled by a learning rate, such as
            `optax.scale_by_adam()`; or one for each name of `Group.optimizer`, and `default`.
        weight_decay: decoupled, scaled by the leaf's rate, of groups without their own.
        clip: the largest norm of the whole gradient; None does not clip.
        schedule: step -> multiplier of every peak rate; None is 1 throughout.

    Returns:
        A transformation of the trainable leaves alone: name -> array.

    Raises:
        UserError: a group names a rule that is not there, or a schedule that is no function; a
            number is out of its range; or a rule descends by itself, as `optax.adam(1e-3)` does,
            and would ascend here.
    """
    if clip is not None and not clip > 0:
        raise UserError(f"optimizer: clip is {clip}, and must be above 0, or None not to clip.")
    if not weight_decay >= 0:
        raise UserError(f"optimizer: weight_decay is {weight_decay}, and must be 0 or more.")
    rules = {name: descends(one) for name, one in _rules_by_name(table, rule).items()}
    inner = make_optimizer(table, rules, clip)
    multipliers, decays = table.multipliers(), table.weight_decays(weight_decay)
    rows = [
        (group.peak_rate, _function(group.schedule or schedule)) for group in table.training_groups
    ]

    def init(params: optax.Params) -> OptimizerState:
        if not isinstance(params, Mapping) or set(params) != set(table.trainable):
            raise UserError(
                "optimizer: these are not the trainable parameters of its table.",
                "Make optimizer and state from the same table.",
            )
        return OptimizerState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        finite: jax.Array | bool = True,
        **more: Any,
    ) -> tuple[optax.Updates, OptimizerState]:
        del more
        rates = jnp.stack(
            [jnp.asarray(peak * scale(state.step), jnp.float32) for peak, scale in rows]
        )
        updates, groups = inner.update(
            updates,
            state.groups,
            params,
            finite=finite,
            rates=rates,
            multipliers=multipliers,
            weight_decay=decays,
        )
        return updates, OptimizerState(state.step + 1, groups)

    return optax.GradientTransformationExtraArgs(init, update)


def _rules_by_name(
    table: LayerTable, rule: optax.GradientTransformation | Mapping[str, Any]
) -> Mapping[str, optax.GradientTransformation]:
    """Return the rule of each name in a table."""
    by_name = rule if isinstance(rule, Mapping) else {DEFAULT: rule}
    if missing := rules_of(table) - by_name.keys():
        needed = ", ".join(f"'{name}': ..." for name in sorted({DEFAULT, *missing}))
        raise UserError(
            f"optimizer: the table names the rule '{min(missing)}', which is not given.",
            f"Pass {{{needed}}} as the rule.",
        )
    for name, one in by_name.items():
        _require_direction(name, one)
    return by_name


def _require_direction(name: str, rule: optax.GradientTransformation) -> None:
    """Raise a UserError for a rule that answers a gradient of ones with negative numbers."""
    if not isinstance(rule, optax.GradientTransformation):
        raise UserError(
            f"optimizer: the rule '{name}' is a {type(rule).__name__}, no optax transformation.",
            "Pass one that returns a direction, such as optax.scale_by_adam().",
        )
    ones = {"kernel": jnp.ones((2, 2))}
    try:
        directions, _ = rule.update(ones, rule.init(ones), ones)
    except Exception:  # it needs more than a gradient, or other leaves: nothing is known of it
        return
    if bool(jnp.all(directions["kernel"] < 0)):
        raise UserError(
            f"optimizer: the rule '{name}' descends by itself, with a learning rate of its own.",
            "Pass its direction alone: optax.scale_by_adam() in place of optax.adam(1e-3).",
        )


def _function(schedule: Schedule | Multiplier | None) -> Multiplier:
    """Return a schedule that is a function; 1 throughout without one."""
    if isinstance(schedule, Schedule) or not (schedule is None or callable(schedule)):
        raise UserError("schedule: here it is a function from a step to a multiplier.")
    return schedule or optax.constant_schedule(1.0)
