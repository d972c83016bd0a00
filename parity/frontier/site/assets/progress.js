// Progress over time: the cost at which the target is reached, by date.
"use strict";
site.progress = (() => {
  const { board, chart, figures } = site;

  const MIN_PAD_DAYS = 2; // before the first and after the last date

  function plan(state) {
    const track = board.track(state.track),
      axis = track?.scored,
      axisIndex = board.axes.indexOf(axis),
      by = axis === "seconds" ? "hardware" : "backend";
    const shown = axis ? board.visible(state).filter((entry) => board.entries.target[axisIndex][entry] > 0) : [];
    const reported =
      axis === "seconds" ? board.visibleReported(state).filter((record) => board.reported.seconds[record] > 0) : [];
    const lines = board.data.progress.filter(
      (line) =>
        line.track === state.track &&
        state.status !== "reported" &&
        (!line.hardware || !state.hardware || line.hardware === state.hardware),
    );
    const colour = (line) => (line.hardware ? chart.colour(board.names.hardware.indexOf(line.hardware)) : chart.ink());
    const traces = [
      {
        type: "scatter",
        mode: "lines+markers",
        x: reported.map((record) => board.cell(board.reportedRow(record), 1)),
        y: reported.map((record) => board.reported.seconds[record]),
        items: reported.map((record) => ({ record })),
        line: { color: chart.soft(), width: 1, dash: "dot", shape: "hv" },
        marker: { symbol: "triangle-up-open", size: 8, color: chart.soft(), line: { width: 1.4 } },
      },
      {
        type: "scatter",
        mode: "markers",
        x: shown.map(board.date),
        y: shown.map((entry) => board.entries.target[axisIndex][entry]),
        items: shown.map((entry) => ({ entry })),
        marker: {
          size: 6,
          opacity: 0.7,
          color: shown.map((entry) => chart.colour(board.entries[by][entry])),
          symbol: shown.map((entry) => chart.shapes[board.entries.kind[entry] % chart.shapes.length]),
          line: { width: 0.5, color: chart.ink() },
        },
      },
      ...lines.map((line) => ({
        type: "scatter",
        mode: "lines+markers",
        x: line.x,
        y: line.y,
        items: line.entry.map((entry) => ({ entry })),
        line: {
          shape: "hv",
          width: 2,
          color: colour(line),
          dash: line.hardware
            ? chart.dashes[board.names.hardware.indexOf(line.hardware) % chart.dashes.length]
            : "solid",
        },
        marker: { size: 8, color: colour(line) },
      })),
    ];
    const days = traces.flatMap((trace) => trace.x).map(Date.parse),
      pad = Math.max(0.03 * (Math.max(...days) - Math.min(...days)), MIN_PAD_DAYS * 864e5);
    const range = days.length
      ? [Math.min(...days) - pad, Math.max(...days) + pad].map((day) => new Date(day).toISOString().slice(0, 10))
      : undefined;
    const goal = track?.target != null ? ` to loss ${track.target}` : "";
    const note =
      !track?.scored || track.target == null
        ? "This track has no target, so nothing counts as progress on it."
        : traces.some((trace) => trace.x.length)
          ? ""
          : "No result that passes the filters reaches the target.";
    const legend = [
      { dash: "solid", text: "record" },
      { shape: "circle", hollow: true, text: "attempt that reaches the target" },
      ...[...new Set(shown.map((entry) => board.entries[by][entry]))]
        .sort((a, b) => a - b)
        .map((index) => ({ colour: chart.colour(index), shape: "circle", text: board.names[by][index] })),
      ...(reported.length
        ? [{ shape: "triangle", dash: "dot", hollow: true, text: "reported by others, not verified here" }]
        : []),
    ];
    return {
      traces,
      note,
      legend,
      layout: chart.layout(
        chart.axis("Date · later →", { type: "date", range, nticks: chart.narrow() ? 4 : 8, ...days.length && Math.max(...days) - Math.min(...days) < 8 * 864e5 ? { dtick: 864e5 } : {} }),
        chart.axis(
          `${figures.title(axis || "seconds")}${goal} (log) · ↓ ${chart.narrow() ? "better" : "lower is better"}`,
          { type: "log" },
        ),
        { height: 360, margin: { l: 62, r: 14, t: 10, b: 62 } }, // two lines of ticks: day and year
      ),
    };
  }

  function draw(state) {
    return chart.draw("progress-chart", () => plan(state), {
      describe: (item) =>
        item.record !== undefined
          ? board.describeReported(item.record)
          : item.entry == null
            ? ["an attempt"]
            : board.describe(item.entry),
      open: (item) => item.entry != null && board.href(item.entry),
    });
  }
  return { draw };
})();
