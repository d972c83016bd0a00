// The order of work on the first page: the table and the frontier first, the rest when the browser is idle.
"use strict";
(() => {
  const { board, state } = site;
  const form = document.getElementById("filters"),
    measures = document.getElementById("delta-form"),
    count = document.getElementById("count");
  const later = (work) => (window.requestIdleCallback ? requestIdleCallback(work, { timeout: 500 }) : setTimeout(work, 30));
  const newest = board.count
    ? board.names.track[board.entries.track[board.count - 1]]
    : board.reportedCount
      ? board.reported.track
      : board.data.tracks[0]?.name;
  let waiting = 0;

  // What is shown: the values in the address where the page has them, else defaults.
  site.shown = () => {
    const requested = state.get(),
      shown = { sort: requested.sort, direction: requested.direction };
    for (const { name, options } of document.querySelectorAll("#filters select, #delta-form select"))
      shown[name] = [...options].some((option) => option.value === requested[name])
        ? requested[name]
        : name === "track"
          ? newest
          : options[0]?.value;
    return shown;
  };

  function show() {
    const shown = site.shown();
    for (const select of document.querySelectorAll("#filters select, #delta-form select"))
      select.value = shown[select.name] ?? "";
    const rows = site.records.show(shown);
    count.textContent = `${rows} result${rows === 1 ? "" : "s"}`;
    return shown;
  }

  async function draw(shown) {
    const request = ++waiting; // before the wait: the last request is drawn last
    await site.frontier.draw(shown);
    for (const chart of [site.progress, site.delta])
      later(() => {
        if (request === waiting) chart.draw(shown);
      });
    later(() => document.documentElement.classList.add("drawn"));
  }

  form.addEventListener("change", (event) => state.set({ [event.target.name]: event.target.value }));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    state.set({ backend: "", kind: "", hardware: "", status: "" });
  });
  measures.addEventListener("submit", (event) => event.preventDefault());
  measures.addEventListener("change", (event) => state.set({ [event.target.name]: event.target.value }));
  state.changed((_, patch) => {
    const shown = show();
    if (window.Plotly && Object.keys(patch).some((key) => key !== "sort" && key !== "direction")) draw(shown);
  });

  site.theme.changed(() => draw(site.shown()));
  show();
  performance.mark("table");
  // The plotting library is large: it comes last, when the table can be used already.
  document.addEventListener("DOMContentLoaded", () => draw(site.shown()).then(() => performance.mark("usable")));
})();
