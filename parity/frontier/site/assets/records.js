// The record table: filters, sorting by a click or a key on the heads, and no more rows at once than one reads.
"use strict";
site.records = (() => {
  const { board, figures } = site;
  const AT_ONCE = 50;
  const table = document.getElementById("records-table"),
    body = table.tBodies[0],
    more = document.getElementById("more");
  const lines = board.rows.map((row, place) =>
    place < board.count
      ? { row, entry: board.count - 1 - place }
      : { row, record: board.count + board.others - 1 - place },
  );
  const numbers = {
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
  let everything = false,
    axisShown = "seconds";

  function value(line, column, axis) {
    const { entries, reported, axes } = board,
      place = axes.indexOf(axis),
      one = line.entry;
    const own = one !== undefined,
      seconds =
        axis === "seconds" ? reported.seconds[line.record] : axis === "steps" ? reported.steps[line.record] : null;
    switch (column) {
      case "number":
        return own ? one : line.record;
      case "loss":
        return own ? entries.loss[one] : reported.loss[line.record];
      case "cost":
        return own ? entries.cost[place][one] : seconds;
      case "target":
        return own ? entries.target[place][one] : seconds;
      case "delta":
        return own ? entries.change[one] : reported.change[line.record];
      default:
        return board.cell(line.row, numbers[column]);
    }
  }

  function sort(column, direction, axis) {
    const sign = direction === "up" ? 1 : -1;
    const keyed = lines.map((line, place) => ({ line, place, key: value(line, column, axis) }));
    keyed.sort((a, b) => {
      // What is not known comes last, whichever way.
      if (a.key == null || b.key == null) return (a.key == null) - (b.key == null) || a.place - b.place;
      const order = typeof a.key === "number" ? a.key - b.key : a.key.localeCompare(b.key);
      return sign * order || a.place - b.place;
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
        line.row.cells[numbers[column]].textContent = figures.cost(value(line, column, axis), axis, false);
  }

  function show(state) {
    const column = state.sort in numbers ? state.sort : "date",
      direction = state.direction === "up" || state.direction === "down" ? state.direction : "down";
    costs(state.axis);
    heads(column, direction, state.axis);
    const sorted =
      column === "date" && direction === "down" && !show.moved ? lines : sort(column, direction, state.axis);
    if (sorted !== lines) {
      show.moved = true;
      body.append(...sorted.map(({ row }) => row));
    }
    let seen = 0;
    for (const line of sorted) {
      const passes =
        line.entry !== undefined ? board.passes(line.entry, state) : board.passesReported(line.record, state);
      const hidden = !passes || (!everything && seen >= AT_ONCE);
      if (line.row.hidden !== hidden) line.row.hidden = hidden;
      seen += passes;
    }
    more.hidden = everything || seen <= AT_ONCE;
    more.textContent = `show all ${seen} rows`;
    table.classList.add("ready");
    return seen;
  }

  table.tHead.addEventListener("click", (event) => {
    const column = event.target.closest("th")?.dataset.column;
    if (!column || !event.target.closest("button")) return;
    const { sort: before = "date", direction = "down" } = site.state.get();
    const up = column === before ? direction !== "up" : !["date", "number"].includes(column);
    site.state.set({ sort: column, direction: up ? "up" : "down" });
  });
  more.addEventListener("click", () => {
    everything = true;
    const next = more.parentElement;
    show(site.shown());
    next.previousElementSibling.focus();
  });
  return { show };
})();
