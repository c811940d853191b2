"""Every setting that makes no sense is refused by name."""

import pytest

from stgs.config import FoundConfig, InputError, SearchConfig, WeightSchedule


def test_defaults_are_the_agreed_ones() -> None:
    search, found = SearchConfig(), FoundConfig()
    assert (search.epochs, found.epochs, search.batch_size, search.patience) == (30, 100, 64, 24)
    assert (search.architecture_learning_rate, search.architecture_weight_decay) == (3e-3, 1e-3)
    assert (search.architecture_beta1, search.architecture_beta2) == (0.5, 0.999)
    assert (search.dropout, search.attention_dropout) == (0.2, 0.1)
    for schedule in (search.weights, found.weights):
        assert (schedule.learning_rate_max, schedule.learning_rate_min) == (1e-3, 1e-6)
        assert (schedule.restart_epochs, schedule.restart_multiplier, schedule.weight_decay) == (1, 2, 3e-4)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (WeightSchedule, "learning_rate_min", 0.0),
        (WeightSchedule, "learning_rate_min", 1.0),
        (WeightSchedule, "learning_rate_max", float("nan")),
        (WeightSchedule, "restart_epochs", 0),
        (WeightSchedule, "restart_multiplier", 0),
        (WeightSchedule, "weight_decay", -1.0),
        (SearchConfig, "epochs", 0),
        (SearchConfig, "batch_size", 0),
        (SearchConfig, "patience", 0),
        (SearchConfig, "warmup_epochs", -1),
        (SearchConfig, "clip_norm", -0.1),
        (SearchConfig, "architecture_learning_rate", 0.0),
        (SearchConfig, "architecture_weight_decay", -1.0),
        (SearchConfig, "initial_logit_scale", -1.0),
        (SearchConfig, "architecture_beta1", 1.0),
        (SearchConfig, "architecture_beta2", -0.1),
        (SearchConfig, "dropout", 1.0),
        (SearchConfig, "attention_dropout", -0.1),
        (SearchConfig, "alternate", "sometimes"),
        (FoundConfig, "epochs", 0),
        (FoundConfig, "batch_size", 0),
        (FoundConfig, "dropout", 1.5),
        (FoundConfig, "attention_dropout", float("nan")),
    ],
)
def test_wrong_settings_are_refused(config: type, field: str, value: object) -> None:
    with pytest.raises(InputError, match=field):
        config(**{field: value})
