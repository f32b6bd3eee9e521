"""A training step or a generation on a device that is not there, before the first one is.

What runs is the run itself: its loop, its stage and DeepSpeed, on tensors that have shapes and no
values. So it counts exactly what is asked of the device, where the host would wait and what is held
at the peak, and says nothing of results, of how long a kernel takes, or of errors that only a
device reports.
"""
