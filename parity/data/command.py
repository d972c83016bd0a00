"""`python -m parity.data list|prepare|check`: the slices that runs train and score on."""

import argparse
from collections.abc import Sequence

from parity.errors import InputError, RunFailed, run_command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m parity.data", description="Lists, prepares and checks slices of data.")
    commands = parser.add_subparsers(dest="command", metavar="list|prepare|check", required=True)
    list_ = commands.add_parser("list", help="the slices, and which are here")
    prepare = commands.add_parser("prepare", help="download or build a slice, once; an interrupted download continues")
    check = commands.add_parser("check", help="check every digest and every token of a slice")
    for command in (prepare, check):
        command.add_argument("name", help="the slice's name, as `list` shows it")
    for command in (list_, prepare, check):
        command.add_argument(
            "--data-dir",
            metavar="DIR",
            help="the folder that holds slices (default: $JAXRUN_DATA, or the user's cache)",
        )
    prepare.add_argument(
        "--train-tokens",
        type=int,
        metavar="N",
        help="train tokens to download, for a slice that is downloaded shard by shard",
    )
    return parser


def _list(data_dir: str | None) -> int:
    from parity.data.slices import SLICES, data_home, open_slice
    from parity.tables import table

    columns = [("name", "<12"), ("here", "<5"), ("MB", ">8"), ("train tokens", ">14"), ("val", ">11")]
    columns += [("confirm", ">11"), ("what", "<")]
    rows = []
    for name, sentence in SLICES.items():
        try:
            slice_ = open_slice(name, data_dir)
        except InputError:
            present = (data_home(data_dir) / name / "manifest.json").exists()
            rows.append((name, "BAD" if present else "no", "", "", "", "", sentence))
            continue
        size_mb = sum(info.size_bytes for info in slice_.manifest.shards) / 1e6
        parts = [f"{slice_.manifest.parts[part].tokens:,}" for part in ("val", "confirm")]
        rows.append((name, "yes", f"{size_mb:,.1f}", f"{sum(slice_.train_lengths):,}", *parts, sentence))
    print(f"slices in {data_home(data_dir)}")
    print("\n".join(table(columns, rows)))
    return 0


def _prepare(name: str, data_dir: str | None, train_tokens: int | None) -> int:
    from parity.data.slices import prepare
    from parity.progress import ProgressLine

    opened = prepare(name, data_dir, train_tokens, ProgressLine())
    print(f"{name} is in {opened.directory}: {sum(opened.train_lengths):,} train tokens in {len(opened.train)} shards,")
    print(f"manifest sha256 {opened.manifest.digest}")
    return 0


def _check(name: str, data_dir: str | None) -> int:
    from parity.data.slices import open_slice, problems
    from parity.progress import ProgressLine

    sentences = problems(name, data_dir, ProgressLine())
    for sentence in sentences:
        print(sentence)
    if sentences:
        raise RunFailed(f"slice {name}: {len(sentences)} of its files are not what its manifest says")
    opened = open_slice(name, data_dir)
    print(
        f"{name} in {opened.directory} is whole: {len(opened.manifest.shards)} shards, every digest and token checked"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    return run_command(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    options = _parser().parse_args(argv)
    if options.command == "list":
        return _list(options.data_dir)
    if options.command == "prepare":
        return _prepare(options.name, options.data_dir, options.train_tokens)
    return _check(options.name, options.data_dir)
