"""Every path, module, option and link that README and docs name exists."""

import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + list((ROOT / "docs").rglob("*.md")),
)
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
TOP = ("jaxrun", "torchref", "parity", "scripts", "tests", "docs", ".ci")
EXAMPLES = re.compile(r"record_55|/X\.py")  # files that a page tells the reader to write
COMMANDS = (
    "-m jaxrun.train", "-m jaxrun.train --recipe record-21", "-m torchref.train", "-m jaxrun.sample",
    "-m parity.compare", "-m parity.verify",
    *(f"-m parity.attempt {name}" for name in ("new", "run", "judge", "show", "prune")),
    *(f"-m parity.frontier {name}" for name in ("add", "score", "show", "check", "site", "report", "ablate", "cross")),
    "-m parity.data prepare", "scripts/bench.py", "scripts/bench_frontier.py", "scripts/compile_h100.py",
    "scripts/doc_blocks.py", "scripts/golden.py", "scripts/gpu_check.py", "scripts/style.py",
)  # fmt: skip
FOREIGN = {"--nproc-per-node", "--index-url", "--extra-index-url", "-n", "-m"}  # of torchrun, pip and pytest


def code(text: str) -> list[str]:
    """The lines of a page's code blocks, and its inline code."""
    blocks = re.findall(r"^\s*```\w*\n(.*?)^\s*```", text, re.MULTILINE | re.DOTALL)
    inline = re.sub(r"^\s*```\w*\n.*?^\s*```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()] + re.findall(r"`([^`]+)`", inline)


def pages(names=tuple(TEXTS)):
    return pytest.mark.parametrize("page", names)


@pages()
def test_every_path_exists(page):
    pattern = rf"(?<![\w/.-])(?:{'|'.join(map(re.escape, TOP))})/[\w./-]*\w/?"
    paths = {path for piece in code(TEXTS[page]) for path in re.findall(pattern, piece)}
    missing = [path for path in paths if not EXAMPLES.search(path) and not (ROOT / path).exists()]
    assert missing == []


@pages()
def test_every_file_of_a_backend_exists_in_both(page):
    missing = []
    for name in {name for piece in code(TEXTS[page]) for name in re.findall(r"(?<![\w/])models/[\w]+\.py", piece)}:
        missing += [f"{top}/{name}" for top in ("jaxrun", "torchref") if not (ROOT / top / name).exists()]
    assert missing == []


@pages()
def test_every_module_can_be_imported(page):
    modules = {name for piece in code(TEXTS[page]) for name in re.findall(r"python -m ([a-z_]+\.[\w.]+)", piece)}
    assert [name for name in modules if not is_module(name)] == []


@pages()
def test_every_dotted_name_exists(page):
    names = {piece for piece in code(TEXTS[page]) if re.fullmatch(r"(jaxrun|torchref|parity)(\.\w+)+", piece)}
    assert [name for name in names if not is_module(name) and not is_attribute(name)] == []


def is_module(name: str) -> bool:
    return is_package(name.rpartition(".")[0]) and importlib.util.find_spec(name) is not None


def is_package(name: str) -> bool:
    parent = name.rpartition(".")[0]
    spec = importlib.util.find_spec(name) if not parent or is_package(parent) else None
    return spec is not None and spec.submodule_search_locations is not None


def is_attribute(name: str) -> bool:
    parent, _, attribute = name.rpartition(".")
    return is_module(parent) and hasattr(importlib.import_module(parent), attribute)


@cache
def help_of(command: str) -> str:
    recipe = ["--recipe", "nanogpt"] if command == "-m parity.compare" else []  # whose fields are options too
    line = [sys.executable, *command.split(), *recipe, "--help"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - FOREIGN


@pytest.mark.slow
@pages()
def test_every_option_is_one_of_its_command(page):
    missing = []
    for piece in code(TEXTS[page]):
        commands = [command for command in COMMANDS if re.search(rf"python {re.escape(command)}\b", piece)]
        if not commands and re.match(r"python|torchrun|pip|pytest", piece):
            continue  # of a command of which no help is asked, or of another program
        known = set().union(*(options(help_of(command)) for command in commands or COMMANDS))
        missing += [f"{piece}: {option}" for option in options(piece) - known]
    assert missing == []


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pages()
def test_every_link_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        anchors = (
            map(slug, re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)) if anchor and file.exists() else ()
        )
        if not file.exists() or (anchor and anchor not in anchors):
            broken.append(target)
    assert broken == []


def test_the_readme_is_short_and_its_two_commands_are_one_line_each():
    text = TEXTS["README.md"]
    assert len(text.split()) <= 1000
    for label in ("train", "test"):
        assert re.search(rf"^<!-- {label} -->\n```\n[^\n]+\n```$", text, re.MULTILINE)


def test_every_page_of_docs_is_in_the_index():
    index = TEXTS["docs/index.md"]
    pages = [page.removeprefix("docs/") for page in TEXTS if page.startswith("docs/")]
    assert [page for page in pages if page != "index.md" and f"({page})" not in index] == []


def test_the_techniques_table_names_what_is_in_the_files():
    """Of a row's last cell: each name in backticks occurs in the file before it, or is a field of a recipe."""
    fields = "\n".join(path.read_text() for path in (ROOT / "parity" / "recipes").glob("*.py"))
    files = [path for top in ("jaxrun", "torchref", "parity/recipes") for path in (ROOT / top).rglob("*.py")]
    table = TEXTS["docs/techniques.md"].partition("| technique |")[2].partition("\n\n")[0]
    missing = []
    for row in table.splitlines()[2:]:
        text = fields
        for name in re.findall(r"`([^`]+)`", row.split("|")[-2]):
            if name.endswith((".py", "/")):
                matching = [file for file in files if file.as_posix().endswith("/" + name)]
                text = fields + "\n".join(file.read_text() for file in matching)
                missing += [] if matching or (ROOT / name).exists() else [name]
            elif not re.search(rf"\b{re.escape(name.removeprefix('--').replace('-', '_'))}\b", text):
                missing.append(name)
    assert missing == []
