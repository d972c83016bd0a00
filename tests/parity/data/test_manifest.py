import json
import shutil

import pytest

from parity.data.manifest import Manifest
from parity.errors import InputError


@pytest.fixture
def path(session_home, tmp_path):
    folder = tmp_path / "synthetic"
    folder.mkdir()
    return shutil.copy(session_home / "synthetic" / "manifest.json", folder / "manifest.json")


def change(path, **fields):
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps(values))


def test_saving_and_loading_gives_the_same_manifest_and_digest(path):
    manifest = Manifest.load(path)
    manifest.save(path.with_name("again.json"))
    again = Manifest.load(path.with_name("again.json"))
    assert again == manifest and again.digest == manifest.digest


def test_the_digest_changes_with_any_field_and_not_with_the_order_or_spaces_of_the_file(path):
    digest = Manifest.load(path).digest
    values = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert Manifest.load(path).digest == digest
    change(path, licence="another")
    assert Manifest.load(path).digest != digest


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused(path, version):
    change(path, schema_version=version)
    with pytest.raises(
        InputError, match=f"{path}: expected schema_version to be 1, found {json.dumps(version)}: .*prepare synthetic"
    ):
        Manifest.load(path)


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": "512"},
        {"shards": []},
        {"parts": {"val": {"file": "val_000000.bin", "start": 0, "tokens": 1}}},
        {"tokenizer_sha256": "abc"},
        {"extra": 1},
        {"parts": {name: {"file": "../x", "start": 0, "tokens": 1} for name in ("val", "confirm")}},
    ],
    ids=["type", "no shards", "no confirm", "digest", "unknown field", "a path out of the folder"],
)
def test_a_manifest_of_another_form_is_refused(path, fields):
    change(path, **fields)
    with pytest.raises(InputError, match=f"{path}: .*(found|unknown field) .*: delete it and prepare"):
        Manifest.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_an_unreadable_manifest_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: .*found.*python -m parity.data prepare synthetic"):
        Manifest.load(path)


def test_a_missing_manifest_is_refused(path):
    path.unlink()
    with pytest.raises(
        InputError, match=f"{path}: expected the manifest of a slice, found none that can be read .No such file"
    ):
        Manifest.load(path)
