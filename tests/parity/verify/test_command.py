"""The command line of the verifier: its answers, its exit codes, and what it says to bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from parity.errors import InputError
from parity.verify.attempts import RULES as ATTEMPT_RULES
from parity.verify.cheats.matrix import CHEATS
from parity.verify.command import main
from parity.verify.rules import RULES, chosen
from parity.verify.run import Settings, verify_run
from parity.verify.sandbox import parent

ROOT = Path(__file__).parents[3]


def test_the_verifier_imports_nothing_that_produces_a_run():
    code = """
import sys, parity.verify.run, parity.verify.attempts, parity.verify.command, parity.declaration.record
import parity.history.public_log
producers = ('jax', 'torch', 'jaxrun', 'torchref')
print([m for m in sys.modules if m.split('.')[0] in producers or m.startswith('parity.harness')])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_run_is_judged_and_its_verdict_written(copied, commands, capsys):
    path = copied("torchref").path
    assert main([str(path), "--depth", "data", "--data-dir", str(commands.data)]) == 0
    output = capsys.readouterr().out
    assert f"HOLDS: {len(chosen('data'))} rules at depth data" in output and max(map(len, output.splitlines())) <= 100
    written = json.loads((path / "verdict.json").read_text())
    assert written["status"] == "holds" and [rule["id"] for rule in written["rules"]][:2] == ["log.form", "log.chain"]
    assert main([str(path), "--depth", "log", "--json", "--no-write"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "holds"


@pytest.mark.slow
def test_equal_picks_give_the_same_verdict(copied, commands):
    path = copied("torchref").path
    first, second = (
        verify_run(path, Settings("probe", commands.data, seed=5, device="cpu")).to_json() for _ in range(2)
    )
    assert [rule["evidence"] for rule in first["rules"]] == [rule["evidence"] for rule in second["rules"]]


def test_a_rule_that_is_left_out_leaves_the_verdict_incomplete(copied, capsys):
    assert main([str(copied("torchref").path), "--depth", "log", "--without", "log.twin", "--no-write"]) == 2
    out = capsys.readouterr().out
    assert "INCOMPLETE: log.twin could not be judged" in out and "what to do: docs/troubleshooting.md" in out


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (shutil.rmtree, [], "expected a run directory, found nothing there"),
        (lambda run: (run / "run.json").unlink(), [], "is not a run directory: expected run.json in it, found none"),
        (
            lambda run: (run / "run.json").write_text('{"schema": "run.v9"}'),
            [],
            "expected schema run.v1, found 'run.v9'",
        ),
        (lambda run: (run / "run.json").write_text("{"), [], "expected one JSON object"),
        (lambda run: (run / "log.jsonl").unlink(), [], "log.jsonl: cannot be read"),
        (lambda run: None, ["--depth", "deep"], "deep"),
        (lambda run: None, ["--without", "log.chains"], "did you mean log.chain?"),
        (lambda run: None, ["--segments", "0"], "--segments: expected at least 1, found 0"),
        (lambda run: None, ["--dept", "log"], "did you mean --depth?"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(copied, capsys, change, arguments, sentence):
    path = copied("torchref").path
    change(path)
    assert main([str(path), *arguments]) == 2
    output = capsys.readouterr().err
    assert sentence in output and output.count("\n") == 1 and "Traceback" not in output


def test_no_path_at_all_is_bad_input(capsys):
    assert main([]) == 2
    assert "expected run directories, attempts, or --log with files" in capsys.readouterr().err


def test_a_run_that_has_not_ended_is_not_judged(copied, capsys):
    import filelock

    path = copied("torchref").path
    with filelock.FileLock(path / ".lock"):
        (path / ".lock.pid").write_text("4242")
        assert main([str(path), "--depth", "log"]) == 2
    assert "found one that is still running (pid 4242)" in capsys.readouterr().err


def test_without_the_slice_the_rest_is_judged_and_the_command_is_told(copied, tmp_path, capsys):
    path = copied("torchref").path
    assert main([str(path), "--depth", "data", "--data-dir", str(tmp_path / "nowhere"), "--no-write"]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert (
        "python -m parity.data prepare synthetic" in output and "holds log.chain" in output and "INCOMPLETE" in output
    )


def test_a_missing_checkpoint_leaves_the_verdict_incomplete(copied, commands, capsys):
    path = copied("torchref").path
    shutil.rmtree(path / "checkpoints" / "step-000030")
    assert main([str(path), "--depth", "data", "--data-dir", str(commands.data), "--no-write"]) == 2
    assert "the checkpoint of step 30 is not in" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_without_room_for_a_replay_the_verdict_says_so(copied, commands, monkeypatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    verdict = verify_run(copied("torchref").path, Settings("recompute", commands.data, device="cpu"))
    assert (
        verdict.status == "incomplete"
        and "the disk has 1,000 left: make room" in verdict.of("recompute.weights").reason
    )


def test_without_isolation_user_code_is_judged_only_if_it_is_trusted(copied, commands, monkeypatch):
    from parity.verify.cheats.forgery import declare

    path = copied("torchref").path
    declare(path, lambda values: values["options"].update(optimizer="mine:make"))
    monkeypatch.setattr(parent, "available", lambda *_: parent.describe(()))
    verdict = verify_run(path, Settings("probe", commands.data, device="cpu"))
    assert verdict.status == "incomplete" and "--trust-code if you trust it" in verdict.of("probe.causal").reason
    verdict = verify_run(path, Settings("probe", commands.data, device="cpu", trust_code=True))
    assert verdict.facts["isolation"] == "none, user code trusted"


def test_the_documentation_lists_every_rule_and_cheat():
    text = "".join((ROOT / "docs" / page).read_text() for page in ("verifier.md", "appendix/cheats.md"))
    for rule in (*(rule for rule, _ in RULES.values()), *ATTEMPT_RULES.values()):
        assert f"| `{rule.id}` | {rule.depth} | {rule.sentence} |" in text
    for cheat in CHEATS.values():
        assert f"| `{cheat.name}` | {cheat.sentence}" in text
        assert not cheat.open or f"**open**: {cheat.open}" in text


@pytest.mark.slow
def test_a_run_log_of_100_000_steps_is_read_in_little_memory(copied, tmp_path):
    from parity.verify.cheats.forgery import rewrite

    path = copied("torchref").path

    def longer(events):
        step = next(event for event in events if event["event"] == "step")
        return [events[0], *({**step, "step": i, "tokens": 512 * (i + 1)} for i in range(100_000)), events[-1]]

    rewrite(path, longer)
    code = (
        f"from pathlib import Path; from parity.harness.fingerprint import peak_memory_bytes\n"
        f"from parity.verify.run import Settings, verify_run\n"
        f"verify_run(Path({str(path)!r}), Settings('log')); print(peak_memory_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert int(done.stdout) < 300e6


def test_an_evaluation_that_a_killed_process_left_open_is_no_pair(copied):
    from parity.verify.cheats.forgery import rewrite

    path = copied("torchref").path

    def killed(events):
        at = next(
            i for i, event in enumerate(events) if event.get("name") == "before evaluation" and event["step"] == 30
        )
        return [
            *events[:at],
            {**events[at], "digest": "a" * 64},
            *events[at:],
        ]  # the process that resumed evaluates again

    rewrite(path, killed)
    assert verify_run(path, Settings("log")).of("state.evaluation").status == "holds"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_pipe_is_refused_at_once(copied, tmp_path, kind):
    path = copied("torchref").path
    (path / "run.json").unlink()
    if kind == "link":
        (path / "run.json").symlink_to("/dev/zero")
    else:
        os.mkfifo(path / "run.json")
    with pytest.raises(InputError, match="expected a plain file"):
        verify_run(path, Settings("log"))


def test_numbers_without_bound_and_escapes_do_not_reach_the_terminal(copied):
    from parity.verify.cheats.forgery import each, rewrite

    path = copied("torchref").path
    event = {"kind": "read", "what": "\x1b[2J HOLDS", "phase": "train"}
    rewrite(path, each("guard", lambda check: check.update(events=[event])))
    verdict = verify_run(path, Settings("log"))
    assert verdict.failing() == ["guard.files"] and "\x1b" not in verdict.table()
    text = (path / "log.jsonl").read_text().replace('"step":5,"loss":', '"step":5,"loss":' + "9" * 400)
    (path / "log.jsonl").write_text(text)
    assert "log.form" in verify_run(path, Settings("log")).failing()
