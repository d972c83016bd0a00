// What all charts share: colours of the theme, hover and keyboard, zoom, print. Needs the plotting library.
"use strict";
site.chart = (() => {
  // Okabe and Ito's colours, which the colour-blind can tell apart: those that stand out from the ground, then grey.
  const onLight = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7f7f7f"];
  const onDark = ["#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#F0E442", "#9f9f9f"];
  const colours = () => (site.theme.dark() && !printing ? onDark : onLight);
  const shapes = ["circle", "square", "diamond", "cross", "star", "hexagon"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
  const charts = new Map();
  const PRINT_WIDTH = 660; // CSS pixels of a page of A4 between its margins
  const PRINT_HEIGHT = 620;
  let printing = false;

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => colours()[Math.min(index, 7)];
  // The library interprets some HTML in its texts: untrusted names must not be read as HTML.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const ink = () => style("--ink");
  const soft = () => style("--soft");

  function axis(title, more) {
    return {
      title: { text: title, font: { size: 12.5, color: ink() }, standoff: 8 },
      gridcolor: style("--line"),
      linecolor: soft(),
      zeroline: false,
      ticks: "outside",
      ticklen: 4,
      tickcolor: soft(),
      tickfont: { color: soft() },
      ...more,
    };
  }

  function layout(x, y, more) {
    return {
      font: { family: style("--font"), size: 12, color: ink() },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 62, r: 14, t: 10, b: 48 },
      showlegend: false,
      hovermode: "closest",
      hoverdistance: 24,
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: x,
      yaxis: y,
      ...more,
    };
  }

  // A dotted line at a loss, as a layout's shapes; none where there is no loss.
  function level(loss) {
    if (loss == null) return [];
    return [
      { type: "line", xref: "paper", x0: 0, x1: 1, y0: loss, y1: loss, line: { color: soft(), width: 1, dash: "dot" } },
    ];
  }

  // plan(): {traces, layout, note, legend}; a trace's `items` name its points. options.describe(item): lines, the first
  // a title; options.open(item): the page to open; options.curve(item, show): calls show([xs, ys]) with its curve.
  async function draw(id, plan, options = {}) {
    const element = document.getElementById(id);
    if (!element) return;
    const chart = charts.get(id) || { element, over: overlay(element), at: -1, wired: false };
    charts.set(id, Object.assign(chart, { plan, options }));
    clear(chart);
    const { traces, layout: form, note, legend: items } = plan();
    site.legend.show(document.getElementById(`${id}-legend`), items);
    chart.traces = traces;
    chart.home = { xaxis: form.xaxis.range, yaxis: form.yaxis.range };
    chart.at = -1;
    document.getElementById(`${id}-note`).textContent = note || "";
    if (form.height) element.style.height = `${form.height}px`;
    if (printing) Object.assign(form, { width: PRINT_WIDTH, height: Math.min(form.height, PRINT_HEIGHT) });
    chart.xaxis = chart.yaxis = "";
    for (const [path, value] of Object.entries(ticks(chart, form))) form[path.slice(0, 5)][path.slice(6)] = value;
    element.hidden = !traces.some((trace) => trace.x.length);
    if (element.hidden) return;
    const shown = traces.map(({ items, ...trace }) => ({ hoverinfo: items ? "none" : "skip", ...trace }));
    await Plotly.react(element, shown, form, { displayModeBar: false, responsive: true, doubleClick: "reset+autosize" });
    if (!chart.wired) wire(chart);
    retick(chart);
  }

  // The ticks of a layout's log axes where they are other ones than are drawn, as the library takes them.
  function ticks(chart, form) {
    const change = {};
    for (const one of ["xaxis", "yaxis"]) {
      const most = one === "xaxis" ? Math.min(14, Math.floor(chart.element.offsetWidth / 62)) : 9;
      const set = site.ticks.of(form[one], most);
      if (!set) continue;
      if (JSON.stringify(set) === chart[one]) continue;
      chart[one] = JSON.stringify(set);
      for (const [key, value] of Object.entries(set)) change[`${one}.${key}`] = value;
    }
    return change;
  }

  function retick(chart) {
    const change = ticks(chart, chart.element._fullLayout);
    if (Object.keys(change).length) Plotly.relayout(chart.element, change);
  }

  function overlay(element) {
    const over = document.createElement("div");
    over.className = "over";
    over.innerHTML = '<svg aria-hidden="true"><polyline/></svg><i class="ring"></i><div class="tip"></div>';
    element.after(over);
    return over;
  }

  function clear(chart) {
    chart.over.classList.remove("on");
    chart.over.querySelector("polyline").setAttribute("points", "");
    chart.shown = null;
  }

  function wire(chart) {
    chart.wired = true;
    const { element } = chart;
    element.on("plotly_hover", (event) => {
      const { curveNumber, pointNumber, bbox } = event.points[0];
      show(chart, chart.traces[curveNumber]?.items?.[pointNumber], bbox);
    });
    element.on("plotly_unhover", () => clear(chart));
    element.on("plotly_relayout", () => {
      clear(chart);
      retick(chart);
    });
    element.on("plotly_click", (event) => {
      const { curveNumber, pointNumber } = event.points[0];
      open(chart, chart.traces[curveNumber]?.items?.[pointNumber]);
    });
    element.addEventListener("keydown", (event) => key(chart, event));
    element.addEventListener("blur", () => clear(chart));
  }

  function show(chart, item, box) {
    if (item === undefined) return;
    const { over, element, options } = chart;
    const [title, ...lines] = options.describe(item);
    const tip = over.querySelector(".tip");
    tip.replaceChildren(
      ...[title, ...lines].filter(Boolean).map((line, number) => {
        const part = document.createElement(number ? "span" : "b");
        part.textContent = line;
        return part;
      }),
    );
    const x = (box.x0 + box.x1) / 2,
      y = (box.y0 + box.y1) / 2;
    over.style.top = `${element.offsetTop}px`;
    over.querySelector(".ring").style.translate = `${x}px ${y}px`;
    over.classList.add("on");
    const width = tip.offsetWidth,
      height = tip.offsetHeight,
      room = element.offsetWidth;
    const left = x + 16 + width < room ? x + 16 : x - 16 - width;
    const within = (value, most) => Math.max(0, Math.min(value, most));
    tip.style.translate = `${within(left, room - width)}px ${within(y - height / 2, element.offsetHeight - height)}px`;
    chart.shown = item;
    over.querySelector("polyline").setAttribute("points", "");
    options.curve?.(item, (columns) => chart.shown === item && trace(chart, columns));
  }

  // Laid over the chart and not into it: the library would compute every point again.
  function trace(chart, [xs, ys]) {
    const { xaxis, yaxis } = chart.element._fullLayout;
    const { l, t, w, h } = chart.element._fullLayout._size;
    const svg = chart.over.querySelector("svg");
    Object.assign(svg.style, { left: `${l}px`, top: `${t}px`, width: `${w}px`, height: `${h}px` });
    const points = xs
      .map((x, number) => [x, ys[number]])
      .filter(([x, y]) => x != null && y != null && !(xaxis.type === "log" && x <= 0));
    svg.firstChild.setAttribute(
      "points",
      points.map(([x, y]) => `${xaxis.d2p(x).toFixed(1)},${yaxis.d2p(y).toFixed(1)}`).join(" "),
    );
  }

  function open(chart, item) {
    const path = item !== undefined && chart.options.open?.(item);
    if (path) location.href = path + (location.hash.includes("=") ? location.hash : "");
  }

  function key(chart, event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !chart.traces) return;
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (move) step(chart, move);
    else if (event.key === "Enter") open(chart, chart.shown ?? undefined);
    else if ("+-=0".includes(event.key)) zoom(chart, { "+": "in", "=": "in", "-": "out", 0: "reset" }[event.key]);
    else if (event.key === "Escape") clear(chart);
    else return;
    event.preventDefault();
  }

  // To the next point in view, by its position on the horizontal axis.
  function step(chart, move) {
    const { xaxis, yaxis } = chart.element._fullLayout,
      inside = (axis, pixel) => pixel >= 0 && pixel <= axis._length;
    const points = chart.traces
      .flatMap((trace, curve) =>
        (trace.items || []).map((item, point) => ({
          curve,
          point,
          item,
          x: xaxis.d2p(trace.x[point]),
          y: yaxis.d2p(trace.y[point]),
        })),
      )
      .filter(({ x, y }) => inside(xaxis, x) && inside(yaxis, y))
      .sort((a, b) => a.x - b.x || a.y - b.y);
    if (!points.length) return;
    const at =
      chart.at < 0 ? (move > 0 ? 0 : points.length - 1) : Math.max(0, Math.min(points.length - 1, chart.at + move));
    const { item, x, y } = points[at];
    chart.at = at;
    show(chart, item, { x0: xaxis._offset + x, x1: xaxis._offset + x, y0: yaxis._offset + y, y1: yaxis._offset + y });
    document.getElementById(`${chart.element.id}-note`).textContent = chart.options
      .describe(item)
      .filter(Boolean)
      .join(". ");
  }

  function zoom(chart, how) {
    if (!chart?.traces || chart.element.hidden) return;
    const form = chart.element._fullLayout,
      change = {};
    for (const one of ["xaxis", "yaxis"].filter((name) => !form[name].fixedrange)) {
      if (how === "all" || (how === "reset" && !chart.home[one])) change[`${one}.autorange`] = true;
      else change[`${one}.range`] = how === "reset" ? chart.home[one] : scaled(form[one], how === "in" ? 1 / 1.6 : 1.6);
    }
    Plotly.relayout(chart.element, change);
  }

  // An axis's range made larger or smaller about its middle.
  function scaled(axis, factor) {
    const [low, high] = axis.range.map((end) => axis.r2l(end));
    const middle = (low + high) / 2,
      half = (factor * (high - low)) / 2;
    return [middle - half, middle + half].map((end) => axis.l2r(end));
  }

  const redraw = () => [...charts].map(([id, { plan, options }]) => draw(id, plan, options));
  function print(on) {
    if (printing === on) return;
    printing = on;
    document.documentElement.classList.toggle("printing", on); // light colours, whatever the theme
    for (const { element } of charts.values()) element.style.width = on ? `${PRINT_WIDTH}px` : "";
    redraw();
    if (on) return;
    for (const { element } of charts.values()) if (!element.hidden) Plotly.Plots.resize(element);
  }
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-zoom]");
    if (button) zoom(charts.get(button.parentElement.dataset.for), button.dataset.zoom);
  });
  return {
    draw,
    axis,
    layout,
    level,
    plain,
    colour,
    shapes,
    dashes,
    ink,
    soft,
    narrow: () => innerWidth < 600,
    printing: () => printing,
  };
})();
