from deploykit.report.paired import paired_drop
from tests.report.evidence import answers


def tagged(pairs):
    return [{"label": label.split(), "reference": [], "candidate": found.split()} for label, found in pairs]


def test_the_loss_of_accuracy_has_an_interval_around_it():
    found = paired_drop("accuracy", answers(0.8), answers(0.9), (0.8, 0.9))
    assert found is not None
    assert abs(found.value - 0.1) < 1e-9
    assert 0.05 < found.low < found.value < found.high < 0.15


def test_equal_predictions_lose_nothing_but_not_for_sure():
    found = paired_drop("accuracy", answers(0.9), answers(0.9), (0.9, 0.9))
    assert found is not None
    assert found.low < 0 == found.value < found.high


def test_entities_count_whole():
    head = tagged([("B-x I-x O", "B-x O O"), ("B-y O", "B-y O")] * 50)
    base = tagged([("B-x I-x O", "B-x I-x O"), ("B-y O", "B-y O")] * 50)
    found = paired_drop("entity_f1", head, base, (0.5, 1.0))
    assert found is not None
    assert (found.value, found.low > 0.3) == (0.5, True)


def test_rows_that_do_not_pair_up_have_no_interval():
    assert paired_drop("accuracy", answers(0.9), answers(0.9, n=200), (0.9, 0.9)) is None
    assert paired_drop("accuracy", [], [], (0.9, 0.9)) is None
    other = [{**row, "label": "neutral"} for row in answers(0.9)]
    assert paired_drop("accuracy", answers(0.9), other, (0.9, 0.0)) is None


def test_predictions_that_do_not_give_the_metric_again_have_no_interval():
    assert paired_drop("accuracy", answers(0.9), answers(0.9), (0.8, 0.9)) is None
    assert paired_drop("bleu", answers(0.9), answers(0.9), (0.9, 0.9)) is None
