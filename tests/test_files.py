"""Folders that appear, are replaced and go as a whole."""

import os

import pytest

from hf_vaq.files import flush_folder, is_leftover, remove_folder, remove_leftovers, replace_folder, write_problem


def folder_with(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / name).write_text(content)
    return path


def test_a_folder_is_replaced_by_the_finished_one(tmp_path):
    folder_with(tmp_path / "old", a="1", b="2")
    folder_with(tmp_path / "finished", a="3")
    replace_folder(tmp_path / "finished", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old") == ["a"]
    assert (tmp_path / "old" / "a").read_text() == "3"


@pytest.mark.parametrize("action", ["replace", "remove"])
def test_whatever_interrupts_it_a_folder_with_its_name_is_whole(tmp_path, monkeypatch, action):
    folder = folder_with(tmp_path / "folder", a="1", b="2")
    folder_with(tmp_path / "finished", a="3", b="4")
    seen = []

    def watch(path, **kwargs):
        # Called at the moments at which files go, one by one.
        seen.append(folder.is_dir() and sorted(os.listdir(folder)))

    monkeypatch.setattr("shutil.rmtree", watch)
    if action == "replace":
        replace_folder(tmp_path / "finished", folder)
        assert seen == [["a", "b"]] and (folder / "a").read_text() == "3"
    else:
        remove_folder(folder)
        assert seen == [False]


def test_leftovers_go_and_nothing_else(tmp_path):
    folder_with(tmp_path / ".out.partial-1", a="1")
    (tmp_path / ".x.json.partial-2").write_text("{")
    (tmp_path / ".hidden").write_text("")
    folder_with(tmp_path / "out.partial", a="1")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "out.partial"]
    remove_leftovers(tmp_path / "absent")


def test_every_file_is_flushed(tmp_path, monkeypatch):
    folder_with(tmp_path / "a", x="1")
    folder_with(tmp_path / "a" / "b", y="2")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    flush_folder(tmp_path / "a")
    assert {os.path.relpath(path, tmp_path) for path in flushed} == {"a", "a/x", "a/b", "a/b/y"}


def test_the_reason_why_nothing_can_be_written_is_found(tmp_path, monkeypatch):
    assert write_problem(tmp_path) is None and os.listdir(tmp_path) == []
    assert write_problem(tmp_path / "absent") == "No such file or directory"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert write_problem(tmp_path) == "No space left on device" and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", [".mine.partial-backup", ".partial-12", "x.partial-12", ".x.partial-", ".x.partial-old.tar"]
)
def test_names_that_people_choose_are_no_leftovers(tmp_path, name):
    (tmp_path / name).write_text("canary")
    remove_leftovers(tmp_path)
    assert (tmp_path / name).exists() and not is_leftover(name)


@pytest.mark.parametrize("name", [".x.partial-77", ".x.json.partial-ab12_d34", ".checkpoint-3.partial-save"])
def test_names_of_ours_are_leftovers(name):
    assert is_leftover(name)


def test_stepping_aside_removes_nothing_that_lies_there(tmp_path):
    folder_with(tmp_path / ".folder.partial-old", a="canary")
    replace_folder(folder_with(tmp_path / "finished", a="3"), folder_with(tmp_path / "folder", a="1"))
    remove_folder(tmp_path / "folder")
    assert os.listdir(tmp_path) == [".folder.partial-old"]
