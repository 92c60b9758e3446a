"""What a request's fields ask for, and what the client hears where they are wrong, or where the engine refuses."""

from __future__ import annotations

import json

import pytest

from raysgl.api.constraint_request import ANY_OBJECT, constraint_field, constraint_of
from raysgl.api.errors import ApiError
from raysgl.messages import Finish
from raysgl.sampling.constraint import Constraint

from .fake_backend import Script

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = '{"type":"object","properties":{"b":{"type":"integer"},"a":{"type":"string"}}}'
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}
TAG_TEXT = '{"type":"structural_tag","format":{"type":"any_text"}}'


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_schema", ANY_OBJECT)),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, Constraint("json_schema", TEXT)),
        ({"response_format": TAG}, Constraint("structural_tag", TAG_TEXT)),
        ({"json_schema": json.dumps(SCHEMA, indent=2)}, Constraint("json_schema", TEXT)),
        ({"json_schema": True}, Constraint("json_schema", "true")),
        ({"regex": "a+"}, Constraint("regex", "a+")),
        ({"ebnf": 'root ::= "a"'}, Constraint("ebnf", 'root ::= "a"')),
        ({"structural_tag": json.dumps(TAG)}, Constraint("structural_tag", TAG_TEXT)),
        ({"guided_json": SCHEMA}, Constraint("json_schema", TEXT)),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["a", 'b"\n', "a"]}, Constraint("ebnf", 'start: "a" | "b\\"\\n"')),
        ({"guided_grammar": "start: A"}, Constraint("ebnf", "start: A")),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, Constraint("json_schema", TEXT)),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_schema", ANY_OBJECT)),
        ({"structured_outputs": {"choice": ["yes"]}}, Constraint("ebnf", 'start: "yes"')),
        ({"structured_outputs": {"structural_tag": TAG}}, Constraint("structural_tag", TAG_TEXT)),
        ({"structured_outputs": {}, "regex": "a"}, Constraint("regex", "a")),
    ],
)
def test_fields(fields, expected):
    assert constraint_of(fields) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        ({"json_schema": "{"}, "json_schema"),
        ({"json_schema": [1]}, "json_schema"),
        ({"regex": ""}, "regex"),
        ({"ebnf": {}}, "ebnf"),
        ({"structural_tag": "[]"}, "structural_tag"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a", 1]}, "guided_choice"),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"regex": "a", "ebnf": "start: A"}, "ebnf"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
    ],
)
def test_mistakes_name_the_field(fields, param):
    with pytest.raises(ApiError) as caught:
        constraint_of(fields)
    assert caught.value.status == 400
    assert caught.value.param == param


def test_two_constraints_are_both_named():
    with pytest.raises(ApiError, match="regex and ebnf are two constraints"):
        constraint_of({"regex": "a", "ebnf": "start: A"})


def test_the_field_of_the_constraint():
    assert constraint_field({"response_format": {"type": "text"}, "regex": "a"}) == "regex"
    assert constraint_field({"response_format": {"type": "text"}}) is None


REFUSED = Script([[]], Finish("error", message="it is too deep", status=400, param="constraint"))
SUBMITTED = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "regex": "a+"}, "regex"),
    ("/v1/completions", {"prompt": "a", "regex": "a+", "stream": True}, "regex"),
    ("/generate", {"text": "a", "sampling_params": {"regex": "a+"}}, "sampling_params.regex"),
]


@pytest.mark.parametrize(("path", "body", "field"), SUBMITTED)
async def test_the_engine_gets_it_and_its_refusal_names_the_field(server, path, body, field):
    made = server(REFUSED)
    async with made.client() as client:
        response = await client.post(path, json=body)
    assert made.backend.last.sampling.constraint == Constraint("regex", "a+")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == field
    assert error["message"] == f"{field}: it is too deep"


async def test_two_in_one_request_over_http(server):
    async with server().client() as client:
        body = {"text": "a", "sampling_params": {"regex": "a+", "json_schema": "{}"}}
        error = (await client.post("/generate", json=body)).json()["error"]
    assert error["param"] == "sampling_params.regex"
    assert "json_schema and regex are two constraints" in error["message"]
