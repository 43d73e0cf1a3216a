import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from deploy.errors import UserError
from deploy.report import Results, json_schema, read_results
from deploy.report.markdown import to_markdown
from deploy.report.summary import KERAS_AGREEMENT
from deploy.report.table import to_csv
from tests.deploy.report.example import example, with_agreement

SCHEMA = Path(__file__).parents[3] / "docs" / "results.schema.json"


def as_json(results):
    return json.loads(msgspec.json.encode(results))


def written(path, change=lambda content: None):
    content = as_json(example())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_the_schema_in_the_repository_is_the_struct():
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()


def test_an_example_keeps_to_the_schema():
    jsonschema.Draft202012Validator(json_schema()).validate(as_json(example()))


def test_a_run_without_measurement_keeps_to_the_schema():
    untimed = example(measurement=None)
    jsonschema.Draft202012Validator(json_schema()).validate(as_json(untimed))


def test_the_schema_refuses_a_negative_size():
    content = as_json(example())
    content["variants"][0]["size_bytes"] = -1
    with pytest.raises(jsonschema.ValidationError, match="minimum"):
        jsonschema.Draft202012Validator(json_schema()).validate(content)


def test_every_key_that_others_read_is_there():
    keys = [
        "name",
        "from",
        "step",
        "format",
        "path",
        "sha256",
        "size_bytes",
        "gzip_bytes",
        "parameters",
        "nonzero_parameters",
        "score",
        "score_low",
        "score_high",
        "delta",
        "delta_low",
        "delta_high",
        "mcnemar_p",
        "agreement",
        "p50_ms",
        "p90_ms",
        "p99_ms",
        "speedup",
        "speedup_low",
        "speedup_high",
        "throughput_per_s",
        "load_ms",
        "peak_rss_bytes",
        "pareto",
    ]
    content = as_json(example())
    assert {"schema", "environment", "data", "variants"} <= content.keys()
    assert all(set(keys) <= variant.keys() for variant in content["variants"])
    assert [v["from"] for v in content["variants"]][:2] == [None, "baseline"]


def test_results_go_to_json_and_back_without_loss(tmp_path):
    assert read_results(written(tmp_path / "results.json")) == example()


INT8_FIELDS = ("macs", "int8_macs_share", "int8_layers", "weighted_layers", "float_islands")


def test_results_written_before_int8_was_audited_are_still_read(tmp_path):
    def before(content):
        for variant in content["variants"]:
            for name in INT8_FIELDS:
                del variant[name]

    results = read_results(written(tmp_path / "results.json", before))
    assert all(variant.int8_macs_share is None for variant in results.variants)
    assert "What runs in int8" not in to_markdown(results)


def test_the_share_of_macs_in_int8_is_in_the_results_and_in_the_markdown():
    results = example()
    shares = {variant.name: variant.int8_macs_share for variant in results.variants}
    assert shares["baseline"] == 0.0
    assert shares["int8"] == pytest.approx(2_005_000 / 2_293_000)
    row = next(line for line in to_markdown(results).splitlines() if "| 2293000 | 87.4 %" in line)
    assert row.startswith("| int8 |")
    assert row.endswith("| 3 | 4 | 0 |")


def test_the_agreement_with_keras_is_told_where_a_variant_was_trained_for_int8():
    assert KERAS_AGREEMENT not in to_markdown(example())  # nor what it means
    text = to_markdown(with_agreement(example(), "int8", 0.99999))
    row = next(line for line in text.splitlines() if "| 2293000 | 87.4 %" in line)
    assert row.endswith("| 0 | 99.99\u202f% |")
    assert text.count(KERAS_AGREEMENT) == 2  # the column, and what it means


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read \(No such file"):
        read_results(tmp_path / "nowhere.json")


def test_a_file_of_before_the_newer_fields_is_read(tmp_path):
    def older(content):
        for field in ("labels", "majority_share"):
            del content["data"][field]
        del content["session"]["measured_at"]
        for variant in content["variants"]:
            for field in ("per_label", "per_label_delta", "baseline_per_label_delta"):
                del variant[field]

    results = read_results(written(tmp_path / "results.json", older))
    assert results.data.labels == ()
    assert results.variants[1].per_label == ()
    assert "## Per class" not in to_markdown(results)
    assert "per_label" not in to_csv(results)


def test_results_larger_than_any_are_refused_before_they_are_read(tmp_path):
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: takes no room
    with pytest.raises(UserError, match=r"results\.json: has more than the 67,108,864 bytes"):
        read_results(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"<html>", b'{"a":' + b"[" * 100_000])
def test_what_is_no_json_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not JSON"):
        read_results(path)


def test_results_of_a_later_schema_are_refused_by_their_version(tmp_path):
    path = written(tmp_path / "r.json", lambda c: c.update(schema=3, novelty=1))
    with pytest.raises(UserError, match="schema must be 2, got 3"):
        read_results(path)


def test_json_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"accuracy": 1}')
    with pytest.raises(UserError, match=r"not a results.json: .*`schema`"):
        read_results(path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            lambda c: c["variants"][2].update(score=98.6),
            r"fraction from 0 to 1, got 98.6.*variants\[2\]",
        ),
        (lambda c: c["variants"][0].update(acuracy=0.9), r"acuracy.*variants\[0\]"),
        (lambda c: c["variants"][1].pop("from"), r"`from`.*variants\[1\]"),
        (lambda c: c.update(variants=[]), r"length >= 1.*variants"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(tmp_path, change, place):
    with pytest.raises(UserError, match=place):
        read_results(written(tmp_path / "r.json", change))


def test_a_diverged_loss_is_null_and_reads_back(tmp_path):
    training = example().history["pruned"]
    broken = msgspec.structs.replace(training, epochs=({"loss": float("nan")},), kept_epoch=1)
    results = example(history={"pruned": broken})
    assert results.history["pruned"].epochs == ({"loss": None},)
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results


def test_results_from_before_models_were_packed_are_still_read(tmp_path):
    content = as_json(example())
    for variant in content["variants"]:
        assert variant.pop("packed_bytes", None) is None
        variant.pop("entropy_bound_bytes", None)
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "results.json").baseline.packed_bytes is None
