// The frontier chart: final losses against cost, and the line that nothing is below and left of.
"use strict";
site.frontier = (() => {
  const { board, chart, figures } = site;
  const FEW = 300,
    PAD = 0.06,
    OUTLIERS = 0.03;

  // Seconds compare only within a class of hardware: there colours are classes, elsewhere backends.
  const coloured = (axis) => (axis === "seconds" ? "hardware" : "backend");
  const lines = (state) =>
    board.data.frontiers
      .map((line, number) => ({ ...line, number }))
      .filter(
        (line) =>
          line.track === state.track &&
          line.axis === state.axis &&
          state.status !== "reported" &&
          line.x.length &&
          (!line.hardware || !state.hardware || line.hardware === state.hardware),
      );
  const lineColour = (line) =>
    line.hardware ? chart.colour(board.names.hardware.indexOf(line.hardware)) : chart.ink();
  const lineDash = (line) =>
    line.hardware ? chart.dashes[board.names.hardware.indexOf(line.hardware) % chart.dashes.length] : "solid";

  function marks(state, shown) {
    const { entries, names } = board,
      by = coloured(state.axis),
      costs = entries.cost[board.axes.indexOf(state.axis)];
    const drawn = shown.filter((entry) => costs[entry] > 0 && entries.loss[entry] != null);
    const size = drawn.length > FEW ? 7 : 9;
    return {
      type: "scatter",
      mode: "markers",
      x: drawn.map((entry) => costs[entry]),
      y: drawn.map((entry) => entries.loss[entry]),
      items: drawn.map((entry) => ({ entry })),
      marker: {
        color: drawn.map((entry) => chart.colour(entries[by][entry])),
        symbol: drawn.map((entry) => chart.shapes[(entries.kind[entry] % names.kind.length) % chart.shapes.length]),
        size: drawn.map((entry) => (board.record(entry) ? size + 4 : size)),
        opacity: drawn.length > FEW ? 0.75 : 0.9,
        line: { color: chart.ink(), width: 0.7 },
      },
    };
  }

  function reportedMarks(state, shown) {
    const cost = state.axis === "seconds" ? board.reported.seconds : state.axis === "steps" ? board.reported.steps : [];
    const drawn = shown.filter((record) => cost[record] > 0 && board.reported.loss[record] != null);
    return {
      type: "scatter",
      mode: "markers",
      x: drawn.map((record) => cost[record]),
      y: drawn.map((record) => board.reported.loss[record]),
      items: drawn.map((record) => ({ record })),
      marker: { symbol: "triangle-up-open", color: chart.soft(), size: 9, line: { width: 1.6 } },
    };
  }

  function range(values, log, upper = 0) {
    const sorted = values.map((value) => (log ? Math.log10(value) : value)).sort((a, b) => a - b);
    if (!sorted.length) return undefined;
    const low = sorted[0],
      high = sorted[Math.ceil((1 - upper) * (sorted.length - 1))];
    const pad = PAD * (high - low) || (log ? 0.1 : 0.05);
    return [low - pad, high + pad];
  }

  // What the chart does not show, in words.
  function note(axis, { finals, top, missing, unknown }) {
    const outside = finals.filter((loss) => loss > top).length,
      cost = figures.name(axis);
    const sentences = [
      !finals.length && "Nothing to draw: no result with a loss and a cost on this axis passes the filters.",
      outside && `${outside} of the ${finals.length} results lie above the range shown: “all” shows them.`,
      unknown && `${unknown} ${unknown === 1 ? "attempt has" : "attempts have"} no ${cost} or no loss and are not drawn.`,
      missing &&
        `${missing} ${missing === 1 ? "reported record is" : "reported records are"} not drawn: no loss${axis === "seconds" ? "" : ` or no ${cost}`} was reported.`,
    ];
    return sentences.filter(Boolean).join(" ");
  }

  function axes(state, xs, y) {
    const narrow = chart.narrow(),
      seconds = state.axis === "seconds" && !narrow;
    const cost = `${figures.title(state.axis)}${seconds ? " of training (s, log)" : " (log)"}`;
    return [
      chart.axis(`${cost} · ← ${narrow ? "better" : "cheaper is better"}`, { type: "log", range: range(xs, true) }),
      chart.axis(
        narrow ? "Final loss (nats/token) · ↓ better" : "Final val loss (nats per token) · ↓ lower is better",
        { range: y },
      ),
    ];
  }

  function plan(state) {
    const shown = board.visible(state),
      reported = board.visibleReported(state),
      verified = marks(state, shown),
      others = reportedMarks(state, reported);
    const target = board.track(state.track)?.target;
    const traces = [
      others,
      ...lines(state).map((line) => ({
        type: "scatter",
        mode: "lines+markers",
        x: line.x,
        y: line.y,
        items: line.entry.map((entry, point) => ({ line: line.number, point, entry })),
        line: { shape: "hv", color: lineColour(line), dash: lineDash(line), width: 2 },
        marker: { size: 4, color: lineColour(line) },
      })),
      verified,
    ];
    const finals = [...verified.y, ...others.y],
      y = range(target != null ? [...finals, target] : finals, false, finals.length > 20 ? OUTLIERS : 0);
    return {
      traces,
      note: note(state.axis, {
        finals,
        top: y?.[1],
        missing: reported.length - others.x.length,
        unknown: shown.length - verified.x.length,
      }),
      legend: legend(state, shown, reported),
      layout: chart.layout(...axes(state, [...verified.x, ...others.x], y), {
        height: chart.narrow() ? 380 : 500,
        shapes: chart.level(target),
      }),
    };
  }

  function legend(state, shown, reported) {
    const { names } = board,
      by = coloured(state.axis),
      shownIndices = (key) => [...new Set(shown.map((entry) => board.entries[key][entry]))].sort((a, b) => a - b);
    const classes = shownIndices(by),
      target = board.track(state.track)?.target;
    const drawn = lines(state),
      single = drawn.find((line) => !line.hardware);
    const classDash = (index) =>
      by === "hardware" && drawn.some((line) => line.hardware === names.hardware[index])
        ? chart.dashes[index % chart.dashes.length]
        : undefined;
    return [
      ...classes.map((index) => ({
        colour: chart.colour(index),
        shape: "circle",
        dash: classDash(index),
        text: names[by][index],
      })),
      ...(single
        ? [{ dash: "solid", colour: "var(--ink)", text: "frontier" }]
        : drawn.length
          ? [{ dash: "solid", text: "frontier of a class" }]
          : []),
      ...shownIndices("kind").map((index) => ({
        shape: chart.shapes[index % chart.shapes.length],
        hollow: true,
        text: names.kind[index],
      })),
      ...(shown.some(board.record) ? [{ text: "larger: was a record" }] : []),
      ...(reported.length ? [{ shape: "triangle", hollow: true, text: "reported by others, not verified here" }] : []),
      ...(target != null ? [{ dash: "dot", text: `target ${target}` }] : []),
    ];
  }

  function describe(item) {
    if (item.record !== undefined) return board.describeReported(item.record);
    if (item.line === undefined) return board.describe(item.entry);
    const line = board.data.frontiers[item.line];
    const end = item.entry != null && board.entries.cost[board.axes.indexOf(line.axis)][item.entry];
    if (end === line.x[item.point]) return board.describe(item.entry);
    const title = item.entry == null ? "an attempt" : board.title(board.row(item.entry));
    return [
      title,
      "on the frontier, during training",
      `loss ${figures.loss(line.y[item.point])}`,
      figures.cost(line.x[item.point], line.axis),
      line.hardware || "",
    ];
  }

  function curve(state, item, show) {
    board.withCurves((curves) => {
      if (item.record !== undefined) {
        const [steps, seconds, losses] = curves.reported[item.record];
        return show([state.axis === "seconds" ? seconds : steps, losses]);
      }
      const columns = item.entry == null ? null : curves.entries[item.entry];
      return columns && show([columns[{ steps: 0, tokens: 1, flops: 2, seconds: 3 }[state.axis]], columns[4]]);
    });
  }

  function draw(state) {
    return chart.draw("frontier-chart", () => plan(state), {
      describe,
      open: (item) => item.entry != null && board.href(item.entry),
      curve: (item, show) => curve(state, item, show),
    });
  }
  return { draw };
})();
