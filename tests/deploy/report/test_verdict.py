import msgspec
import pytest

from deploy.intervals import paired_difference
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


LOST = {"baseline_delta": -3.0, "baseline_delta_low": -4.0, "baseline_delta_high": -2.0}
SLOW = {"speedup": 0.8, "speedup_low": 0.76, "speedup_high": 0.83}


def test_the_verdict_says_size_speed_and_cost_with_their_intervals():
    assert verdict(example()) == (
        "pruned-int8 is 11.9× smaller gzipped (3.9× smaller as a file) and 1.8× [1.7, 1.9] faster "
        "than baseline, at −0.25 points [−0.68, +0.18] of accuracy (no detectable difference)."
    )


def test_a_speed_up_whose_interval_holds_1_is_not_called_faster():
    noise = {"speedup": 1.02, "speedup_low": 0.97, "speedup_high": 1.08}
    sentence = verdict(changed(pruned_int8=noise))
    assert "as a file) and about as fast as baseline (1.02× [0.97, 1.08]), at" in sentence


def test_a_speed_up_known_too_roughly_is_not_called_about_as_fast():
    rough = {"speedup": 1.02, "speedup_low": 0.7, "speedup_high": 1.48}
    sentence = verdict(changed(pruned_int8=rough))
    assert "not detectably faster or slower (1.02× [0.70, 1.48]) than baseline" in sentence


def test_slower_is_said_as_slower():
    slow = dict.fromkeys(("pruned", "int8", "pruned_int8", "float16"), SLOW)
    assert "1.25× [1.20, 1.32] slower than baseline" in verdict(changed(**slow))


def test_a_real_loss_is_not_called_noise():
    loss = {"baseline_delta": -0.8, "baseline_delta_low": -1.3, "baseline_delta_high": -0.3}
    others = dict.fromkeys(("pruned", "int8", "float16"), LOST)
    small = {**loss, "baseline_delta_low": -0.99, "baseline_mcnemar_p": 0.002}
    sentence = verdict(changed(pruned_int8=small, **others))
    assert sentence.endswith("at −0.80 points [−0.99, −0.30] of accuracy.")


@pytest.mark.parametrize("noise", [{"baseline_mcnemar_p": 0.06}, {"baseline_delta_high": 0.01}])
def test_a_loss_that_interval_or_test_calls_noise_is_called_noise(noise):
    loss = {"baseline_delta": -0.8, "baseline_delta_low": -0.9, "baseline_delta_high": -0.3}
    sentence = verdict(changed(pruned_int8={**loss, "baseline_mcnemar_p": 0.002, **noise}))
    assert "no detectable difference" in sentence


def test_a_variant_that_detectably_lost_a_point_is_not_chosen():
    assert best_variant(changed(pruned_int8=LOST)).name == "pruned"


def test_a_slower_variant_is_chosen_only_where_none_is_left():
    assert best_variant(changed(pruned_int8=SLOW)).name == "pruned"
    all_slow = dict.fromkeys(("pruned", "int8", "pruned_int8", "float16"), SLOW)
    assert best_variant(changed(**all_slow)).name == "pruned-int8"


def test_of_variants_that_are_as_small_the_detectably_faster_is_chosen():
    smallest = best_variant(changed())
    assert smallest.name == "pruned-int8"
    high = smallest.speedup_high

    def chosen(*, low, times_the_bytes):
        speed = {"speedup": high + 1, "speedup_low": low, "speedup_high": high + 2}
        size = round(smallest.gzip_bytes * times_the_bytes)
        return best_variant(changed(int8={**speed, "gzip_bytes": size})).name

    assert chosen(low=high + 0.1, times_the_bytes=1.009) == "int8"
    assert chosen(low=high - 0.1, times_the_bytes=1.009) == "pruned-int8"
    assert chosen(low=high + 0.1, times_the_bytes=1.02) == "pruned-int8"


NAMES = ("pruned", "int8", "pruned_int8", "float16")


def test_where_every_variant_lost_too_much_that_is_the_verdict():
    sentence = verdict(
        changed(**{**dict.fromkeys(NAMES, LOST), "int8": {**LOST, "baseline_delta_low": -3.5}})
    )
    assert sentence.startswith(
        "No variant that is smaller or faster stays within 1 point of baseline: int8, the closest, is"
    )


def test_a_loss_that_a_small_test_set_does_not_rule_out_is_not_taken_for_none():
    # 100 samples, 1 gained and 8 lost.
    delta = paired_difference(1, 8, 100)
    assert 100 * delta.high > -1
    few = {
        "baseline_delta": 100 * delta.value,
        "baseline_delta_low": 100 * delta.low,
        "baseline_delta_high": 100 * delta.high,
        "baseline_mcnemar_p": 0.039,
    }
    results = changed(**dict.fromkeys(NAMES, few))
    results = msgspec.structs.replace(
        results, data=msgspec.structs.replace(results.data, test_samples=100)
    )
    assert best_variant(results) is None
    sentence = verdict(results)
    assert sentence.startswith(
        "No variant is shown to stay within 1 point of baseline: "
        "that cannot be told on 100 test samples. pruned-int8, the closest, is "
    )
    assert "at −7.00 points [−13.10, −0.63] of accuracy" in sentence
    assert "no detectable difference" not in sentence


@pytest.mark.parametrize("low", [-1.0, -1.3])
def test_an_interval_that_reaches_1_point_below_is_not_affordable(low):
    assert best_variant(changed(pruned_int8={"baseline_delta_low": low})).name == "pruned"
    assert best_variant(changed(pruned_int8={"baseline_delta_low": -0.99})).name == "pruned-int8"


def test_where_nothing_is_smaller_or_faster_the_baseline_is_kept():
    same = {
        "size_bytes": example().baseline.size_bytes - 1,
        "gzip_bytes": example().baseline.gzip_bytes + 1,
        "speedup": 0.99,
        "speedup_low": 0.97,
        "speedup_high": 1.01,
    }
    results = changed(**dict.fromkeys(NAMES, same))
    assert best_variant(results) is None
    assert verdict(results) == (
        "None of the variants pays: keep baseline. float16, the least bad, is no smaller and about "
        "as fast as baseline (0.99× [0.97, 1.01]), at −0.05 points [−0.15, +0.05] of accuracy "
        "(no detectable difference)."
    )


def test_what_is_faster_pays_even_where_it_is_no_smaller():
    same = {"size_bytes": 1_726_648, "gzip_bytes": 1_597_200}
    assert best_variant(changed(**dict.fromkeys(NAMES, same))).name == "int8"


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
