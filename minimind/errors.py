"""Defines errors that a user can cause and correct. The verbs of minimind/cli print each as a clear
message and exit with status 2."""


class MiniMindError(Exception):
    """Is the base of the errors below, about usage, configuration, data or checkpoints."""


class ConfigError(MiniMindError):
    """Reports a flag, a model or recipe field, or a DeepSpeed JSON that cannot be used as given."""


class DataError(MiniMindError):
    """Reports a data file, row or tokenizer that cannot be used; for a row the message starts with
    `path:line:`."""


class CheckpointError(MiniMindError):
    """Reports a checkpoint or weights folder that is missing, incomplete or for another model."""


class TrainingError(Exception):
    """Reports a run that failed while training, for example by a loss that is not finite: exit
    status 1."""


class LostRankError(TrainingError):
    """Reports that a rank of the run has died, failed, hangs or cannot be reached. The rank that
    noticed it has logged it."""
