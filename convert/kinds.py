"""Which kind of folder a model is in, and the command that takes it."""

from __future__ import annotations

from pathlib import Path

from convert.checkpoint_files import is_checkpoint_folder
from convert.meta.files import is_meta_folder
from convert.names import ConversionError
from convert.safetensors_files import is_hf_folder

_KINDS = {
    "from-hf": (is_hf_folder, "a Hugging Face folder"),
    "from-meta": (is_meta_folder, "in Meta's layout"),
    "to-hf": (is_checkpoint_folder, "a checkpoint of cwm_jax"),
    "to-meta": (is_checkpoint_folder, "a checkpoint of cwm_jax"),
}


def check_kind(folder: Path, *, expected: str, otherwise: tuple[str, ...]) -> None:
    """Raises ConversionError where a folder is none, or one that another command takes.

    Args:
        folder: given to a command.
        expected: what that command reads.
        otherwise: commands to name if the folder is theirs.
    """
    if not folder.is_dir():
        raise ConversionError(f"{folder} is not a folder; expected {expected}")
    for command in otherwise:
        is_kind, text = _KINDS[command]
        if is_kind(folder):
            raise ConversionError(f"{folder} is {text}; use `python -m convert {command}`")
