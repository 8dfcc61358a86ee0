"""The small sections: `run`, `regularise`, `adapter`, `mesh` and `train.remat`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jaxft.config.fields import NAME, Section, fixed, may_change, section


class SeedSection(Section):
    """The seeds of the three random sequences of a run."""

    init: int = fixed(0, "seed of new parameters, such as a new head", ge=0, lt=2**63)
    data: int = fixed(0, "seed of row order, slices and batches", ge=0, lt=2**63)
    dropout: int = fixed(0, "seed of dropout", ge=0, lt=2**63)


class RunSection(Section):
    """The name of the run and the folder for its results."""

    name: str = fixed(..., "name of the run, and of its folder", pattern=NAME)
    dir: str = may_change("runs", "folder that holds the run folders", min_length=1)
    seed: SeedSection = section(SeedSection, "the seeds of the run")
    trackers: list[Literal["wandb", "trackio"]] = Field(
        default_factory=list,
        description="experiment trackers to log to; each needs the extra of its name",
        json_schema_extra={"resume": "may change"},
    )


class RegulariseSection(Section):
    """Regularization towards the checkpoint."""

    l2_sp: float = may_change(
        0.0,
        "L2-SP: decoupled decay of each parameter towards its initial value, times its learning "
        "rate; new parameters have none",
        ge=0,
    )


class AllocateSection(Section):
    """The division of an adapter's parameters among kernels by a criterion of layers."""

    by: Literal["fisher", "relative_gradient", "above_noise"] = fixed(
        "fisher", "criterion, a column of `jaxft layers`, that ranks are in proportion to"
    )
    most: float = fixed(2.0, "the largest rank, in multiples of adapter.rank", ge=1)
    batches: int = fixed(8, "training batches that gradients are measured on", ge=1)


class AdapterSection(Section):
    """An adapter that is trained in place of the whole model; without a kind there is none."""

    kind: Literal["lora", "dora", "bitfit", "norms"] | None = fixed(
        None,
        "parameters to train besides the head: low-rank matrices (lora), these and per-column "
        "magnitudes (dora), biases (bitfit), or scales and biases of norms (norms); null trains "
        "the whole model",
    )
    rank: int = fixed(8, "rank of the low-rank matrices (lora, dora)", ge=1)
    ranks: dict[str, Annotated[int, Field(ge=1)]] = fixed(
        {},
        "pattern of kernels -> rank in place of rank; the first that matches (PEFT's rank_pattern)",
    )
    allocate: AllocateSection | None = fixed(
        None,
        "divides the parameters that adapter.rank would cost among the kernels by a criterion, "
        "measured once before training; null gives all the same rank",
    )
    alpha: float = fixed(16.0, "their product is scaled by alpha / rank (lora, dora)", gt=0)
    rslora: bool = fixed(
        False, "scale by alpha / sqrt(rank), so that the rate suits every rank (rsLoRA)"
    )
    init: Literal["lora", "pissa"] = fixed(
        "lora",
        "initial matrices: lora_b at 0 (lora, dora), or both at the kernel's largest singular "
        "components, which the kernel loses (pissa; lora)",
    )
    match: Annotated[list[str], Field(min_length=1)] | None = fixed(
        None, "patterns of the kernels that get an adapter; null is attention's query and value"
    )
    trainable_tokens: list[str | int] = fixed(
        [],
        "tokens, as text or ids, whose rows of the word embeddings (and of a causal head) train "
        "beside the matrices (lora, dora)",
    )
    dropout: float = fixed(0.0, "dropout rate of the adapter's input (lora, dora)", ge=0, lt=1)
    quantize: Literal["nf4", "int8"] | None = fixed(
        None,
        "storage of frozen kernels of blocks (QLoRA; lora, dora), in blocks of 64: nf4, 4 bits "
        "by quantiles of the normal distribution, or int8; null is the compute type; an export "
        "merges the adapter into the checkpoint's own weights",
    )
    lr_ratio: float = may_change(
        1.0,
        "learning rate of lora_b, and of all vectors, divided by that of lora_a (LoRA+: 16)",
        gt=0,
    )
    checkpoint: str | None = fixed(
        None,
        "a PEFT adapter folder to start from; ranks, scales, match and dropout come from it",
        min_length=1,
    )

    @model_validator(mode="after")
    def _only_what_is_read(self) -> AdapterSection:
        """Reject a key that would silently do nothing."""
        fields = type(self).model_fields
        set_keys = [n for n in fields if n != "kind" and getattr(self, n) != fields[n].default]
        if self.quantize is not None and self.kind is None:
            raise ValueError(
                f"'quantize' is {self.quantize}, which stores frozen kernels, and without "
                "adapter.kind they train: set it, to lora for QLoRA"
            )
        if set_keys and self.kind is None:
            raise ValueError(f"'{set_keys[0]}' needs adapter.kind: lora or dora")
        if set_keys and self.kind in ("bitfit", "norms"):
            raise ValueError(
                f"'{set_keys[0]}' applies to lora and dora only, and kind is {self.kind}"
            )
        if self.init == "pissa" and self.kind == "dora":
            raise ValueError("'init' is pissa, which is for kind lora: its columns have no lengths")
        if self.init == "pissa" and self.quantize is not None:
            raise ValueError(
                f"'quantize' is {self.quantize} and 'init' pissa: quantized kernels have other "
                "components than those that an export merges into; set init: lora"
            )
        own = [name for name in set_keys if name not in ("lr_ratio", "checkpoint", "quantize")]
        if own and self.checkpoint is not None:
            raise ValueError(f"'{own[0]}' comes from adapter.checkpoint: remove it")
        return self


