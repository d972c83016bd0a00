"""Files from a data set on the Hugging Face hub; an interrupted download continues, also in a later process."""

import re
import time
from pathlib import Path
from typing import Any

from parity.data.proxy import proxy_words, without_secrets
from parity.errors import InputError
from parity.formats.files import CHUNK_BYTES, cannot_write, sha256_file, sync
from parity.progress import ProgressLine

# huggingface_hub gives the address, the size and the digest; the bytes are read here, because its own download leaves
# no partial file when its process is stopped (as of 2.4), and a shard has 200 MB.
ATTEMPTS = 5  # in a row without a byte
PAUSE_S = 1.0  # before each new attempt
TIMEOUT_S = 30


def hub_fetch(repository: str, file: str, path: Path, progress: ProgressLine) -> None:
    """Downloads one file of a data set to `path`; an interrupted download continues from a partial file beside it.

    Raises InputError where huggingface_hub is missing, the hub cannot be reached, the disk is full or the digest that
    the hub gives differs.
    """
    url, headers, etag, size = _address(repository, file)
    # Named after the content: a partial file of other content is never continued.
    partial = path.with_name(f".{path.name}.{re.sub('[^0-9A-Za-z]', '', etag)[:16]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, headers, partial, size, file, progress)
        # The hub's name for the content of a large file is its SHA-256.
        if re.fullmatch("[0-9a-f]{64}", etag) and (actual := sha256_file(partial)) != etag:
            partial.unlink()
            raise InputError(
                f"{path}: expected sha256 {etag} from the hub, found {actual} after the download; the download was "
                "damaged: run the command again"
            )
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error


def _address(repository: str, file: str) -> tuple[str, dict[str, str], str, int]:
    """The URL of a file, the headers of its request, its etag and its size in bytes."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url  # pyright: ignore[reportMissingImports]
        from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{file}: expected the package huggingface_hub to find it with, found none; run pip install 'jaxrun[hub]'"
        ) from error
    url = hf_hub_url(repository, file, repo_type="dataset")
    try:
        metadata = get_hf_file_metadata(url)
    # The exceptions differ between versions (requests, httpx, its own); whichever it is, the hub did not response.
    except Exception as error:  # noqa: BLE001
        raise _unreachable(url, error) from error
    if not metadata.etag or not metadata.size:
        raise InputError(f"{url}: expected its size and etag from the hub, found none; run the command again later")
    return url, build_hf_headers(), metadata.etag, metadata.size


def _unreachable(url: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"{url}: expected to read it from the Hugging Face hub, found: {without_secrets(reason[0])}; {proxy_words()}"
        "connect to the network, or set HF_ENDPOINT to a mirror, or copy the shards from another machine into the "
        "slice's folder, then run the command again: what was downloaded is kept"
    )


def _download(url: str, headers: dict[str, str], partial: Path, size: int, file: str, progress: ProgressLine) -> None:
    import requests

    failures, size_so_far = 0, _size(partial)
    most = size_so_far
    while size_so_far < size:
        problem: Exception = requests.ConnectionError("the responses ended early")
        try:
            _append(requests, url, headers, partial, size_so_far, size, file, progress)
        except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:  # of a proxy
            raise _unreachable(url, error) from error
        except requests.RequestException as error:
            problem = error
        size_so_far = _size(partial)
        failures, most = (0, size_so_far) if size_so_far > most else (failures + 1, most)
        if failures >= ATTEMPTS:
            raise _unreachable(url, problem) from problem
        if size_so_far < size:
            time.sleep(PAUSE_S)
    if size_so_far > size:
        partial.unlink()
        raise InputError(f"{partial}: expected {size:,} bytes, found {size_so_far:,}; run the command again")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _append(
    requests: Any,
    url: str,
    headers: dict[str, str],
    partial: Path,
    start: int,
    size: int,
    file: str,
    progress: ProgressLine,
) -> None:
    """Asks for the bytes that are missing and appends them as they come."""
    request = {**headers, "Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    try:
        response = requests.get(url, headers=request, stream=True, timeout=TIMEOUT_S)
    except requests.RequestException:
        raise
    except (OSError, ValueError) as error:  # of the environment: certificates that are not there, addresses
        raise _unreachable(url, error) from error
    with response:
        response.raise_for_status()
        # 206 is the requested range; 200 is the whole file from its start.
        resumed = response.status_code == 206
        with open(partial, "ab" if resumed else "wb") as out:
            done = start if resumed else 0
            for chunk in response.iter_content(CHUNK_BYTES):
                out.write(chunk)
                done += len(chunk)
                progress.step(file, done / 1e6, size / 1e6, "MB")
