"""Random parts of pipelines of `diffusers`, ours and PyTorch's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers

from jaxft.models import load as registry
from jaxft.models.load import Model

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
}
# Name -> class and config.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dit": (
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 3,
            "out_channels": 6,
            "num_layers": 3,
            "sample_size": 8,
            "num_embeds_ada_norm": 10,
        },
    ),
    "vae": (
        "AutoencoderKL",
        {
            "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2,
            "block_out_channels": [8, 16],
            "latent_channels": 3,
            "norm_num_groups": 4,
            "sample_size": 16,
        },
    ),
    "unet-1.5": (
        "UNet2DConditionModel",
        UNET
        | {
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": 2,
            "layers_per_block": 1,
            "num_class_embeds": 7,
        },
    ),
    "sd3.5": (
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": 4,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 6,
            "dual_attention_layers": [1],
            "qk_norm": "rms_norm",
        },
    ),
    "unet-xl": (
        "UNet2DConditionModel",
        UNET
        | {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": [2, 4],
            "transformer_layers_per_block": [1, 2],
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 10,
        },
    ),
}


@dataclass
class PartPair:
    """The same random part twice, and a batch of ours."""

    ours: Model
    torch: torch.nn.Module
    folder: Path
    batch: dict[str, np.ndarray]
    gradients: dict[str, Any] = field(default_factory=dict)  # of a test, for the next one

    def theirs(self, model: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
        """PyTorch's outputs on the batch, under our names."""
        batch = {name: torch.tensor(value) for name, value in self.batch.items()}
        return RUNS[type(self.torch).__name__](model or self.torch, batch)


def run_dit(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"sample": model(*(batch[n] for n in ("sample", "timestep", "class_labels"))).sample}


