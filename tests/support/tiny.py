"""A tiny run in a folder: a BERT of random weights with a real tokenizer, reviews, and a config."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jaxft.config.load import Config, parse_config

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
GOOD = ("bright", "fine", "lovely", "warm", "witty")
BAD = ("cold", "dull", "flat", "grim", "stale")
PLAIN = ("a", "cast", "film", "in", "of", "plot", "scene", "story", "the", "with")
PIECES = ("##ly", "##s", "##ness")
VOCABULARY = (*SPECIAL, *GOOD, *BAD, *PLAIN, *PIECES)

CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


def tiny_checkpoint(folder: Path, seed: int = 0, **config: Any) -> Path:
    """A Hugging Face folder of a `BertModel` of 2 blocks, 32 wide, unless `config` says otherwise.

    Args:
        folder: where it goes; made if it is not there.
        seed: of the weights.
        config: fields of config.json in place of `CONFIG`'s.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = CONFIG | config
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(_weights(fields, seed), folder / "model.safetensors", {"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"})
    )
    return folder


def _weights(fields: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Every tensor of a `BertModel`, in PyTorch's layout; norms and biases are random too."""
    draw = np.random.default_rng(seed)
    width, inner = fields["hidden_size"], fields["intermediate_size"]
    tensors = {}

    def dense(name: str, inside: int, outside: int) -> None:
        tensors[f"{name}.weight"] = draw.normal(0, 0.15, (outside, inside))
        tensors[f"{name}.bias"] = draw.normal(0, 0.05, outside)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = draw.normal(1, 0.05, width)
        tensors[f"{name}.bias"] = draw.normal(0, 0.05, width)

    for name, count in (
        ("word", fields["vocab_size"]),
        ("position", fields["max_position_embeddings"]),
        ("token_type", fields["type_vocab_size"]),
    ):
        tensors[f"embeddings.{name}_embeddings.weight"] = draw.normal(0, 0.3, (count, width))
    norm("embeddings.LayerNorm")
    for index in range(fields["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        for name in ("query", "key", "value"):
            dense(f"{layer}.attention.self.{name}", width, width)
        dense(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output.LayerNorm")
        dense(f"{layer}.intermediate.dense", width, inner)
        dense(f"{layer}.output.dense", inner, width)
        norm(f"{layer}.output.LayerNorm")
    dense("pooler.dense", width, width)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def _tokenizer() -> Tokenizer:
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def tiny_reviews(folder: Path, rows: int = 96, seed: int = 0) -> Path:
    """A CSV with the columns `text` and `label`: 1 where more words are good than bad.

    Args:
        folder: where `reviews.csv` goes; made if it is not there.
        rows: reviews; labels alternate, lengths run from 2 to 14 words.
        seed: of the words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    path = folder / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(rows):
            told = draw.choice(GOOD if number % 2 else BAD, draw.integers(1, 5))
            words = [*told, *draw.choice(PLAIN, draw.integers(1, 11))]
            writer.writerow([" ".join(draw.permutation(words)), number % 2])
    return path


def train_and_eval(folder: Path, kind: str) -> dict[str, str]:
    """The splits of a folder with train.KIND and eval.KIND, which is the test too."""
    rows = {name: f"{kind}:{folder}/{name}.{kind}" for name in ("train", "eval")}
    return {**rows, "test": rows["eval"]}


def tiny_config(folder: Path, **overrides: Any) -> Config:
    """The config of a run in `folder` on the tiny checkpoint and reviews, made where missing.

    Args:
        folder: holds `checkpoint/`, `reviews.csv`, `cache/` and `runs/`.
        overrides: sections, or keys of sections, in place of these:
            `tiny_config(folder, train={"accumulate": 2}, groups=[...])`.
    """
    checkpoint, reviews = folder / "checkpoint", folder / "reviews.csv"
    if not checkpoint.exists():
        tiny_checkpoint(checkpoint)
    if not reviews.exists():
        tiny_reviews(folder)
    written: dict[str, Any] = {
        "run": {"name": "tiny", "dir": str(folder / "runs")},
        "model": {"checkpoint": str(checkpoint)},
        "task": {"kind": "text_classification"},
        "data": {
            "train": f"csv:{reviews}[:70%]",
            "eval": f"csv:{reviews}[70%:85%]",
            "test": f"csv:{reviews}[85%:]",
            "batch_size": 8,
            "cache": str(folder / "cache"),
        },
        "optimizer": {"lr": 1e-3},
        "train": {"length": "2 epochs"},
        "report": {"tensorboard": False},
    }
    for name, value in overrides.items():
        section = written.get(name)
        if isinstance(section, dict) and isinstance(value, dict):
            value = section | value
        written[name] = value
    return parse_config(written)
