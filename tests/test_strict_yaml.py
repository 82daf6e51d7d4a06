import pytest

from hf_vaq.strict_yaml import MAX_BYTES, MAX_DEPTH, parse_yaml, read_yaml


def test_plain_yaml_is_what_it_says(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb: [x, {c: no}]\nd: 2001-02-03\ne: .inf\n")
    content = read_yaml(path)
    assert content["a"] == 1 and content["b"] == ["x", {"c": False}] and content["e"] == float("inf")
    assert parse_yaml("", "text") is None


def test_numbers_are_read_as_people_write_them():
    assert parse_yaml("[1e-6, 5e-4, -2E3, .5e+1, 1.5e2]", "mine") == [1e-6, 5e-4, -2000.0, 5.0, 150.0]
    assert parse_yaml("[1e, e5, 1e-6x, 1-2]", "mine") == ["1e", "e5", "1e-6x", "1-2"]


def test_an_escape_of_no_character_is_refused():
    with pytest.raises(ValueError, match="mine is not valid YAML"):
        parse_yaml('"\\UFFFFFFFF"', "mine")


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: 2\n\na: 3\n", 4, "'a' stands twice, first in line 1"),
        ("a:\n  b: 1\n  'b': 1\n", 3, "'b' stands twice, first in line 2"),
        ("- x\n- {c: 1, c: 2}\n", 2, "'c' stands twice"),
        ("a: &x [1]\nb: *x\n", 2, r"the alias \*x; accepted: the value itself"),
        ("a: &x [*x]\n", 1, "the alias"),
        ("a: 1\n<<: {b: 2}\n", 2, "the merge key <<"),
        ("a: 1\nb: 2001-13-45\n", 2, "the value '2001-13-45' cannot be read"),
        ("a: 1\nb: " + "7" * 5000 + "\n", 2, "cannot be read"),
        ("a: 1\n[1]: 2\n", 2, "."),
        ("a: 1\nb: !!bool maybe\n", 2, "the value 'maybe' cannot be read"),
        ("a: !!float ''\n", 1, "the value '' cannot be read"),
        ("a: !!timestamp abc\n", 1, "the value 'abc' cannot be read"),
        ("a: !!python/name:os.system x\n", 1, "could not determine a constructor"),
        ("a: 1\nb: [1", 2, "expected"),
        ("a: 1\nb: \0\n", 2, "special characters"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
    ],
)
def test_what_is_not_plain_is_refused_with_its_line(text, line, problem):
    with pytest.raises(ValueError, match=rf"^mine, line {line} is not valid YAML: .*{problem}"):
        parse_yaml(text, "mine")


def test_a_small_file_takes_little_memory():
    aliases = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
    )
    with pytest.raises(ValueError, match=r"mine, line 2 .*the alias \*a"):
        parse_yaml(aliases, "mine")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_whatever_it_is_made_of(opening):
    with pytest.raises(ValueError, match=rf"mine, line 1 .*nested deeper than {MAX_DEPTH}"):
        parse_yaml(opening * 20_000, "mine")
    fits = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert str(parse_yaml(fits, "mine")) == fits


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"large\.yaml is larger than 1,000,000 bytes"):
        read_yaml(path)
    path.write_bytes(b"#" * MAX_BYTES)
    assert read_yaml(path) is None


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ValueError, match=r"latin\.yaml is not valid YAML: it is not UTF-8"):
        read_yaml(tmp_path / "latin.yaml")
    with pytest.raises(ValueError, match=r"absent\.yaml cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yaml")
