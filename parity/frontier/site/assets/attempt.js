// One attempt's page: the curves of its runs, and commands to copy.
"use strict";
(() => {
  const { chart, figures } = site;
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("curve-form");
  const END = 0.6; // from this part of the losses' fall on, the end is enlarged

  const known = (columns) => columns.map((column) => column.filter((value) => value != null));
  const shown = () => ({
    axis: form.elements.axis.value,
    train: form.elements.train.checked,
    end: form.elements.end.checked,
  });

  // The cost of a step on another axis, between the evaluations that were logged.
  function stretched(steps, evals, place) {
    if (place === 0) return steps;
    const [known_steps, costs] = [evals[0], evals[place]];
    return steps.map((step) => {
      const after = known_steps.findIndex((one) => one >= step);
      if (after < 0 || costs[after] == null) return null;
      const [low, cost] = after ? [known_steps[after - 1], costs[after - 1]] : [0, 0];
      return known_steps[after] === low
        ? cost
        : cost + ((step - low) / (known_steps[after] - low)) * (costs[after] - cost);
    });
  }

  function plan() {
    const { axis, train, end } = shown(),
      place = data.axes.indexOf(axis),
      traces = [];
    data.runs.forEach((run, number) => {
      const colour = chart.colour(number % 8);
      if (train && run.train[0].length)
        traces.push({
          type: "scatter",
          mode: "lines",
          x: stretched(run.train[0], run.evals, place),
          y: run.train[1],
          line: { color: colour, width: 0.8 },
          opacity: 0.45,
        });
    });
    data.runs.forEach((run, number) => {
      const colour = chart.colour(number % 8),
        xs = run.evals[place];
      traces.push({
        type: "scatter",
        mode: "lines+markers",
        x: xs,
        y: run.evals[4],
        items: xs.map((_, point) => ({ number, point })),
        line: { color: colour, width: 2, dash: chart.dashes[number % chart.dashes.length] },
        marker: {
          size: 6,
          color: colour,
          symbol: chart.shapes[number % chart.shapes.length],
          line: { color: chart.ink(), width: 0.5 },
        },
      });
    });
    const losses = known(data.runs.map((run) => run.evals[4])).flat(),
      low = Math.min(...losses, data.target ?? Infinity),
      high = Math.max(...losses);
    const costs = known(data.runs.map((run) => run.evals[place])).flat(),
      last = Math.max(...costs);
    const top = high - END * (high - low),
      pad = 0.05 * (top - low) || 0.05;
    const early = Math.min(
      ...data.runs.flatMap((run) => run.evals[place].filter((_, point) => run.evals[4][point] <= top)),
    );
    const averaged = Math.max(1, ...data.runs.map((run) => run.averaged));
    const note = [
      !costs.length && `No run states its ${axis === "flops" ? "FLOPs" : axis}.`,
      train && averaged > 1 && `Training losses are means of ${averaged} steps.`,
    ];
    const legend = [
      ...data.runs.map((run, number) => ({
        colour: chart.colour(number % 8),
        dash: chart.dashes[number % chart.dashes.length],
        shape: chart.shapes[number % chart.shapes.length],
        text: `seed ${run.seed}`,
      })),
      ...(data.target == null ? [] : [{ dash: "dot", text: `target ${data.target}` }]),
    ];
    return {
      traces,
      legend,
      note: note.filter(Boolean).join(" "),
      layout: chart.layout(
        chart.axis(
          `${figures.title(axis)}${axis === "seconds" ? " of training (s)" : ""} · ← ${chart.narrow() ? "better" : "cheaper is better"}`,
          {
            nticks: chart.narrow() ? 5 : 10,
            range: end && isFinite(early) ? [0.7 * early, 1.02 * last] : undefined,
            rangemode: "tozero",
          },
        ),
        chart.axis(chart.narrow() ? "Loss (nats/token) · ↓ better" : "Loss (nats per token) · ↓ lower is better", {
          range: end && isFinite(top) ? [low - pad, top + pad] : undefined,
        }),
        {
          height: chart.narrow() ? 360 : 440,
          shapes:
            data.target == null
              ? []
              : [
                  {
                    type: "line",
                    xref: "paper",
                    x0: 0,
                    x1: 1,
                    y0: data.target,
                    y1: data.target,
                    line: { color: chart.soft(), width: 1, dash: "dot" },
                  },
                ],
        },
      ),
    };
  }

  function describe({ number, point }) {
    const { name, seed, evals } = data.runs[number];
    return [
      `seed ${seed}`,
      name,
      `val loss ${figures.loss(evals[4][point])}`,
      data.axes
        .map((axis, place) => evals[place][point] != null && figures.cost(evals[place][point], axis))
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
