"""The slice from the hub, with a small hub on this machine: real HTTP, real processes, small shards."""

import hashlib
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from parity.data.fineweb import Source
from parity.data.shards import write_shard
from parity.data.slices import open_slice, problems
from parity.errors import InputError

REPOSITORY = "kjj0/fineweb10B-gpt2"
SMALL = "Source(train_shards=3, shard_tokens=1000000, val=(0, 4096), confirm=(5000, 4096), lost_tokens=1000)"
PREPARE = f"""
import sys
from pathlib import Path
from parity.data.fineweb import Source, build
from parity.progress import ProgressLine
from parity.errors import run_command
home = Path(sys.argv[1])
sys.exit(run_command(lambda: build(home / "fineweb10B", home, int(sys.argv[2]), ProgressLine(), {SMALL}) and 0))
"""
FETCH = """
import sys
from pathlib import Path
from parity.data.hub import hub_fetch
from parity.progress import ProgressLine
from parity.errors import run_command
folder, file = sys.argv[1:]
sys.exit(run_command(lambda: hub_fetch("kjj0/fineweb10B-gpt2", file, Path(folder) / file, ProgressLine())))
"""


class Hub:
    """Serves a folder as the hub does. It drops the connection `cut_after` bytes into a body, `cuts` times, and then,
    if `down`, answers no more."""

    def __init__(self, folder):
        self.folder, self.requests, self.cut_after, self.cuts, self.wrong_etag = folder, [], None, 0, False
        self.down = False
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                match = re.fullmatch(f"/datasets/{REPOSITORY}/resolve/main/(.+)", self.path)
                path = hub.folder / match[1] if match else None
                if not path or not path.exists():
                    return self.send_error(404)
                data = path.read_bytes()
                start = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
                if body and hub.down and not hub.cuts:
                    return self.send_error(503)
                hub.requests.append((self.command, path.name, start))
                self.send_response(206 if start else 200)
                etag = hashlib.sha256(data + b"x" * hub.wrong_etag).hexdigest()
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", "1" * 40)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                if body and hub.cuts:
                    hub.cuts -= 1
                    self.wfile.write(data[start : start + hub.cut_after])
                    self.close_connection = True
                elif body:
                    self.wfile.write(data[start:])

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def run(self, script, *arguments, **environment):
        settings = {
            "HF_ENDPOINT": self.address,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            env=os.environ | settings,
            timeout=120,
        )


@pytest.fixture
def hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    folder = tmp_path / "hub"
    random = np.random.default_rng(0)
    for name in ["val_000000"] + [f"train_{number:06d}" for number in (1, 2, 3)]:
        tokens = random.integers(0, 50_256, 1_000_000, dtype=np.uint16)
        tokens[::1000] = 50_256
        write_shard(folder / f"fineweb_{name}.bin", tokens)
    hub = Hub(folder)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def home(merges_home, tmp_path):
    shutil.copytree(merges_home / "assets", tmp_path / "home" / "assets")
    return tmp_path / "home"


FILE = "fineweb_train_000001.bin"


def test_a_file_arrives_whole(hub, tmp_path):
    ran = hub.run(FETCH, tmp_path, FILE)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / FILE).read_bytes() == (hub.folder / FILE).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_cut_download_goes_on_where_it_was_in_the_same_process(hub, tmp_path):
    hub.cut_after, hub.cuts = 1_200_000, 1
    ran = hub.run(FETCH, tmp_path, FILE)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / FILE).read_bytes() == (hub.folder / FILE).read_bytes()
    starts = [start for method, _, start in hub.requests if method == "GET"]
    assert starts[0] == 0 and len(starts) == 2 and 1_000_000 < starts[1] <= 1_200_000


def test_a_download_that_stays_cut_is_one_sentence_and_a_later_process_goes_on_with_it(hub, tmp_path):
    hub.cut_after, hub.cuts, hub.down = 1_200_000, 1, True
    first = hub.run("import parity.data.hub as hub; hub.PAUSE_S = 0\n" + FETCH, tmp_path, FILE)
    assert first.returncode == 2 and "what was downloaded is kept" in first.stderr and "Traceback" not in first.stderr
    assert not (tmp_path / FILE).exists()
    (partial,) = tmp_path.glob(".*.part")
    have = partial.stat().st_size
    assert 1_000_000 < have <= 1_200_000
    hub.down = False
    second = hub.run(FETCH, tmp_path, FILE)
    assert second.returncode == 0, second.stderr
    assert hub.requests[-1] == ("GET", FILE, have)
    assert (tmp_path / FILE).read_bytes() == (hub.folder / FILE).read_bytes()


def test_bytes_that_are_not_those_the_hub_names_are_refused_and_dropped(hub, tmp_path):
    hub.wrong_etag = True
    ran = hub.run(FETCH, tmp_path, FILE)
    assert ran.returncode == 2 and "expected sha256" in ran.stderr and "run the command again" in ran.stderr
    assert not (tmp_path / FILE).exists() and not list(tmp_path.glob(".*"))


