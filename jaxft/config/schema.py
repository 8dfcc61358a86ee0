"""The sections of a config; those of the training recipe are in `config/recipe.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from jaxft.bounds import MOST_GROUPS
from jaxft.config.data import DataSection
from jaxft.config.durations import DurationKey, LengthKey
from jaxft.config.fields import Section, fixed, may_change, section
from jaxft.config.optimizer import OptimizerSection, check_fused, check_optimizer
from jaxft.config.phases import (
    FreezingSection,
    PhaseRecipe,
    PhaseSection,
    SamplingSection,
    check_freezing,
    check_sampling,
)
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.config.sections import (
    AdapterKey,
    AdapterSection,
    MeshKey,
    MeshSection,
    RegulariseSection,
    RematSection,
    RunSection,
)
from jaxft.config.tasks import AnyTask
from jaxft.durations import Duration


class ModelSection(Section):
    """The checkpoint to start from."""

    checkpoint: (
        Annotated[str, Field(min_length=1)]
        | dict[Literal["vision", "text", "encoder", "decoder"], str]
    ) = fixed(
        ...,
        "a hub id (id@revision), a folder, or package:module/path; or two of them: {vision, "
        "text} for a dual encoder, or {encoder, decoder} with cross-attention",
    )
    tokenizer: str | None = fixed(
        None,
        "a hub id, a folder or package:module/path with the tokenizer's files, for a checkpoint "
        "with none of its own or a wrong one; null is the checkpoint's own",
        min_length=1,
    )
    dropout: float | None = fixed(None, "dropout rate; null is the checkpoint's own", ge=0, lt=1)
    ignore: list[str] = Field(
        default_factory=list,
        description="fields of the checkpoint's config.json to ignore",
        json_schema_extra={"resume": "fixed"},
    )
    resize_vocab: bool = fixed(
        False, "add embeddings if the tokenizer has more tokens than the model"
    )
    reinit: int = fixed(
        0,
        "re-initialize this many blocks from the top, and the pooler; 0 for none",
        unit="blocks",
        ge=0,
    )
    image_size: int | None = fixed(
        None, "height and width of the images; null is the checkpoint's own", unit="pixels", ge=1
    )
    detection_tokens: int | None = fixed(
        None,
        "detection tokens, the most objects in an image; null is the checkpoint's own number, or "
        "100 for a plain ViT",
        ge=1,
    )
    router_aux_loss_coef: float | None = fixed(
        None,
        "factor on the load-balancing loss of a mixture of experts (task causal_lm), for whoever "
        "trains all experts; null has none, unless config.json sets output_router_logits",
        gt=0,
    )
    cache: str | None = may_change(None, "folder for downloaded checkpoints; null is the hub's own")


def _not_of_itself(length: Duration) -> Duration:
    if length.unit == "percent":
        raise ValueError(f"it must be in steps, epochs or examples, not {length}")
    return length


class TrainSection(Section):
    """Length, precision and memory of training, and intervals of evaluation and logging."""

    length: Annotated[LengthKey, AfterValidator(_not_of_itself)] = may_change(
        Duration(3, "epochs"), "length of training, in steps, epochs or examples"
    )
    precision: Literal["auto", "f32", "bf16", "tf32"] = may_change(
        "auto", "precision of the computation; auto is bf16 on TPU and GPU, f32 on CPU"
    )
    accumulate: int = may_change(1, "micro-batches per optimizer step", unit="micro-batches", ge=1)
    batch_warmup: Annotated[LengthKey, AfterValidator(_not_of_itself)] | None = fixed(
        None,
        "length of training over which a step's micro-batches grow from one to train.accumulate, "
        "in steps, epochs or examples; null has all from the start",
    )
    remat: Literal["auto", "none", "dots", "full"] | RematSection = may_change(
        "auto",
        "rematerialization in the backward pass, to save memory: none, all but the outputs of "
        "weight matrices (dots), full, or all but named residuals; auto saves what fits in the "
        "chip's memory",
    )
    scan: bool | Literal["auto"] = may_change(
        "auto", "compile equal blocks once, as a scan; auto does so except on CPU up to 12 blocks"
    )
    attention: Literal["auto", "xla", "cudnn", "splash", "ulysses"] = may_change(
        "auto",
        "implementation of attention; auto uses a kernel if one applies: cudnn on GPU, splash on "
        "TPU; ulysses is for mesh.context, in place of a ring",
    )
    trunk_cache: Literal["auto", "on", "off"] = may_change(
        "auto",
        "cache the output of the frozen lower blocks for each example; auto does so if it saves a "
        "tenth of a step and examples repeat",
    )
    trunk_cache_size: float = may_change(8.0, "maximum size of that cache on disk", unit="GB", gt=0)
    evaluate_every: LengthKey = may_change(Duration(1, "epochs"), "interval between evaluations")
    log_every: int = may_change(10, "interval between logged steps", unit="steps", ge=1)
    ema: float | None = fixed(
        None,
        "decay of an exponential moving average of the parameters, which is evaluated",
        gt=0,
        lt=1,
    )
    max_bad_steps: int = may_change(
        3,
        "consecutive steps with a non-finite loss or gradient before the run stops",
        unit="steps",
        ge=1,
    )

    @model_validator(mode="after")
    def _has_parts(self) -> TrainSection:
        if self.batch_warmup is not None and self.accumulate == 1:
            raise ValueError(
                "batch_warmup grows a step from one micro-batch to train.accumulate, which is 1: "
                "set it to 2 or more"
            )
        return self


class CheckpointSection(Section):
    """Checkpoints, and early stopping."""

    every: LengthKey = may_change(Duration(500, "steps"), "interval between saves")
    keep: int = may_change(
        3, "number of latest checkpoints to keep, besides the best", unit="checkpoints", ge=1
    )
    best: str = fixed(
        "auto",
        "metric of the eval rows that selects the best; auto is the task's own",
        min_length=1,
    )
    patience: int | None = may_change(
        None,
        "stop after this many evaluations without improvement; null never stops early",
        unit="evaluations",
        ge=1,
    )
    base: Literal["copy", "reference"] = fixed(
        "copy", "copy the initial parameters into the run folder, or store only their path and hash"
    )


class ReportSection(Section):
    """Reports and logs besides metrics.jsonl."""

    tensorboard: bool = may_change(True, "also write TensorBoard files")
    layers_every: DurationKey = may_change(
        Duration(50, "steps"),
        "interval between records of each layer's norms and updates; 0 is never",
    )
    before: bool = may_change(
        False,
        "evaluate before the first step too, and plot the embeddings before and after training",
    )
    forgetting: str | None = may_change(
        None, "texts (a source) whose loss under the checkpoint's pretraining head is tracked"
    )


class Config(Section):
    """The config of a run: model, task, data, training and output."""

    run: RunSection = Field(description="name and folder of the run")
    model: ModelSection = Field(description="the checkpoint to start from")
    task: AnyTask = Field(description="the task to learn", discriminator="kind")
    data: DataSection = Field(description="the rows, and how they become batches")
    adapter: AdapterKey = section(AdapterSection, "an adapter to train in place of the model")
    optimizer: OptimizerSection = section(OptimizerSection, "the update rule")
    schedule: ScheduleSection = section(ScheduleSection, "the learning rate over training")
    layer_decay: LayerDecaySection = section(
        LayerDecaySection, "lower learning rates for lower layers"
    )
    groups: list[Group] = Field(
        default_factory=list,
        max_length=MOST_GROUPS,
        description="ordered: the first group that matches a parameter owns it, 'rest' the others",
        json_schema_extra={"resume": "fixed"},
    )
    phases: list[PhaseSection] | PhaseRecipe = Field(
        default_factory=list,
        description="parts of training in which only some parameters train, or a recipe's name",
        json_schema_extra={"resume": "fixed"},
    )
    freezing: FreezingSection = section(FreezingSection, "settings of the freezing recipes")
    sampling: SamplingSection = section(
        SamplingSection, "blocks that train in turns, a few at a time"
    )
    regularise: RegulariseSection = section(
        RegulariseSection, "regularization towards the checkpoint"
    )
    mesh: MeshKey = section(MeshSection, "the number of devices along each axis of the mesh")
    train: TrainSection = section(TrainSection, "length, precision and memory of training")
    checkpoint: CheckpointSection = section(CheckpointSection, "checkpoints, and early stopping")
    report: ReportSection = section(ReportSection, "reports and logs besides metrics.jsonl")

    @model_validator(mode="after")
    def _group_names_differ(self) -> Config:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two groups are named '{name}'")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        own = [group.schedule for group in self.groups if group.schedule and not group.freeze]
        check_freezing(self.phases, self.freezing, [self.schedule, *own])
        recipe = self.groups, self.phases, self.schedule
        check_optimizer(self.optimizer, *recipe, self.train.ema)
        check_fused(self)
        check_sampling(self)
        if self.model.router_aux_loss_coef is not None and self.task.kind != "causal_lm":
            kind = self.task.kind
            raise ValueError(
                f"model.router_aux_loss_coef is for the task causal_lm, and this one is {kind}"
            )
        return self

    def dump(self) -> dict[str, Any]:
        """Return every key with its value, as plain data that YAML and JSON can hold."""
        return self.model_dump(mode="json")
