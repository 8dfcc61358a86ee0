"""A vision-language model as an asset: DINOv2's ViT-S/14 and SmolLM2, put together untrained.

It is in the layout of Idefics3 and SmolVLM. Its image tower is DINOv2's without the class token,
which that layout has no place for; the connector between the two is random, and has to be trained
before the model sees anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from jaxft.demo.assets import once
from jaxft.demo.rows import write_json
from jaxft.demo.smollm2 import smollm2
from jaxft.demo.vits import BLOCKS, PATCH, SMALL, WIDTH, vits

GRID, SHUFFLE = 8, 4  # patches of a tile's side, and of the squares that become vectors
TILE = GRID * PATCH  # pixels
SPECIAL = ("<image>", "<fake_token_around_image>", "<global-img>")
# A plain ViT's name of a part of a block, and Idefics3's.
PARTS = {
    "layernorm_before": "layer_norm1",
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "layernorm_after": "layer_norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
VISION, TEXT = "model.vision_model.", "model.text_model."
VISION_CONFIG = {
    "model_type": "idefics3_vision",
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 6,
    "num_channels": 3,
    "image_size": TILE,
    "patch_size": PATCH,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}
PROCESSOR = {
    "image_processor_type": "Idefics3ImageProcessor",
    "do_image_splitting": False,
    "size": {"longest_edge": TILE},
    "max_image_size": {"longest_edge": TILE},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
# SmolLM2's turns, with the place of an image.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Tensors = dict[str, np.ndarray]


def vlm() -> Path:
    """Return the folder of an `Idefics3ForConditionalGeneration` with a random connector.

    The image tower has 12 blocks of width 384 and tiles of 112 pixels, which become 4 vectors;
    the decoder is SmolLM2-135M-Instruct with three more words.

    Source: as `vits` and `smollm2`.

    Raises:
        UserError: a library that reads the files of the two is not installed.
    """
    return once("vlm", (), lambda to: write_joined(vits(), smollm2(), to))


def write_joined(eyes: Path, language: Path, to: Path) -> None:
    """Write the Hugging Face folder of a plain ViT and a Llama."""
    text = json.loads((language / "config.json").read_text())
    words = text["vocab_size"]
    tensors = _seeing(load_file(eyes / "model.safetensors"))
    tensors |= _writing(load_file(language / "model.safetensors"))
    scale = float(tensors[f"{TEXT}embed_tokens.weight"].std())
    tensors["model.connector.modality_projection.proj.weight"] = _connector(
        text["hidden_size"], scale
    )
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    backend = Tokenizer.from_file(str(language / "tokenizer.json"))
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in SPECIAL])
    backend.save(str(to / "tokenizer.json"))
    described = json.loads((language / "tokenizer_config.json").read_text())
    contents: dict[str, dict[str, Any]] = {
        "config.json": _config(text | {"vocab_size": words + len(SPECIAL)}, words),
        "generation_config.json": json.loads((language / "generation_config.json").read_text()),
        "preprocessor_config.json": PROCESSOR,
        "processor_config.json": {
            "processor_class": "Idefics3Processor",
            "image_seq_len": (GRID // SHUFFLE) ** 2,
        },
        "tokenizer_config.json": described | {"chat_template": TEMPLATE},
    }
    for name, content in contents.items():
        write_json(to / name, content)


def _config(text: dict[str, Any], image_token_id: int) -> dict[str, Any]:
    """Return the content of config.json."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "model_type": "idefics3",
        "image_token_id": image_token_id,
        "scale_factor": SHUFFLE,
        "tie_word_embeddings": True,
        "vision_config": VISION_CONFIG,
        "text_config": {name: value for name, value in text.items() if name != "architectures"},
        **{name: text[name] for name in ids},
    }


def _seeing(vit: Tensors) -> Tensors:
    """Return a plain ViT's tensors under Idefics3's names, without the class token."""
    from jaxft.models.layers.vision import resize_grid  # jax: most assets take none

    grid = vit["embeddings.position_embeddings"][0, 1:].reshape(SMALL, SMALL, WIDTH)
    positions = resize_grid(grid, (GRID, GRID)).reshape(GRID * GRID, WIDTH)
    tensors = {"embeddings.position_embedding.weight": positions}
    for leaf in ("weight", "bias"):
        patch = f"embeddings.patch_embeddings.projection.{leaf}"
        tensors[f"embeddings.patch_embedding.{leaf}"] = vit[patch]
        tensors[f"post_layernorm.{leaf}"] = vit[f"layernorm.{leaf}"]
        for block in range(BLOCKS):
            for theirs, ours in PARTS.items():
                own = vit[f"encoder.layer.{block}.{theirs}.{leaf}"]
                tensors[f"encoder.layers.{block}.{ours}.{leaf}"] = own
    return {VISION + name: np.ascontiguousarray(value) for name, value in tensors.items()}


def _writing(llama: Tensors) -> Tensors:
    """Return a Llama's tensors behind Idefics3's prefix; the new words are the mean of the old.

    Words are scored by their own vectors, as SmolLM2's are.
    """
    own = {name: value for name, value in llama.items() if name.startswith("model.")}
    tensors = {TEXT + name.removeprefix("model."): value for name, value in own.items()}
    table = tensors[f"{TEXT}embed_tokens.weight"]
    new = np.repeat(table.mean(0, keepdims=True), len(SPECIAL), axis=0)
    tensors[f"{TEXT}embed_tokens.weight"] = np.concatenate([table, new])
    return tensors


def _connector(width: int, scale: float) -> np.ndarray:
    """Return a random connector whose vectors are as large as words: [out, in] float32.

    It reads normalized patches, so that each of its outputs is a sum of so many unit numbers.
    """
    inside = WIDTH * SHUFFLE**2
    draw = np.random.default_rng(0)
    return (draw.normal(size=(width, inside)) * scale / inside**0.5).astype(np.float32)
