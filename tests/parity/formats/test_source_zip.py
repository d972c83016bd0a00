"""The packed source of a run: the same bytes every time, and a digest that tells any two sets of files apart."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.formats import source_zip


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "mine"
    (root / "deep").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "deep" / "model.py").write_text("x = 1\n" * 100)
    (root / "notes.txt").write_text("left out")
    (tmp_path / "zone.toml").write_text("[a]\n")
    return root


def test_the_source_zip_has_the_python_files_of_the_packages_and_the_extra_files(package, tmp_path):
    digest = source_zip.pack(tmp_path / "source.zip", [package], [tmp_path / "zone.toml"])
    with zipfile.ZipFile(tmp_path / "source.zip") as archive:
        assert archive.namelist() == ["mine/__init__.py", "mine/deep/model.py", "zone.toml"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.read("mine/deep/model.py") == (package / "deep" / "model.py").read_bytes()
    assert source_zip.digest(source_zip.read(tmp_path / "source.zip")) == digest


def test_the_source_zip_is_the_same_bytes_at_another_time_and_place(package, tmp_path):
    first = source_zip.pack(tmp_path / "1.zip", [package], [])
    shutil.copytree(package, tmp_path / "elsewhere" / "mine")
    for file in (tmp_path / "elsewhere" / "mine").rglob("*"):
        os.utime(file, (1, 1))
    second = source_zip.pack(tmp_path / "2.zip", [tmp_path / "elsewhere" / "mine"], [])
    assert first == second and (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_the_source_digest_changes_with_a_content_and_with_a_name(package, tmp_path):
    def digest():
        return source_zip.pack(tmp_path / "source.zip", [package], [])

    seen = {digest()}
    (package / "deep" / "model.py").write_text("x = 2\n")
    seen.add(digest())
    (package / "deep" / "model.py").rename(package / "deep" / "mode1.py")
    seen.add(digest())
    assert len(seen) == 3


def test_two_files_and_one_that_holds_the_others_name_and_content_differ_in_digest(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    (root / "a.py").write_text("1")
    (root / "b.py").write_text("2")
    two = source_zip.pack(tmp_path / "source.zip", [root], [])
    (root / "b.py").unlink()
    (root / "a.py").write_text("1mine/b.py2")
    assert source_zip.pack(tmp_path / "source.zip", [root], []) != two


def test_source_that_is_missing_or_named_twice_is_refused(package, tmp_path):
    pack = source_zip.pack
    with pytest.raises(InputError, match="no Python files"):
        pack(tmp_path / "source.zip", [tmp_path / "none"], [])
    with pytest.raises(InputError, match=r"gone\.py cannot be packed"):
        pack(tmp_path / "source.zip", [package], [tmp_path / "gone.py"])
    with pytest.raises(InputError, match="another source file is named"):
        pack(tmp_path / "source.zip", [package, package], [])
    assert not (tmp_path / "source.zip").exists()


def test_a_source_zip_that_is_cut_is_refused(package, tmp_path):
    packed = tmp_path / "source.zip"
    source_zip.pack(packed, [package], [])
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(InputError, match="found a damaged one"):
        source_zip.read(packed)


def write(path, content=b"x = 1\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# What editors, systems and synchronised folders leave beside modules: none of it can be imported.
FOREIGN = {
    "metadata-of-macos": lambda root: write(root / "._model.py", b"\0\5\x16\7Mac OS X"),
    "lock-of-an-editor": lambda root: (root / ".#model.py").symlink_to("me@host.123:456"),
    "dangling-link": lambda root: (root / "gone.py").symlink_to("nowhere.py"),
    "backup": lambda root: write(root / "model.py~"),
    "swap-file": lambda root: write(root / ".model.py.swp", b"\0\xff"),
    "copy": lambda root: write(root / "model copy.py"),
    "conflict": lambda root: write(root / "model (Case Conflict).py"),
    "conflict-of-syncthing": lambda root: write(root / "model.sync-conflict-20260102-030405-ABCDEFG.py"),
    "cache": lambda root: write(root / "__pycache__/model.py"),
    "notebooks": lambda root: write(root / ".ipynb_checkpoints/model-checkpoint.py"),
    "notebooks-by-their-name": lambda root: write(root / ".ipynb_checkpoints/model.py"),
    "hidden-folder": lambda root: write(root / ".git/hooks/hook.py"),
    "folder-with-a-blank": lambda root: write(root / "deep copy/model.py"),
    "digit": lambda root: write(root / "2model.py"),
    "folder-named-so": lambda root: write(root / "model2.py/inner.txt"),
    "pipe": lambda root: os.mkfifo(root / "pipe.py"),
    "no-unicode-name": lambda root: write(Path(os.fsdecode(os.fsencode(root) + b"/m\xffdel.py"))),
    "no-unicode-text": lambda root: write(root / "latin.py", "x = '\xe4'".encode("latin-1")),
    "unknown-encoding": lambda root: write(root / "odd.py", b"# coding: nothing-known\n"),
    "folder-in-itself": lambda root: (root / "inner").symlink_to(root, target_is_directory=True),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_python_cannot_import_is_no_source(package, tmp_path, name):
    before = source_zip.pack(tmp_path / "source.zip", [package], [])
    FOREIGN[name](package)
    assert source_zip.pack(tmp_path / "source.zip", [package], []) == before


def test_what_python_can_import_is_source_through_links_and_in_its_encoding_too(package, tmp_path):
    write(tmp_path / "elsewhere/linked.py")
    (package / "linked.py").symlink_to(tmp_path / "elsewhere/linked.py")
    (package / "folder").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    write(package / "modèle.py")
    write(package / "latin.py", "# coding: latin-1\nx = '\xe4'\n".encode("latin-1"))
    names = {"__init__.py", "deep/model.py", "linked.py", "folder/linked.py", "modèle.py", "latin.py"}
    assert source_zip.collect([package], []).keys() == {f"mine/{name}" for name in names}


@pytest.mark.parametrize("mode", [0, 0o200])
def test_a_module_that_cannot_be_read_is_no_source(package, mode):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    write(package / "closed.py")
    (package / "closed.py").chmod(mode)
    assert "mine/closed.py" not in source_zip.collect([package], [])
