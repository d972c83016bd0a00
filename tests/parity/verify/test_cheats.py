"""Every cheat planted in honest runs is found by the rules that must find it, and by no others."""

from pathlib import Path

import pytest

from parity.verify.attempts import RULES as ATTEMPT_RULES
from parity.verify.cheats.cheat import BACKENDS, Cheat, Outcome
from parity.verify.cheats.matrix import CHEATS, outcome
from parity.verify.cheats.page import page
from parity.verify.cheats.workshop import Workshop
from parity.verify.rules import RULES

ROOT = Path(__file__).parents[3]
CHEAP = [
    cheat
    for cheat in CHEATS.values()
    if cheat.kind == "edit"
    and cheat.depth in ("log", "data")
    and not cheat.open
    and cheat.name not in ("zip-bomb", "no-run-behind")
]
FEW = {"shifted": "torchref"}
# Rules with no cheat that they alone find, and what they back up.
BACKED = {
    "attempt.twins": "looks at the attempt's runs wherever they are, log.twin at those in one folder",
    "cross.loss": "a backend that computes wrongly here although its files are those of the release (code.harness)",
}


def message(planted: Outcome) -> str:
    expected = f"expected {planted.cheat.rules}, found {planted.failing}; {planted.reasons}"
    return f"{planted.cheat.name} in {planted.backend}: {expected}"


@pytest.fixture(scope="module")
def shop(tmp_path_factory, commands) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("cheats"), commands.data)


@pytest.mark.parametrize("cheat", CHEAP, ids=lambda cheat: cheat.name)
def test_an_edit_of_the_evidence_is_found_by_its_rules_and_no_others(shop: Workshop, cheat: Cheat):
    planted = outcome(shop, cheat, "torchref")
    assert planted.right, message(planted)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_a_cheat_in_the_program_is_found_by_its_rules_and_no_others(shop: Workshop, name: str):
    planted = outcome(shop, CHEATS[name], FEW[name])
    assert planted.right, message(planted)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CHEATS)
def test_every_cheat_in_both_backends(shop: Workshop, name: str, backend: str):
    if backend not in CHEATS[name].backends:
        pytest.skip(f"{name} makes sense in {CHEATS[name].backends[0]} only")
    planted = outcome(shop, CHEATS[name], backend)
    assert planted.right, message(planted)


def alone(rule: str) -> Cheat | None:
    """A cheat that only this rule must find, if there is one that no other may find either."""
    cheats = [cheat for cheat in CHEATS.values() if cheat.rules == (rule,)]
    return next((cheat for cheat in cheats if not cheat.may), cheats[0] if cheats else None)


def test_every_rule_is_needed_for_a_cheat_that_it_alone_finds():
    rules = [*RULES, *ATTEMPT_RULES]
    assert [rule for rule in rules if alone(rule) is None and rule not in BACKED] == []
    text = (ROOT / "docs" / "verifier.md").read_text()
    assert all(f"`{rule}`" in text.partition("back up")[2].partition("##")[0] for rule in BACKED)
    assert all(rule in rules for cheat in CHEATS.values() for rule in (*cheat.rules, *cheat.may, *cheat.unjudged))


@pytest.mark.parametrize(
    "rule",
    [
        rule
        for rule, (facts, _) in RULES.items()
        if facts.depth in ("log", "data") and alone(rule) and alone(rule).kind == "edit"
    ],
)
def test_without_its_rule_a_cheat_is_not_found(shop: Workshop, rule: str):
    cheat = alone(rule)
    planted = outcome(shop, cheat, "torchref", without=(rule,))
    assert set(planted.failing) <= {*cheat.may}, message(planted)  # these may find it too, and need not
    assert planted.status == ("fails" if planted.failing else "incomplete"), message(planted)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [rule for rule, (facts, _) in RULES.items() if alone(rule)])
def test_without_its_rule_no_other_must_find_a_cheat(shop: Workshop, rule: str):
    cheat = alone(rule)
    planted = outcome(shop, cheat, cheat.backends[-1], without=(rule,))
    assert set(planted.failing) <= {*cheat.may}, message(planted)  # these may find it too, and need not


def test_a_cheat_that_no_rule_finds_is_open_or_refused():
    accounted = ("rules", "unjudged", "open", "refused", "own_count")
    assert all(any(getattr(cheat, name) for name in accounted) for cheat in CHEATS.values())
    assert len(CHEATS) >= 38 + 12


def test_attempts_that_are_judged_together_are_corrected_for_it():
    from parity.verify.attempts import corrected
    from parity.verify.verdict import Judgement, Verdict

    def claimed(p: float) -> Verdict:
        judgement = Judgement("attempt.claim", "holds", "mean", evidence={"p": p})
        return Verdict("a", "log", (judgement,), frozenset(["attempt.claim"]), {})

    assert [v.status for v in corrected([claimed(0.008)])] == ["holds"]
    assert [v.status for v in corrected([claimed(0.008), claimed(0.001)])] == ["holds", "holds"]
    both = corrected([claimed(0.008), claimed(0.009)])
    assert [v.status for v in both] == ["fails", "fails"]  # twice 0.008 is above 0.01
    assert corrected([claimed(0.004), claimed(0.5)])[0].of("attempt.claim").evidence["p_holm"] == pytest.approx(0.008)


def test_the_page_marks_what_failed_and_escapes_reasons():
    cheat = CHEATS["cut-line"]
    reasons = {"log.chain": "<b>", "code.source": "damaged"}
    planted = Outcome(cheat, "jaxrun", "fails", ["log.chain", "clock.train"], ["code.source"], 1.0, reasons=reasons)
    html = page([planted])
    assert "1 plantings of 1 cheats" in html and '<td class="bad">WRONG</td>' in html
    assert '<td title="&lt;b&gt;" class="hit">F</td>' in html and 'class="may">f</td>' in html
    assert html.count("<span") == 4 and '<td title="">?</td>' not in html
