"""The packed source of a run: a zip that is the same bytes every time, its digest, and a strict reader of it."""

import hashlib
import io
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from parity.errors import InputError
from parity.formats.files import open_plain, read_bounded, write_file

MAX_BYTES, MAX_PACKED_BYTES, MAX_FILES = 64 << 20, 16 << 20, 2000
DATE = (1980, 1, 1, 0, 0, 0)
REMEDY = "the run must be made again"


def digest(members: Mapping[str, bytes]) -> str:
    """SHA-256 over names and contents, each after its length, in the order of names: no two sets of files share it."""
    total = hashlib.sha256()
    for name, content in sorted(members.items()):
        for data in (name.encode(), content):
            total.update(len(data).to_bytes(8, "little"))
            total.update(data)
    return total.hexdigest()


def pack(path: Path, packages: Iterable[Path], files: Iterable[Path]) -> str:
    """Packs the modules of packages, as `<package>/<path in it>`, and further files by name; returns the digest.

    Raises InputError where a file is missing, two would have one name, or the zip cannot be written.
    """
    members = collect(packages, files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name, DATE)
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
            archive.writestr(info, content)
    write_file(path, buffer.getvalue())
    return digest(members)


def collect(packages: Iterable[Path], files: Iterable[Path]) -> dict[str, bytes]:
    """Names and contents of what `pack` packs."""
    members: dict[str, bytes] = {}
    for file in map(Path, files):
        try:
            with open_plain(file, follow=True) as source:
                _add(members, file.name, source.read())
        except OSError as error:
            raise InputError(f"the source file {file} cannot be packed ({error.strerror}): check the path") from None
    for root in (Path(package).resolve() for package in packages):
        modules = package_modules(root)
        if not modules:
            raise InputError(f"{root} has no Python files to pack: expected a package's directory")
        for name, content in modules.items():
            _add(members, name, content)
    return members


def _add(members: dict[str, bytes], name: str, content: bytes) -> None:
    if name in members:
        raise InputError(f"{name} cannot be packed: another source file is named so: rename one")
    members[name] = content


def package_modules(root: Path) -> dict[str, bytes]:
    """The files that Python can import from a package's folder, by their packed names, with their contents.

    Modules and the folders that lead to them are named by identifiers, and are plain files that can be read, in their
    encoding, through links too. All else is no source: what editors, systems and synchronised folders leave there.
    """
    found: dict[str, bytes] = {}
    waiting = [(root, root.name, [os.path.realpath(root)])]
    while waiting:
        folder, name, above = waiting.pop()
        try:
            entries = os.listdir(folder)
        except OSError:
            continue  # Python cannot read it either
        for entry in entries:
            path, inner, target = folder / entry, f"{name}/{entry}", os.path.realpath(folder / entry)
            if entry.isidentifier() and path.is_dir() and target not in above:
                waiting.append((path, inner, [*above, target]))
            elif is_module_name(inner):
                with suppress(OSError, InputError), open_plain(path, follow=True) as file:
                    content = file.read()
                    if is_readable(content):
                        found[inner] = content
    return found


def is_module_name(name: str) -> bool:
    """Whether a packed name is that of a file that Python can import from its package."""
    *folders, file = name.split("/")
    stem, _, ending = file.rpartition(".")
    return ending == "py" and all(part.isidentifier() and part != "__pycache__" for part in (*folders, stem))


def is_readable(content: bytes) -> bool:
    """Whether Python can read a source file's text: in the encoding that it names, or UTF-8."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        content.decode(encoding)
    except (SyntaxError, ValueError, LookupError):
        return False
    return True


def read(path: Path) -> dict[str, bytes]:
    """Names and contents of a packed source; nothing of it is written anywhere.

    Raises InputError for links, names that reach outside, more files or bytes than a source has, and damaged archives.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bounded(path, MAX_PACKED_BYTES, plain=True))) as archive:
            return dict(_members(archive, path))
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, LookupError) as error:
        raise InputError(
            f"{path}: expected a whole zip archive, found a damaged one ({str(error)[:80]}): {REMEDY}"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}): {REMEDY}") from None


def _members(archive: zipfile.ZipFile, path: Path) -> Iterator[tuple[str, bytes]]:
    left, names = MAX_BYTES, set()
    for info in archive.infolist():
        name = info.filename
        reaches_outside = {"", ".."} & set(name.split("/")) or any(character in name for character in "\\:\0")
        linked = info.external_attr >> 28 not in (0, 8)
        packed_otherwise = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # memory without bound
        if reaches_outside or linked or packed_otherwise or name in names or len(names) >= MAX_FILES:
            raise InputError(
                f"{path}: expected plain source files, found {name[:80]!r}: a path outside, a link, a second file "
                f"of that name, or too many: {REMEDY}"
            )
        names.add(name)
        with archive.open(info) as file:
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise InputError(
                f"{path}: expected at most {MAX_BYTES:,} bytes of source, found more in {name[:80]!r}: {REMEDY}"
            )
        yield name, content
