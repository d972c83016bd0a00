"""What goes on beside the rules, and which processes share compiled functions."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parity.verify import context as module
from parity.verify.context import Context
from parity.verify.rules import BESIDE, RULES, begin_beside
from parity.verify.sandbox.client import SandboxedProgram, SandboxError
from parity.verify.verdict import DEPTHS


@pytest.fixture
def context(monkeypatch, tmp_path) -> Any:
    """One whose processes are objects that know what they were started with."""

    def start(evidence, folder, isolation, device, gpu, compiled_by=(), compilers=False):
        program: Any = object.__new__(SandboxedProgram)
        program.scratch, program.compiled_by = Path(folder), list(compiled_by)
        program.close = lambda: None
        return program

    monkeypatch.setattr(module, "choose_isolation", lambda *a: (None, False, {}))
    monkeypatch.setattr(module.SandboxedProgram, "start", start)
    evidence: Any = SimpleNamespace(has_user_code=False)
    return Context(evidence, None, 0, 2, False, tmp_path)


def test_processes_of_user_code_share_nothing(context: Any):
    first = context.program
    assert context.sandboxed("witness").compiled_by == [first] and context.program is first
    context.evidence.has_user_code = True
    assert context.sandboxed("replay").compiled_by == []
    assert context.sandboxed("cross", SimpleNamespace(has_user_code=True)).compiled_by == []


def test_work_beside_is_done_in_order_by_one_thread_for_each_process(context: Any):
    done, threads, go = [], {}, threading.Event()

    def work(purpose: str, number: int) -> int:
        go.wait(10)
        threads.setdefault(purpose, set()).add(threading.get_ident())
        done.append((purpose, number))
        return number

    futures = [context.submit(name, lambda p=name, i=i: work(p, i)) for i in range(5) for name in ("witness", "other")]
    assert done == []
    go.set()
    context.settle()
    assert all(future.done() for future in futures)
    assert [i for name, i in done if name == "witness"] == [i for name, i in done if name == "other"] == list(range(5))
    assert all(len(found) == 1 for found in threads.values()) and threads["witness"] != threads["other"]


def test_what_work_beside_raises_is_raised_where_its_result_is_asked_for(context: Any):
    def work():
        raise SandboxError("it died")

    future = context.submit("witness", work)
    context.settle()
    with pytest.raises(SandboxError, match="it died"):
        future.result()
    assert context.submit("witness", lambda: 3).result() == 3


def test_closing_ends_what_has_begun_and_leaves_out_the_rest(context: Any):
    began, ended, done = threading.Event(), threading.Event(), []
    first = context.submit("witness", lambda: (began.set(), ended.wait(10)))
    later = [context.submit("witness", lambda: done.append(1)) for _ in range(3)]
    began.wait(10)
    context.sandboxed("witness").process = SimpleNamespace(set_deadline=lambda seconds: ended.set())
    context.close()
    assert first.done() and all(future.cancelled() for future in later) and not done and not context.programs


def test_compiled_functions_are_not_taken_from_a_process_that_is_at_work(context: Any):
    go = threading.Event()
    context.submit("relabelled", lambda: go.wait(10))
    assert context.sandboxed("witness").compiled_by == []
    go.set()
    context.settle()
    assert context.sandboxed("replay").compiled_by == [context.sandboxed("relabelled"), context.sandboxed("witness")]


def test_what_cannot_begin_stops_nothing(context: Any, monkeypatch):
    begun = []

    def broken(context):
        begun.append(context)
        raise SandboxError("no process")

    name = next(iter(BESIDE))
    monkeypatch.setitem(BESIDE, name, broken)
    begin_beside(context, [RULES[name][0]])
    begin_beside(context, [RULES["log.form"][0]])
    assert len(begun) == 1
    assert all(DEPTHS.index(RULES[rule][0].depth) > DEPTHS.index("recompute") for rule in BESIDE)


@pytest.mark.parametrize("name", ["probe.pure", "probe.gradient", "replay.reported", "replay.single"])
def test_what_costs_more_than_it_shows_is_not_asked_of_our_own_recipes(context: Any, name: str):
    """Where it is asked, this context has nothing to ask: there is no run behind it."""
    _, check = RULES[name]
    assert check(context).status == "holds" and not context.programs
    context.whole = True
    with pytest.raises(AttributeError):
        check(context)
    context.whole, context.evidence.has_user_code = False, True
    with pytest.raises(AttributeError):
        check(context)


def test_a_verdict_says_of_isolation_what_holds_for_every_process(context: Any):
    context._add_isolation({"isolation": "a", "isolation_holds": ["x", "no program"], "isolation_gaps": ["memory"]})
    context._add_isolation({"isolation": "a", "isolation_holds": ["x"], "isolation_gaps": ["memory", "compilers"]})
    context._add_isolation({"isolation": "a", "isolation_holds": ["x", "no program"], "isolation_gaps": ["memory"]})
    assert context.facts == {"isolation": "a", "isolation_holds": ["x"], "isolation_gaps": ["memory", "compilers"]}
