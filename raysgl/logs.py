"""What this process logs, how and where; changed while it runs."""

from __future__ import annotations

import logging
import logging.handlers
import os
from datetime import UTC, datetime
from pathlib import Path

import orjson

from raysgl.config import ServerConfig
from raysgl.messages import LogSettings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS = "fields"
"""The attribute of a record with what a JSON line says beside the message."""

now = LogSettings(level="info", form="text", requests=False, requests_level=1, folder="")
"""What holds in this process; only `set_logs` writes it."""

_handler: logging.Handler | None = None


def set_logs(change: LogSettings) -> None:
    """What is None in `change` stays as it is. The level is that of raysgl's own messages; libraries keep theirs."""
    global _handler
    for name in change.__struct_fields__:
        if (value := getattr(change, name)) is not None:
            setattr(now, name, value)
    root = logging.getLogger()
    if _handler is None and (now.folder or not root.handlers):
        _handler = _file(now.folder) if now.folder else logging.StreamHandler()
        root.addHandler(_handler)
    if _handler is not None:
        _handler.setFormatter(JsonFormatter() if now.form == "json" else logging.Formatter(FORMAT))
    logging.getLogger("raysgl").setLevel(now.level.upper())


def log_settings(server: ServerConfig) -> LogSettings:
    """What the config says."""
    return LogSettings(
        server.log_level, server.log_format, server.log_requests, server.log_requests_level, server.log_folder or ""
    )


def _file(folder: str) -> logging.Handler:
    """Its own file for each process; made again after somebody has moved it away."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    return logging.handlers.WatchedFileHandler(Path(folder) / f"raysgl-{os.uname().nodename}-{os.getpid()}.log")


class JsonFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()
