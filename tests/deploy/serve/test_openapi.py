"""The server against its own description, with requests that schemathesis makes of it."""

import contextlib
import json

import jsonschema
import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")


def test_the_example_of_every_model_is_answered_as_described(client):
    status, described = client.json("GET", "/openapi.json")
    assert (status, described["openapi"]) == (200, "3.1.0")
    infer = {path: ops["post"] for path, ops in described["paths"].items() if "infer" in path}
    assert len(infer) == 5
    for path, operation in infer.items():
        content = operation["requestBody"]["content"]["application/json"]
        jsonschema.validate(content["example"], content["schema"])
        status, said = client.json("POST", path, content["example"])
        assert status == 200
        jsonschema.validate(said, described["components"]["schemas"]["Answer"])


def test_other_tasks_are_described_with_what_they_answer(serving, tasks):
    with (
        serving(*tasks.values()) as server,
        contextlib.closing(server.client()) as client,
    ):
        described = client.json("GET", "/openapi.json")[1]["paths"]
        said = {}
        for task in tasks:
            path = f"/v2/models/{task.replace('_', '-')}"
            operation = described[f"{path}/infer"]["post"]
            said[task] = operation["description"]
            content = operation["requestBody"]["content"]["application/json"]
            status, answered = client.json("POST", f"{path}/infer", content["example"])
            assert status == 200
            about = client.json("GET", path)[1]
            assert about["parameters"]["task"] == task
            assert [o["name"] for o in about["outputs"]] == [o["name"] for o in answered["outputs"]]
    assert "probability of each label" in said["multi_label"]
    assert "value of each target" in said["regression"]
    assert "anomaly score" in said["reconstruction"]
    assert "`anomaly_score`" in said["reconstruction"]


def test_a_key_is_described_where_one_is_needed(serving, bundles):
    key = "0123456789abcdef"
    environment = {"LIGHTSHIP_API_KEY": key}
    with (
        serving(bundles[0], environment=environment) as server,
        contextlib.closing(server.client(headers={"X-API-Key": key})) as client,
    ):
        described = client.json("GET", "/openapi.json")[1]
    assert described["security"] == [{"bearer": []}, {"key": []}]
    assert "401" in described["paths"]["/v2"]["get"]["responses"]
    assert described["paths"]["/v2/health/live"]["get"]["security"] == []


def test_no_request_that_schemathesis_makes_is_answered_otherwise_than_described(server, client):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    schema = schemathesis.openapi.from_dict(json.loads(client.ask("GET", "/openapi.json")[2]))
    statuses = []
    wanted = [
        schemathesis.checks.not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    for found in schema.get_all_operations():
        operation = found.ok()
        # What has no body cannot be asked wrongly.
        modes = [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if operation.body else [])]
        for mode in modes:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=10 if "infer" in operation.path else 2,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
                database=None,
                derandomize=True,
            )
            def ask(case):
                answer = case.call(base_url=server.url)
                case.validate_response(answer, checks=wanted)
                statuses.append(answer.status_code)

            ask()
    assert {200, 400} <= set(statuses)
    assert len(statuses) > 100
