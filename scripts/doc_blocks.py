"""Writes what the documentation derives from the code: tables of rules, faults and cheats, and the picture of packages.

python scripts/doc_blocks.py            # rewrite the blocks between <!-- NAME --> and <!-- /NAME -->
python scripts/doc_blocks.py --check    # exit code 1 where a page is out of date
"""

import argparse
import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOP = ("jaxrun", "torchref", "parity")
# The modules directly in parity/, by the node that stands for them in the picture; its packages are nodes themselves.
MODULES = {
    "base": ("capture", "cli", "devices", "errors", "memory", "progress", "start", "statistics", "streams", "tables"),
    "protocol": ("program", "program_source", "track", "user_program", "weights"),
}
LABELS = {
    "jaxrun": "jaxrun: JAX backend",
    "torchref": "torchref: PyTorch backend",
    "base": "errors, cli, tables, statistics, ...",
    "protocol": "program, user_program, track, weights",
    "recipes": "recipes: sizes, weights, schedules",
    "formats": "formats: files on disk",
    "data": "data: slices, token order",
    "harness": "harness: loop, clock, evaluation, log",
    "compare": "compare: levels, faults",
    "verify": "verify: rules, sandbox, cheats",
    "declaration": "declaration: what an attempt declares, its record",
    "attempt": "attempt: templates, runner, tuning",
    "frontier": "frontier: ledger, scores, site",
    "history": "history: public records",
}
Arrows = dict[str, set[str]]


def node(module: str) -> str | None:
    """The node of the picture that a module belongs to; None for the package `parity` itself."""
    top, *rest = module.split(".")
    if top != "parity" or not rest:
        return None if top == "parity" else top
    return next((name for name, modules in MODULES.items() if rest[0] in modules), rest[0])


def modules() -> dict[str, Path]:
    """Every module of the project's packages, by its dotted name."""
    found = {}
    for top in TOP:
        for path in (ROOT / top).rglob("*.py"):
            if "templates" not in path.parts:
                found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports anywhere in it, as `known` spells them."""
    names = set()
    for statement in ast.walk(ast.parse(path.read_text())):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                full = f"{statement.module}.{alias.name}"
                names.add(full if full in known else statement.module)
    return {name for name in names if name.split(".")[0] in TOP}


def arrows() -> Arrows:
    """Which node imports which."""
    known = modules()
    result: Arrows = {}
    for module, path in known.items():
        if start := node(module):
            ends = {node(name) for name in imported(path, known)} - {None, start}
            result.setdefault(start, set()).update(end for end in ends if end)
    return result


def reachable(graph: Arrows, start: str) -> set[str]:
    """Every node that can be reached from one in one or more steps."""
    todo, result = list(graph.get(start, ())), set()
    while todo:
        if (name := todo.pop()) not in result:
            result.add(name)
            todo.extend(graph.get(name, ()))
    return result


def cycles(graph: Arrows) -> set[tuple[str, str]]:
    """The arrows that lie on a cycle."""
    return {(a, b) for a in graph for b in graph[a] if a in reachable(graph, b)}


def reduced(graph: Arrows) -> Arrows:
    """The fewest arrows with the same reachable nodes: an arrow is left out where a longer way leads to its end."""
    return {a: {b for b in ends if not any(b in reachable(graph, c) for c in ends - {b})} for a, ends in graph.items()}


def picture() -> str:
    """The packages and their arrows as a Mermaid flowchart."""
    graph = reduced(arrows())
    nodes = sorted(graph.keys() | {end for ends in graph.values() for end in ends})
    lines = [f'    {name}["{LABELS.get(name, name)}"]' for name in nodes]
    lines += [f"    {a} --> {b}" for a in sorted(graph) for b in sorted(graph[a])]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"])


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, *rows]).replace(
        "\n", f"\n|{'---|' * len(head)}\n", 1
    )


def rules() -> str:
    from parity.verify import run  # noqa: F401 - enters the rules
    from parity.verify.attempts import RULES as ATTEMPT_RULES
    from parity.verify.rules import RULES
    from parity.verify.verdict import DEPTHS

    every = sorted((rule for rule, _ in RULES.values()), key=lambda rule: DEPTHS.index(rule.depth))
    every += ATTEMPT_RULES.values()
    return table(["rule", "depth", "what must hold"], [[f"`{r.id}`", r.depth, r.sentence] for r in every])


def faults() -> str:
    from parity.compare.faults.catalogue import FAULTS
    from parity.compare.faults.plant import ALL

    rows = []
    for fault in FAULTS.values():
        level = fault.level if fault.dtype == "float64" else f"{fault.level}, `--dtype {fault.dtype}`"
        recipes = "all but record-40 and record-58" if set(fault.recipes) == set(ALL) else ", ".join(fault.recipes)
        rows.append([f"`{fault.name}`", fault.sentence, level, recipes])
    return table(["fault", "what is wrong", "level", "recipes"], rows)


def cheats() -> str:
    from parity.verify.cheats.matrix import CHEATS

    def by(cheat) -> str:
        if cheat.open:
            return f"**open**: {cheat.open}"
        if cheat.refused:
            return "the harness refuses it"
        if cheat.own_count:
            return "`replay.single`: its steps and tokens are marked, and kept off the frontiers"
        rules = ", ".join(f"`{rule}`" for rule in cheat.rules or cheat.unjudged)
        return rules if cheat.rules else f"incomplete: {rules}"

    public = {True: " (happened on a public track)", False: ""}
    rows = [[f"`{c.name}`", c.sentence + public[c.public], by(c)] for c in CHEATS.values()]
    return table(["cheat", "what is done", "detected by"], rows)


BLOCKS: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/architecture.md", "packages"): picture,
    ("docs/verifier.md", "rules"): rules,
    ("docs/appendix/faults.md", "faults"): faults,
    ("docs/appendix/cheats.md", "cheats"): cheats,
}


def updated(page: str, name: str, block: str) -> str:
    """The page with a new text between the markers of a block."""
    text = (ROOT / page).read_text()
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"{page}: expected <!-- {name} --> ... <!-- /{name} --> once: put the markers back")
    return pattern.sub(lambda match: f"{match[1]}{block}\n{match[2]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where a page is out of date")
    options = parser.parse_args()
    outdated = False
    for (page, name), make in BLOCKS.items():
        text = updated(page, name, make())
        if text != (ROOT / page).read_text():
            outdated = True
            print(f"{page}: {name} {'is out of date: python scripts/doc_blocks.py' if options.check else 'written'}")
            if not options.check:
                (ROOT / page).write_text(text)
    return 1 if outdated and options.check else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
