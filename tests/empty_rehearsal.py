"""Provides a rehearsal that found nothing, for tests of reports about one."""

from minimind.rehearsal.report import Rehearsal
from minimind.rehearsal.roofline import Roofline

NOTHING = Rehearsal(
    device="H200",
    world_size=1,
    tokens=1000,
    launches={},
    operators={},
    collectives={},
    waits=(),
    flops=0,
    kernel_bytes=0,
    peak={},
    roofline=Roofline(products=0.5, memory=0.25, links=0.0, host=0.1),
    seconds=1.0,
)
