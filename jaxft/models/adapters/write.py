"""PEFT's adapter files, written: the inverse of `adapters.read`."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxft.errors import UserError
from jaxft.models.adapters.low_rank import ROWS, Adapted, beside, matrices_of
from jaxft.models.adapters.read import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ROOT, TOKEN_ROWS
from jaxft.models.layers.adapter import LowRank
from jaxft.models.weights.export import save_marked
from jaxft.models.weights.names import Name
from jaxft.models.weights.tensor import joined
from jaxft.storage.files import write_atomic, written_aside

# Head -> PEFT's task type.
TASKS = {
    "text_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "causal_lm": "CAUSAL_LM",
    "question_answering": "QUESTION_ANS",
    None: "FEATURE_EXTRACTION",
}
# Task type -> how the names of modules end that PEFT itself takes whole from an adapter.
WHOLE = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def write_adapter(
    folder: Path,
    params: Mapping[str, Any],
    adapters: Adapted,
    names: Mapping[str, Name],
    in_memory: Mapping[str, str],
    own: Mapping[str, np.ndarray],
    whole: Sequence[str],
    base: Mapping[str, Any],
) -> None:
    """Write an adapter as PEFT does.

    Args:
        folder: an existing folder.
        params: the flat dict.
        adapters: what is beside the model's parameters.
        names: parameter -> its line of the name table.
        in_memory: a tensor's name in the table -> its name in the transformers module.
        own: tensors of modules that are written whole, in PyTorch's names and layouts.
        whole: those modules.
        base: fields of the config that say of which model it is.
    """
    adapted, first = adapters.kernels, next(iter(adapters.kernels.values()))
    rows, indices = _token_rows(params, adapters, names, in_memory)
    tensors = {f"{ROOT}{name}": value for name, value in own.items()} | rows
    ranks: dict[str, tuple[int, float]] = {}
    for hf in dict.fromkeys(names[kernel].hf for kernel in adapted):
        beside_each = [kernel for kernel, name in names.items() if name.hf == hf]
        beside_each.sort(key=lambda kernel: names[kernel].part or ())
        module = in_memory[hf].removesuffix(".weight")
        scale = next(adapted[kernel].scale for kernel in beside_each if kernel in adapted)
        matrices = _fused(params, adapted, beside_each, scale, names[beside_each[0]].heads)
        ranks[module] = (matrices["lora_A.weight"].shape[0], scale)
        tensors |= {f"{ROOT}{module}.{leaf}": value for leaf, value in matrices.items()}
    config = {
        **base,
        **_ranks(ranks),
        "peft_type": "LORA",
        "target_modules": _shortest(list(ranks), in_memory.values()),
        "modules_to_save": list(whole) or None,
        "trainable_token_indices": indices or None,
        "lora_dropout": first.rate,
        "fan_in_fan_out": not all(names[kernel].transpose for kernel in adapted),
        "use_dora": first.dora,
        "use_rslora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with written_aside(folder / ADAPTER_WEIGHTS) as aside:
        save_marked(aside, tensors)
    write_atomic(folder / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _token_rows(
    params: Mapping[str, Any],
    adapters: Adapted,
    names: Mapping[str, Name],
    in_memory: Mapping[str, str],
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Return the rows of each table's tokens by tensor name, and the tokens by module."""
    tensors, indices = {}, {}
    for table, ids in adapters.tokens.items():
        module = in_memory[names[table].hf].removesuffix(".weight")
        indices[module.rpartition(".")[2]] = list(ids)
        rows = np.asarray(params[beside(table, ROWS)], np.float32)
        tensors[f"{ROOT}{module}{TOKEN_ROWS}"] = np.ascontiguousarray(rows)
    return tensors, indices


def _fused(
    params: Mapping[str, Any],
    adapted: Mapping[str, LowRank],
    parts: Sequence[str],
    scale: float,
    heads: int,
) -> dict[str, np.ndarray]:
    """Stack the adapters of kernels that one module stores side by side, under one common scale.

    `heads` is as `Name` has it.
    """
    low, lengths = [], []
    for kernel in parts:
        if kernel in adapted:
            a, b = map(np.asarray, matrices_of(params, kernel, adapted[kernel]))
            low.append((a, b * np.float32(adapted[kernel].scale / scale)))
        else:
            inside, outside = params[kernel].shape
            low.append((np.zeros((inside, 0), np.float32), np.zeros((0, outside), np.float32)))
        if kernel in adapted and adapted[kernel].dora:
            lengths.append(np.asarray(params[beside(kernel, "magnitude")]))
        else:
            lengths.append(np.linalg.norm(np.asarray(params[kernel], np.float32), axis=0))
    rank, row, blocks = sum(a.shape[1] for a, _ in low), 0, []
    for _, b in low:  # the ranks of each beside zeros for those of the others
        blocks.append(np.pad(b, ((row, rank - row - b.shape[0]), (0, 0))))
        row += b.shape[0]
    fused = {
        "lora_A.weight": np.concatenate([a for a, _ in low], 1).T,
        "lora_B.weight": joined(blocks, -1, heads).T,
    }
    if any(adapted[kernel].dora for kernel in parts if kernel in adapted):
        fused["lora_magnitude_vector"] = joined(lengths, -1, heads)
    return {leaf: np.ascontiguousarray(value, np.float32) for leaf, value in fused.items()}


def _ranks(ranks: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Return the most common rank and alpha, and by name those of the other modules."""

    def alpha(rank: int, scale: float) -> float:
        exact = rank * scale
        return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-12) else exact

    common = Counter(ranks.values()).most_common(1)[0][0]
    other = {module: one for module, one in ranks.items() if one != common}
    return {
        "r": common[0],
        "lora_alpha": alpha(*common),
        "rank_pattern": {module: rank for module, (rank, _) in other.items()},
        "alpha_pattern": {module: alpha(*one) for module, one in other.items()},
    }


def whole_modules(tensors: Iterable[str], also: Iterable[str], task: str | None) -> list[str]:
    """Return the modules whose tensors PEFT looks for in an adapter, none inside another.

    PEFT compares ends of names: `classifier` stands for DistilBERT's `pre_classifier` too.

    Args:
        tensors: the model's, by their names in the transformers module.
        also: tensors that were trained whole.
        task: PEFT's task type.

    Raises:
        UserError: one of `also` is in no module of its own.
    """
    for name in also:
        if not name.endswith((".weight", ".bias")):
            raise UserError(
                f"PEFT cannot store '{name}', which was trained too and belongs to no module.",
                "Export the whole model, without --adapter.",
            )
    ends = (*(name.rpartition(".")[0] for name in also), *WHOLE.get(task or "", ()))
    outermost: dict[str | None, None] = {}
    for name in tensors:
        parts = name.split(".")[:-1]
        above = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        first = next((module for module in above if module.endswith(ends)), None)
        outermost[first] = None
    return [module for module in outermost if module is not None]


def _shortest(modules: Sequence[str], tensors: Iterable[str]) -> list[str]:
    """Return the names' last parts if no other tensor's module ends in them, else the names."""
    ends = list(dict.fromkeys(module.rpartition(".")[2] for module in modules))
    everything = (name.removesuffix(".weight") for name in tensors)
    ending = {name for name in everything if name.rpartition(".")[2] in ends}
    return ends if ending == set(modules) else list(modules)
