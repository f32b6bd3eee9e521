"""Rehearses a training step or a generation on a device that need not exist.

It executes the real run, with its loop, stage and DeepSpeed, on tensors that have shapes but no
values. So it counts exactly the device's work, the host's waits and the memory at the peak, but
says nothing about results, about how long a kernel takes, or about errors that only a device
reports.
"""
