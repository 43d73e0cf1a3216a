import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.report.build import pareto_front
from tests.deploy.report.example import comparison, example, measurement, variants

TEMPLATE = example().baseline


def candidate(accuracy, size_bytes, gzip_bytes, p50_ms, spread=0.0):
    return msgspec.structs.replace(
        TEMPLATE,
        score=accuracy,
        size_bytes=size_bytes,
        gzip_bytes=gzip_bytes,
        p50_ms=p50_ms,
        p50_low_ms=p50_ms and p50_ms * (1 - spread),
        p50_high_ms=p50_ms and p50_ms * (1 + spread),
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
    timed, untimed = candidate(0.9, 100, 90, 1.0), candidate(0.9, 102, 90, None)
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
        return -v.score, v.size_bytes, v.gzip_bytes, v.p50_ms

    best = [costs(v) for v, on in zip(candidates, front, strict=True) if on]
    for v, on in zip(candidates, front, strict=True):
        beaten = [b != costs(v) and all(x <= y for x, y in zip(b, costs(v))) for b in best]  # noqa: B905  (fixed length)
        assert any(beaten) is not on


def test_one_byte_does_not_put_a_variant_on_the_front():
    int8, pruned_int8 = (
        candidate(0.9765, 447_331, 423_161, 0.05),
        candidate(0.9775, 447_332, 85_597, 0.05),
    )
    assert pareto_front([int8, pruned_int8]) == [False, True]


@pytest.mark.parametrize(
    ("other", "on"),
    [
        (candidate(0.9005, 200, 90, 1.0), False),  # 0.05 points are no gain
        (candidate(0.9006, 200, 90, 1.0), True),
        (candidate(0.9, 99.5, 180, 1.0), False),  # nor is 0.5 % of a size
        (candidate(0.9, 98, 180, 1.0), True),
        (candidate(0.9, 200, 90, 0.8, spread=0.3), False),  # nor a time inside the interval
        (candidate(0.9, 200, 90, 0.8), True),
    ],
)
def test_a_gain_within_the_tolerance_is_none(other, on):
    assert pareto_front([candidate(0.9, 100, 90, 1.0), other]) == [True, on]


@given(
    st.lists(
        st.builds(
            candidate,
            st.floats(0.9, 0.902),
            st.integers(1000, 1030),
            st.integers(1000, 1030),
            st.floats(1.0, 1.03),
            st.floats(0, 0.01),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_near_the_tolerance_too_the_front_is_never_empty(candidates):
    assert any(pareto_front(candidates))


def test_a_baseline_that_may_as_well_guess_is_warned_of():
    def poor(share):
        data = msgspec.structs.replace(example().data, majority_share=share)
        return " ".join(example(data=data).warnings)

    assert poor(0.5) == ""
    assert "baseline is not detectably better than always answering the most frequent" in poor(
        0.981
    )


def test_without_class_frequencies_a_guess_is_one_class_in_all():
    data = msgspec.structs.replace(example().data, outputs=1)
    assert "not detectably better than guessing" in " ".join(example(data=data).warnings)


@pytest.mark.parametrize(("p", "said"), [(0.001, True), (0.06, False)])
def test_a_variant_better_than_the_baseline_is_warned_of(p, said):
    better = variants()
    gain = comparison(25.0, 3.0, p, 0.7)
    better[1] = dataclasses.replace(better[1], against_baseline=gain)
    text = " ".join(example(variants=better).warnings)
    expected = "baseline looks undertrained: pruned, which was trained longer, is better in accuracy by +25.00"
    assert (expected in text) is said


def test_what_every_class_lost_and_its_label_are_kept():
    results = example()
    assert results.data.labels == tuple("0123456789")
    assert results.variants[0].per_label == (0.9865,) * 10
    assert results.variants[0].per_label_delta == ()
    assert results.variants[3].per_label_delta == (-0.05,) * 10
    assert results.variants[3].baseline_per_label_delta == (-0.25,) * 10


def test_the_time_of_the_measurement_is_kept():
    assert example().session.measured_at is None
    dated = msgspec.structs.replace(measurement(), measured_at="2025-01-31T09:00:00+00:00")
    assert example(measurement=dated).session.measured_at == "2025-01-31T09:00:00+00:00"


def test_what_is_no_better_than_a_twentieth_of_a_point_is_off_the_front():
    assert [v.name for v in example().variants if v.pareto] == ["int8", "pruned-int8"]


def test_a_variant_whose_sums_can_overflow_on_the_machine_is_warned_of():
    """As a file for x86-vnni does where the report was made, on an x86 without it."""
    first, *others = variants()
    overflowing = msgspec.structs.replace(
        first.audit, target="x86-avx2", int8_layers=3, saturating=("conv1", "dense1")
    )
    changed = dataclasses.replace(first, audit=overflowing)
    (said,) = example(variants=[changed, *others]).warnings
    assert said.startswith(f"{first.name}: int8 sums of 2 of 3 layers (conv1, dense1) overflow")
    assert "the fast kernels of x86-avx2" in said
    assert not example().warnings


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
