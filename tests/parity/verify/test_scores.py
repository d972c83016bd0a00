"""Losses that the verifier gathers and compares: sums, means with their sign, looks ahead found by sampling."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest

from parity.verify.rules import lookahead, scores
from parity.verify.rules.differences import clipped, largest, mean_of
from parity.verify.rules.lookahead import draw, gain_over_witness, rare_bound

VOCAB, LENGTH, ROWS = 11, 8, 32
RANDOM = np.random.default_rng(0)
TEXT = RANDOM.integers(0, VOCAB, ROWS * LENGTH + 1).astype(np.uint16)


class Table:
    """A program whose log_probs are those of a table by the input, as a sandboxed process answers them; `change` edits
    rows (B, P, V) by inputs and positions."""

    def __init__(self, change=lambda rows, inputs, where: rows):
        logits = np.random.default_rng(1).standard_normal((VOCAB, VOCAB))
        self.table = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
        self.change, self.asked, self.recipe = change, [], {}

    def load(self, weights, step):
        return 0

    def drop(self, state):
        pass

    def log_probs(self, state, inputs, positions):
        self.asked.append((inputs.copy(), positions.copy()))
        return self.change(self.table[inputs[:, positions]].copy(), inputs, positions)

    def log_probs_in_turn(self, state, asked):
        return (self.log_probs(state, *each) for each in asked)

    def token_losses(self, state, inputs, targets):
        return -scores.at_targets(self.table[inputs], targets)


def probe(program: Table, witness: Table | None = None, user_code: bool = True) -> SimpleNamespace:
    slice_ = SimpleNamespace(
        name="text",
        part=lambda name: (TEXT, 0, ROWS * LENGTH),
        train=[TEXT],
        manifest=SimpleNamespace(vocab_size=VOCAB),
    )
    evidence = SimpleNamespace(
        eval_context=LENGTH,
        track=SimpleNamespace(val_tokens=ROWS * LENGTH),
        run={"devices": [{"platform": "cpu"}]},
        has_user_code=user_code,
    )
    program_beside, pool = witness or Table(), ThreadPoolExecutor(1)
    context = SimpleNamespace(
        slice=slice_,
        evidence=evidence,
        device="cpu",
        whole=False,
        trusts_code=not user_code,
        sandboxed=lambda purpose: program_beside,
        submit=lambda purpose, work: pool.submit(work),
    )
    return SimpleNamespace(
        context=context,
        program=program,
        state=0,
        count=4,
        vocab=VOCAB,
        precision="float32",
        where="",
        allowed=2e-5,
        random=lambda name: np.random.default_rng(crc32(name.encode())),
        fresh_state=lambda program: 0,
    )


def test_a_probability_of_0_is_equal_to_itself_however_it_is_written():
    assert largest(clipped(np.array([np.inf, 1e30, 2.0])) - clipped(np.array([1e30, np.inf, 2.0]))) == 0
    assert np.isnan(largest(np.array([0.0, np.nan])))


def test_noise_has_no_sign_and_a_shave_below_it_has_one():
    noise = 0.02 * np.random.default_rng(2).standard_normal(3000)
    assert not mean_of(noise).is_off(0.0) and mean_of(noise - 0.003).is_off(0.0)
    assert not mean_of(np.zeros(30)).is_off(0.0) and mean_of(np.full(30, 1e-4)).is_off(2e-5)
    assert mean_of(np.array([np.nan, 1.0])).is_off(1.0)


def test_losses_are_gathered_from_whole_rows_without_targets_in_random_order_among_random_rows():
    program = Table()
    scored = scores.score(probe(program), "val")
    expected = program.token_losses(0, scored.inputs, scored.targets)
    assert scored.problem == "" and largest(scored.losses - expected) == 0
    assert scored.loss == pytest.approx(expected.mean())
    asked = np.concatenate([inputs for inputs, _ in program.asked])
    assert len(asked) > ROWS and not np.array_equal(asked[:ROWS], scored.inputs)


def test_rows_that_sum_to_more_than_1_at_one_position_of_the_text_are_no_losses():
    def change(rows, inputs, where):
        return rows + 0.1 * (inputs[:, where, None] == TEXT[77]) * (where[None, :, None] == 77 % LENGTH)

    assert "sum to 1 only within 0.1" in scores.score(probe(Table(change)), "val").problem
    rows = np.full((1, 1, VOCAB), -np.log(VOCAB))
    assert scores.excess(rows, VOCAB) < 1e-9 and scores.excess(rows, VOCAB + 1) == np.inf
    assert scores.excess(np.full((1, 1, VOCAB), np.nan), VOCAB) == np.inf


def test_of_our_own_recipes_losses_are_asked_for_with_few_rows_and_few_positions_of_another_process(monkeypatch):
    monkeypatch.setattr(scores, "SAMPLED_OF_RECIPES", 8)
    monkeypatch.setattr(lookahead, "POSITIONS_OF_RECIPES", 12)
    program, witness = Table(), Table()
    p = probe(program, witness, user_code=False)
    scored = scores.score(p, "val")
    assert scored.problem == "" and sum(inputs.shape[0] * len(where) for inputs, where in program.asked) == 8
    gain = gain_over_witness(p, scored, 200).result()
    assert gain.problem == "" and gain.mean.count == 12
    shaved = Table()
    shaved.token_losses = lambda state, inputs, targets: Table.token_losses(shaved, state, inputs, targets) - 1e-4
    assert "-0.0001 nats on average" in scores.score(probe(shaved, user_code=False), "val").problem


def test_token_losses_of_a_large_split_are_held_against_whole_rows(monkeypatch):
    monkeypatch.setattr(scores, "GATHERED_BYTES", 0)
    monkeypatch.setattr(scores, "SAMPLED", 100)
    assert scores.score(probe(Table()), "val").problem == ""
    shaved = Table()
    shaved.token_losses = lambda state, inputs, targets: Table.token_losses(shaved, state, inputs, targets) - 1e-4
    assert "-0.0001 nats on average" in scores.score(probe(shaved), "val").problem
    negative = Table()
    negative.token_losses = lambda state, inputs, targets: np.where(targets == 3, -8.0, 2.0)
    assert "a loss of -8 nats is no -log" in scores.score(probe(negative), "val").problem


def peek(share):
    def change(rows, inputs, where):
        following = np.roll(inputs, -1, axis=1)[:, where]
        mixed = np.exp(rows.astype(np.float64)) * (1 - share)
        np.put_along_axis(mixed, following[..., None], np.take_along_axis(mixed, following[..., None], -1) + share, -1)
        return np.log(mixed).astype(np.float32)

    return change


def test_a_look_ahead_shows_against_a_process_that_does_not_know_what_follows():
    honest, ahead = probe(Table()), probe(Table(peek(0.3)), Table(peek(0.3)))
    gain = gain_over_witness(honest, scores.score(honest, "val"), 200).result()
    assert gain.problem == "" and gain.mean.mean == 0 and gain.bound > 0
    assert "differ by up to" in gain_over_witness(ahead, scores.score(ahead, "val"), 200).result().problem
    faint = probe(Table(peek(2e-5)), Table(peek(2e-5)))  # below what one loss may differ by, so its mean shows it
    faint.allowed = 2e-2
    gain = gain_over_witness(faint, scores.score(faint, "val"), 2000).result()
    assert gain.largest < gain.allowed and "smaller on average" in gain.problem


@pytest.mark.parametrize(("user_code", "shortened"), [(False, LENGTH), (True, LENGTH), (False, 2 * LENGTH)])
def test_the_other_process_never_sees_more_of_a_row_than_it_is_then_asked_for(monkeypatch, user_code, shortened):
    monkeypatch.setattr(lookahead, "SHORTENED", shortened)
    witness = Table()
    p = probe(Table(), witness, user_code)
    scored = scores.score(p, "val")
    assert gain_over_witness(p, scored, 200).result().problem == ""
    text = TEXT[:-1].reshape(ROWS, LENGTH).astype(np.int64)
    lengths, last, behind = [], 0, []
    for inputs, positions in witness.asked:
        lengths.append(inputs.shape[1])
        assert positions.min() >= last  # earlier positions first
        last = positions.max()
        for row in inputs:
            alike = (text[:, : len(row)] == row).cumprod(axis=1).sum(axis=1)
            assert alike.max() > positions.min()
            behind += (text[alike.argmax(), : len(row)] == row)[last + 1 :].tolist()
    assert np.mean(behind) < 2 / VOCAB  # other text is the row's own by chance alone
    halves = shortened == LENGTH and not user_code
    assert set(lengths) == ({LENGTH // 2, LENGTH} if halves else {LENGTH}) and lengths == sorted(lengths)


def test_a_leak_at_one_position_in_a_thousand_is_met_by_the_draw():
    random = np.random.default_rng(3)
    advantage = np.maximum(random.normal(2.0, 2.0, 131_072), 0)
    leaks = random.choice(len(advantage), len(advantage) // 1000, replace=False)
    advantage[leaks] += 3.0
    missed = sum(not np.isin(draw(advantage, 3000, random).tokens, leaks).any() for _ in range(100))
    assert missed <= 3
    # of a leak that is just as large as the bound, 19 of 20 draws meet a position
    few, bound = leaks[:70], rare_bound(advantage, 3000)
    few = few[: int(np.searchsorted(np.cumsum(advantage[few]), bound * len(advantage))) + 1]
    met = np.mean([np.isin(draw(advantage, 3000, random).tokens, few).any() for _ in range(200)])
    assert met >= 0.9


def test_weights_of_a_draw_make_the_mean_unbiased():
    random = np.random.default_rng(4)
    advantage, values = random.exponential(2.0, 5000), random.normal(1.0, 0.5, 5000)
    means = []
    for _ in range(50):
        drawn = draw(advantage, 1000, random)
        means.append(np.repeat(values[drawn.tokens] * drawn.weights, drawn.times).mean())
        assert drawn.weights.max() <= 1 / lookahead.UNIFORM
    assert np.mean(means) == pytest.approx(values.mean(), abs=5 * np.std(means) / np.sqrt(50))
