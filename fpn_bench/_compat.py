"""All that the package uses of the private parts of other libraries, each with its reason."""

from torch.utils._python_dispatch import TorchDispatchMode  # the documented way to watch operators, without public name
from torch.utils._pytree import tree_iter, tree_leaves, tree_map_only  # of whatever containers a model's forward takes

__all__ = ["TorchDispatchMode", "tree_iter", "tree_leaves", "tree_map_only"]
