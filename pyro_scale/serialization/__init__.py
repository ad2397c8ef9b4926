"""Reading and writing models: the package's own folders, and files of the published SCALE."""

from pyro_scale.serialization.model_dir import ModelState, description, load, save
from pyro_scale.serialization.original_scale import load_original

__all__ = ["ModelState", "description", "load", "load_original", "save"]
