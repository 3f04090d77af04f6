"""Trainings of others that are killed and go on: `python -m benchmarks.kill_peers accelerate|trainer|lightning FOLDER`.

A small network with dropout on 512 shuffled samples, 200 steps of 16, a checkpoint every 20, each as its documentation
resumes it. FOLDER gets a line `step loss` a step, and at the end a hash of the weights.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

STEPS, EVERY, SAMPLES, BATCH, LR = 200, 20, 512, 16, 1e-3


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(SAMPLES, 32, generator=generator), torch.randint(5, (SAMPLES,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 5))


class Notes:
    """The losses of the steps, durable against a kill of the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = (folder / "losses.txt").open("a", buffering=1)

    def step(self, step: int, loss: torch.Tensor) -> None:
        self._file.write(f"{step} {loss.item()!r}\n")

    def end(self, model: nn.Module) -> None:
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        (self._folder / "end.txt").write_text(digest.hexdigest())


def accelerate(folder: Path, notes: Notes) -> None:
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import ProjectConfiguration, set_seed

    keys: Any = {"automatic_checkpoint_naming": True, "total_limit": 2}
    accelerator: Any = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True),
        project_config=ProjectConfiguration(project_dir=str(folder), **keys),
    )  # fmt: skip
    set_seed(0)
    plain = network()
    model, optimizer, loader = accelerator.prepare(
        plain, torch.optim.AdamW(plain.parameters(), lr=LR), DataLoader(data(), batch_size=BATCH, shuffle=True)
    )
    done = 0
    found = sorted((folder / "checkpoints").glob("checkpoint_*"), key=lambda path: int(path.name.split("_")[1]))
    if found:
        accelerator.load_state(str(found[-1]))
        number = int(found[-1].name.split("_")[1])
        accelerator.project_configuration.iteration = number + 1
        done = (number + 1) * EVERY
    each = len(loader)
    for epoch in range(done // each, -(-STEPS // each)):
        loader.set_epoch(epoch)
        left = accelerator.skip_first_batches(loader, done % each) if epoch == done // each and done % each else loader
        for images, labels in left:
            if done == STEPS:
                break
            loss = functional.cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            notes.step(done, loss)
            if done % EVERY == 0:
                accelerator.save_state()
    notes.end(plain)


def trainer(folder: Path, notes: Notes) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Ours(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            loss = functional.cross_entropy(model(inputs["images"]), inputs["labels"])
            notes.step(self.state.global_step + 1, loss)
            return loss

    settings = TrainingArguments(
        str(folder / "out"), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=LR, use_cpu=True, report_to="none",
        save_steps=EVERY, save_total_limit=2, disable_tqdm=True, remove_unused_columns=False, seed=0,
    )  # fmt: skip
    samples = [{"images": images, "labels": label} for images, label in zip(*data().tensors, strict=True)]
    model = network()
    ours = Ours(model=model, args=settings, train_dataset=samples)
    ours.remove_callback(PrinterCallback)
    ours.train(resume_from_checkpoint=True if list((folder / "out").glob("checkpoint-*")) else None)
    notes.end(model)


def lightning(folder: Path, notes: Notes) -> None:
    import lightning as library
    from lightning.pytorch.callbacks import ModelCheckpoint

    kinds: Any = library
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # it advises loader workers

    class Module(kinds.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = functional.cross_entropy(self.network(batch[0]), batch[1])
            notes.step(self.global_step + 1, loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=LR)

    kinds.seed_everything(0, verbose=False)
    saving: Any = ModelCheckpoint(str(folder / "out"), every_n_train_steps=EVERY, save_last=True)
    module = Module()
    fit = kinds.Trainer(
        accelerator="cpu", devices=1, max_steps=STEPS, logger=False, callbacks=[saving], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=str(folder),
    )  # fmt: skip
    last = folder / "out" / "last.ckpt"
    fit.fit(module, DataLoader(data(), batch_size=BATCH, shuffle=True), ckpt_path=str(last) if last.exists() else None)
    notes.end(module.network)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    {"accelerate": accelerate, "trainer": trainer, "lightning": lightning}[sys.argv[1]](where, Notes(where))
