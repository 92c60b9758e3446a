"""JSON schemas of a public suite: what is accepted gives texts that validate, what is not is refused with a reason.

A part of them; all with RAYSGL_SCHEMAS=all (`make test-schemas`), which also prints what became of them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest

from raysgl.grammar.interface import GrammarError
from raysgl.sampling.constraint import Constraint

from .walk import Unfinished, random_text

CASES = json.loads((Path(__file__).parent / "schemas.json").read_text())
ALL = os.environ.get("RAYSGL_SCHEMAS") == "all"
TEXTS = 10 if ALL else 3
VALIDATORS = {"draft2020-12": jsonschema.Draft202012Validator, "draft7": jsonschema.Draft7Validator}
CHOSEN = CASES if ALL else CASES[::8]
became: dict[str, list[str]] = {"valid": [], "refused": [], "unfinished": []}


@pytest.mark.parametrize("case", CHOSEN, ids=[f"{case['draft']} {case['about']}" for case in CHOSEN])
def test_texts_validate(grammars, case):
    try:
        grammar = grammars.compile(Constraint("json_schema", json.dumps(case["schema"]))).result()
    except GrammarError as error:
        assert len(str(error)) > 5
        became["refused"].append(f"{case['about']}: {error}")
        return
    checker = VALIDATORS[case["draft"]]
    validator = checker(case["schema"], format_checker=checker.FORMAT_CHECKER)
    finished = 0
    for seed in range(TEXTS):
        try:
            text = random_text(grammars, grammar, seed)
        except Unfinished:
            continue
        finished += 1
        value = json.loads(text)
        assert validator.is_valid(value), f"{case['schema']} was given {text!r}"
    became["valid" if finished else "unfinished"].append(case["about"])


def test_most_schemas_are_accepted(capsys):
    """Runs last. The counts are of everything above."""
    if sum(map(len, became.values())) < len(CHOSEN):
        pytest.skip("only a part of the schemas ran")
    with capsys.disabled():
        print("\n" + ", ".join(f"{len(names)} {name}" for name, names in became.items()))
        if ALL:
            print("\n".join(became["refused"]))
    assert len(became["valid"]) >= (500 if ALL else len(CHOSEN) * 4 // 5)
    assert len(became["unfinished"]) <= len(CHOSEN) // 50
