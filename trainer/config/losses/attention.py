"""Where a teacher looks."""

from __future__ import annotations

from typing import Literal

from trainer.config.paired import Paired


class Config(Paired):
    """Look where the reference looks: attention transfer (Zagoruyko and Komodakis 2017)."""

    kind: Literal["attention"] = "attention"
