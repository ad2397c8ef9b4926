"""Readers of the file formats that single-cell ATAC-seq data come in."""

from pyro_scale.data.readers.read import read

__all__ = ["read"]
