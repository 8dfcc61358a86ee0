"""The modules of a checkpoint of sentence-transformers, as its `modules.json` lists them.

Source: https://www.sbert.net; `N_Dense/config.json` of each Dense module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from jaxft.errors import UserError
from jaxft.models.weights.source import MODULES_FILE
from jaxft.storage.json_files import read_json, read_json_object
from jaxft.visible import visible

POOLING, NORMALIZE, DENSE = "Pooling", "Normalize", "Dense"
SUPPORTED = ("Transformer", POOLING, DENSE, NORMALIZE, "Dropout")
FOLDER = re.compile(r"[A-Za-z0-9_-]*")
INPUT = "sentence_embedding"
# The last part of an activation's class in torch.nn -> its name in `transformers`.
TORCH_ACTIVATIONS = {
    "Identity": "linear",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}
TANH = "torch.nn.modules.activation.Tanh"  # of a module that names none
MOST_FEATURES = 2**17


@dataclass(frozen=True)
class SentenceModule:
    """A line of `modules.json`.

    Args:
        kind: the class, without its package.
        path: its folder in the checkpoint; empty for the encoder.
    """

    kind: str
    path: str


@dataclass(frozen=True)
class DenseLayer:
    """A Dense module: `activation(x W + b)` of a pooled vector.

    Args:
        path: its folder in the checkpoint.
        inside, outside: the widths of its input and output.
        bias: whether there is a b.
        activation: a value of `TORCH_ACTIVATIONS`.
    """

    path: str
    inside: int
    outside: int
    bias: bool
    activation: str


def read_modules(folder: Path) -> tuple[SentenceModule, ...]:
    """Read the modules of a checkpoint; none where it has no `modules.json`.

    Args:
        folder: the checkpoint.

    Raises:
        UserError: the file is not a list of modules, or has one that is not supported.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return ()
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise UserError(f"{path} is not a list of modules.")
    modules = tuple(
        SentenceModule(str(one.get("type", "")).rpartition(".")[2], str(one.get("path", "")))
        for one in listed
    )
    for module in modules:
        if module.kind not in SUPPORTED:
            raise UserError(
                f"{path}: the module {visible(module.kind)} changes the vectors and is not "
                "supported.",
                f"Supported: {', '.join(SUPPORTED)}.",
            )
        if not FOLDER.fullmatch(module.path):
            raise UserError(f"{path}: {visible(module.path)!r} is not a folder of the checkpoint.")
    _check_order(path, [module.kind for module in modules])
    return modules


def _check_order(path: Path, kinds: list[str]) -> None:
    """Raise a UserError unless the modules are pooling, Dense modules, then normalization."""
    order = [kind for kind in kinds if kind in (POOLING, DENSE, NORMALIZE)]
    expected = [kind for kind in (POOLING, DENSE, NORMALIZE) for _ in range(order.count(kind))]
    if order != expected:
        raise UserError(
            f"{path}: the order {', '.join(order)} is not supported.",
            f"Supported: {POOLING}, then any number of {DENSE}, then {NORMALIZE}.",
        )


def read_dense(folder: Path) -> tuple[DenseLayer, ...]:
    """Read the Dense modules of a checkpoint, in order; none where it has none.

    Raises:
        UserError: as `read_modules`; a config is not one of a supported Dense module; or a module
            does not take what the one before it returns.
    """
    layers = [_dense_layer(folder, one.path) for one in read_modules(folder) if one.kind == DENSE]
    for before, after in pairwise(layers):
        check_width(folder / after.path, after, before.outside)
    return tuple(layers)


def check_width(path: Path, layer: DenseLayer, width: int) -> None:
    """Raise a UserError where a Dense module does not take vectors of a width."""
    if layer.inside != width:
        raise UserError(
            f"{path / 'config.json'}: in_features is {layer.inside}, and the vectors before this "
            f"module have {width} dimensions."
        )


def _dense_layer(folder: Path, name: str) -> DenseLayer:
    """Read a Dense module's config.json."""
    path = folder / name / "config.json"
    if not path.is_file():
        raise UserError(f"{path} is missing, and {MODULES_FILE} names its folder.")
    fields = read_json_object(path)
    inside, outside = (_size(path, fields.get(key)) for key in ("in_features", "out_features"))
    written = str(fields.get("activation_function", TANH))
    activation = TORCH_ACTIVATIONS.get(written.rpartition(".")[2])
    if activation is None or not written.startswith("torch.nn."):
        raise UserError(
            f"{path}: the activation_function {visible(written)} is not supported.",
            f"Supported, of torch.nn: {', '.join(TORCH_ACTIVATIONS)}.",
        )
    if fields.get("use_residual") or any(
        fields.get(key) not in (None, INPUT) for key in ("module_input_name", "module_output_name")
    ):
        raise UserError(
            f"{path}: only a Dense module from {INPUT} to {INPUT} without a residual connection "
            "is supported."
        )
    return DenseLayer(name, inside, outside, bool(fields.get("bias", True)), activation)


def _size(path: Path, value: object) -> int:
    """Return the width of vectors that a config names."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MOST_FEATURES:
        raise UserError(f"{path}: in_features and out_features must be sizes of vectors.")
    return value


def dense_config(layer: DenseLayer) -> dict[str, object]:
    """Return the config.json of a Dense module."""
    (written,) = (name for name, ours in TORCH_ACTIVATIONS.items() if ours == layer.activation)
    module = "linear" if written == "Identity" else "activation"
    return {
        "in_features": layer.inside,
        "out_features": layer.outside,
        "bias": layer.bias,
        "activation_function": f"torch.nn.modules.{module}.{written}",
    }
