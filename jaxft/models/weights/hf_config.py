"""Config classes of all families: the numbers of a model as config.json has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from jaxft.data.image.timm import PROCESSING
from jaxft.errors import UserError
from jaxft.models.layers.vision import Size, grid_of, size_of
from jaxft.models.weights.config_fields import read_fields
from jaxft.models.weights.shards import DIFFUSERS, TRANSFORMERS

TIMM = "timm_wrapper"  # transformers' name for a model of timm, whose files have none
CLASS_NAME = "_class_name"  # where a config.json of `diffusers` has its architecture
DIFFUSERS_FIELDS = (CLASS_NAME, "_diffusers_version")
# Classes of older files, and their kind of norm -> what `diffusers` loads them as.
RENAMED = {("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel"}


@dataclass(frozen=True)
class HfConfig(ABC):
    """Config of a model of one family.

    Args:
        model_type: which type of the family it is.
        fields: the fields that the family reads under their names in config.json, none missing.
    """

    # Fields that change the computation and are computed for one value only, and fields that no
    # code reads.
    FIXED: ClassVar[Mapping[str, Any]] = {}
    UNREAD: ClassVar[tuple[str, ...]] = ()
    # Fields that are written beside those that are read, and fields that are read alone.
    ALSO_WRITTEN: ClassVar[Mapping[str, Any]] = {}
    READ_ONLY: ClassVar[tuple[str, ...]] = ()

    model_type: str
    fields: Mapping[str, Any]

    @classmethod
    @abstractmethod
    def from_hf(cls, fields: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """Read the content of a config.json, or of a tower's part of one.

        Args:
            fields: the content.
            ignore: fields the person has judged harmless (`model.ignore`).

        Raises:
            UserError: a field is missing, unknown, or has a value that is not supported.
        """

    @classmethod
    def _read(
        cls,
        fields: Mapping[str, Any],
        defaults: Mapping[str, Any],
        sizes: Iterable[str],
        ignore: Sequence[str],
    ) -> dict[str, Any]:
        """Read checked fields as `read_fields` does, under this config's fixed and unread ones."""
        passed = (*ignore, *cls.UNREAD)
        return read_fields(fields, defaults, sizes=sizes, fixed=cls.FIXED, ignore=passed)

    @abstractmethod
    def with_dropout(self, rate: float) -> Self:
        """Return the same config with one dropout rate throughout; stochastic depth stays."""

    def to_hf(self) -> dict[str, Any]:
        """Return the fields of config.json that this config owns."""
        own = {name: value for name, value in self.fields.items() if name not in self.READ_ONLY}
        return {"model_type": self.model_type, **self.ALSO_WRITTEN, **own}

    def with_fields(self, names: Sequence[str], value: Any) -> Self:
        """Return the same config with another value of some fields that nothing is derived from."""
        return replace(self, fields={**self.fields, **dict.fromkeys(names, value)})


def balanced(config: Any, model_type: str, factor: float) -> Any:
    """Return a config with the load-balancing loss of its routers, under transformers' names.

    Args:
        config: a family's.
        model_type: the model's.
        factor: what the loss is multiplied by.

    Raises:
        UserError: the model has no experts.
    """
    if not isinstance(config, HfConfig) or "router_aux_loss_coef" not in config.fields:
        raise UserError(
            f"model.router_aux_loss_coef is set, and a {model_type} has no experts.",
            "Leave it out.",
        )
    config = config.with_fields(["router_aux_loss_coef"], factor)
    return config.with_fields(["output_router_logits"], True)


class TextConfig(HfConfig):
    """Config of a model of texts with a table of positions."""

    @property
    def max_positions(self) -> int:
        """Return the most tokens an example may have."""
        return self.fields["max_position_embeddings"]

    @property
    def vocab_size(self) -> int:
        """Return the number of rows of the word embeddings."""
        return self.fields["vocab_size"]


class ImageConfig(HfConfig):
    """Config of a model of images that are cut into patches."""

    @property
    def image_size(self) -> Size:
        """Return the height and width of the images that its positions are for."""
        return size_of(self.fields["image_size"])

    @property
    def patch(self) -> Size:
        """Return the height and width of a patch."""
        return size_of(self.fields["patch_size"])

    @property
    def grid(self) -> Size:
        """Return the number of patches that such an image has down and across."""
        return grid_of(self.image_size, self.patch)

    @abstractmethod
    def with_image_size(self, size: int) -> Self:
        """Return the same config for square images of that many pixels a side."""


def class_of(fields: Mapping[str, Any]) -> Any:
    """Return the architecture of a config.json of `diffusers`; None where it has none."""
    name, kind = fields.get(CLASS_NAME), fields.get("norm_type")
    return next((new for old, new in RENAMED.items() if old == (name, kind)), name)


def model_type_of(fields: Mapping[str, Any]) -> Any:
    """Return the model type of a config.json, also of `diffusers` or timm; None without one."""
    named = fields.get("model_type", class_of(fields))
    return TIMM if named is None and PROCESSING in fields else named  # as transformers decides


def stem_of(fields: Mapping[str, Any]) -> str:
    """Return how the names of the weight files begin, by their config.json."""
    return DIFFUSERS if CLASS_NAME in fields else TRANSFORMERS


def updated_fields(
    stored: Mapping[str, Any],
    own: Mapping[str, Any],
    types: Iterable[str],
    classes: Mapping[str, Any] | None,
    stale: Sequence[str],
) -> dict[str, Any]:
    """Return a checkpoint's config.json as an export has it.

    Args:
        stored: the checkpoint's.
        own: the fields that the model has of its own.
        types: of the tensors that were written.
        classes: the fields that name the classes, where the head has classes.
        stale: fields of the checkpoint that an export does not have.
    """
    fields = {name: value for name, value in stored.items() if name not in stale} | dict(own)
    if CLASS_NAME in stored:  # `diffusers` has the architecture there, and a type for each loading
        named = ("model_type", "architectures", "pad_token_id")
        return {name: value for name, value in fields.items() if name not in named}
    # transformers reads every tensor in this type, so it is the widest that was written.
    fields["dtype"] = str(jnp.result_type(*types))
    if classes is not None:
        for name in ("num_labels", "_num_labels", "id2label", "label2id"):  # of the checkpoint's
            fields.pop(name, None)
        fields |= classes
    return fields