class RematSection(Section):
    """The residuals of each block that are kept for the backward pass, by name."""

    save: list[str] = may_change(
        [],
        "residuals that stay on the device: the path of a linear map (attention/query, mlp/up) is "
        "its product, attention_output what attention mixes; block_input always stays",
    )
    offload: list[str] = may_change(
        [], "residuals that wait in the host's memory: the same names, or block_input"
    )

    @model_validator(mode="after")
    def _in_one_place(self) -> RematSection:
        if both := sorted({*self.save} & {*self.offload}):
            raise ValueError(f"'{both[0]}' is in both 'save' and 'offload': remove it from one")
        return self


def _nothing(written: Any) -> Any:
    """Read `adapter: null` as an empty section, so that an override removes the adapter."""
    return {} if written is None else written


AdapterKey = Annotated[AdapterSection, BeforeValidator(_nothing)]


def _devices(size: int) -> int:
    if size == 0:
        raise ValueError("an axis of the mesh has at least one device (or -1: all that remain)")
    return size


def _spelled_out(written: Any) -> Any:
    """Read `mesh: auto` as `mesh: {layout: auto}`, and `{fsdp: -1}` as that with one replica."""
    if written == "auto":
        return {"layout": "auto"}
    if isinstance(written, dict) and "data" not in written and -1 in written.values():
        return written | {"data": written.get("slices", 1)}  # one in each slice
    return written


class MeshSection(Section):
    """The number of devices along each axis of the mesh."""

    layout: Literal["given", "auto"] = may_change(
        "given",
        "auto chooses the sizes below from the model, the batch and the chip's memory, and says "
        "why; mesh: auto is short for it",
    )
    data: Annotated[int, AfterValidator(_devices)] = may_change(
        -1,
        "replicas, each with a part of the batch; -1 is all remaining devices; where it is not set "
        "and another axis is -1, there is one, or one per slice",
        unit="devices",
        ge=-1,
    )
    slices: int = may_change(
        1,
        "TPU slices that a data-center network joins: the outermost part of `data`, so that only "
        "sums of gradients cross it",
        unit="slices",
        ge=1,
    )
    fsdp: Annotated[int, AfterValidator(_devices)] = may_change(
        1,
        "shards of parameters and optimizer state, and of the batch; or -1",
        unit="devices",
        ge=-1,
    )
    expert: Annotated[int, AfterValidator(_devices)] = may_change(
        1,
        "shards of the experts of a mixture, which exchange their tokens, and of the batch; or -1",
        unit="devices",
        ge=-1,
    )
    context: Annotated[int, AfterValidator(_devices)] = may_change(
        1,
        "shards of the tokens of each row, whose keys and values go around a ring, and of the "
        "parameters; or -1",
        unit="devices",
        ge=-1,
    )
    tensor: Annotated[int, AfterValidator(_devices)] = may_change(
        1, "shards of each wide matrix; or -1", unit="devices", ge=-1
    )

    @model_validator(mode="after")
    def _sizes(self) -> MeshSection:
        sizes = [self.data, self.fsdp, self.expert, self.context, self.tensor]
        if sizes.count(-1) > 1:
            raise ValueError("only one axis of the mesh can be -1 (all remaining devices)")
        if self.data != -1 and self.data % self.slices:
            raise ValueError(
                f"data: {self.data} is no multiple of slices: {self.slices}, which share it"
            )
        if self.layout == "auto" and [*sizes, self.slices] != [-1, 1, 1, 1, 1, 1]:
            raise ValueError(
                "layout: auto chooses data, fsdp and tensor: remove all other keys of mesh"
            )
        return self


MeshKey = Annotated[MeshSection, BeforeValidator(_spelled_out)]
