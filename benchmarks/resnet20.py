"""The ResNet-20 of He et al. 2016 for CIFAR-10 (section 4.2, shortcuts of kind A), with the names that its checkpoints have."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Unit(nn.Module):
    """Two 3x3 convolutions and a shortcut, which takes every other pixel and pads the channels where the shape changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(x + y)


class ResNet20(nn.Module):
    """Three stages of three units, 16, 32 and 64 channels wide."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Unit(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(Unit(16, 32), Unit(32, 32), Unit(32, 32))
        self.layer3 = nn.Sequential(Unit(32, 64), Unit(64, 64), Unit(64, 64))
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.layer3(self.layer2(self.layer1(y)))
        logits: torch.Tensor = self.linear(y.mean(dim=(2, 3)))
        return logits


def resnet20(classes: int = 10) -> nn.Module:
    """The factory of a run file."""
    return ResNet20(classes)
