"""Load generators out of other projects' wheels, which are too large, or ask for too much, to be installed for that."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("RAYSGL_CLIENT_WHEELS") or Path(sys.prefix) / "wheels")
"""Where wheels lie, or are downloaded to."""
LARGE = os.environ.get("RAYSGL_LARGE_CLIENTS") == "1"
"""Download also those of hundreds of megabytes."""


@dataclass(frozen=True)
class Generator:
    """real: modules that run as they are in the wheel (`unpacked.py`)."""

    package: str
    version: str
    real: tuple[str, ...]
    large: bool = False

    def run(self, folder: Path, *arguments: str) -> str:
        """Unpacks what is needed into `folder` and runs it there. Returns what it printed."""
        wheel = self._wheel()
        tops = {name.replace(".", "/") for name in self.real}
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if any(name.startswith((f"{top}/", f"{top}.py")) for top in tops)]
            archive.extractall(folder, wanted)
        command = [sys.executable, str(HERE / "unpacked.py"), str(folder), ",".join(self.real), self.package, *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def _wheel(self) -> Path:
        pattern = f"{self.package}-{self.version}-*.whl"
        if not list(FOLDER.glob(pattern)):
            if self.large and not LARGE:
                pytest.skip(f"no {pattern} in {FOLDER} (RAYSGL_LARGE_CLIENTS=1 downloads it, hundreds of megabytes)")
            asked = ["--no-deps", "--dest", str(FOLDER), f"{self.package}=={self.version}"]
            subprocess.run([sys.executable, "-m", "pip", "--quiet", "download", *asked], check=True)
        return next(FOLDER.glob(pattern))
