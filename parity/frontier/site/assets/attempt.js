// One attempt's page: the curves of its runs, and commands to copy.
"use strict";
(() => {
  const { chart, figures } = site;
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("curve-form");
  const END = 0.6; // fraction of the losses' fall from which on the end is enlarged

  const known = (columns) => columns.map((column) => column.filter((value) => value != null));
  const shown = () => ({
    axis: form.elements.axis.value,
    train: form.elements.train.checked,
    end: form.elements.end.checked,
  });

  // The cost of a step on another axis, between the evaluations that were logged.
  function costsAtSteps(steps, evals, axisIndex) {
    if (axisIndex === 0) return steps;
    const [known_steps, costs] = [evals[0], evals[axisIndex]];
    return steps.map((step) => {
      const after = known_steps.findIndex((known) => known >= step);
      if (after < 0 || costs[after] == null) return null;
      const [low, cost] = after ? [known_steps[after - 1], costs[after - 1]] : [0, 0];
      return known_steps[after] === low
        ? cost
        : cost + ((step - low) / (known_steps[after] - low)) * (costs[after] - cost);
    });
  }

  const look = (number) => ({
    colour: chart.colour(number % 8),
    dash: chart.dashes[number % chart.dashes.length],
    shape: chart.shapes[number % chart.shapes.length],
  });

  function training(run, number, axisIndex) {
    const x = costsAtSteps(run.train[0], run.evals, axisIndex);
    return {
      type: "scatter",
      mode: "lines",
      x,
      y: run.train[1],
      line: { color: look(number).colour, width: 0.8 },
      opacity: 0.45,
    };
  }

  function evaluations(run, number, axisIndex) {
    const { colour, dash, shape } = look(number),
      x = run.evals[axisIndex],
      items = x.map((_, point) => ({ number, point }));
    const marker = { size: 6, color: colour, symbol: shape, line: { color: chart.ink(), width: 0.5 } };
    return {
      type: "scatter",
      mode: "lines+markers",
      x,
      y: run.evals[4],
      items,
      line: { color: colour, width: 2, dash },
      marker,
    };
  }

  // The ranges that show the end of the curves: [costs, losses], or none where there are no losses.
  function end(axisIndex) {
    const losses = known(data.runs.map((run) => run.evals[4])).flat(),
      costs = known(data.runs.map((run) => run.evals[axisIndex])).flat();
    const low = Math.min(...losses, data.target ?? Infinity),
      high = Math.max(...losses),
      top = high - END * (high - low);
    const early = Math.min(
      ...data.runs.flatMap((run) => run.evals[axisIndex].filter((_, point) => run.evals[4][point] <= top)),
    );
    const pad = 0.05 * (top - low) || 0.05;
    return [
      isFinite(early) ? [0.7 * early, 1.02 * Math.max(...costs)] : undefined,
      isFinite(top) ? [low - pad, top + pad] : undefined,
    ];
  }

  function plan() {
    const state = shown(),
      { axis } = state,
      axisIndex = data.axes.indexOf(axis),
      narrow = chart.narrow();
    const trained = state.train
      ? data.runs.map((run, number) => ({ run, number })).filter(({ run }) => run.train[0].length)
      : [];
    const traces = [
      ...trained.map(({ run, number }) => training(run, number, axisIndex)),
      ...data.runs.map((run, number) => evaluations(run, number, axisIndex)),
    ];
    const averaged = Math.max(1, ...data.runs.map((run) => run.averaged)),
      [costs, losses] = state.end ? end(axisIndex) : [];
    const note = [
      !data.runs.some((run) => run.evals[axisIndex].some((value) => value != null)) &&
        `No run states its ${figures.name(axis)}.`,
      trained.length && averaged > 1 && `Training losses are means of ${averaged} steps.`,
    ];
    const cost = `${figures.title(axis)}${axis === "seconds" ? " of training (s)" : ""} · ← ${narrow ? "better" : "cheaper is better"}`;
    const loss = narrow ? "Loss (nats/token) · ↓ better" : "Loss (nats per token) · ↓ lower is better";
    return {
      traces,
      legend: [
        ...data.runs.map((run, number) => ({ ...look(number), text: `seed ${run.seed}` })),
        ...(data.target == null ? [] : [{ dash: "dot", text: `target ${data.target}` }]),
      ],
      note: note.filter(Boolean).join(" "),
      layout: chart.layout(
        chart.axis(cost, { nticks: narrow ? 5 : 10, range: costs, rangemode: "tozero" }),
        chart.axis(loss, { range: losses }),
        { height: narrow ? 360 : 440, shapes: chart.level(data.target) },
      ),
    };
  }

  function describe({ number, point }) {
    const { name, seed, evals, verified } = data.runs[number];
    return [
      `seed ${seed}`,
      name,
      `val loss ${figures.loss(evals[4][point])}${verified.includes(evals[0][point]) ? "" : ", reported"}`,
      data.axes
        .map((axis, axisIndex) => evals[axisIndex][point] != null && figures.cost(evals[axisIndex][point], axis))
        .filter(Boolean)
        .join(" · "),
    ];
  }

  const draw = () => chart.draw("curves-chart", plan, { describe });
  form.addEventListener("change", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".copy");
    if (!button) return;
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code); // no clipboard here: one key copies what is selected
      button.textContent = "selected";
    }
  });
  site.theme.changed(draw);
  draw().then(() => performance.mark("usable"));
})();
