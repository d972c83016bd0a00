"""`python -m parity.data list|prepare|check`: the slices that runs train and score on."""

import argparse
import sys

from parity.errors import InputError, RunFailed, run_command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m parity.data", description="Lists, prepares and checks slices of data.")
    commands = parser.add_subparsers(dest="command", metavar="list|prepare|check", required=True)
    listing = commands.add_parser("list", help="what slices there are, and which are here")
    preparing = commands.add_parser("prepare", help="download or build a slice, once; goes on where it was cut")
    checking = commands.add_parser("check", help="look at every digest and every token of a slice")
    for command in (preparing, checking):
        command.add_argument("name", help="the slice's name, as `list` shows it")
    for command in (listing, preparing, checking):
        command.add_argument(
            "--data-dir",
            metavar="DIR",
            help="the folder that holds slices (default: $JAXRUN_DATA, or the user's cache)",
        )
    preparing.add_argument(
        "--train-tokens", type=int, metavar="N", help="train tokens wanted, where a slice is downloaded by the shard"
    )
    return parser


def _list(data_dir: str | None) -> int:
    from parity.data.slices import SLICES, data_home, open_slice

    print(f"slices in {data_home(data_dir)}")
    print(f"{'name':<12} {'here':<5} {'MB':>8} {'train tokens':>14} {'val':>11} {'confirm':>11}  what")
    for name, sentence in SLICES.items():
        try:
            opened = open_slice(name, data_dir)
        except InputError:
            present = (data_home(data_dir) / name / "manifest.json").exists()
            print(f"{name:<12} {'BAD' if present else 'no':<5} {'':>8} {'':>14} {'':>11} {'':>11}  {sentence}")
            continue
        shards, parts = opened.manifest.shards, opened.manifest.parts
        size, train = sum(info.size_bytes for info in shards) / 1e6, sum(opened.train_lengths)
        val, confirm = parts["val"].tokens, parts["confirm"].tokens
        print(f"{name:<12} {'yes':<5} {size:>8,.1f} {train:>14,} {val:>11,} {confirm:>11,}  {sentence}")
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

    found = problems(name, data_dir, ProgressLine())
    for problem in found:
        print(problem)
    if found:
        raise RunFailed(f"slice {name}: {len(found)} of its files are not what its manifest says")
    opened = open_slice(name, data_dir)
    print(
        f"{name} in {opened.directory} is whole: {len(opened.manifest.shards)} shards, every digest and token checked"
    )
    return 0


def main() -> int:
    """Carries out one command of the command line."""
    options = _parser().parse_args()
    if options.command == "list":
        return _list(options.data_dir)
    if options.command == "prepare":
        return _prepare(options.name, options.data_dir, options.train_tokens)
    return _check(options.name, options.data_dir)


if __name__ == "__main__":
    sys.exit(run_command(main))
