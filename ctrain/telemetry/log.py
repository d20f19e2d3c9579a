"""Logs of ctrain's processes: one JSON object a line, on stderr, the same field names everywhere.

Serve buffers its own log and loses it on kill -9, so replicas use this one. Values of requests are
never logged.
"""

from __future__ import annotations

import json
import logging
import sys
import time

FIELDS = ("pipeline", "version", "run", "rollout", "replica", "key", "seq")
"""Fields that a record may carry by `extra=`."""


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "room": record.name,
            "message": record.getMessage(),
        }
        line.update({name: record.__dict__[name] for name in FIELDS if name in record.__dict__})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def logger(room: str) -> logging.Logger:
    """Logger `ctrain.<room>`; the first call gives `ctrain` its handler."""
    parent = logging.getLogger("ctrain")
    if not parent.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLines())
        parent.addHandler(handler)
        parent.setLevel(logging.INFO)
        parent.propagate = False
    return logging.getLogger(f"ctrain.{room}")
