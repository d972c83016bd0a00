"""The first screen in words: what the page is, each track's record, and what the last attempt added."""

from typing import Any

from parity.frontier.site.figures import cost, counted, known, loss, spread
from parity.frontier.site.markup import name, text

MOST_RECORDS = 3  # lines of a track's card, one a class of hardware


def first_screen(board: dict[str, Any]) -> str:
    """The heading, one sentence, a card for every track that has results, and the last attempt."""
    cards = "".join(_card(track, board) for track in board["tracks"] if _has_results(track, board))
    return (
        f'<h1>Efficiency frontier</h1><p class="lede">The lowest loss that language-model training reaches for a given cost, from '
        f"verified attempts only, and what each attempt added to it.</p>{_last(board)}"
        f'<div class="cards">{cards}{_reported_card(board)}</div>'
    )


def titles(board: dict[str, Any]) -> dict[str, str]:
    """Each entry's title by its id."""
    return {entry["id"]: entry["title"] for entry in board["entries"]}


def public_records(records: list[dict[str, Any]]) -> str:
    """How many public records there are; one that was timed again has a row each time, and counts once."""
    return counted(len({record["n"] for record in records}), "record")


def link(known_titles: dict[str, str], identifier: str, folder: str = "attempt/") -> str:
    """An attempt's title as a link to its page; the id itself where there is no such entry."""
    if identifier not in known_titles:
        return name(identifier)
    return f'<a href="{folder}{text(identifier)}.html">{name(known_titles[identifier])}</a>'


def _has_results(track: dict[str, Any], board: dict[str, Any]) -> bool:
    return any(entry["track"] == track["name"] for entry in board["entries"])


def _last(board: dict[str, Any]) -> str:
    if not board["entries"]:
        follows = (
            "What follows is the public history, reported by others and not verified here."
            if board["reported"]["records"]
            else ""
        )
        return f'<p class="latest"><strong>No attempt has been verified yet.</strong> {follows}</p>'
    entry = board["entries"][-1]
    return (
        f'<p class="latest"><span class="tag">last attempt</span> {link(titles(board), entry["id"])} by {name(entry["author"])} on '
        f"{text(entry['track'])}, <time>{text(entry['date'])}</time>: {name(entry['delta']['sentence'])}</p>"
    )


def _card(track: dict[str, Any], board: dict[str, Any]) -> str:
    entries = [entry for entry in board["entries"] if entry["track"] == track["name"]]
    lines = [line for line in board["progress"] if line["track"] == track["name"] and line["points"]]
    lines.sort(key=lambda line: line["points"][-1][0], reverse=True)
    said = []
    for line in lines[:MOST_RECORDS]:
        date, value, identifier = line["points"][-1]
        where = f" on {name(line['hardware'])}" if line["hardware"] else ""
        said.append(
            f'<li><b class="big">{cost(value, line["scored"])}</b> to loss {track["target"]:g}{where}: {link(titles(board), identifier)}, '
            f"<time>{text(date)}</time>{_faster(entries, line, value)}</li>"
        )
    if len(lines) > MOST_RECORDS:
        said.append(f"<li>and {len(lines) - MOST_RECORDS} more classes of hardware</li>")
    if not lines:
        said.append(
            "<li>No record: the track has no target.</li>"
            if track["target"] is None
            else "<li>The target was not reached yet.</li>"
        )
    scored = [entry for entry in entries if known(entry["loss"]["mean"])]
    if scored:
        best = min(scored, key=lambda entry: entry["loss"]["mean"])
        said.append(
            f"<li>lowest loss {loss(best['loss']['mean'])}{spread(best['loss']['low'], best['loss']['high'])}: "
            f"{link(titles(board), best['id'])}</li>"
        )
    volumes = ", ".join(
        f"{one['value']:.4g} in {text(one['axis'])}{_on(one)}"
        for one in track["hypervolume"]
        if known(one["value"]) and one["axis"] == track["scored"]
    )
    volume = f'<p class="hint">Hypervolume under the frontier (larger is better): {volumes}.</p>' if volumes else ""
    count = counted(len(entries), "attempt")
    return (
        f'<div class="card"><h3>{text(track["name"])} <small>{count} · {text(track["purpose"])}</small></h3><ul>{"".join(said)}</ul>'
        f"{volume}</div>"
    )


def _faster(entries: list[dict[str, Any]], line: dict[str, Any], record: float) -> str:
    """Why attempts that took less time than a record are none."""
    if line["scored"] != "seconds":
        return ""
    less = [
        entry
        for entry in entries
        if entry["hardware"] == line["hardware"]
        and entry["target"]
        and known(entry["target"]["seconds"])
        and entry["target"]["seconds"] < record
    ]
    if not less:
        return ""
    said = f"{counted(len(less), 'attempt')} reached it in less time and {'is no record' if len(less) == 1 else 'are no records'}"
    return f'<p class="hint">{said}: a record in seconds takes runs made in turns with those of the one before it.</p>'


def _on(volume: dict[str, Any]) -> str:
    return f" on {name(volume['hardware'])}" if volume["hardware"] else ""


def _reported_card(board: dict[str, Any]) -> str:
    reported = [record for record in board["reported"]["records"] if known(record["seconds"])]
    if not reported:
        return ""
    best = min(reported, key=lambda record: record["seconds"])
    return (
        f'<div class="card reported"><h3>public history <small>{text(board["reported"]["note"])}</small></h3><ul><li>'
        f'<b class="big">{cost(best["seconds"], "seconds")}</b> on {text(best["hardware"])}: record {text(best["label"])}, '
        f"<time>{text(best['date'])}</time></li><li>{public_records(reported)} since <time>{text(reported[0]['date'])}</time></li></ul></div>"
    )
