"""The process that forks trainers, and how the tests are shared out when several processes run them (pytest-xdist)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.trainers import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays together, for what its tests share; so do all files that use the test cluster, of which one is enough."""
    for item in items:
        folder, file = item.path.parent.name, str(item.path)
        item.add_marker(pytest.mark.xdist_group("cluster" if folder == "cluster" else file))
