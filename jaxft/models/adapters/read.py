"""Adapters in PEFT's files, `adapter_config.json` and `adapter_model.safetensors`, both ways.

The family's name table says which module a kernel is, and which part of it. Where a
PyTorch module stores several of our kernels side by side (GPT-2's `c_attn`), it has one adapter: A
is stacked, and B block-diagonal, so that the sum stays exact; in reading, each
part takes the whole A and its own rows of B.

Source: the layout is that of `peft`'s `save_pretrained`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import ROWS, beside
from jaxft.models.layers.adapter import LowRank
from jaxft.models.layers.modules import Leaf
from jaxft.models.weights.export import ADAPTER_WEIGHTS
from jaxft.models.weights.files import open_tensors
from jaxft.models.weights.names import Name, stored_shape
from jaxft.models.weights.tensor import Span, Tensor, part_of
from jaxft.storage.json_files import is_number, read_json_object
from jaxft.tree import matches_of

ADAPTER_CONFIG = "adapter_config.json"
PICKLED = "adapter_model.bin"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS, PICKLED)
ROOT = "base_model.model."  # what PEFT puts before a module's name
TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
MATRIX = re.compile(r"(.*)\.lora_(A|B)\.weight|(.*)\.lora_(magnitude_vector)(?:\.weight)?")
# Fields that are read here, or do not affect the computation.
READ = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
    *("lora_dropout", "fan_in_fan_out", "use_rslora", "use_dora", "modules_to_save"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "runtime_config"),
    *("megatron_core", "qalora_group_size", "trainable_token_indices", "ensure_weight_tying"),
)
# Initializations that leave the base model as it is; all others change it.
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class _Module:
    """The tensors of one module's adapter, as a file has them."""

    a: Tensor  # [r, I]
    b: Tensor  # [O, r]
    magnitude: Tensor | None  # [O]


def stored_leaf(name: str) -> Name:
    """Return an adapter leaf's name-table line: matrices are stored as a `torch.nn.Linear`'s."""
    return Name(name, name, transpose=not name.endswith(("/magnitude", f"/{ROWS}")))


def read_adapter(
    folder: Path,
    names: Mapping[str, Name],
    leaves: Mapping[str, Leaf],
    kernels: Iterable[str],
    canonical: Callable[[str], str],
) -> tuple[dict[str, LowRank], tuple[int, ...], dict[str, Tensor]]:
    """Read the adapters of a PEFT folder, and the parameters that it saved whole.

    Args:
        folder: where the two files are.
        names: parameter -> its line of the name table.
        leaves: parameter -> its description.
        kernels: those that may have an adapter.
        canonical: a name as found in a file -> as the table spells it.

    Returns:
        kernel -> its adapter; the tokens whose rows it brings; and parameter -> the tensor it is
        read from: those of adapters, and of modules that were trained whole (a head).

    Raises:
        UserError: it is no such folder, needs anything unsupported, or is for another base
            model.
    """
    config = _read_config(folder)
    parameters: dict[str, list[str]] = {}
    for parameter, line in sorted(names.items(), key=lambda item: item[1].part or ()):
        parameters.setdefault(line.hf, []).append(parameter)
    modules, rest = _by_module(folder)
    possible = set(kernels)
    low_ranks: dict[str, LowRank] = {}
    alphas = _alphas(config, modules)
    loaded: dict[str, Tensor] = {}
    for module, matrices in modules.items():
        own = parameters.get(canonical(f"{module}.weight"), [])
        if not own or not possible.issuperset(own):
            raise _of_another(folder, f"it adapts '{module}', and this model has no such kernel")
        low_rank = _low_rank(config, module, matrices, alphas[module])
        for kernel in own:
            low_ranks[kernel] = low_rank
            loaded |= _parts(folder, module, matrices, names[kernel], kernel, leaves[kernel])
    tokens = _tokens(folder, config, rest)
    for name, tensor in rest.items():
        table = name.removesuffix(TOKEN_ROWS)
        own = parameters.get(canonical(name if table == name else f"{table}.weight"), [])
        if not own:
            raise _of_another(folder, f"it brings '{name}', and this model has no such parameter")
        for parameter in own:
            shape = stored_shape(names[parameter], leaves[parameter])
            if table != name:
                _check(folder, name, tensor.shape, (len(tokens), shape[1]))
                loaded[beside(parameter, ROWS)] = tensor
                continue
            _check(folder, name, tensor.shape, shape)
            loaded[parameter] = names[parameter].own_part(tensor)
    return low_ranks, tokens, loaded


