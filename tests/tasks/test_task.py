import json

import pytest

from deploykit.errors import DataError, UsageError
from deploykit.tasks import TASKS, task_named
from deploykit.tasks.task import label_index

CLASSIFICATION = task_named("text-classification")
NER = task_named("token-classification")


def split_of(folder, rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_task_is_found_by_its_name():
    assert [task_named(name).name for name in TASKS] == list(TASKS)


def test_an_unknown_task_names_the_known_ones():
    with pytest.raises(UsageError, match="text-classification, token-classification"):
        task_named("translation")


def test_a_label_is_a_name_or_an_index():
    assert label_index("b", ["a", "b"], "x") == 1
    assert label_index(0, ["a", "b"], "x") == 0


@pytest.mark.parametrize("label", ["c", "", 2, -1, True, None, 0.0, ["a"]])
def test_an_unknown_label_is_an_error_at_its_line(label):
    with pytest.raises(DataError, match=r"train.jsonl:7: expected a label of a, b"):
        label_index(label, ["a", "b"], "train.jsonl:7")


def test_a_long_list_of_labels_is_cut_in_the_message():
    with pytest.raises(DataError, match=r"of 0, 1, 2, 3, 4, 5, 6, 7 and 69 more"):
        label_index("x", [str(index) for index in range(77)], "f:1")


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        (CLASSIFICATION, {"text": "a", "label": "x"}, {"text": "a"}, "a field 'label'"),
        (CLASSIFICATION, {"text": "a", "label": "x"}, {"text": " ", "label": "x"}, "a blank one"),
        (CLASSIFICATION, {"text": "a", "label": "x"}, {"text": "a", "text_pair": 3, "label": "x"}, "'text_pair'"),
        (NER, {"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": ["O", "O"]}, "1 tags"),
        (NER, {"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": "O"}, "found str"),
        (NER, {"tokens": ["a"], "ner_tags": ["O"]}, {"tokens": [], "ner_tags": []}, "no word"),
        (NER, {"tokens": ["a"], "ner_tags": ["O"]}, {"text": "a", "ner_tags": ["O"]}, "a field 'tokens'"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_at_its_line(tmp_path, task, good, bad, message):
    with pytest.raises(DataError, match=rf"train\.jsonl:2: .*{message}"):
        task.read(split_of(tmp_path, [good, bad]), "train")


def test_labels_without_a_list_must_be_names(tmp_path):
    split = CLASSIFICATION.read(split_of(tmp_path, [{"text": "a", "label": 1}]), "train")
    with pytest.raises(DataError, match=r"train\.jsonl:1: expected a label's name"):
        CLASSIFICATION.labels_of(split)


def test_tags_must_be_iob2(tmp_path):
    split = NER.read(split_of(tmp_path, [{"tokens": ["a", "b"], "ner_tags": ["O", "person"]}]), "train")
    with pytest.raises(DataError, match="IOB2"):
        NER.labels_of(split)
    with pytest.raises(DataError, match="IOB2"):
        NER.targets(split, [], ["O", "person"])
