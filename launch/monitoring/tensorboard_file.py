"""One TensorBoard event file, written synchronously: no torch, no TensorFlow, no thread.

tensorboard's own EventFileWriter hands records to a thread, where a full disk surfaces late.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter


class TensorBoardFile:
    """Scalars and texts of one process. Every method raises OSError if it cannot write."""

    def __init__(self, folder: Path, *, resumed_at_step: int | None = None) -> None:
        """Opens a new event file in `folder`; TensorBoard reads all files of a folder as one run.

        resumed_at_step: TensorBoard drops what older files hold beyond this step.
        """
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._stream = (folder / name).open("xb")
        self._records = RecordWriter(self._stream)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if resumed_at_step is not None:
            log = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=resumed_at_step, session_log=log))

    def scalars(self, values: dict[str, float], step: int) -> None:
        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown under TensorBoard's Text tab."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        self._stream.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._stream.flush()
