import pytest

from raysgl.grammar.compiler import GrammarCompiler

from .walk import BYTES


@pytest.fixture(scope="session")
def grammars():
    made = GrammarCompiler(BYTES, "auto", 10.0, 2000, 1 << 30)
    yield made
    made.close()
