// The record table: filters, sorting by a click or a key on the heads, and no more rows at once than people read.
"use strict";
site.records = (() => {
  const { board, figures } = site;
  const MAX_ROWS = 50;
  const table = document.getElementById("records-table"),
    body = table.tBodies[0],
    more = document.getElementById("more");
  const lines = board.rows.map((row, number) =>
    number < board.count
      ? { row, entry: board.count - 1 - number }
      : { row, record: board.count + board.reportedCount - 1 - number },
  );
  const columns = {
    number: 0,
    date: 1,
    title: 2,
    loss: 3,
    cost: 4,
    target: 5,
    delta: 6,
    backend: 7,
    kind: 8,
    hardware: 9,
    status: 10,
  };
  let showAll = false,
    axisShown = "seconds";

  function value(line, column, axis) {
    const { entries, reported, axes } = board,
      axisIndex = axes.indexOf(axis),
      entry = line.entry;
    const verified = entry !== undefined,
      seconds =
        axis === "seconds" ? reported.seconds[line.record] : axis === "steps" ? reported.steps[line.record] : null;
    switch (column) {
      case "number":
        return verified ? entry : line.record;
      case "loss":
        return verified ? entries.loss[entry] : reported.loss[line.record];
      case "cost":
        return verified ? entries.cost[axisIndex][entry] : seconds;
      case "target":
        return verified ? entries.target[axisIndex][entry] : seconds;
      case "delta":
        return verified ? entries.change[entry] : reported.change[line.record];
      default:
        return board.cell(line.row, columns[column]);
    }
  }

  function sort(column, direction, axis) {
    const sign = direction === "up" ? 1 : -1;
    const keyed = lines.map((line, number) => ({ line, number, key: value(line, column, axis) }));
    keyed.sort((a, b) => {
      // Unknown values come last in either direction.
      if (a.key == null || b.key == null) return (a.key == null) - (b.key == null) || a.number - b.number;
      const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key);
      return sign * order || a.number - b.number;
    });
    return keyed.map(({ line }) => line);
  }

  function heads(column, direction, axis) {
    for (const head of table.tHead.rows[0].cells) {
      if (head.dataset.column === column)
        head.setAttribute("aria-sort", direction === "up" ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
      if (head.dataset.column === "cost") head.firstChild.textContent = figures.title(axis);
    }
  }

  function costs(axis) {
    if (axis === axisShown) return;
    axisShown = axis;
    for (const line of lines)
      for (const column of ["cost", "target"])
        line.row.cells[columns[column]].textContent = figures.cost(value(line, column, axis), axis, false);
  }

  function show(state) {
    const column = state.sort in columns ? state.sort : "date",
      direction = state.direction === "up" || state.direction === "down" ? state.direction : "down";
    costs(state.axis);
    heads(column, direction, state.axis);
    const sorted =
      column === "date" && direction === "down" && !show.moved ? lines : sort(column, direction, state.axis);
    if (sorted !== lines) {
      show.moved = true;
      body.append(...sorted.map(({ row }) => row));
    }
    let passing = 0;
    for (const line of sorted) {
      const passes =
        line.entry !== undefined ? board.passes(line.entry, state) : board.passesReported(line.record, state);
      const hidden = !passes || (!showAll && passing >= MAX_ROWS);
      if (line.row.hidden !== hidden) line.row.hidden = hidden;
      passing += passes;
    }
    more.hidden = showAll || passing <= MAX_ROWS;
    more.textContent = `show all ${passing} rows`;
    table.classList.add("ready");
    return passing;
  }

  table.tHead.addEventListener("click", (event) => {
    const column = event.target.closest("th")?.dataset.column;
    if (!column || !event.target.closest("button")) return;
    const { sort: before = "date", direction = "down" } = site.state.get();
    const up = column === before ? direction !== "up" : !["date", "number"].includes(column);
    site.state.set({ sort: column, direction: up ? "up" : "down" });
  });
  more.addEventListener("click", () => {
    showAll = true;
    const next = more.parentElement;
    show(site.shown());
    next.previousElementSibling.focus();
  });
  return { show };
})();
