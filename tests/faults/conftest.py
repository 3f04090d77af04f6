"""Trainers to break, and the runs that nobody broke."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers import Zygote, run_file


@pytest.fixture
def trainers(zygote: Zygote) -> Iterator[Zygote]:
    yield zygote
    zygote.clean()


@pytest.fixture(scope="session")
def references(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The uninterrupted run on one rank and on two."""
    found = {}
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"reference{world}")
        codes = zygote.run(run_file(folder), folder, world=world)
        assert codes == [0] * world, [rank.text() for rank in zygote.started]
        found[world] = folder / "run"
    return found
