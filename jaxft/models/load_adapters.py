"""Models with adapters: LoRA beside kernels, and PEFT's folders of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jaxft.errors import UserError
from jaxft.models.adapters.diffusers_lora import write_lora
from jaxft.models.adapters.low_rank import Adapted, Adapter, choose, inject, is_adapter, kernels_of
from jaxft.models.adapters.read import read_adapter
from jaxft.models.adapters.token_rows import inject_rows, token_ids
from jaxft.models.adapters.write import TASKS, whole_modules, write_adapter
from jaxft.models.family import leaves_of
from jaxft.models.model import Model
from jaxft.models.weights.export import check_folder, to_tensors
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import Tensor
from jaxft.storage.buckets import published
from jaxft.storage.files import place
from jaxft.tree import natural_order


def with_adapter(model: Model, adapter: Adapter | str | Path) -> Model:
    """Describe a model with adapters beside its kernels, without their values.

    Args:
        model: without any.
        adapter: new ones; or PEFT's folder, whose parameters are then among those to be loaded.

    Raises:
        UserError: it does not fit the model.
    """
    loaded: dict[str, Tensor] = {}
    if isinstance(adapter, Adapter):
        kernels, tokens = choose(model.towers, adapter), adapter.tokens
    else:
        names = _module_lines(model)
        in_memory = _names_in_memory(model, names)

        def spelled(name: str) -> str:
            return in_memory.get(name) or model.family.tensors.canonical(name)

        files = Path(adapter), names, model.leaves
        kernels, tokens, loaded = read_adapter(*files, kernels_of(model.towers), spelled)
    ids = token_ids(tokens, model.source, model.vocab_size)
    towers, tables = inject_rows(inject(model.towers, kernels), ids)
    # What the folder brings of the model itself (a head) is not the checkpoint's either.
    new = {*model.matching.new, *loaded, *(leaves_of(towers).keys() - model.leaves.keys())}
    new -= {name for name in loaded if is_adapter(name)}
    matching = replace(
        model.matching,
        loaded={**model.matching.loaded, **loaded},
        new=tuple(natural_order(new)),
    )
    return replace(
        model, towers=towers, matching=matching, adapted=Adapted(kernels, model.towers, tables)
    )


def save_adapter(
    model: Model, folder: str | Path, base: str | None = None, also: Sequence[str] = ()
) -> Path:
    """Write a model's adapters alone, as PEFT does; a pipeline's as `diffusers` does.

    Args:
        model: with adapters.
        folder: new, empty, or with an earlier export.
        base: what to call the model that they belong to; None for what it was loaded by.
        also: parameters that trained beside them, such as a head's; their modules are written
            whole.

    Returns:
        The folder.

    Raises:
        UserError: there are no adapters, or PEFT has no place for one of `also` or for new words;
            the folder holds anything else.
    """
    if model.adapted is None:
        raise UserError("The model has no adapter to save.")
    check_folder(folder, model.source)
    if model.source.pipeline is not None:
        kernels = model.adapted.kernels
        with published(folder) as here:
            write_lora(here, model.source.part, model.params, kernels, model.names, also)
        return place(folder)
    check_vocabulary(model.matching.grown)
    names = _module_lines(model)
    in_memory = {hf: name for name, hf in _names_in_memory(model, names).items()}
    task = TASKS.get(model.head)
    trained = dict.fromkeys(in_memory[names[name].hf] for name in also)
    whole = whole_modules(in_memory.values(), trained, task)
    inside = tuple(f"{module}." for module in whole)
    lines = {n: line for n, line in names.items() if in_memory[line.hf].startswith(inside)}
    tensors = to_tensors(model.params, lines, model.matching.loaded)
    about = {"base_model_name_or_path": base or model.source.asked, "task_type": task}
    own = {in_memory[hf]: value for hf, value in tensors}
    with published(folder) as here:
        write_adapter(here, model.params, model.adapted, names, in_memory, own, whole, about)
    return place(folder)


def check_vocabulary(grown: bool) -> None:
    """Raise a UserError if the base model of an adapter has fewer words than the model."""
    if grown:
        raise UserError(
            "PEFT cannot store a grown vocabulary: the adapter's base model lacks the new words.",
            "Export the whole model, without --adapter.",
        )


def _module_lines(model: Model) -> dict[str, Name]:
    """Map each parameter to its line of the name table as transformers' modules have it."""
    module_line = model.family.tensors.module_line
    return {parameter: module_line(line) for parameter, line in model.hf_names.items()}


def _names_in_memory(model: Model, lines: Mapping[str, Name]) -> dict[str, str]:
    """Map each tensor's name in a transformers module to its spelling in the name table.

    Most families' are those of their files; where one's are not, it says so by `in_memory`.
    """
    names = {}
    for line in lines.values():
        name = model.family.tensors.exported(line.hf, model.head, model.model_type)
        names[model.family.tensors.in_memory(name, model.model_type)] = line.hf
    return names
