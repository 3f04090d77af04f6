"""The frozen ResNet-18 of `benchmarks.frozen` by others: `python -m benchmarks.frozen_peers trainer|hand TOLD.json`.

The trunk is frozen and its BatchNorm evaluates, as graft has it. `trainer`: the Hugging Face Trainer by its own defaults.
`hand`: a loop as a careful person writes it, with two loader workers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor


class Pictures(torch.utils.data.Dataset[Any]):
    """Cut to 224 pixels and normalised."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._cut = v2.Compose([v2.Resize(224, antialias=True), v2.CenterCrop(224)])
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def __len__(self) -> int:
        return len(self._told["files"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        with Image.open(self._told["files"][index]) as image:
            pixels = self._cut(pil_to_tensor(image.convert("RGB")))
        return {"images": (pixels / 255 - self._mean) / self._std, "labels": self._told["labels"][index]}


class Sampler(torch.utils.data.Sampler[int]):
    """The order that was told, an epoch after the other."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told, self._epoch = told, 0

    def __len__(self) -> int:
        return len(self._told["files"])

    def __iter__(self) -> Iterator[int]:
        self._epoch += 1
        return iter(self._told["order"][self._epoch - 1])


class Frozen(nn.Module):
    """A ResNet-18 of which the head learns."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__()
        self.network = torchvision.models.resnet18(weights=None, num_classes=told["classes"])
        self.network.load_state_dict(torch.load(told["weights"], weights_only=True))
        self.network.requires_grad_(False).fc.requires_grad_(True)

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self

    def forward(self, images: Any, labels: Any) -> dict[str, Any]:
        logits = self.network(images)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(told: dict[str, Any]) -> tuple[list[torch.Tensor], list[float]]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    losses: list[torch.Tensor] = []
    ends: list[float] = []

    class Remembering(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return Sampler(told)

        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **keys: Any) -> Any:
            loss = super().compute_loss(model, inputs, *rest, **keys)
            losses.append(loss.detach())
            return loss

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.time())

    settings = TrainingArguments(
        told["out"], num_train_epochs=told["epochs"], per_device_train_batch_size=told["batch"], learning_rate=told["lr"],
        use_cpu=True, remove_unused_columns=False, report_to="none",
    )  # fmt: skip
    Remembering(model=Frozen(told), args=settings, train_dataset=Pictures(told), callbacks=[Clock()]).train()
    return losses, ends


def hand(told: dict[str, Any]) -> tuple[list[torch.Tensor], list[float]]:
    model = Frozen(told).train()
    learning = list(model.network.fc.parameters())
    optimizer = torch.optim.AdamW(learning, lr=told["lr"], weight_decay=0.0)
    loader: Any = torch.utils.data.DataLoader(
        Pictures(told), batch_size=told["batch"], sampler=Sampler(told), num_workers=2, persistent_workers=True
    )
    steps = told["epochs"] * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses: list[torch.Tensor] = []
    ends: list[float] = []
    for _ in range(told["epochs"]):
        for batch in loader:
            loss = model(**batch)["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        ends.append(time.time())
    return losses, ends


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[2]).read_text())
    each, times = {"trainer": trainer, "hand": hand}[sys.argv[1]](given)
    result = {"losses": torch.stack(each).tolist(), "epoch": (times[-1] - times[0]) / (len(times) - 1)}
    (Path(given["out"]) / "result.json").write_text(json.dumps(result), encoding="utf-8")
