"""Sparse products and sums over peaks, with Numba kernels where torch has no CPU operation.

The kernels read and write NumPy arrays that share the memory of CPU tensors. They release the GIL
and split their work into a fixed number of parts, so that results do not depend on the number of
threads. Numba is imported at the first use of a kernel, not with the package.
"""
