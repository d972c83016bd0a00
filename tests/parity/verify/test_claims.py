"""On what an attempt's claim rests: losses that the verifier recomputed, at the end or at the claimed step."""

from types import SimpleNamespace
from typing import Any

import pytest

from parity.errors import InputError
from parity.verify import attempts
from parity.verify.verdict import Judgement, Verdict


def verdict(rules: tuple[str, ...], **facts: Any) -> Verdict:
    return Verdict("run", "replay", tuple(Judgement(rule, "holds", "") for rule in rules), frozenset(), facts)


def case(verdicts: list[Verdict], user_code: bool = True, at_step: int | None = None) -> Any:
    log = SimpleNamespace(of=lambda kind: [{"step": 30, "val_loss": 1.5, "train_s": 2.0}])
    claim = SimpleNamespace(at_step=at_step)
    return SimpleNamespace(
        open=lambda path: SimpleNamespace(log=log, steps=60, has_user_code=user_code),
        verdicts=verdicts,
        attempt=SimpleNamespace(declaration=SimpleNamespace(claim=claim)),
    )


def test_a_claim_at_a_step_counts_the_recomputed_loss():
    judged = verdict(("recompute.evaluations",), evaluations={"30": 2.5, "60": 2.0}, val_loss=2.0)
    assert attempts._loss(case([judged]), judged, 30) == 2.5
    assert attempts._loss(case([judged]), judged, None) == 2.0


def test_a_claim_at_a_step_without_a_checkpoint_is_told_what_to_do():
    judged = verdict(("recompute.evaluations",), evaluations={"60": 2.0})
    with pytest.raises(InputError, match="step 30, whose val loss was not recomputed: claim a step at which the plan"):
        attempts._loss(case([judged]), judged, 30)


def test_a_depth_that_recomputes_nothing_counts_the_logged_loss():
    assert attempts._loss(case([]), verdict(()), 30) == 1.5


def test_what_a_leak_can_have_brought_is_the_mean_of_the_runs_of_user_code():
    judged = [verdict((), leak_bounds={"30": 0.01, "60": bound}) for bound in (0.003, 0.005)]
    assert attempts._leak_bound(case(judged)) == pytest.approx(0.004)
    assert attempts._leak_bound(case(judged, at_step=30)) == pytest.approx(0.01)
    assert attempts._leak_bound(case(judged, user_code=False)) == 0
