"""Errors a user can cause and mend. The verbs of minimind/cli turn each into one clear message and
exit status 2."""


class MiniMindError(Exception):
    """Base of all errors below: the usage, configuration, data or checkpoint is bad."""


class ConfigError(MiniMindError):
    """Reports a flag, a model or recipe field, or a DeepSpeed JSON that cannot be used as given."""


class DataError(MiniMindError):
    """Reports a data file, row or tokenizer that cannot be used; the message starts with
    `path:line:`."""


class CheckpointError(MiniMindError):
    """Reports a checkpoint or weights folder that is missing, incomplete or of another model."""


class TrainingError(Exception):
    """Reports a run that broke while training (a loss that is not finite): exit status 1."""
