"""TensorBoard's event files, with nothing of TensorFlow.

torch's SummaryWriter would import TensorFlow wherever it is installed, and writes in a thread of its own, whose errors
nobody can catch: a full disk would print a traceback and lose what follows.
"""

import os
import re
import time
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text import metadata as texts
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


def _later(folder: Path) -> float:
    """Now, or where the clock was set back, a moment after the newest file: TensorBoard reads the files of a folder in
    the order of their names."""
    earlier = [re.match(r"events\.out\.tfevents\.(\d+(?:\.\d{6})?)", path.name) for path in folder.iterdir()]
    return max([time.time(), *(float(found[1]) + 1e-3 for found in earlier if found)])


class EventFile:
    """A new event file in `folder`, written through at every `flush`.

    TensorBoard drops what earlier files hold of the steps after `forget_after`; with 0 they are removed.
    Raises OSError where it cannot be written.
    """

    def __init__(self, folder: Path, forget_after: int | None = None):
        folder.mkdir(exist_ok=True)
        if forget_after == 0:
            for stale in folder.glob("events.out.tfevents.*"):
                stale.unlink()
        path = folder / f"events.out.tfevents.{_later(folder):.6f}.{os.getpid()}"
        self._records = RecordWriter(open(path, "xb"))  # noqa: SIM115 (closed by close)
        self._write(Event(file_version="brain.Event:2"), 0)
        if forget_after:
            self._write(Event(session_log=SessionLog(status=SessionLog.START)), forget_after + 1)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A number, in float32."""
        self._add(name, step, simple_value=value)

    def image(self, name: str, path: Path, step: int) -> None:
        """A PNG as it is in its file."""
        with Image.open(path) as image:
            (width, height), channels = image.size, CHANNELS.get(image.mode, 3)
        encoded = Summary.Image(width=width, height=height, colorspace=channels, encoded_image_string=path.read_bytes())
        self._add(name, step, image=encoded)

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text in Markdown."""
        metadata = texts.create_summary_metadata(display_name=name, description="")
        self._add(name, step, metadata, tensor=make_tensor_proto(markdown))

    def settings(self, values: dict[str, bool | float | str], step: int) -> None:
        """What distinguishes this run from others in the HPARAMS view."""
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            kind = {bool: "bool", int: "number", float: "number"}.get(type(value), "string")
            setattr(start.hparams[name], f"{kind}_value", str(value) if kind == "string" else value)
        self._session(hparams.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start), step)

    def success(self, step: int) -> None:
        """The run has reached its end."""
        end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
        self._session(hparams.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end), step)

    def flush(self) -> None:
        """Write what has been added."""
        self._records.flush()

    def close(self) -> None:
        """Write what has been added, and close."""
        self._records.close()

    def _session(self, tag: str, content: HParamsPluginData, step: int) -> None:
        self._add(tag, step, hparams.create_summary_metadata(content), tensor=hparams.NULL_TENSOR)

    def _add(self, tag: str, step: int, metadata: SummaryMetadata | None = None, **value) -> None:
        self._write(Event(summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, **value)])), step)

    def _write(self, event: Event, step: int) -> None:
        event.wall_time, event.step = time.time(), step
        self._records.write(event.SerializeToString())
