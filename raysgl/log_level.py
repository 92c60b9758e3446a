"""How much this process logs, changed while it runs."""

from __future__ import annotations

import logging

from raysgl.messages import Level

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_log_level(level: Level) -> None:
    """Of raysgl's own messages; libraries keep theirs."""
    logging.basicConfig(format=FORMAT)  # where nobody has said yet where messages go, only warnings are shown
    logging.getLogger("raysgl").setLevel(level.upper())
