"""The errors a user can cause, by name. Each is also one of Python's."""

__all__ = [
    "CheckpointError",
    "DataError",
    "ModelFileError",
    "NonFiniteError",
    "NotTrainedError",
    "OutOfMemory",
]


class CheckpointError(ValueError):
    """Training cannot go on from a checkpoint; the message says why."""


class DataError(ValueError):
    """The cells given cannot be used as they are; the message says what to do."""


class ModelFileError(ValueError):
    """A saved model cannot be loaded; the message says why."""


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is no longer a number; the message says where and what to try."""


class NotTrainedError(ValueError):
    """A result was asked of a model before ``train()``."""


class OutOfMemory(MemoryError):  # noqa: N818 - as torch names it
    """There is too little memory for a minibatch, or for a file; the message says what to do."""
