"""Low-rank adapters: beside linears and experts, in PEFT's folders, several at run time, and
the options that say which linears get one. Their training is the stages' (minimind.stages.lora)."""
