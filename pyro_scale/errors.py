"""The errors a user can cause, by name. Each is a ValueError or TypeError too."""

__all__ = ["DataError", "ModelFileError", "NotTrainedError"]


class DataError(ValueError):
    """The cells given cannot be used as they are; the message says what to do."""


class ModelFileError(ValueError):
    """A saved model cannot be loaded; the message says why."""


class NotTrainedError(ValueError):
    """A result was asked of a model before ``train()``."""
