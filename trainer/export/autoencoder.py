"""Writes the export of an autoencoder: a folder of diffusers, with a card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from trainer.config import UserError
from trainer.export.card import begun, cell, licence, measured, source_of, training
from trainer.export.folder import TOLERANCE
from trainer.export.place import graft_version, new_folder, take_samples
from trainer.models.reconstructor import KIND, Reconstructing
from trainer.restored import Restored


def export_autoencoder(restored: Restored, out: Path, summary: dict[str, Any], evaluation: dict[str, Any]) -> Path:
    """Write `out`, which diffusers' AutoencoderKL loads, with README.md, samples.png and graft.json, and return it.

    An autoencoder that began with random weights gets the `scaling_factor` that gives the validation latents a deviation of 1;
    any other one keeps its own, which generators on its latents were trained with. Before the folder takes its name it is loaded
    by diffusers and must make the same pictures to 1e-5 of their size. Raises UserError when `out` is something else.
    """
    network, run, spec = restored.network, restored.run, restored.spec
    assert isinstance(network, Reconstructing)
    ours = (out / "config.json").is_file() and (out / "graft.json").is_file()
    with new_folder(out, ours=ours) as new:
        inner: Any = network.network
        deviation = float((evaluation.get("latents") or {}).get("std") or 0.0)
        if run.model.weights == "none" and deviation > 0:
            inner.register_to_config(scaling_factor=1 / deviation)
        inner.save_pretrained(new)
        _check(network, new, spec.in_channels, spec.image_size)
        about = {
            "graft": graft_version(), "name": run.name, "step": restored.step, "task": "autoencoder",
            "image_size": spec.image_size, "pixels": "from -1 to 1",
        }  # fmt: skip
        (new / "graft.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shown = take_samples(restored.folder, restored.step, new)
        manifest = restored.folder.read_json(restored.folder.manifest)
        text = _card(restored, manifest, summary, evaluation, float(inner.config.scaling_factor), shown=shown)
        (new / "README.md").write_text(text, encoding="utf-8")
    return out


def _check(network: Reconstructing, new: Path, channels: int, size: int) -> None:
    from diffusers import AutoencoderKL

    again = AutoencoderKL.from_pretrained(new).eval()
    probe = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected, found = network(probe)[0], again(probe).sample
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise UserError(f"the exported autoencoder makes other pictures (by {difference:g}); nothing was written")


def _card(
    restored: Restored,
    manifest: dict[str, Any],
    summary: dict[str, Any],
    evaluation: dict[str, Any],
    scale: float,
    *,
    shown: bool,
) -> str:
    """README.md of an export; what the run did not measure is said to be missing."""
    run, spec = restored.run, restored.spec
    network: Any = restored.network
    channels, factor = network.latents
    return "\n".join([
        "---\nlicense: unknown\nlibrary_name: diffusers\n---\n",
        f"# {cell(run.name)}\n",
        f"An autoencoder (`{KIND}` of diffusers): `{source_of(run)}`, {begun(run)}. Strategy: {run.strategy.kind}.\n\n"
        f"Pictures of {spec.image_size} x {spec.image_size} in {spec.in_channels} channels become latents of {channels}, "
        f"{factor} times smaller a side; `scaling_factor` is {scale:.5g}.\n",
        *(["![input, output](samples.png)\n\nValidation pictures and what is made of their latents.\n"] if shown else []),
        f'## How to use it\n\nWith diffusers, without graft: `{KIND}.from_pretrained("FOLDER")`; in graft as '
        "`task: {kind: diffusion, vae: diffusers:FOLDER}`.\n",
        measured(summary, evaluation),
        training(run, manifest, summary),
        licence(run),
    ])  # fmt: skip
