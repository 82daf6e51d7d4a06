import datasets
import numpy as np
import pyarrow as pa
import pytest

from hf_vaq.data import dataset_label_names, model_labels


def split_of(values, feature) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": feature}))


def classes(values, names) -> datasets.Dataset:
    return split_of(values, datasets.ClassLabel(names=names))


def integers(values) -> datasets.Dataset:
    return split_of(values, datasets.Value("int32"))


def test_names_are_matched_whatever_their_order_case_and_underscores():
    split = classes([0, 1, 2, 1], ["cat", "great_white_shark", "Dog"])
    labels = model_labels(split, "label", {0: "dog", 1: "bird", 2: "Cat", 3: "great white shark"})
    assert labels.tolist() == [2, 3, 0, 3] and labels.dtype == np.int64


def test_model_names_that_differ_only_in_case_must_be_spelt_exactly():
    model = {0: "crane", 1: "Crane"}
    assert model_labels(classes([0], ["Crane"]), "label", model).tolist() == [1]
    with pytest.raises(ValueError, match="'CRANE'"):
        model_labels(classes([0], ["CRANE"]), "label", model)


def test_strings_are_matched_by_name():
    split = split_of(["b", "a", "b"], datasets.Value("string"))
    assert model_labels(split, "label", {0: "b", 1: "a"}).tolist() == [0, 1, 0]
    assert dataset_label_names(split, "label") == ["a", "b"]


def test_integers_are_the_models_indices():
    assert model_labels(integers([569, 0]), "label", {i: f"class {i}" for i in range(1000)}).tolist() == [569, 0]
    assert dataset_label_names(integers([0, 3]), "label") == ["0", "1", "2", "3"]


@pytest.mark.parametrize(("values", "row", "wrong"), [([0, 2], 1, 2), ([-1, 0], 0, -1)])
def test_an_index_out_of_range_names_its_row(values, row, wrong):
    with pytest.raises(ValueError, match=f"holds {wrong} in row {row}; accepted: 0 to 1"):
        model_labels(integers(values), "label", {0: "a", 1: "b"})


def test_unlabelled_rows_are_refused():
    with pytest.raises(ValueError, match="holds -1 in row 1"):
        model_labels(classes([0, -1], ["a", "b"]), "label", {0: "a", 1: "b"})
    with pytest.raises(ValueError, match="no label in row 1"):
        model_labels(integers([0, None]), "label", {0: "a", 1: "b"})


def test_names_that_the_model_does_not_know_are_refused_by_name():
    with pytest.raises(ValueError, match=r"does not know: 'tench'\. The model's labels are 'a', 'b'"):
        model_labels(classes([0], ["a", "tench"]), "label", {0: "a", 1: "b"})


def test_a_model_with_placeholders_takes_the_order_of_the_data_set_if_the_number_agrees():
    split = classes([1, 0], ["cat", "dog"])
    assert model_labels(split, "label", {0: "LABEL_0", 1: "LABEL_1"}).tolist() == [1, 0]
    with pytest.raises(ValueError, match="2 classes, the model 3 without names"):
        model_labels(split, "label", {i: f"LABEL_{i}" for i in range(3)})


def test_a_column_of_another_type_is_refused():
    with pytest.raises(ValueError, match="whose type is float32; accepted: class labels, integers or strings"):
        model_labels(split_of([0.5], datasets.Value("float32")), "label", {0: "a"})


def test_where_the_model_has_one_name_for_two_classes_the_position_decides():
    # As ImageNet checkpoints do, whose classes 134 and 517 are both "crane".
    split = datasets.Dataset.from_dict(
        {"label": [0, 1, 2, 3]},
        features=datasets.Features({"label": datasets.ClassLabel(names=["goose", "crane", "bus", "crane2"])}),
    )
    model = {0: "goose", 1: "crane", 2: "bus", 3: "crane"}
    assert model_labels(split, "label", model).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="'crane'"):
        model_labels(split, "label", {0: "bus", 1: "crane", 2: "goose", 3: "crane"})
    with pytest.raises(ValueError, match="'crane'"):
        model_labels(split, "label", model | {4: "tree"})


def test_numbers_that_are_no_classes_are_refused_before_a_name_is_made_for_each():
    split = split_of([0, 4_000_000_000], datasets.Value("int64"))
    with pytest.raises(ValueError, match="holds 4000000000 in row 1; accepted as the number of a class: 0 to 999999"):
        dataset_label_names(split, "label")
    huge = datasets.Dataset(pa.table({"label": np.array([0, 2**63], dtype=np.uint64)}))
    with pytest.raises(ValueError, match=r"holds 9223372036854775808; accepted: below 2\^63"):
        dataset_label_names(huge, "label")