def run_vae(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    latent = model.encode(batch["pixel_values"]).latent_dist
    return {
        "latent_mean": latent.mean,
        "latent_logvar": latent.logvar,
        "sample": model.decode(batch["latents"]).sample,
    }


def run_unet(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    inputs = (batch[name] for name in ("sample", "timestep", "encoder_hidden_states"))
    added = {name: batch[name] for name in ("text_embeds", "time_ids") if name in batch}
    labels = batch.get("class_labels")
    return {"sample": model(*inputs, class_labels=labels, added_cond_kwargs=added).sample}


def run_sd3(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = ("sample", "encoder_hidden_states", "pooled_projections", "timestep")
    return {"sample": model(*(batch[name] for name in names)).sample}


RUNS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "DiTTransformer2DModel": run_dit,
    "AutoencoderKL": run_vae,
    "SD3Transformer2DModel": run_sd3,
    "UNet2DConditionModel": run_unet,
}


def random_torch(kind: str, seed: int = 0, **changed: Any) -> Any:
    """PyTorch's part with random weights, none of them as they are made."""
    name, config = CONFIGS[kind]
    torch.manual_seed(seed)
    model = getattr(diffusers, name)(**config | changed).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    return model


def random_batch(kind: str) -> dict[str, np.ndarray]:
    """Three examples of what a part reads."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=(3, *shape)).astype(np.float32)

    if kind == "vae":
        return {"pixel_values": normal(3, 16, 16), "latents": normal(3, 8, 8)}
    batch = {"sample": normal(3, 8, 8), "timestep": np.array([0, 7, 900])}
    if kind == "dit":
        return batch | {"class_labels": np.array([0, 10, 4])}
    batch["encoder_hidden_states"] = normal(5, 12)
    if kind == "sd3.5":
        return batch | {"pooled_projections": normal(10)}
    if kind == "unet-xl":
        sizes = draw.integers(0, 512, (3, 6)).astype(np.float32)
        return batch | {"text_embeds": normal(10), "time_ids": sizes}
    return batch | {"class_labels": np.array([0, 6, 4])}


def make_part(kind: str, folder: Path) -> PartPair:
    """A random part of one of `CONFIGS`, written and loaded."""
    model = random_torch(kind)
    model.save_pretrained(folder)
    return PartPair(registry.load(str(folder)), model, folder, random_batch(kind))


def save_dit_pipeline(folder: Path, scheduler: Any = None, **changed: Any) -> None:
    """A random pipeline of a DiT over the latents of an autoencoder, as diffusers writes it."""
    transformer = random_torch("dit", out_channels=3, num_embeds_ada_norm=4, **changed)
    vae = random_torch("vae", sample_size=16)
    scheduler = scheduler or diffusers.DDIMScheduler(clip_sample=False)
    names = {str(number): f"class {number}" for number in range(4)}
    diffusers.DiTPipeline(transformer, vae, scheduler, id2label=names).save_pretrained(folder)


def save_pixel_pipeline(folder: Path, scheduler: Any, **changed: Any) -> None:
    """A random pipeline of a DiT over pixels: a denoiser and a scheduler alone."""
    model = random_torch("dit", out_channels=3, num_embeds_ada_norm=4, **changed)
    model.save_pretrained(folder / "transformer")
    scheduler.save_pretrained(folder / "scheduler")
    parts = {"transformer": ["diffusers", "DiTTransformer2DModel"]}
    parts["scheduler"] = ["diffusers", type(scheduler).__name__]
    index = {"_class_name": "DiTPipeline", "_diffusers_version": diffusers.__version__, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))


WORDS = ("a", "red", "green", "blue", "square", "photo")


def words_tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    """A tokenizer of `WORDS` with rows of 8 tokens, made in a folder that is removed."""
    vocabulary = {f"{word}</w>": number for number, word in enumerate(WORDS)}
    # Byte by byte spelled out, so that each word merges from its letters.
    letters = sorted({letter for word in WORDS for letter in word})
    merges = []
    for word in WORDS:
        whole = [*word[:-1], f"{word[-1]}</w>"]
        while len(whole) > 1:
            merges.append(f"{whole[0]} {whole[1]}")
            whole[:2] = ["".join(whole[:2])]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += [merge.replace(" ", "") for merge in merges]
    for piece in pieces:
        vocabulary.setdefault(piece, len(vocabulary))
    ends = ("<|startoftext|>", "<|endoftext|>")
    vocabulary |= {end: len(vocabulary) + number for number, end in enumerate(ends)}
    files = folder / "words"
    files.mkdir(parents=True)
    (files / "vocab.json").write_text(json.dumps(vocabulary))
    merged = "\n".join(["#version: 0.2", *dict.fromkeys(merges), ""])
    (files / "merges.txt").write_text(merged)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(files, model_max_length=8)
    shutil.rmtree(files)
    return tokenizer


def text_config(tokenizer: transformers.CLIPTokenizer, **changed: Any) -> Any:
    """The config of a small CLIP text tower for a tokenizer."""
    torch.manual_seed(0)
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=12,
        intermediate_size=16,
        **{"num_hidden_layers": 1, "num_attention_heads": 2} | changed,
        max_position_embeddings=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


ONE_BLOCK = {
    "block_out_channels": [8],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}


def save_text_pipeline(folder: Path) -> None:
    """A random Stable Diffusion: a U-Net over latents, a text tower of 8 tokens, its tokenizer."""
    tokenizer = words_tokenizer(folder)
    diffusers.StableDiffusionPipeline(
        vae=random_torch("vae"),
        text_encoder=transformers.CLIPTextModel(text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=random_torch("unet-1.5", num_class_embeds=None, **ONE_BLOCK),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def save_xl_pipeline(folder: Path) -> None:
    """A random SDXL: a U-Net that reads two text towers and the sizes of an image."""
    tokenizer = words_tokenizer(folder)
    text = text_config(tokenizer, num_hidden_layers=3)
    other = text_config(tokenizer, num_hidden_layers=2, projection_dim=10)
    diffusers.StableDiffusionXLPipeline(
        vae=random_torch("vae"),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(other).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=random_torch("unet-xl", cross_attention_dim=24),
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
        add_watermarker=False,
    ).save_pretrained(folder)


def save_sd3_pipeline(folder: Path, t5: bool = True) -> None:
    """A random Stable Diffusion 3: a transformer that reads two CLIP towers, and T5 or none."""
    tokenizer = words_tokenizer(folder)
    towers = [
        transformers.CLIPTextModelWithProjection(
            text_config(tokenizer, num_hidden_layers=layers, projection_dim=5)
        ).eval()
        for layers in (2, 3)
    ]
    torch.manual_seed(1)
    read = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=30,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    diffusers.StableDiffusion3Pipeline(
        transformer=random_torch("sd3.5", joint_attention_dim=30),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=random_torch("vae", shift_factor=0.1),
        text_encoder=towers[0],
        tokenizer=tokenizer,
        text_encoder_2=towers[1],
        tokenizer_2=tokenizer,
        text_encoder_3=transformers.T5EncoderModel(read).eval() if t5 else None,
        tokenizer_3=tokenizer if t5 else None,
    ).save_pretrained(folder)
