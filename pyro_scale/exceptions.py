"""Errors that a user can cause; each is a subclass of a built-in exception."""

__all__ = [
    "BusyError",
    "CheckpointError",
    "DataError",
    "ModelFileError",
    "NonFiniteError",
    "NotTrainedError",
    "OutOfMemoryError",
]


class BusyError(RuntimeError):
    """A model is used by one thread while another thread trains it.

    Examples
    --------
    >>> issubclass(ps.BusyError, RuntimeError)
    True
    """


class CheckpointError(ValueError):
    """Training cannot resume from a checkpoint; the message gives the reason.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "training.checkpoint"
    ...     _ = path.write_bytes(b"something else")
    ...     try:
    ...         ps.SCALE(adata, 2, 2).train(2, checkpoint=path, progress_bar=False)
    ...     except ps.CheckpointError:
    ...         print("not a checkpoint")
    not a checkpoint
    """


class DataError(ValueError):
    """The data cannot be used as they are; the message says what to change.

    Examples
    --------
    >>> import anndata, numpy
    >>> try:
    ...     ps.SCALE(anndata.AnnData(numpy.array([[1.0, 0.0], [0.0, 0.0]])))
    ... except ps.DataError as error:
    ...     print(str(error).split("; ")[0])
    1 of 2 cells have no open peak (the first is '1')
    """


class ModelFileError(ValueError):
    """A saved model cannot be loaded; the message gives the reason.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         ps.SCALE.load(folder, adata)
    ...     except ps.ModelFileError:
    ...         print("not a model")
    not a model
    """


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is not finite; the message says where, and what to try.

    Examples
    --------
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.vae.prior.loc_kd.data[0] = float("nan")
    >>> try:
    ...     model.train(max_epochs=2, warmup_epochs=0, progress_bar=False)
    ... except ps.NonFiniteError as error:
    ...     print(type(error).__bases__)
    (<class 'ArithmeticError'>,)
    """


class NotTrainedError(ValueError):
    """A result is requested from a model that is not trained.

    Examples
    --------
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> try:
    ...     model.get_latent_representation()
    ... except ps.NotTrainedError as error:
    ...     print(error)
    the model is not trained: call model.train() first.
    """


class OutOfMemoryError(MemoryError):
    """A minibatch or a file does not fit into memory; the message says what to do.

    Examples
    --------
    >>> issubclass(ps.OutOfMemoryError, MemoryError)
    True
    """
