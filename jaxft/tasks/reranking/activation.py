"""The activation of a cross-encoder's score, as sentence-transformers stores it.

Source: https://www.sbert.net, `CrossEncoder`: versions before 4 have a key of config.json, 4 and 5
another one, and later ones a file of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxft.errors import UserError
from jaxft.storage.json_files import read_json_object

FILE = "config_sentence_transformers.json"
SECTION, KEY, OLD_KEY = (
    "sentence_transformers",
    "activation_fn",
    "sbert_ce_default_activation_function",
)
SIGMOID, IDENTITY = "sigmoid", "identity"
MODULES = {
    SIGMOID: "torch.nn.modules.activation.Sigmoid",
    IDENTITY: "torch.nn.modules.linear.Identity",
}


def read_activation(folder: Path, fields: Mapping[str, Any]) -> str | None:
    """Read the activation of a checkpoint; None where it does not say.

    Args:
        folder: the checkpoint.
        fields: its config.json.

    Raises:
        UserError: the activation is not supported.
    """
    section = fields.get(SECTION)
    stated = section.get(KEY) if isinstance(section, Mapping) else fields.get(OLD_KEY)
    if (path := folder / FILE).is_file():
        own = read_json_object(path)
        if own.get("model_type") == "CrossEncoder" and own.get(KEY) is not None:
            stated = own[KEY]
    if stated is None:
        return None
    name = str(stated).rpartition(".")[2].lower()
    if name not in MODULES:
        raise UserError(
            f"{folder}: the activation of the score, {stated}, is not supported.",
            f"Supported: {', '.join(MODULES.values())}.",
        )
    return name


def with_activation(fields: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """Return a config.json that states the activation of the score.

    Args:
        fields: the config.json.
        activation: a key of `MODULES`.
    """
    rest = {name: value for name, value in fields.items() if name != OLD_KEY}
    return {**rest, SECTION: {KEY: MODULES[activation]}}


def activation_file(activation: str) -> dict[str, Any]:
    """Return the content of the file that states it."""
    return {"model_type": "CrossEncoder", KEY: MODULES[activation]}
