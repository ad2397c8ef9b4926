"""A device for machines without one: tensors that say "meta" and have values all the same.

As on a GPU, an operation on tensors here and there is refused, and so are their numpy arrays.
"""

from collections import Counter

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

THERE = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class There(torch.Tensor):
    """A tensor on another device; ``here`` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), dtype=here.dtype, device=THERE
        )

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"There({self.here})"

    def __format__(self, how):
        return format(self.here, how)

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors made of numbers: torch would make those of a meta device without asking a mode."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        given = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            return function(*args, **{**given, "device": "cpu"}).to(given["device"])
        return function(*args, **given)


class Elsewhere(TorchDispatchMode):
    """Within it ``"meta"`` is that device; ``operations`` counts what was done there."""

    def __init__(self):
        super().__init__()
        self.operations, self.made = Counter(), _Made()

    def __enter__(self):
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *raised):
        super().__exit__(*raised)
        self.made.__exit__(*raised)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = _run(operation, args, kwargs or {})
        if isinstance(result, There):
            self.operations[operation.overloadpacket.__name__] += 1
        return result


def _run(operation, args, kwargs):
    packet, found = operation.overloadpacket, []
    tree_map_only(torch.Tensor, found.append, (args, kwargs))
    there = any(isinstance(tensor, There) for tensor in found)
    here = [tensor for tensor in found if not isinstance(tensor, There) and tensor.ndim > 0]
    if there and here and packet not in _MOVES:
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device.")
    device = kwargs.get("device")
    to_there = there if device is None else torch.device(device) == THERE
    on_cpu = {"device": torch.device("cpu")} if device is not None else {}
    values, named = tree_map_only(There, lambda tensor: tensor.here, (args, {**kwargs, **on_cpu}))
    result = operation(*values, **named)
    if operation._schema.is_mutable and packet.__name__.endswith("_"):
        return args[0] if isinstance(result, torch.Tensor) else result
    return tree_map_only(torch.Tensor, There, result) if to_there else result
