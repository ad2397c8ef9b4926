"""Loops that torch has no operation for, compiled by Numba for the CPU.

They take and change numpy arrays (the memory of CPU tensors), let go of the interpreter, and split
their work the same way whatever the number of threads, so that their results do not depend on it.
Numba is imported with the first use of a kernel, not with the package.
"""