def _tokens(folder: Path, config: Mapping[str, Any], tensors: Iterable[str]) -> tuple[int, ...]:
    """Return the tokens whose rows a folder brings, the same for all its tables.

    Raises:
        UserError: they are no list of ids, or differ between tables.
    """
    indices = config.get("trainable_token_indices") or []
    each = list(indices.values()) if isinstance(indices, dict) else [indices]
    path = folder / ADAPTER_CONFIG
    if any(one != each[0] for one in each):
        raise UserError(
            f"{path}: trainable_token_indices has other tokens for each table, which is not "
            "supported.",
            "Merge the adapter into its model with PEFT, and load the merged model.",
        )
    ids = each[0] if each else []
    if not isinstance(ids, list) or not all(type(one) is int and one >= 0 for one in ids):
        raise UserError(f"{path}: trainable_token_indices must be a list of ids.")
    brought = any(name.endswith(TOKEN_ROWS) for name in tensors)
    if brought != bool(ids):
        raise UserError(f"{path}: trainable_token_indices and {ADAPTER_WEIGHTS} do not agree.")
    return tuple(ids)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = read_json_object(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"'{folder}' is not an adapter: it has no {ADAPTER_CONFIG}.",
            "Give a folder that PEFT saved, or `jaxft export RUN --adapter`.",
        ) from None
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        raise UserError(f"{path}: the peft_type {kind} is not supported; only LORA is.")
    known = (*READ, "init_lora_weights", "bias")
    odd = [name for name, value in config.items() if value and name not in known]
    if config.get("init_lora_weights") not in STARTS:
        odd.append("init_lora_weights")
    if config.get("bias", "none") != "none":
        odd.append("bias")
    if odd:
        raise UserError(
            f"{path}: '{odd[0]}' is {json.dumps(config[odd[0]])}, which is not supported.",
            "Merge the adapter into its model with PEFT, and load the merged model.",
        )
    return config


def _by_module(folder: Path) -> tuple[dict[str, _Module], dict[str, Tensor]]:
    """Sort the tensors into adapters by module, and others, all without PEFT's own prefix."""
    path = folder / ADAPTER_WEIGHTS
    path = path if path.exists() else folder / PICKLED
    if not path.exists():
        raise UserError(f"'{folder}' is not an adapter: it has no {ADAPTER_WEIGHTS}.")
    matrices: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in open_tensors([path]).items():
        short = name.removeprefix(ROOT)
        if matched := MATRIX.fullmatch(short):
            module, kind = matched[1] or matched[3], matched[2] or matched[4]
            matrices.setdefault(module, {})[kind] = tensor
        elif "lora_" in short:
            raise UserError(f"{path}: '{name}' is not supported: only linear maps are adapted.")
        else:
            rest[short] = tensor
    modules = {}
    for module, parts in matrices.items():
        if "A" not in parts or "B" not in parts:
            raise UserError(f"{path}: '{module}' has only one of lora_A and lora_B.")
        modules[module] = _Module(parts["A"], parts["B"], parts.get("magnitude_vector"))
    return modules, rest


def _low_rank(config: Mapping[str, Any], module: str, matrices: _Module, alpha: Any) -> LowRank:
    """Describe a module's adapter."""
    if len(matrices.a.shape) != 2 or not matrices.a.shape[0]:
        raise UserError(f"{ADAPTER_CONFIG}: the adapter of '{module}' has no rank.")
    rank, dropout = matrices.a.shape[0], config.get("lora_dropout") or 0.0
    if not is_number(alpha) or not is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(
            f"{ADAPTER_CONFIG}: lora_alpha must be a number, and lora_dropout one from 0 to less "
            f"than 1; for '{module}' they are {json.dumps(alpha)} and {json.dumps(dropout)}."
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(rank, scale, matrices.magnitude is not None, dropout)


def _alphas(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """Return the alpha of each module: that of the first pattern that matches, else the common one.

    A pattern is PEFT's regular expression for the end of a module's name.
    """
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise UserError(f"{ADAPTER_CONFIG}: alpha_pattern must be an object.")
    alphas = dict.fromkeys(modules, config.get("lora_alpha", 8))
    whole = [rf"(.*\.)?({pattern})" for pattern in patterns]
    matched = matches_of(whole, alphas, f"{ADAPTER_CONFIG}: alpha_pattern")
    for names, alpha in reversed(list(zip(matched, patterns.values(), strict=True))):
        alphas |= dict.fromkeys(names, alpha)
    return alphas


def _parts(
    folder: Path, module: str, matrices: _Module, name: Name, kernel: str, leaf: Leaf
) -> dict[str, Tensor]:
    """Return the tensors of one kernel's adapter: all of A, its own rows of B and magnitudes."""
    inside, outside = leaf.shape
    span = name.span or Span(0, outside, outside)
    rank = matrices.a.shape[0]
    _check(folder, f"{module}.lora_A.weight", matrices.a.shape, (rank, inside))
    _check(folder, f"{module}.lora_B.weight", matrices.b.shape, (span.whole, rank))
    tensors = {
        beside(kernel, "lora_a"): matrices.a,
        beside(kernel, "lora_b"): part_of(matrices.b, span, axis=0),
    }
    if matrices.magnitude is not None:
        lengths = matrices.magnitude
        _check(folder, f"{module}.lora_magnitude_vector", lengths.shape, (span.whole,))
        tensors[beside(kernel, "magnitude")] = part_of(lengths, span)
    return tensors


def _check(folder: Path, name: str, shape: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(shape) != tuple(wanted):
        raise _of_another(folder, f"its '{name}' is {list(shape)}, and here it is {list(wanted)}")


def _of_another(folder: Path, why: str) -> UserError:
    return UserError(
        f"The adapter '{folder}' is for another base model: {why}.",
        f"Its {ADAPTER_CONFIG} names the model that it was trained on.",
    )
