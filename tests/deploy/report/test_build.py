import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.report.build import pareto_front
from tests.deploy.report.example import example, measurement, variants

TEMPLATE = example().baseline


def candidate(accuracy, size_bytes, gzip_bytes, p50_ms):
    return msgspec.structs.replace(
        TEMPLATE, accuracy=accuracy, size_bytes=size_bytes, gzip_bytes=gzip_bytes, p50_ms=p50_ms
    )


def test_worse_in_one_and_better_in_none_is_off_the_front():
    good, worse = candidate(0.9, 100, 90, 1.0), candidate(0.9, 100, 90, 1.1)
    assert pareto_front([good, worse]) == [True, False]


def test_better_in_one_alone_is_on_the_front():
    both = [candidate(0.9, 100, 90, 1.0), candidate(0.8, 200, 50, 2.0)]
    assert pareto_front(both) == [True, True]


def test_equals_share_the_front():
    same = candidate(0.9, 100, 90, 1.0)
    assert pareto_front([same, same]) == [True, True]


def test_time_does_not_count_unless_all_were_timed():
    timed, untimed = candidate(0.9, 100, 90, 1.0), candidate(0.9, 101, 90, None)
    assert pareto_front([timed, untimed]) == [True, False]


@given(
    st.lists(
        st.builds(
            candidate,
            st.sampled_from([0.8, 0.9, 1.0]),
            st.integers(1, 3),
            st.integers(1, 3),
            st.sampled_from([1.0, 2.0, 3.0]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_off_the_front_is_beaten_by_something_on_it(candidates):
    front = pareto_front(candidates)
    assert any(front)

    def costs(v):
        return -v.accuracy, v.size_bytes, v.gzip_bytes, v.p50_ms

    best = [costs(v) for v, on in zip(candidates, front, strict=True) if on]
    for v, on in zip(candidates, front, strict=True):
        beaten = [b != costs(v) and all(x <= y for x, y in zip(b, costs(v))) for b in best]  # noqa: B905  (fixed length)
        assert any(beaten) is not on


def test_the_example_has_a_variant_off_the_front():
    assert [v.name for v in example().variants if not v.pareto] == ["float16"]


def test_the_measurement_brings_its_own_environment_and_warnings():
    noisy = msgspec.structs.replace(measurement(), warnings=("too noisy to tell",))
    results = example(measurement=noisy, warnings=["odd data"])
    assert results.warnings == ("too noisy to tell", "odd data")
    assert results.session.processes == 5


def test_without_measurement_the_latencies_are_null():
    results = example(measurement=None)
    assert not results.timed
    assert results.session.processes is None
    assert {v.speedup for v in results.variants} == {None}


def test_a_measurement_of_other_models_is_refused():
    short = msgspec.structs.replace(measurement(), latencies=measurement().latencies[:3])
    with pytest.raises(ValueError, match="5 variants but 3 latencies"):
        example(measurement=short)


@pytest.mark.parametrize(
    ("index", "change", "complaint"),
    [
        (1, {"name": "baseline"}, "'baseline' comes twice"),
        (1, {"parent": "int8"}, "'pruned' comes before its parent 'int8'"),
        (1, {"parent": None}, "'pruned' comes before its parent None"),
        (2, {"against_baseline": None}, "'int8' was not compared"),
        (0, {"parent": "pruned"}, "'baseline', must have no parent"),
    ],
)
def test_variants_that_are_no_tree_are_refused(index, change, complaint):
    broken = variants()
    broken[index] = dataclasses.replace(broken[index], **change)
    with pytest.raises(ValueError, match=complaint):
        example(variants=broken)
