"""The demo's network: small enough to be pretrained on a CPU in seconds."""

from __future__ import annotations

from torch import Tensor, nn


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SmallCNN(nn.Module):
    """Grey images [n, 1, 8, 8] to logits [n, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(1, 32), _block(32, 32), nn.MaxPool2d(2), _block(32, 64), _block(64, 64), nn.MaxPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(64 * 2 * 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images))
        return logits


def small_cnn(classes: int = 5) -> SmallCNN:
    """A network for 8x8 grey images."""
    return SmallCNN(classes)
