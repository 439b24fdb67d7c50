import pytest
from recipes.template import Template, TemplateError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    return root


def found(text, root):
    return list(Template(text).find(root))


def test_a_field_is_characters_without_a_slash(tmp_path):
    touch(tmp_path, "opt/b.png", "opt/a.png", "opt/sub/c.png", "opt/a.jpg", "sar/a.png")
    assert found("opt/{key}.png", tmp_path) == [({"key": "a"}, "opt/a.png"), ({"key": "b"}, "opt/b.png")]


def test_suffix_in_either_case_and_hidden_files_aside(tmp_path):
    touch(tmp_path, "a.PNG", ".b.png", ".hidden/c.png", "A.png")
    assert [path for _, path in found("{key}.png", tmp_path)] == ["A.png", "a.PNG"]


def test_fields_of_folders_and_a_field_that_stands_twice(tmp_path):
    touch(
        tmp_path,
        "spring/s1_1/spring_s1_1_p30.tif",
        "spring/s1_1/autumn_s1_1_p31.tif",
        "spring/s1_2/spring_s1_2_p7.tif",
        "spring/s2_1/spring_s2_1_p30.tif",
    )
    template = Template("{season}/s1_{scene}/{season}_s1_{scene}_p{patch:[0-9]+}.tif")
    assert template.fields == ("season", "scene", "patch")
    assert [fields for fields, _ in template.find(tmp_path)] == [
        {"season": "spring", "scene": "1", "patch": "30"},
        {"season": "spring", "scene": "2", "patch": "7"},
    ]
    assert template.fill({"season": "x", "scene": "1", "patch": "2"}) == "x/s1_1/x_s1_1_p2.tif"


def test_a_known_field_is_text_and_no_pattern(tmp_path):
    touch(tmp_path, "a.c/a.c_1.tif", "a.c/abc_2.tif")
    assert found("{key}/{key}_{n}.tif", tmp_path) == [({"key": "a.c", "n": "1"}, "a.c/a.c_1.tif")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{key:[a-z]{2}}.tif", ["ab.tif"]),
        ("{key:.+}.tif", ["ab.tif", "abc.tif"]),
        ("{key:(?:.+/)?[a-z]+}.tif", ["ab.tif", "abc.tif", "x/ab.tif", "x/y/ab.tif"]),
    ],
)
def test_patterns_stay_in_their_folder_unless_they_name_the_slash(tmp_path, text, expected):
    touch(tmp_path, "ab.tif", "abc.tif", "x/ab.tif", "x/y/ab.tif")
    assert [path for _, path in found(text, tmp_path)] == expected


def test_prefix_and_a_missing_folder(tmp_path):
    assert Template("a/b/{key}.png").prefix == "a/b"
    assert Template("a/{x}/c/{key}.png").prefix == "a"
    assert Template("{key}.png").prefix == ""
    touch(tmp_path, "a/one/c/1.png", "a/two/d/2.png")
    assert [path for _, path in found("a/{x}/c/{key}.png", tmp_path)] == ["a/one/c/1.png"]
    assert found("z/{key}.png", tmp_path) == []


def test_a_file_without_fields(tmp_path):
    touch(tmp_path, "a/one.tif")
    assert found("a/one.tif", tmp_path) == [({}, "a/one.tif")]
    assert found("a/two.tif", tmp_path) == []


@pytest.mark.parametrize(
    "text",
    ["", "/a/{key}.png", "../{key}.png", "a/{key.png", "a/key}.png", "{a b}.png", "{key:(}.png", "{key:(a)}"],
)
def test_what_is_no_template(text):
    with pytest.raises(TemplateError):
        Template(text)
