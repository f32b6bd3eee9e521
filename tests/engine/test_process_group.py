"""How the ranks join."""

from __future__ import annotations

import datetime

import pytest
from torch.distributed.distributed_c10d import _get_default_store


@pytest.mark.usefixtures("one_rank")
def test_the_store_waits_as_long_as_the_group():
    """NCCL waits in the store for a rank that comes later to a group's first collective."""
    assert _get_default_store().timeout == datetime.timedelta(hours=2)
