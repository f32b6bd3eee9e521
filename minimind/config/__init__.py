"""Defines options and their sources: a model's configuration and presets, a stage's recipe, the
DeepSpeed JSON and its checks. Its values are plain: nothing here builds a model, reads data or
imports PyTorch's distributed parts; minimind.run puts options together."""
