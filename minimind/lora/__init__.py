"""Holds low-rank adapters: modules beside linears and experts, PEFT's folders, several adapters at
run time, and the options that say which linears get one. Stages train them
(minimind.stages.lora)."""
