"""Alarms by hand: limits, patience, missing values, messages, refused settings."""

import pytest

from deepsearch_jax.runtime.alarms import AlarmSettings, check_alarms

HEALTHY = {
    "entropy": 0.5, "grad_norm": 1.0, "pg_clipfrac": 0.01, "pg_clipfrac_lower": 0.0, "mean_ratio": 1.0,
    "max_abs_log_ratio": 0.2, "importance_weight_mean": 1.0, "importance_weight_max": 1.5, "max_decode_train_gap": 0.1,
    "truncated_share": 0.2,
}  # fmt: skip
LIMITS = AlarmSettings(
    entropy_floor=0.3, grad_norm_ceiling=5.0, clip_fraction_ceiling=0.1, decode_train_gap_ceiling=1.0,
    truncated_share_ceiling=0.5, dual_clip_fraction_ceiling=0.01, mean_ratio_ceiling=1.1, log_ratio_ceiling=3.0,
    importance_mean_ceiling=1.2, importance_max_ceiling=8.0, patience=1,
)  # fmt: skip


def names(alarms):
    return [alarm.limit.name for alarm in alarms]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"entropy": 0.29}, "entropy_floor"),
        ({"grad_norm": 5.1}, "grad_norm_ceiling"),
        ({"grad_norm": float("nan")}, "grad_norm_ceiling"),
        ({"pg_clipfrac": 0.11}, "clip_fraction_ceiling"),
        ({"max_decode_train_gap": 1.1}, "decode_train_gap_ceiling"),
        ({"truncated_share": 0.51}, "truncated_share_ceiling"),
        ({"pg_clipfrac_lower": 0.02}, "dual_clip_fraction_ceiling"),
        ({"mean_ratio": 1.2}, "mean_ratio_ceiling"),
        ({"mean_ratio": float("inf")}, "mean_ratio_ceiling"),
        ({"max_abs_log_ratio": 3.1}, "log_ratio_ceiling"),
        ({"importance_weight_mean": 1.3}, "importance_mean_ceiling"),
        ({"importance_weight_max": 8.1}, "importance_max_ceiling"),
    ],
)
def test_each_limit_has_its_metric_and_its_side(change, name):
    assert check_alarms({}, HEALTHY, LIMITS) == ({}, [])
    counts, alarms = check_alarms({}, HEALTHY | change, LIMITS)
    assert names(alarms) == [name]
    assert counts == {name: 1}
    off = AlarmSettings(patience=1)
    assert check_alarms({}, HEALTHY | change, off) == ({}, [])


def test_an_alarm_waits_for_its_patience_and_starts_anew_after_a_good_step():
    settings = AlarmSettings(entropy_floor=0.3, patience=3)
    counts, raised = {}, []
    for entropy in (0.2, 0.2, None, 0.2, 0.2, 0.4, 0.2, 0.2):  # a step without an update neither counts nor forgives
        counts, alarms = check_alarms(counts, HEALTHY | {"entropy": entropy}, settings)
        raised.append(len(alarms))
    assert raised == [0, 0, 0, 1, 1, 0, 0, 0]
    assert counts == {"entropy_floor": 2}


def test_the_message_has_both_numbers_and_the_setting():
    _, (alarm,) = check_alarms({"entropy_floor": 4}, HEALTHY | {"entropy": 0.123456}, LIMITS)
    assert str(alarm) == "entropy 0.1235 is below alarms.entropy_floor=0.3 (5 steps in a row)"


@pytest.mark.parametrize(
    "bad",
    [
        {"entropy_floor": -0.1},
        {"patience": 0},
        {"clip_fraction_ceiling": 1.0},
        {"truncated_share_ceiling": 2.0},
        {"stop": True},
    ],
)
def test_bad_settings_name_the_value(bad):
    (name, value) = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        AlarmSettings(**bad)
