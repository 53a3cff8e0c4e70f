"""A Ray for tests, of this machine alone: no dashboard, no statistics of its use, files in a temporary folder."""

import tempfile
from contextlib import contextmanager

import pytest
import ray


@contextmanager
def local_ray(num_cpus, **options):
    """Start a Ray, and end it in any case."""
    # Its sockets must have short paths, which those of pytest are not.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", "of-the-tests-" * 4)
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        given = {"include_dashboard": False, "object_store_memory": 100 * 2**20, "log_to_driver": False}
        try:
            yield ray.init("local", num_cpus=num_cpus, _temp_dir=folder, **given, **options)
        finally:
            ray.shutdown()
