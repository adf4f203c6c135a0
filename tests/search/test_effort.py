"""How long a recipe is said to take."""

from deploykit.compress.compress import Distil, Prune, Quantize, TrainQuantized
from deploykit.search.effort import Effort, rows_trained, seconds_of


def test_rows_count_as_often_as_they_are_seen():
    assert rows_trained((Quantize(), Prune(ffn=0.5)), 100) == 0
    assert rows_trained((Distil(layers=1, epochs=3, augment=2, splice=50), TrainQuantized(epochs=2)), 100) == 1250
    assert rows_trained((Prune(ffn=0.5, epochs=2, steps=3, max_train_samples=10),), 100) == 60
    assert rows_trained((Prune(ffn=0.5, epochs=2, max_train_samples=1000),), 100) == 200


def test_nothing_is_said_of_training_before_a_trial_has_trained():
    assert seconds_of(100, []) is None
    assert seconds_of(100, [Effort(0, 20.0)]) is None
    assert seconds_of(0, [Effort(100, 30.0)]) is None


def test_training_is_as_slow_as_its_slowest_trial_and_comes_on_top_of_the_rest():
    done = [Effort(0, 25.0), Effort(0, 20.0), Effort(100, 30.0), Effort(1000, 520.0)]
    assert seconds_of(0, done) == 20.0
    assert seconds_of(200, done) == 120.0
    assert seconds_of(200, [Effort(0, 25.0), Effort(100, 10.0)]) == 25.0
