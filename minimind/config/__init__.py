"""Defines the options and reads their sources: a model's configuration and presets, a stage's
recipe, the DeepSpeed JSON and its checks. All values are plain: nothing here builds a model, reads
data or imports PyTorch's distributed parts. minimind.run puts the options together."""
