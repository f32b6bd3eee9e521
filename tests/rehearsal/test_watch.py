"""What is captured, and what a pool of graphs holds, without a device."""

from __future__ import annotations

import gc

import pytest
import torch

from minimind.rehearsal.live_bytes import LiveBytes
from minimind.rehearsal.watch import Watch

BLOCK = 1 << 12


def test_a_replay_is_one_operator_of_the_host_and_all_the_work_of_the_device() -> None:
    watch = Watch("cpu", lambda: "activations")
    watch.begin_capture()
    watch.tally.add_operator("mm", 100, 10, is_wide=False)
    watch.tally.add_operator("add", 1, 10, is_wide=False)
    captured = watch.end_capture()
    assert not watch.tally.work
    watch.replay(captured)
    assert not watch.tally.work, "nothing is counted yet"
    watch.is_counting = True
    watch.replay(captured)
    watch.replay(captured)
    assert dict(watch.tally.operators) == {"replay": 2}
    assert sum(work.flops for work in watch.tally.work) == 202


def test_a_wait_ends_a_capture_as_it_would_on_a_gpu() -> None:
    watch = Watch("cpu", lambda: "activations")
    watch.begin_capture()
    watch.wait("item")
    with pytest.raises(RuntimeError, match=r"waits while a graph is captured.*item"):
        watch.end_capture()
    assert not watch.tally.waits


def test_a_pool_keeps_the_most_that_a_graph_was_captured_with() -> None:
    live = LiveBytes("cpu")
    for num_blocks in (3, 2, 4):
        live.begin_capture()
        kept = torch.empty(BLOCK, dtype=torch.uint8)
        passing = [torch.empty(BLOCK, dtype=torch.uint8) for _ in range(num_blocks)]
        for tensor in passing:
            live.see(tensor, "activations")
        live.see(kept, "backward")
        del passing, tensor
        gc.collect()
        live.end_capture()
        del kept
        gc.collect()
        live.start()
        assert live.peak.total() == live.peak["activations"] == max(3, num_blocks) * BLOCK
