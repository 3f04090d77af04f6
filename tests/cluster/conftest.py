"""One Slurm for all tests of this folder, and runs that are given to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.daemons import TestCluster


@pytest.fixture(scope="session")
def daemons() -> Iterator[TestCluster]:
    started = TestCluster()
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def cluster(daemons: TestCluster) -> Iterator[TestCluster]:
    """The cluster, with no job before and none after."""
    yield daemons
    daemons.cancel_all()
