"""The errors a user can cause, by name. Each is also one of Python's."""

__all__ = [
    "BusyError",
    "CheckpointError",
    "DataError",
    "ModelFileError",
    "NonFiniteError",
    "NotTrainedError",
    "OutOfMemory",
]


class BusyError(RuntimeError):
    """A model was asked by one thread while another trains it; the message says what to do.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> issubclass(ps.BusyError, RuntimeError)
    True
    """


class CheckpointError(ValueError):
    """Training cannot go on from a checkpoint; the message says why.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
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
    """The cells given cannot be used as they are; the message says what to do.

    Examples
    --------
    >>> import anndata, numpy, pyro_scale as ps
    >>> try:
    ...     ps.SCALE(anndata.AnnData(numpy.array([[1.0, 0.0], [0.0, 0.0]])))
    ... except ps.DataError as error:
    ...     print(str(error).split("; ")[0])
    1 of 2 cells have no open peak (the first is '1')
    """


class ModelFileError(ValueError):
    """A saved model cannot be loaded; the message says why.

    Examples
    --------
    >>> import tempfile
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         ps.SCALE.load(folder, adata)
    ...     except ps.ModelFileError:
    ...         print("not a model")
    not a model
    """


class NonFiniteError(ArithmeticError):
    """The loss or its gradient is no longer a number; the message says where and what to try.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> model.vae.prior.loc_kd.data[0] = float("nan")
    >>> try:
    ...     model.train(max_epochs=2, warmup_epochs=0, progress_bar=False)
    ... except ps.NonFiniteError as error:
    ...     print(type(error).__bases__)
    (<class 'ArithmeticError'>,)
    """


class NotTrainedError(ValueError):
    """A result was asked of a model before ``train()``.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> adata = ps.simulate(n_cells=40, n_peaks=60, n_clusters=2, density=0.2, seed=0)
    >>> model = ps.SCALE(adata, n_components=2, n_latent=2, hidden=(8,))
    >>> try:
    ...     model.get_latent_representation()
    ... except ps.NotTrainedError as error:
    ...     print(error)
    the model is not trained: call model.train() first.
    """


class OutOfMemory(MemoryError):  # noqa: N818 - as torch names it
    """There is too little memory for a minibatch, or for a file; the message says what to do.

    Examples
    --------
    >>> import pyro_scale as ps
    >>> issubclass(ps.OutOfMemory, MemoryError)
    True
    """
