import msgspec
import pytest

from deploy.report.verdict import best_variant, verdict
from tests.deploy.report.example import example


def changed(**by_name):
    """The example, with fields of its variants replaced: ``int8={"gzip_bytes": 1}``."""
    results = example()
    variants = tuple(
        msgspec.structs.replace(v, **by_name.get(v.name.replace("-", "_"), {}))
        for v in results.variants
    )
    return msgspec.structs.replace(results, variants=variants)


LOST = {"baseline_delta_points": -3.0, "baseline_delta_low": -4.0, "baseline_delta_high": -2.0}
SLOW = {"speedup": 0.8, "speedup_low": 0.76, "speedup_high": 0.83}


def test_the_verdict_says_size_speed_and_cost_with_their_intervals():
    assert verdict(example()) == (
        "pruned-int8 is 11.9× smaller gzipped (3.9× smaller as a file) and 1.8× [1.7, 1.9] faster "
        "than baseline, at −0.25 points [−0.68, +0.18] of accuracy (no detectable difference)."
    )


def test_a_speed_up_whose_interval_holds_1_is_not_called_faster():
    noise = {"speedup": 1.02, "speedup_low": 0.97, "speedup_high": 1.08}
    sentence = verdict(changed(pruned_int8=noise))
    assert "no faster or slower that could be told (1.02× [0.97, 1.08]) than baseline" in sentence


def test_slower_is_said_as_slower():
    slow = dict.fromkeys(("pruned", "int8", "pruned_int8", "float16"), SLOW)
    assert "1.25× [1.20, 1.32] slower than baseline" in verdict(changed(**slow))


def test_a_real_loss_is_not_called_noise():
    loss = {"baseline_delta_points": -0.8, "baseline_delta_low": -1.3, "baseline_delta_high": -0.3}
    sentence = verdict(changed(pruned_int8={**loss, "baseline_mcnemar_p": 0.002}))
    assert sentence.endswith("at −0.80 points [−1.30, −0.30] of accuracy.")


@pytest.mark.parametrize("noise", [{"baseline_mcnemar_p": 0.06}, {"baseline_delta_high": 0.01}])
def test_a_loss_that_interval_or_test_calls_noise_is_called_noise(noise):
    loss = {"baseline_delta_points": -0.8, "baseline_delta_low": -1.3, "baseline_delta_high": -0.3}
    sentence = verdict(changed(pruned_int8={**loss, "baseline_mcnemar_p": 0.002, **noise}))
    assert "no detectable difference" in sentence


def test_a_variant_that_detectably_lost_a_point_is_not_chosen():
    assert best_variant(changed(pruned_int8=LOST)).name == "pruned"


def test_a_slower_variant_is_chosen_only_where_none_is_left():
    assert best_variant(changed(pruned_int8=SLOW)).name == "pruned"
    all_slow = dict.fromkeys(("pruned", "int8", "pruned_int8", "float16"), SLOW)
    assert best_variant(changed(**all_slow)).name == "pruned-int8"


def test_where_every_variant_lost_too_much_that_is_the_verdict():
    lost = dict.fromkeys(("pruned", "int8", "pruned_int8", "float16"), LOST)
    sentence = verdict(changed(**lost))
    assert sentence.startswith("No variant stays within 1 point of baseline: int8, the closest, is")


def test_a_baseline_alone_is_not_compared():
    alone = msgspec.structs.replace(example(), variants=example().variants[:1])
    assert verdict(alone).startswith("baseline reaches 98.65")
    assert verdict(alone).endswith("there is no variant to compare it with.")


def test_without_measurement_nothing_is_said_of_speed():
    sentence = verdict(example(measurement=None))
    assert "faster" not in sentence
    assert "slower" not in sentence


@pytest.mark.parametrize(
    ("size_bytes", "words"), [(1_726_000, "no smaller as a file"), (3_453_296, "2.0× larger as a")]
)
def test_what_is_not_smaller_is_not_called_smaller(size_bytes, words):
    assert words in verdict(changed(pruned_int8={"size_bytes": size_bytes}))
