"""Rehearses a training step or a generation on a device that need not exist.

The run itself is run, with its loop, its stage and DeepSpeed, on tensors that have shapes and no
values. So a rehearsal counts exactly the device's work, the waits of the host and the memory at the
peak. It says nothing of results, of how long a kernel takes, or of errors that only a device
reports.
"""
