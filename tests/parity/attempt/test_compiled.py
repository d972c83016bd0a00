"""A new attempt in PyTorch compiles its model: made, tested, run and judged as it is."""

import json

import pytest


@pytest.mark.slow
def test_a_compiled_attempt_is_made_tested_run_and_holds(commands, tmp_path):
    folder = tmp_path / "attempt"
    assert commands.run("parity.attempt", "new", folder, "--backend", "torch", "--track", "tiny", "--runs", 2).code == 0
    assert "compile=can_compile(chosen)" in (folder / "program.py").read_text()
    small = commands.small("torchref", tmp_path, "x")
    path = folder / "declaration.json"
    values = json.loads(path.read_text()) | {"arguments": list(small[3 : small.index("--data-dir")])}
    path.write_text(json.dumps(values))
    assert commands.run("pytest", "-q", "-p", "no:cacheprovider", folder).code == 0
    result = commands.run("parity.attempt", "run", folder, "--data-dir", commands.data)
    assert result.code == 0, result.err
    judged = commands.run("parity.attempt", "judge", folder, "--data-dir", commands.data, "--json")
    assert judged.code == 0, judged.out + judged.err
    for run in json.loads(judged.out)["runs"]:
        rules = {rule["id"]: rule for rule in run["rules"]}
        assert "g++" in rules["guard.process"]["reason"] and rules["replay.stretches"]["status"] == "holds"
        confined = "bubblewrap" in run["facts"]["isolation"]
        assert ("may start compilers" if confined else "only bubblewrap") in run["facts"]["compiled"]
