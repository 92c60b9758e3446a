"""Runs a load generator out of another project's unpacked wheel, without installing that project and all that it needs.

    python unpacked.py FOLDER REAL[,REAL...] sglang|vllm [its arguments]

Modules of the package below a REAL name run as they are in the wheel. Packages above them are empty, and whatever else they import
of the package is a stand-in, which raises when it is called: so nothing but the project's own code decides what is sent and counted.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path

ANSWERS = {
    "vllm.distributed.parallel_state.is_local_first_rank": True,
    "vllm.transformers_utils.config.get_sentence_transformer_tokenizer_config": None,
}
"""What stand-ins for these functions answer: vLLM's logger, and its loading of a tokenizer, ask."""


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds all modules of `package`; real ones in `folder`."""

    def __init__(self, folder: Path, package: str, real: list[str]):
        self._folder, self._package, self._real = folder, package, real

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != self._package:
            return None
        place = self._folder.joinpath(*name.split("."))
        if any(name == real or name.startswith(f"{real}.") for real in self._real):
            return importlib.machinery.PathFinder.find_spec(name, [str(place.parent)])
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class StandIn(types.ModuleType):
    """Has any name that is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if (path := f"{self.__name__}.{name}") in ANSWERS:
            return lambda *_, **__: ANSWERS[path]

        def refuse(*_: object, **__: object) -> None:
            # vLLM goes on without a model's config where that raises ValueError.
            raise ValueError(f"{path} is not there: only the load generator was unpacked")

        made = type(name, (), {"__new__": refuse})
        setattr(self, name, made)
        return made


def main() -> None:
    folder, real, package, *arguments = sys.argv[1:]
    sys.meta_path.insert(0, Finder(Path(folder), package, real.split(",")))
    sys.argv = [f"{package} benchmark", *arguments]
    if package == "sglang":
        from sglang.benchmark.serving import cli_main  # type: ignore[import-not-found]

        cli_main()
    else:
        from vllm.benchmarks import serve  # type: ignore[import-not-found]
        from vllm.utils.argparse_utils import FlexibleArgumentParser  # type: ignore[import-not-found]

        parser = FlexibleArgumentParser()
        serve.add_cli_args(parser)
        serve.main(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
