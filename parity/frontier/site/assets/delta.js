// What each attempt changed, with its interval, a row an attempt, the newest on top.
"use strict";
site.delta = (() => {
  const { board, chart, figures } = site;
  const ROWS = 25,
    ROW_PX = 22,
    LONGEST = 30;
  const looks = {
    improves: { symbol: "circle", colour: 2, glyph: "circle" },
    "inside the noise": { symbol: "circle-open", colour: 7, glyph: "circle", hollow: true },
    worse: { symbol: "diamond", colour: 1, glyph: "diamond" },
  };
  const other = { symbol: "square-open", colour: 7, glyph: "square", hollow: true };
  let start = 0,
    before = "";

  const shorter = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

  // [change, low, high] of an entry in the measure that is shown, or null.
  function change(entry, state, costs) {
    const { entries } = board;
    if (state.measure !== "cost")
      return entries.change[entry] == null
        ? null
        : [entries.change[entry], entries.change_low[entry], entries.change_high[entry]];
    const percent = costs?.[entry]?.[state.axis];
    return percent && percent[0] != null ? percent : null;
  }

  function marks(rows, points, look) {
    const ends = points.map(([middle, low, high]) => [middle - (low ?? middle), (high ?? middle) - middle]);
    return {
      type: "scatter",
      mode: "markers",
      x: points.map(([middle]) => middle),
      y: rows.map((_, row) => row),
      items: rows.map((entry) => ({ entry })),
      error_x: {
        type: "data",
        symmetric: false,
        array: ends.map(([, up]) => up),
        arrayminus: ends.map(([down]) => down),
        color: chart.soft(),
        thickness: 1.4,
        width: 3,
      },
      marker: {
        size: 9,
        symbol: look.map((style) => style.symbol),
        color: look.map((style) => (style.hollow ? chart.ink() : chart.colour(style.colour))),
        line: { color: chart.ink(), width: look.map((style) => (style.hollow ? 1.4 : 0.7)) },
      },
    };
  }

  function legend(hasUnjudged) {
    const unjudged = hasUnjudged ? [{ colour: "var(--ink)", shape: other.glyph, hollow: true, text: "not judged" }] : [];
    return [
      ...Object.entries(looks).map(([text, style]) => ({
        colour: style.hollow ? "var(--ink)" : chart.colour(style.colour),
        shape: style.glyph,
        hollow: style.hollow,
        text,
      })),
      ...unjudged,
      { text: "bars: 95% interval" },
    ];
  }

  function plan(state, shown, costs) {
    const rows = shown.slice(start, start + ROWS),
      cost = state.measure === "cost",
      most = chart.narrow() ? 13 : LONGEST;
    const verdict = (entry) => board.entries.verdict[entry];
    const points = rows.map((entry) => change(entry, state, costs));
    const look = rows.map((entry, row) => {
      const [, low, high] = points[row];
      if (!cost) return looks[verdict(entry)] || other;
      return low == null ? other : high < 0 ? looks.improves : low > 0 ? looks.worse : looks["inside the noise"];
    });
    const unit = cost
      ? `Change in ${figures.name(state.axis)}${chart.narrow() ? "" : " at equal loss"} (%)`
      : chart.narrow()
        ? "Change in loss (nats)"
        : "Change in loss at equal cost (nats per token)";
    return {
      traces: [marks(rows, points, look)],
      legend: legend(look.includes(other)),
      note: rows.length ? "" : "No attempt that passes the filters has a change that was judged.",
      layout: chart.layout(
        chart.axis(`${unit} · ← ${chart.narrow() ? "" : "left is "}better`, {
          zeroline: true,
          zerolinecolor: chart.ink(),
          zerolinewidth: 1.2,
          nticks: chart.narrow() ? 4 : 9,
        }),
        chart.axis("", {
          tickvals: rows.map((_, row) => row),
          ticktext: rows.map((entry) => chart.plain(shorter(board.title(board.row(entry)), most))),
          range: [Math.max(rows.length, 4) - 0.4, -0.6],
          ticks: "",
          fixedrange: true,
        }),
        {
          height: Math.max(rows.length, 4) * ROW_PX + 70,
          margin: { l: chart.narrow() ? 104 : 220, r: 14, t: 6, b: 48 },
        },
      ),
    };
  }

  function show(state, costs) {
    const shown = board
      .visible(state)
      .filter((entry) => change(entry, state, costs))
      .reverse();
    const filters = JSON.stringify({ ...state, sort: "", direction: "" });
    if (filters !== before) start = 0;
    before = filters;
    start = Math.max(0, Math.min(start, shown.length - 1));
    document.getElementById("newer").disabled = start === 0;
    document.getElementById("older").disabled = start + ROWS >= shown.length;
    document.getElementById("shown").textContent = shown.length
      ? `${start + 1} to ${Math.min(start + ROWS, shown.length)} of ${shown.length}, newest first`
      : "";
    return chart.draw("delta-chart", () => plan(state, shown, costs), {
      open: ({ entry }) => board.href(entry),
      describe: ({ entry }) => {
        const [middle, low, high] = change(entry, state, costs),
          [digits, unit] = state.measure === "cost" ? [1, "%"] : [4, " nats"];
        return [
          board.title(board.row(entry)),
          `${figures.change(middle, digits)}${unit} ${figures.between(low, high, digits)}`,
          ...board.describe(entry).slice(1),
        ];
      },
    });
  }

  function draw(state) {
    return state.measure === "cost" ? board.withCurves((curves) => show(state, curves.costs)) : show(state);
  }

  for (const [id, sign] of [
    ["newer", -1],
    ["older", 1],
  ])
    document.getElementById(id).addEventListener("click", () => {
      start = Math.max(0, start + sign * ROWS);
      draw(site.shown());
    });
  return { draw };
})();
