"""Libraries in the cache: whole, nobody else's, found without a compiler."""

import ctypes
import os

import pytest

from hf_vaq import shared_libraries
from hf_vaq.shared_libraries import BuildError, Signature, load_library


@pytest.fixture
def load(monkeypatch, tmp_path):
    try:
        shared_libraries._compiler()
    except BuildError:
        pytest.skip("needs a C++ compiler")
    monkeypatch.setattr(shared_libraries.constants, "HF_HOME", str(tmp_path / "a home"))
    source = tmp_path / "seven.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    return lambda: load_library(source, (), (), {"seven": Signature(ctypes.c_int, ())}).seven()


@pytest.fixture
def folder(load, tmp_path):
    assert load() == 7
    return tmp_path / "a home" / "hf_vaq"


def test_only_this_user_may_write_the_folder(folder):
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in folder.iterdir()) == [".sha256", ".so"]


def test_a_cached_library_needs_no_compiler(load, folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert load() == 7


@pytest.mark.parametrize("damage", ["short", "flipped", "writable by others", "a link"])
def test_a_library_that_is_not_as_written_is_built_anew(load, folder, damage, tmp_path):
    (library,) = folder.glob("*.so")
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes({"short": whole[:1000], "flipped": b"?" + whole[1:]}.get(damage, whole))
    library.chmod(0o666 if damage == "writable by others" else 0o755)
    if damage == "a link":
        library.rename(tmp_path / "elsewhere.so")
        library.symlink_to(tmp_path / "elsewhere.so")
    assert not shared_libraries._is_whole(library)
    assert load() == 7
    assert shared_libraries._is_whole(library)


def test_a_folder_of_ours_that_others_may_write_is_closed_to_them(load, folder):
    folder.chmod(0o777)
    assert load() == 7
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("whose", ["another user's", "a link"])
def test_a_folder_that_is_not_ours_is_neither_read_nor_written(load, folder, whose, tmp_path):
    (library,) = folder.glob("*.so")
    library.write_bytes(b"not to be loaded")
    if whose == "a link":
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
    elif os.getuid() != 0:
        pytest.skip("only root gives a folder to another user")
    else:
        os.chown(folder, 65534, 65534)
    assert load() == 7
    assert library.read_bytes() == b"not to be loaded"


def test_the_compiler_may_have_arguments(load, monkeypatch):
    monkeypatch.setenv("CXX", f"env {shared_libraries._compiler()[0]} -O2")
    assert load() == 7


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(load, monkeypatch, tmp_path):
    monkeypatch.setattr(shared_libraries, "FLAGS", ("-no-such-flag",))
    with pytest.raises(BuildError, match=r"seven.cpp: .*no-such-flag"):
        load()
    assert list((tmp_path / "a home" / "hf_vaq").iterdir()) == []
