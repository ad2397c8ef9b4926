"""The errors a user can cause, by name. Each is also one of Python's."""

__all__ = ["DataError", "ModelFileError", "NotTrainedError", "OutOfMemory"]


class DataError(ValueError):
    """The cells given cannot be used as they are; the message says what to do."""


class ModelFileError(ValueError):
    """A saved model cannot be loaded; the message says why."""


class NotTrainedError(ValueError):
    """A result was asked of a model before ``train()``."""


class OutOfMemory(MemoryError):  # noqa: N818 - as torch names it
    """A device has too little memory for a minibatch; the message names a smaller one."""
