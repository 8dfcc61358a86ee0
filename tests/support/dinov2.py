"""DINOv2's linear head for pixels in PyTorch, which `transformers` does not have.

It is the one of DINOv2's own evaluation, without its batch norm: a convolution of one pixel over
the normalized patches.
"""

import torch
from transformers import Dinov2Model, Dinov2WithRegistersModel
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.dinov2.modeling_dinov2 import Dinov2PreTrainedModel
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersPreTrainedModel,
)


def classes_of_patches(model, trunk, pixels):
    """Logits [B, C, h, w] of a trunk's patches, row by row."""
    config, image = model.config, pixels.shape[2:]
    first = 1 + getattr(config, "num_register_tokens", 0)
    patches = trunk(pixels).last_hidden_state[:, first:]
    grid = [side // config.patch_size for side in image]
    maps = patches.transpose(1, 2).reshape(len(pixels), -1, *grid)
    return SemanticSegmenterOutput(logits=model.classifier(maps))


class Dinov2ForSemanticSegmentation(Dinov2PreTrainedModel):
    """A trunk, and `classifier` beside it."""

    def __init__(self, config):
        super().__init__(config)
        self.dinov2 = Dinov2Model(config)
        self.classifier = torch.nn.Conv2d(config.hidden_size, config.num_labels, 1)
        self.post_init()

    def forward(self, pixel_values):
        return classes_of_patches(self, self.dinov2, pixel_values)


class Dinov2WithRegistersForSemanticSegmentation(Dinov2WithRegistersPreTrainedModel):
    """A trunk with registers, and `classifier` beside it."""

    def __init__(self, config):
        super().__init__(config)
        self.dinov2_with_registers = Dinov2WithRegistersModel(config)
        self.classifier = torch.nn.Conv2d(config.hidden_size, config.num_labels, 1)
        self.post_init()

    def forward(self, pixel_values):
        return classes_of_patches(self, self.dinov2_with_registers, pixel_values)
