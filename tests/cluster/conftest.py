"""A private Slurm for the session: real daemons, real jobs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.testbed import Testbed, missing_packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def bed() -> Iterator[Testbed]:
    """The cluster, with ``SLURM_CONF`` set for the session."""
    if lacking := missing_packages():
        words = f"no Slurm to test on; as root: apt-get install -y {' '.join(lacking)}"
        if os.environ.get("SPARSEHPC_REQUIRE_CLUSTER"):
            pytest.fail(words)
        pytest.skip(words)
    with tempfile.TemporaryDirectory(prefix="shpc-", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        cluster = Testbed(Path(folder) / "bed")
        cluster.up()
        try:
            for key, value in cluster.environment().items():
                patch.setenv(key, value)
            yield cluster
        finally:
            cluster.down()


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Wait until something is true, or fail with words."""

    def wait(ready: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                pytest.fail(f"after {timeout_s:.0f} s still not: {what}")
            time.sleep(0.2)

    return wait
