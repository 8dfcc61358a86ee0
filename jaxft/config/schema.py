"""The keys of a run, section by section; those of the recipe are in `config/recipe.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jaxft.config.data import DataSection
from jaxft.config.durations import DurationKey, LengthKey
from jaxft.config.fields import Section, key, section
from jaxft.config.optimizer import OptimizerSection, check_optimizer
from jaxft.config.recipe import (
    FreezingSection,
    Group,
    LayerDecaySection,
    PhaseRecipe,
    PhaseSection,
    ScheduleSection,
    check_freezing,
)
from jaxft.config.sections import AdapterKey, AdapterSection, RegulariseSection, RunSection
from jaxft.config.tasks import AnyTask
from jaxft.durations import Duration


class ModelSection(Section):
    """The checkpoint to start from."""

    checkpoint: (
        Annotated[str, Field(min_length=1)]
        | dict[Literal["vision", "text", "encoder", "decoder"], str]
    ) = key(
        ...,
        "a hub id (id@revision), a folder, or package:module/path; or two of them: {vision, "
        "text}, whose towers are put side by side, or {encoder, decoder}, which reads the other",
        resume="fixed",
    )
    dropout: float | None = key(
        None, "dropout rate; null is the checkpoint's own", resume="fixed", ge=0, lt=1
    )
    ignore: list[str] = Field(
        default_factory=list,
        description="fields of the checkpoint's config.json to leave out of account",
        json_schema_extra={"resume": "fixed"},
    )
    resize_vocab: bool = key(
        False,
        "give the model embeddings for all pieces of its tokenizer, where it has too few",
        resume="fixed",
    )
    reinit: int = key(
        0,
        "so many blocks from the top begin anew, and with them the pooler; 0 for none",
        resume="fixed",
        unit="blocks",
        ge=0,
    )
    image_size: int | None = key(
        None,
        "height and width of the images; null is the checkpoint's own",
        resume="fixed",
        unit="pixels",
        ge=1,
    )
    detection_tokens: int | None = key(
        None,
        "the most objects to find in an image, where a plain ViT becomes a detector; null is "
        "the checkpoint's own, or 100",
        resume="fixed",
        ge=1,
    )
    cache: str | None = key(
        None, "folder for downloaded checkpoints; null is the hub's own", resume="may change"
    )


def _devices(size: int) -> int:
    if size == 0:
        raise ValueError("an axis of the mesh has at least one device (or -1: all left)")
    return size


def _not_of_itself(length: Duration) -> Duration:
    if length.unit == "percent":
        raise ValueError(f"it is in steps or epochs, not {length}")
    return length


def _spelled_out(written: Any) -> Any:
    """Return `mesh: auto` is short for `mesh: {layout: auto}`."""
    return {"layout": "auto"} if written == "auto" else written


class MeshSection(Section):
    """How many devices along each axis of the mesh."""

    layout: Literal["given", "auto"] = key(
        "given",
        "auto picks the sizes below from the model, the batch and the chip's memory, and says why; "
        "mesh: auto is short for it",
        resume="may change",
    )
    data: Annotated[int, AfterValidator(_devices)] = key(
        -1,
        "copies, each with its share of the batch; -1 is all that are left",
        resume="may change",
        unit="devices",
        ge=-1,
    )
    fsdp: Annotated[int, AfterValidator(_devices)] = key(
        1,
        "shares of parameters and optimizer state, and of the batch; or -1",
        resume="may change",
        unit="devices",
        ge=-1,
    )
    tensor: Annotated[int, AfterValidator(_devices)] = key(
        1, "shares of each wide matrix; or -1", resume="may change", unit="devices", ge=-1
    )

    @model_validator(mode="after")
    def _sizes(self) -> MeshSection:
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1:
            raise ValueError("only one axis of the mesh can be -1 (all devices left)")
        if self.layout == "auto" and sizes != [-1, 1, 1]:
            raise ValueError("layout: auto picks data, fsdp and tensor: leave them out")
        return self


MeshKey = Annotated[MeshSection, BeforeValidator(_spelled_out)]


class TrainSection(Section):
    """How long, how exactly, and how often the run looks at itself."""

    length: Annotated[LengthKey, AfterValidator(_not_of_itself)] = key(
        Duration(3, "epochs"), "how long to train: steps or epochs", resume="may change"
    )
    precision: Literal["auto", "f32", "bf16", "tf32"] = key(
        "auto",
        "type of the computation; auto is bf16 on TPU and GPU, f32 on CPU",
        resume="may change",
    )
    accumulate: int = key(
        1, "parts an optimizer step is computed in", resume="may change", unit="micro-batches", ge=1
    )
    remat: Literal["auto", "none", "dots", "full"] = key(
        "auto",
        "what of a block is computed again in the backward pass, to save memory: nothing, all but "
        "what its weight matrices give (dots), or all; auto keeps what the chip has room for",
        resume="may change",
    )
    scan: bool | Literal["auto"] = key(
        "auto",
        "compile equal blocks once; auto is not on CPU up to 12 blocks",
        resume="may change",
    )
    attention: Literal["auto", "xla", "cudnn", "splash"] = key(
        "auto",
        "what computes attention; auto is a kernel where one can serve: cudnn on GPU, splash on "
        "TPU",
        resume="may change",
    )
    trunk_cache: Literal["auto", "on", "off"] = key(
        "auto",
        "keep what the frozen lower part makes of each example, and start steps there; auto does "
        "where it saves a tenth of a step and examples are read more than once",
        resume="may change",
    )
    trunk_cache_size: float = key(
        8.0, "the most that it may take on disk", resume="may change", unit="GB", gt=0
    )
    evaluate_every: LengthKey = key(
        Duration(1, "epochs"), "how often the eval rows are scored", resume="may change"
    )
    log_every: int = key(10, "how often a line is logged", resume="may change", unit="steps", ge=1)
    ema: float | None = key(
        None,
        "decay of a running average of the parameters, which is what is scored",
        resume="fixed",
        gt=0,
        lt=1,
    )
    max_bad_steps: int = key(
        3,
        "steps in a row that may be not finite before the run stops",
        resume="may change",
        unit="steps",
        ge=1,
    )


class CheckpointSection(Section):
    """What is saved, and when to stop early."""

    every: LengthKey = key(
        Duration(500, "steps"), "how often the state is saved", resume="may change"
    )
    keep: int = key(
        3, "latest checkpoints kept, beside the best", resume="may change", unit="checkpoints", ge=1
    )
    best: str = key(
        "auto",
        "metric of the eval rows that names the best; auto is the task's own",
        resume="fixed",
        min_length=1,
    )
    patience: int | None = key(
        None,
        "stop after so many evaluations without a better best; null never stops early",
        resume="may change",
        unit="evaluations",
        ge=1,
    )
    base: Literal["copy", "reference"] = key(
        "copy",
        "keep the starting parameters in the run folder, or where they are and their hash",
        resume="fixed",
    )


class ReportSection(Section):
    """Where curves go beside metrics.jsonl."""

    tensorboard: bool = key(True, "write TensorBoard files too", resume="may change")
    layers_every: DurationKey = key(
        Duration(50, "steps"),
        "how often what each layer does is written down; 0 is never",
        resume="may change",
    )
    before: bool = key(
        False,
        "score the eval rows before the first step too, and draw where they lie then and after",
        resume="may change",
    )
    forgetting: str | None = key(
        None,
        "texts (a source) whose loss under the checkpoint's own pretraining head is followed",
        resume="may change",
    )


class Config(Section):
    """A run of jaxft: what is trained, on what, how, and what is kept."""

    run: RunSection = Field(description="what the run is called and where its folder goes")
    model: ModelSection = Field(description="the checkpoint to start from")
    task: AnyTask = Field(description="what is learned from a row", discriminator="kind")
    data: DataSection = Field(description="the rows to learn from, and how they become batches")
    adapter: AdapterKey = section(AdapterSection, "what is trained in place of the whole model")
    optimizer: OptimizerSection = section(OptimizerSection, "the update rule")
    schedule: ScheduleSection = section(ScheduleSection, "how the rate moves over training")
    layer_decay: LayerDecaySection = section(LayerDecaySection, "lower rates for lower layers")
    groups: list[Group] = Field(
        default_factory=list,
        description="ordered: the first match owns a parameter, the rest are the group 'rest'",
        json_schema_extra={"resume": "fixed"},
    )
    phases: list[PhaseSection] | PhaseRecipe = Field(
        default_factory=list,
        description="stretches of training in which only some parameters move, or a recipe's name",
        json_schema_extra={"resume": "fixed"},
    )
    freezing: FreezingSection = section(FreezingSection, "when layers stop by themselves")
    regularise: RegulariseSection = section(RegulariseSection, "what holds it to its checkpoint")
    mesh: MeshKey = section(MeshSection, "how many devices along each axis of the mesh")
    train: TrainSection = section(TrainSection, "how long, how exactly, how often looked at")
    checkpoint: CheckpointSection = section(CheckpointSection, "what is saved, and when to stop")
    report: ReportSection = section(ReportSection, "where curves go beside metrics.jsonl")

    @model_validator(mode="after")
    def _group_names_differ(self) -> Config:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two groups are named '{name}'")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        check_freezing(self.phases, self.freezing, self.schedule)
        check_optimizer(self.optimizer, self.groups, self.schedule, self.train.ema)
        return self

    def dump(self) -> dict[str, Any]:
        """Return every key with its value, as plain data that YAML and JSON can hold."""
        return self.model_dump(mode="json")
