"""Names that mean the same class: synonyms, names that several classes share, positions."""

import pytest

from hf_vaq.data.label_names import match_names


def match(names: list[str], model: list[str]) -> list[int]:
    return match_names(names, dict(enumerate(model)), "label").tolist()


IMAGENET = [
    "tench, Tinca tinca",
    "English springer, English springer spaniel",
    "Cardigan, Cardigan Welsh corgi",
    "cardigan",
    "chain saw, chainsaw",
]


def test_one_synonym_is_enough_on_either_side():
    assert match(["chainsaw", "tench", "English_springer"], IMAGENET) == [4, 0, 1]
    assert match(["chain saw, chainsaw", "Tinca tinca, tench"], ["tench", "chainsaw", "bird"]) == [1, 0]


def test_the_whole_name_goes_before_a_synonym():
    assert match(["cardigan", "Cardigan, Cardigan Welsh corgi"], IMAGENET) == [3, 2]
    assert match(["maillot, tank suit", "maillot"], ["maillot", "maillot, tank suit"]) == [1, 0]


def test_names_that_differ_in_case_only_do_not_make_all_others_be_spelt_exactly():
    # ImageNet has a dog "Cardigan" and a jacket "cardigan".
    model = ["Cardigan", "cardigan", "English_springer", "chain_saw"]
    assert match(["English springer", "cardigan", "chain saw", "Cardigan"], model) == [2, 1, 3, 0]
    with pytest.raises(ValueError, match="'CARDIGAN', which could be any"):
        match(["CARDIGAN"], model)


def test_a_part_of_a_synonym_is_no_match():
    with pytest.raises(ValueError, match="does not know: 'springer'"):
        match(["springer"], IMAGENET)


def test_a_name_that_fits_several_classes_is_refused_by_class():
    model = ["crane, bird", "crane, machine", "goose"]
    with pytest.raises(ValueError, match=r"'crane', which could be any of .* 0 \('crane, bird'\), 1 \('crane, m"):
        match(["crane"], model)


def test_two_names_of_one_class_are_refused():
    with pytest.raises(ValueError, match=r"labels 'tench', 'Tinca tinca', which are one class of the model: 'tench, "):
        match(["tench", "Tinca tinca"], IMAGENET)


def test_the_position_decides_between_namesakes_if_all_others_stand_at_theirs():
    model = ["goose", "crane", "bus", "crane"]
    assert match(["goose, gander", "crane, bird", "bus", "crane, machine"], model) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="'crane, bird'"):
        match(["bus", "crane, bird", "goose", "crane, machine"], model)


def test_the_position_never_overrules_a_name():
    assert match(["Crane", "crane"], ["crane", "Crane"]) == [1, 0]
    assert match(["b", "a"], ["a", "b"]) == [1, 0]


def test_an_empty_synonym_matches_nothing():
    with pytest.raises(ValueError, match="does not know: ', ,'"):
        match([", ,"], ["a,", ",b"])


def test_the_names_of_imagenet_match_by_first_synonym_too():
    # The thousand names of a checkpoint of this kind; each has a second synonym in the other list.
    model = [f"class {index}, synonym {index}" for index in range(1000)]
    names = [f"Class_{index}" for index in reversed(range(1000))]
    assert match(names, model) == list(reversed(range(1000)))
