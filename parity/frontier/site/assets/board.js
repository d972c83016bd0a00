// The board's data: numbers from the data block, names and dates from the rows of the record table.
"use strict";
site.board = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { entries, reported, names, axes } = data;
  const count = entries.loss.length,
    reportedCount = reported.loss.length;
  const rows = [...document.querySelectorAll("#records-table tbody tr")];
  const { known, loss, cost, change, between } = site.figures;
  const records = new Set(entries.record);
  const waiting = [];
  let curves = null,
    requested = false;

  // Rows are newest first, attempts before reported records.
  const row = (entry) => rows[count - 1 - entry];
  const reportedRow = (record) => rows[count + reportedCount - 1 - record];
  const cell = (line, column) => line.cells[column].textContent;
  const href = (entry) => row(entry).cells[2].querySelector("a").getAttribute("href");
  const title = (line) => (line.cells[2].querySelector("a") || line.cells[2].firstChild).textContent.trim();

  function passes(entry, state) {
    return (
      state.status !== "reported" &&
      names.track[entries.track[entry]] === state.track &&
      ["backend", "kind", "hardware"].every((key) => !state[key] || names[key][entries[key][entry]] === state[key])
    );
  }

  function passesReported(record, state) {
    return (
      state.status !== "verified" &&
      reported.track === state.track &&
      !state.backend &&
      !state.kind &&
      (!state.hardware || cell(reportedRow(record), 9) === state.hardware)
    );
  }

  function describe(entry) {
    const line = row(entry),
      low = entries.low[entry],
      high = entries.high[entry];
    const verdict = entries.verdict[entry];
    const interval = between(entries.change_low[entry], entries.change_high[entry]);
    return [
      title(line),
      line.cells[2].querySelector("small").textContent,
      `loss ${loss(entries.loss[entry])}${known(low) && known(high) ? ` ± ${((high - low) / 2).toFixed(4)}` : ""}`,
      axes
        .map((axis, index) => known(entries.cost[index][entry]) && cost(entries.cost[index][entry], axis))
        .filter(Boolean)
        .join(" · "),
      known(entries.change[entry])
        ? `change in loss ${change(entries.change[entry])} ${interval}, ${verdict}`
        : verdict,
      [1, 7, 8, 9].map((column) => cell(line, column)).join(" · "),
    ];
  }

  function describeReported(record) {
    const line = reportedRow(record);
    return [
      title(line),
      "reported by others, not verified here",
      `loss ${loss(reported.loss[record])}`,
      `${cost(reported.seconds[record], "seconds")} on ${cell(line, 9)}`,
      `record ${cell(line, 0)} · ${cell(line, 1)}`,
    ];
  }

  // Curves are many bytes: they are loaded when the first one is needed.
  function withCurves(use) {
    if (curves) return use(curves);
    waiting.push(use);
    if (requested) return undefined;
    requested = true;
    const script = document.createElement("script");
    script.src = "assets/curves.js";
    document.head.append(script);
    return undefined;
  }
  site.curves = (loaded) => {
    curves = loaded;
    for (const use of waiting.splice(0)) use(loaded);
  };

  const all = (number, keep) => Array.from({ length: number }, (_, index) => index).filter(keep);
  return {
    data,
    entries,
    reported,
    names,
    axes,
    count,
    reportedCount,
    rows,
    row,
    reportedRow,
    cell,
    href,
    title,
    describe,
    describeReported,
    withCurves,
    record: (entry) => records.has(entry),
    track: (name) => data.tracks.find((track) => track.name === name),
    date: (entry) => cell(row(entry), 1),
    passes,
    passesReported,
    visible: (state) => all(count, (entry) => passes(entry, state)),
    visibleReported: (state) => all(reportedCount, (record) => passesReported(record, state)),
  };
})();
