"""DINOv3's linear classifier in PyTorch, which `transformers` does not have.

The published one (facebookresearch/dinov3, `hub/classifiers.py`) reads the normalized class token
beside the mean of the normalized patches.
"""

import torch
from transformers import DINOv3ViTModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.modeling_outputs import ImageClassifierOutput

# transformers renames tensors in files of its own classes only, unless a mapping is registered.
register_checkpoint_conversion_mapping(
    "dinov3_vit", get_checkpoint_conversion_mapping("dinov3_vit"), overwrite=True
)


class DINOv3ViTForImageClassification(DINOv3ViTModel):
    """A trunk whose tensors have the names that they have alone, and `classifier` beside it."""

    def __init__(self, config):
        super().__init__(config)
        self.classifier = torch.nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        stream = super().forward(pixel_values).last_hidden_state
        patches = stream[:, 1 + self.config.num_register_tokens :].mean(1)
        return ImageClassifierOutput(
            logits=self.classifier(torch.cat([stream[:, 0], patches], dim=-1))
        )
