"""Holds low-rank adapters: modules that add them to linears and experts, folders in PEFT's format,
several adapters at run time, and the options that say which linears get one. minimind.stages.lora
trains them."""
