"""The process that forks trainers, and how the tests are shared out when several processes run them (pytest-xdist)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers import Zygote


@pytest.fixture(scope="session", autouse=True)
def users_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caches of the user's own are neither read nor filled."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def zygote(users_cache: Path) -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for what its tests share; so do all files that use the test cluster, of which one is enough."""
    for item in items:
        folder, file = item.path.parent.name, str(item.path)
        item.add_marker(pytest.mark.xdist_group("cluster" if folder == "cluster" else file))
