"""Sampling parameters on the wire."""

import msgspec
import pytest

from raysgl.sampling.constraint import Constraint
from raysgl.sampling.params import InvalidParameter, SamplingParams


def test_a_constraint_travels():
    params = SamplingParams(constraint=Constraint("json_schema", '{"type": "object"}'), think_end_ids=(7, 8))
    data = msgspec.msgpack.encode(params)
    assert msgspec.msgpack.decode(data, type=SamplingParams) == params


def test_an_unknown_kind_is_refused():
    data = msgspec.msgpack.encode({"constraint": {"kind": "prose", "text": "x"}})
    with pytest.raises(msgspec.ValidationError, match="kind"):
        msgspec.msgpack.decode(data, type=SamplingParams)


def test_think_end_ids_are_of_the_vocabulary():
    with pytest.raises(InvalidParameter) as caught:
        SamplingParams(think_end_ids=(100,)).verify(100)
    assert caught.value.field == "think_end_ids"
