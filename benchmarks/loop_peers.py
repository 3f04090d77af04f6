"""The tiny network of `benchmarks.loop` in the loops of others, each as its documentation writes it, with ready batches."""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.loop import BATCH, CLIP, LOG_EVERY, LR, network

if TYPE_CHECKING:
    from benchmarks.loop import Work


class Batches(Dataset[Any]):
    """Ready batches as samples: no loop is charged for putting them together."""

    def __init__(self, work: Work) -> None:
        self._batches = [{"images": batch.images, "labels": batch.labels} for batch in work.batches]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._batches[index]


def _optimizer(model: torch.nn.Module, work: Work) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: work.cosine(step * BATCH))


def accelerate(work: Work) -> None:
    from accelerate import Accelerator

    accelerator: Any = Accelerator(cpu=True)
    plain = network()
    model, optimizer, scheduler, loader = accelerator.prepare(
        plain, *_optimizer(plain, work), DataLoader(Batches(work), batch_size=None)
    )
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    waiting: list[torch.Tensor] = []
    record: list[float] = []
    for step, batch in zip(range(work.steps), epochs, strict=False):
        with accelerator.accumulate(model):
            loss = work.loss(model, batch["images"], batch["labels"]).sum() / BATCH
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        waiting.append(loss.detach())
        if (step + 1) % LOG_EVERY == 0:
            record.append(torch.stack(waiting).mean().item())
            waiting.clear()


def hugging_face(work: Work) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Ours(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return work.loss(model, inputs["images"], inputs["labels"]).sum() / BATCH

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(Batches(work))

    model = network()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=work.steps, per_device_train_batch_size=1, max_grad_norm=CLIP, logging_steps=LOG_EVERY,
            use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = Ours(
            model=model, args=settings, train_dataset=Batches(work), data_collator=lambda items: items[0],
            optimizers=_optimizer(model, work), callbacks=[],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def lightning(work: Work) -> None:
    import lightning as library

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    kinds: Any = library

    class Module(kinds.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, _: int) -> Any:
            loss = work.loss(self.network, batch["images"], batch["labels"]).sum() / BATCH
            self.log("train/loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer, scheduler = _optimizer(self.network, work)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises loader workers
        trainer = kinds.Trainer(
            accelerator="cpu", devices=1, max_steps=work.steps, gradient_clip_val=CLIP, log_every_n_steps=LOG_EVERY, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Module(), DataLoader(Batches(work), batch_size=None))


LOOPS: dict[str, Callable[[Work], None]] = {
    "Accelerate": accelerate, "Hugging Face Trainer": hugging_face, "Lightning": lightning,
}  # fmt: skip
