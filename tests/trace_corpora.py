"""Corpora of execution traces on disk, by the contract of ``cwm_jax/data/traces.py``."""

import hashlib
import json
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

PROMPT = "<|begin_of_text|><|trace_context_start|>{context}<|frame_sep|>"
FRAME = '<|line_sep|>{{"x": "{value}"}}<|action_sep|>    x = x + {step}\n<|frame_sep|>'


def episode(program: str, number: int, *, num_frames: int = 3, finished: bool = True) -> dict:
    """An episode of a program that counts."""
    context = f"def count_{program}(x):  # << START_OF_TRACE\n    x = x + {number}\n    return x\n"
    frames = [FRAME.format(value=number * step, step=number) for step in range(num_frames)]
    end = '<|return_sep|><|action_sep|>    return x\n<|arg_sep|>"7"<|frame_sep|><|end_of_text|>'
    return {
        "name": f"{program}#{number}",
        "prompt": PROMPT.format(context=context),
        "frames": "".join(frames) + (end if finished else ""),
        "finished": finished,
        "source": "written by a test",
    }


def write_trace_corpus(folder: Path, *files: list) -> None:
    """A file for each list of episodes (or of bytes, as they are), and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, episodes in enumerate(files):
        path = folder / f"traces-{number:05d}-of-{len(files):05d}.arrayrecord"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in episodes:
            writer.write(record if isinstance(record, bytes) else json.dumps(record).encode())
        writer.close()
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        listed.append({"name": path.name, "bytes": len(content), "sha256": sha256})
    manifest = {"schema_version": 1, "kind": "trace-corpus", "files": listed, "python": "3.11"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
