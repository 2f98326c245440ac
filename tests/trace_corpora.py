"""Small corpora of execution traces on disk, in the form of ``cwm_jax.trace.corpus``."""

import json
from pathlib import Path

from cwm_jax.config.schema import to_json
from cwm_jax.storage import MANIFEST, RecordWriter, write_json
from cwm_jax.trace.corpus import Manifest
from cwm_jax.trace.episodes import Episode

CONTEXT = "def count_{program}(x):  # << START_OF_TRACE\n    x = x + {number}\n    return x\n"
CALLER = (
    CONTEXT.replace("  # << START_OF_TRACE", "")
    + "def main():  # << START_OF_TRACE\n    return count_{program}({number})\n"
)
CALL = '<|call_sep|>{{"x": "{value}"}}<|action_sep|>def count(x):\n<|frame_sep|>'
FRAME = '<|line_sep|>{{"x": "{value}"}}<|action_sep|>    x = x + {step}\n<|frame_sep|>'
END = '<|return_sep|><|action_sep|>    return x\n<|arg_sep|>"7"<|frame_sep|><|end_of_text|>'


def episode(
    program: str, number: int, *, num_frames: int = 3, finished: bool = True, context: str = CONTEXT
) -> dict:
    """The record of an episode of a program that counts."""
    frames = [CALL.format(value=number)]
    frames += [FRAME.format(value=number * step, step=number) for step in range(num_frames)]
    return Episode(
        name=f"{program}#{number}",
        context=context.format(program=program, number=number),
        frames="".join(frames) + (END if finished else ""),
        finished=finished,
        status="finished" if finished else "events",
        raised=False,
        num_events=1 + num_frames + finished,
        source="script",
        origin="written by a test",
        group=program,
        python="3.11.0",
        limits={"max_events": 100},
    ).to_json()


def write_trace_corpus(folder: Path, *files: list) -> None:
    """A file for each list of records (or of bytes, as they are), and the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, records in enumerate(files):
        with RecordWriter(folder, f"traces{number}", shard_bytes=1 << 30, next_step="") as writer:
            for record in records:
                writer.add(record if isinstance(record, bytes) else json.dumps(record).encode())
            listed += writer.finish()
    manifest = Manifest(
        kind="trace-corpus",
        schema_version=1,
        files=tuple(listed),
        num_episodes=sum(map(len, files)),
        num_events=0,
        python="3.11.0",
        limits={},
        settings={},
        report={},
    )
    write_json(folder / MANIFEST, to_json(manifest))
