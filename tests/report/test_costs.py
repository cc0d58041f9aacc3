"""Costs are those of the network, and leave it as it is."""

import timm
import torch
from torch import nn

from gkd_plugin.report.costs import costs_of


def test_multiplications_by_hand():
    """A convolution of 3 × 3 on 3 channels to 4, 8 × 8 pixels; a linear layer 4 → 5."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(4, 5))
    found = costs_of(model, torch.ones(7, 3, 8, 8))
    assert found.macs == 9 * 3 * 4 * 64 + 4 * 5
    assert found.parameters == (9 * 3 * 4 + 4) + 8 + (4 * 5 + 5)
    assert found.milliseconds > 0
    assert model.training
    assert model[1].num_batches_tracked == 0


def test_attention_is_counted():
    """5 tokens (4 patches of 16 × 16, the class): two products of 5 × 5 × width in each block."""
    model = timm.create_model("test_vit", img_size=32)
    linear = [module for module in model.blocks.modules() if isinstance(module, nn.Linear)]
    tokens, width = 5, model.embed_dim
    macs = 4 * 3 * 16 * 16 * width + tokens * sum(layer.weight.numel() for layer in linear)
    macs += 2 * tokens**2 * width * len(model.blocks) + width * 1000
    assert costs_of(model, torch.ones(1, 3, 32, 32)).macs == macs
