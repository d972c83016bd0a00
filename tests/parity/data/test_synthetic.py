import math

import numpy as np
import pytest

from parity.data import synthetic
from parity.data.pinned import PINNED
from parity.data.slices import open_slice, prepare
from parity.errors import InputError


@pytest.fixture(scope="module")
def chain():
    """Transition probabilities (512, 512), counted from the table of slots."""
    return np.stack([np.bincount(row, minlength=512) / 64 for row in synthetic.slots()])


def test_the_shards_are_the_pinned_ones(session_home):
    shards = open_slice("synthetic", session_home).manifest.shards
    assert {info.file: info.sha256 for info in shards} == PINNED["synthetic"]


def test_every_word_has_four_successors_and_ends_the_document_once_in_64(chain):
    words = chain[:511]
    assert (np.count_nonzero(words[:, :511], axis=1) == 4).all() and (words[:, 511] == 1 / 64).all()
    assert np.count_nonzero(chain[511]) == 16 and chain[511, 511] == 0


def test_the_entropy_is_that_of_the_stationary_chain(chain):
    equations = np.vstack([chain.T - np.eye(512), np.ones(512)])
    stationary = np.linalg.lstsq(equations, np.eye(513)[512], rcond=None)[0]
    rows = -(chain * np.log(np.where(chain > 0, chain, 1))).sum(axis=1)
    assert stationary @ rows == pytest.approx(synthetic.entropy_nats(), abs=1e-9)


@pytest.mark.parametrize("split", ["train", "val", "confirm"])
def test_the_true_chain_scores_the_entropy_on_the_tokens(session_home, chain, split):
    opened = open_slice("synthetic", session_home)
    tokens = np.concatenate(opened.train) if split == "train" else np.array(opened.part(split)[0])
    losses = -np.log(chain[tokens[:-1], tokens[1:]])
    # Given the state, losses are independent, and all words share one law: five standard errors of the mean.
    tolerance = 5 * losses.std() / math.sqrt(len(losses))
    assert tolerance < 0.02
    assert losses.mean() == pytest.approx(opened.manifest.entropy_nats, abs=tolerance)


def test_a_stream_starts_with_end_of_text_and_the_splits_differ(session_home):
    opened = open_slice("synthetic", session_home)
    streams = [opened.train[0], opened.part("val")[0], opened.part("confirm")[0]]
    assert [stream[0] for stream in streams] == [511] * 3
    assert not any((streams[a][:1000] == streams[b][:1000]).all() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_two_bytes_are_counted_a_word(session_home):
    for info in open_slice("synthetic", session_home).manifest.shards:
        assert info.text_bytes == 2 * (info.tokens - info.documents)


def test_words_are_numbers(session_home):
    tokenizer = open_slice("synthetic", session_home).tokenizer()
    assert tokenizer.encode("3 511") == [3, 511] and tokenizer.decode(np.array([3, 511])) == "3 511"
    with pytest.raises(InputError, match="found '512'"):
        tokenizer.encode("1 512")


def test_it_is_built_in_under_three_seconds(tmp_path):
    import time

    start_s = time.perf_counter()
    prepare("synthetic", tmp_path)
    assert time.perf_counter() - start_s < 3
