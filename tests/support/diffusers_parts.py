"""Random parts of pipelines of `diffusers`, ours and PyTorch's."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

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


RUNS: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
    "DiTTransformer2DModel": run_dit,
    "AutoencoderKL": run_vae,
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
