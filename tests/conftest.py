"""The process that forks trainers, and how the tests are shared out when several processes run them (pytest-xdist)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

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


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """A file stays together, for what its tests share; so do all files that use the test cluster, of which one is enough."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "cluster" if "/cluster/" in file else file


# xdist's own groups are written into names of tests, which pytest does not read there since 9.2
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)