def test_without_a_hub_it_says_what_to_do(hub, tmp_path):
    ran = hub.run(FETCH, tmp_path, FILE, HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.returncode == 2 and "expected to read it from the Hugging Face hub" in ran.stderr
    assert "HF_ENDPOINT" in ran.stderr and "Traceback" not in ran.stderr


def test_without_the_package_it_names_the_extra(hub, tmp_path):
    ran = hub.run("import sys; sys.modules['huggingface_hub'] = None\n" + FETCH, tmp_path, FILE)
    assert ran.returncode == 2 and "pip install 'jaxrun[hub]'" in ran.stderr


def test_a_file_that_may_not_be_so_large_is_one_sentence_and_what_came_is_kept(hub, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))\n"
    ran = hub.run(limit + FETCH, tmp_path, FILE)
    assert ran.returncode == 2 and "ulimit -f" in ran.stderr and "Traceback" not in ran.stderr
    assert hub.run(FETCH, tmp_path, FILE).returncode == 0
    assert hub.requests[-1][2] > 1_000_000


@pytest.mark.index
def test_the_val_shard_and_as_many_train_shards_as_the_plan_needs_come_and_are_pinned(hub, home):
    ran = hub.run(PREPARE, home, 1_500_000)
    assert ran.returncode == 0, ran.stderr
    assert f"downloading 3 of 3 shards, 6 MB, into {home / 'fineweb10B'}" in ran.stderr.partition("shard 1 of 3")[0]
    opened = open_slice("fineweb10B", home)
    names = [info.file[:-4] for info in opened.manifest.shards]
    assert names == [
        "fineweb_val_000000",
        "fineweb_train_000001",
        "fineweb_train_000002",
    ]
    assert opened.train_lengths == [1_000_000] * 2 and opened.manifest.vocab_size == 50_257
    assert opened.part("val")[1:] == (0, 4096) and opened.part("confirm")[1:] == (5000, 4096)
    info = opened.manifest.shards[1]
    assert info.documents == 1000 and info.text_bytes == opened.token_bytes[opened.train[0]].sum(dtype=np.int64)
    assert problems("fineweb10B", home) == [] and opened.tokenizer().encode("hello world") == [31373, 995]


@pytest.mark.index
def test_a_second_time_only_what_is_new_is_asked_for_and_nothing_is_where_nothing_is_new(hub, home):
    hub.run(PREPARE, home, 1000)
    hub.requests.clear()
    assert hub.run(PREPARE, home, 2_500_000).returncode == 0
    assert {name for _, name, _ in hub.requests} == {"fineweb_train_000002.bin", "fineweb_train_000003.bin"}
    assert len(open_slice("fineweb10B", home).train) == 3
    assert hub.run(PREPARE, home, 2_500_000, HF_ENDPOINT="http://127.0.0.1:9").returncode == 0


@pytest.mark.index
def test_a_shard_that_changed_on_the_hub_since_it_was_first_seen_is_refused(hub, home):
    hub.run(PREPARE, home, 1000)
    (home / "fineweb10B" / FILE).unlink()
    with pytest.raises(InputError, match=f"{FILE}: expected a token shard, found"):
        open_slice("fineweb10B", home)
    write_shard(hub.folder / FILE, np.zeros(1_000_000, np.uint16))
    ran = hub.run(PREPARE, home, 1000)
    assert ran.returncode == 2 and "as when it was first downloaded" in ran.stderr and f"{FILE}.differs" in ran.stderr
    assert not (home / "fineweb10B" / FILE).exists()


@pytest.mark.index
def test_a_shard_that_changed_here_since_it_was_first_seen_is_refused(hub, home):
    hub.run(PREPARE, home, 1000)
    path = home / "fineweb10B" / FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ran = hub.run(PREPARE, home, 1000)
    assert (
        ran.returncode == 2
        and f"{FILE}: expected sha256" in ran.stderr
        and "pinned when it was first downloaded" in ran.stderr
    )


@pytest.mark.index
def test_a_bad_shard_is_not_pinned(hub, home):
    tokens = np.zeros(1_000_000, np.uint16)
    tokens[7] = 50_257
    write_shard(hub.folder / FILE, tokens)
    ran = hub.run(PREPARE, home, 1000)
    assert ran.returncode == 2 and "found token 50,257 at position 7" in ran.stderr
    assert len(open_slice("fineweb10B", home).manifest.shards) == 1


def test_the_public_source_has_103_shards_and_its_windows():
    source = Source()
    assert len(source.files(10_160_701_440)) - 1 == 103 and len(source.files(1)) - 1 == 1
    assert source.val == (0, 10_485_760) and source.confirm == (50_000_000, 10_485_760)
    with pytest.raises(InputError, match="fineweb10B: expected a plan of 1 to 10,300,000,000"):
        source.files(10_300_000_001)
