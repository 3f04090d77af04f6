"""Where a library's saved models are: a folder here, or a repository of the Hugging Face hub with its cache."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config import UserError, nearest
from trainer.models.base import Need, first_few
from trainer.models.file import read_checkpoint


@dataclass(frozen=True)
class Place:
    """A folder (`path`), or a repository `owner/name` of the hub at a revision (branch, tag or commit; empty: the newest)."""

    path: Path | None
    repository: str = ""
    revision: str = ""

    @staticmethod
    def of(text: str) -> Place:
        """`/folder`, `./folder`, or `owner/name` or `owner/name@revision` where there is no such folder. Raises UserError."""
        path = Path(text).expanduser()
        if path.is_dir() or text.startswith(("/", "./", "../", "~")):
            if not path.is_dir():
                beside = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                raise UserError(f"model.source: {text}: no such folder{nearest(path.name, beside)}")
            return Place(path)
        repository, at, revision = text.partition("@")
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repository)
        except HFValidationError as error:
            raise UserError(f"model.source: '{text}' is neither a folder here nor a repository of the hub: {error}") from None
        if at and not revision:
            raise UserError(f"model.source: '{text}' ends with @; write a branch, a tag or a commit after it, or leave it out")
        return Place(None, repository, revision)

    @property
    def name(self) -> str:
        return str(self.path) if self.path is not None else self.repository + (f"@{self.revision}" if self.revision else "")

    def find(self, name: str, *, newest: bool = False) -> Path | None:
        """A file by its name in the folder or the repository; None where it is known that there is none.

        What the hub's cache holds is taken as it is, so that a run goes on with the weights it began with; `newest` asks the hub.
        Raises UserError where the hub is needed and cannot be asked, or refuses.
        """
        if self.path is not None:
            file = self.path / name
            return file if file.is_file() else None
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if not newest:
            held = try_to_load_from_cache(self.repository, name, revision=self.revision or None)
            if isinstance(held, str):
                return Path(held)
            if held is not None:  # the hub said earlier that there is none
                return None
        try:
            return Path(hf_hub_download(self.repository, name, revision=self.revision or None))
        except LocalEntryNotFoundError as error:  # an EntryNotFoundError of theirs, though nothing is known of the file
            raise UserError(f"{self._unreached(name)} (the hub cannot be reached: {_reason(error)})") from error
        except EntryNotFoundError:
            return None
        except GatedRepoError as error:
            raise UserError(
                f"{self.name}: its owner asks for an agreement; accept it on huggingface.co and set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise UserError(f"{self.repository} has no revision '{self.revision}' on the hub") from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"model.source: the hub has no repository '{self.repository}' (or it is private, and HF_TOKEN is missing), and "
                f"there is no folder of that name here"
            ) from error
        except Exception as error:  # of the http library, of the disk: the hub's client wraps only some
            raise UserError(f"{self._unreached(name)} ({_reason(error)})") from error

    def _unreached(self, name: str) -> str:
        return (
            f"{name} of {self.name} is not in the hub's cache here; run `graft fetch RUN` where there is a network, "
            "or download the repository and write its folder as the source"
        )

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object by the name of its file; None where there is none. Raises UserError for anything else."""
        file = self.find(name)
        if file is None:
            return None
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a readable JSON file ({error}); copy or download it again") from None
        if not isinstance(value, dict):
            raise UserError(f"{file}: holds no JSON object; copy or download it again")
        return value

    def config(self, library: str) -> dict[str, Any]:
        """`config.json`. Raises UserError where it is missing, or asks for code of its author's."""
        found = self.json("config.json")
        if found is None:
            raise UserError(f"{self.name}: has no config.json, so it is no saved model of {library}")
        refuse_code(found, self.name)
        return found

    def weights(self, stem: str = "model", pickles: tuple[str, ...] = ("pytorch_model",)) -> dict[str, torch.Tensor]:
        """The tensors by name: `STEM.safetensors`, whole or in shards, else a pickle of tensors alone (`pytorch_model.bin`).

        Raises UserError for what is missing, damaged, or more than tensors.
        """
        tensors: dict[str, torch.Tensor] = {}
        for file in self.files(stem, pickles):
            tensors |= read_checkpoint(file).tensors
        index = self._index(stem, pickles)
        lacking = [name for name in index if name not in tensors]
        if lacking:
            raise UserError(
                f"{self.name}: its files lack {len(lacking)} tensors that their index names ({first_few(lacking, 2)}): partial"
            )
        return tensors

    def _index(self, stem: str, pickles: tuple[str, ...]) -> dict[str, str]:
        for name in (f"{stem}.safetensors", *(f"{p}.bin" for p in pickles)):
            if self.find(name) is not None:
                return {}
            index = self.json(f"{name}.index.json")
            if index is not None:
                names = index.get("weight_map")
                if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
                    raise UserError(f"{self.name}: {name}.index.json does not say which file holds which tensor (weight_map)")
                return names
        return {}

    def files(self, stem: str = "model", pickles: tuple[str, ...] = ("pytorch_model",), *, newest: bool = False) -> list[Path]:
        """The files of the weights, in the order of preference of the libraries. Raises UserError for shards that are missing."""
        for name in (f"{stem}.safetensors", *(f"{p}.bin" for p in pickles)):
            file = self.find(name, newest=newest)
            if file is not None:
                return [file]
            if self.find(f"{name}.index.json", newest=newest) is not None:
                shards = list(dict.fromkeys(self._index(stem, pickles).values()))
                folder = name[: len(name) - len(Path(name).name)]
                found = {shard: self.find(folder + shard, newest=newest) for shard in shards}
                lacking = [shard for shard, path in found.items() if path is None]
                if lacking:
                    raise UserError(
                        f"{self.name}: {len(lacking)} of {len(shards)} weight files are missing ({first_few(lacking, 3)}): "
                        "partial; copy or download them too"
                    )
                return [path for path in found.values() if path is not None]
        shards = sorted(p.name for p in self.path.glob(f"{stem}-*-of-*.safetensors")) if self.path is not None else []
        if shards:
            raise UserError(f"{self.name}: has {first_few(shards, 2)} but no {stem}.safetensors.index.json: partial; copy it too")
        raise UserError(f"{self.name}: has no weights ({stem}.safetensors or {pickles[0] if pickles else stem}.bin); write "
                        "weights: none to train its architecture from scratch")  # fmt: skip

    def needs(
        self, what: str, others: tuple[str, ...], stem: str = "model", pickles: tuple[str, ...] = ("pytorch_model",)
    ) -> list[Need]:
        """What `graft fetch` brings or checks; `others`: files beside the weights that may be there."""
        if self.path is not None:
            held = [file for name in others if (file := self.find(name)) is not None]
            return [Need(what, file) for file in [*held, *self.files(stem, pickles)]]

        def bring() -> list[Path]:
            found = [file for name in others if (file := self.find(name, newest=True)) is not None]
            return [*found, *self.files(stem, pickles, newest=True)]

        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repository, repo_type="model")
        return [Need(what, folder, f"https://huggingface.co/{self.repository}", bring=bring)]


def refuse_code(settings: dict[str, Any], name: str) -> None:
    """Raise UserError for a model that is code of its author's (`auto_map`, `custom_pipelines`)."""
    for key in ("auto_map", "custom_pipelines"):
        if settings.get(key):
            raise UserError(
                f"{name}: asks to run code of its author's ({key}: {first_few([str(v) for v in _values(settings[key])], 2)}); "
                "graft never does. Where you trust it, write the network down in a file of your own and name that: "
                "python:path.py:factory"
            )


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _reason(error: BaseException) -> str:
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set"
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0][:200]
