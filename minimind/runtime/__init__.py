"""Manages the process and its machine: ranks, devices, memory, seeds, logging, atomic files, worker
processes. It knows nothing about models, data or training."""
