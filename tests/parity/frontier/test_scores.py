"""Frontiers, cost at the target, hypervolume and fractions of seeds, against values worked out by hand."""

import math
import random

import numpy as np
import pytest
from fakes import SHAPE, STEPS, around, fake, sha

from parity.errors import InputError
from parity.frontier import scores
from parity.frontier.scores import FrontierPoint
from parity.statistics import t_test
from parity.track import TRACKS


def test_the_frontier_is_what_nothing_beats_in_cost_and_loss():
    rng = random.Random(1)
    candidates = [FrontierPoint(rng.randrange(1, 40), rng.randrange(1, 40), str(i), 1) for i in range(300)]
    front = scores.non_dominated(candidates)
    for point in candidates:
        beaten = any(
            (other.cost, other.loss) != (point.cost, point.loss)
            and other.cost <= point.cost
            and other.loss <= point.loss
            for other in candidates
        )
        assert beaten != ((point.cost, point.loss) in {(other.cost, other.loss) for other in front})
    assert len({(other.cost, other.loss) for other in front}) == len(front)


def test_points_are_means_at_evaluations_that_all_runs_share():
    short = fake(losses=[(8, 6, 5, 4), (8, 5, 4.5, 3.5)], steps=(0, 10, 20, 30), step_s=(1.0, 2.0))
    assert [(point.cost, point.loss) for point in scores.points(short, "seconds")] == [
        (15, 5.5),
        (30, 4.75),
        (45, 3.75),
    ]
    assert [point.cost for point in scores.points(short, "tokens")] == [40_960, 81_920, 122_880]
    assert scores.points(fake(flops=None), "flops") == []


def test_a_programs_own_count_of_steps_is_on_no_frontier_of_steps_or_tokens():
    single, own = fake("single"), fake("own")
    own.runs[0].verdict["rules"].append(["replay.single", "not judged", False, "three updates a step"])
    single.runs[0].verdict["rules"].append(["replay.single", "holds", False, "one update"])
    assert own.own_count and not single.own_count
    for axis in ("steps", "tokens"):
        assert scores.points(single, axis) and not scores.points(own, axis)
    for axis in ("seconds", "flops"):
        assert scores.points(own, axis)


def test_hypervolume_is_the_area_below_the_reference_in_nats_and_decades():
    worst = TRACKS["pocket"].reference
    front = [FrontierPoint(10, worst.loss - 1, "a", 1), FrontierPoint(100, worst.loss - 3, "a", 2)]
    # from 10 to 1,000 s one nat (2 decades), from 100 to 1,000 s two more (1 decade)
    assert scores.hypervolume(front, TRACKS["pocket"], "seconds") == pytest.approx(2 * 1 + 1 * 2)
    assert (
        scores.hypervolume(
            [FrontierPoint(worst.seconds, 0, "a", 1), FrontierPoint(1, worst.loss, "a", 1)], TRACKS["pocket"], "seconds"
        )
        == 0
    )


def test_the_target_is_passed_at_one_step_by_the_mean_and_not_where_a_run_was_lucky():
    losses = [(8, 5, 4.60, 4.60, 4.60), (8, 5, 4.75, 4.61, 4.60), (8, 5, 4.74, 4.605, 4.59)]
    target, _ = scores.target_of(fake(losses=losses))
    assert target.step == 192 and target.costs == {
        "seconds": 96.0,
        "steps": 192.0,
        "tokens": 192 * 4096.0,
        "flops": 192e10,
    }
    assert target.p == pytest.approx(t_test([4.60, 4.61, 4.605], 4.65).p)


def test_a_mean_below_the_target_that_chance_explains_does_not_pass_it():
    target, reason = scores.target_of(fake(losses=[(8, 5, 5, 5, 4.5), (8, 5, 5, 5, 4.79), (8, 5, 5, 5, 4.6)]))
    assert target is None and "4.6300 at the end, which does not pass 4.65" in reason


def test_one_seed_passes_no_test():
    target, reason = scores.target_of(fake())
    assert target is None and "one run" in reason
    assert scores.final_loss(fake()) == scores.Mean(SHAPE[-1], None, None, None, 1)


def test_the_interval_of_a_mean_is_students():
    mean = scores.mean_of([1.0, 2.0, 3.0])  # t of 2 degrees at 97.5%: 4.3027
    assert (mean.low, mean.high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)


def test_the_fraction_of_seeds_counts_final_losses():
    assert scores.fraction_at_target(
        fake(losses=[(8, 5, 4.6, 4.6, 4.66), (8, 5, 5, 5, 4.65), (8, 5, 5, 5, 4.5)])
    ) == pytest.approx(2 / 3)
    assert scores.fraction_at_target(fake(target=None)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_tokens": 65_536}, "scored on 131,072 tokens of news"),
        ({"slice": {"name": "other", "digest": sha("news")}}, "of other"),
        ({"slice": {"name": "news", "digest": sha("edited")}}, "slices of different digests"),
        ({"track": "tiny"}, "is on track pocket"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence_and_not_dropped(change, message):
    with pytest.raises(InputError, match=message):
        scores.frontier([fake("a"), fake("b", **change)], "tokens")


def test_seconds_of_two_machines_share_no_frontier():
    other = fake("b", host={"cpu": "Xeon", "cores": 2, "memory_bytes": 1, "python": "3"})
    with pytest.raises(InputError, match="expected one class of hardware, found AMD EPYC, 2 cores and Xeon, 2 cores"):
        scores.frontier([fake("a"), other], "seconds")
    assert {key[2] for key in scores.frontiers([fake("a"), other]) if key[1] == "seconds"} == {
        "AMD EPYC, 2 cores",
        "Xeon, 2 cores",
    }


def test_bits_per_byte_are_the_mean_of_the_runs():
    entry = fake("low", around(SHAPE, np.random.default_rng(3), 3))
    assert scores.bits_per_byte(entry) == pytest.approx(scores.final_loss(entry).mean / 2.7)
    assert STEPS[-1] == entry.steps[-1]
