"""What every test starts from: one torch thread, seeded generators, torch's defaults put back, no test by the clock."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # another process may hold the processor
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _quiet_torch() -> Iterator[None]:
    """A second OpenMP thread spins at barriers: small networks take several times as long beside another process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
