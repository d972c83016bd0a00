"""The page of the frontiers' points as tables: what the chart shows, for those who read figures."""

from typing import Any

from parity.frontier.site import summary
from parity.frontier.site.figures import AXIS_NAMES, cost, counted, known, loss
from parity.frontier.site.markup import page as whole_page
from parity.frontier.site.markup import table, text


def page(board: dict[str, Any]) -> str:
    """The document: a table for every track, axis and class of hardware."""
    titles = summary.titles(board)
    volumes = {
        (track["name"], one["axis"], one["hardware"]): one for track in board["tracks"] for one in track["hypervolume"]
    }
    found = "".join(
        _table(line, titles, volumes.get((line["track"], line["axis"], line["hardware"])))
        for line in board["frontiers"]
        if line["points"]
    )
    body = (
        '<a class="skip" href="#main">Skip to the content</a><header><div class="bar"><nav aria-label="Pages">'
        '<a class="back" href="index.html">← Efficiency frontier</a></nav>'
        '<button type="button" id="theme" class="js-only" aria-pressed="false">dark</button></div>'
        "<h1>The frontier, point by point</h1><p>Evaluations of verified attempts that none beats in both cost and loss, from the cheapest "
        'to the lowest loss (nats per token).</p></header><main id="main" tabindex="-1">'
        f'<div class="side">{found or "<p>No attempt yet.</p>"}</div></main>'
    )
    return whole_page("The frontier, point by point · jaxrun", body, ("state.js",))


def _table(line: dict[str, Any], titles: dict[str, str], volume: dict[str, Any] | None) -> str:
    caption = f"{line['track']}: loss against {AXIS_NAMES.get(line['axis'], line['axis'])}" + (
        f" on {line['hardware']}" if line["hardware"] else ""
    )
    rows = [
        (cost(value, line["axis"]), loss(reached), summary.link(titles, identifier))
        for value, reached, identifier in line["points"]
    ]
    below = (
        f"<p class=hint>Hypervolume {volume['value']:.4g}, of {counted(volume['entries'], 'attempt')}; larger is better.</p>"
        if volume and known(volume["value"])
        else ""
    )
    return (
        f"<section><h2>{text(caption)}</h2>{below}{table(('Cost', 'Loss', 'Attempt'), rows, caption, (1,))}</section>"
    )
