"""Converters between Hugging Face's and Meta's layouts of Code World Model and ours.

``load_hf`` and ``save_hf`` work in memory; ``python -m convert`` works from folder to folder in
memory that does not grow with the model.
"""

from convert.from_hf import load_hf
from convert.names import ConversionError
from convert.to_hf import save_hf

__all__ = ["ConversionError", "load_hf", "save_hf"]
