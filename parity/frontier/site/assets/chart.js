// What all charts share: colours of the theme, hover and keyboard, zoom, legend, print. Needs the plotting library.
"use strict";
site.chart = (() => {
  // Okabe and Ito's colours, which the colour-blind can tell apart: as many as stand out from the ground, and grey for all that come after.
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
  const colour = (place) => colours()[Math.min(place, 7)];
  // The library reads a little HTML in its texts: strangers' names must not be read as that.
  const plain = (said) => String(said).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
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

  // plan(): {traces, layout, note, legend}; a trace's `items` name its points. options.describe(item): lines, the first a title;
  // options.open(item): the page to open; options.curve(item, show): gives show([xs, ys]) the curve to lay over the chart.
  async function draw(id, plan, options = {}) {
    const place = document.getElementById(id);
    if (!place) return;
    const chart = charts.get(id) || { place, over: overlay(place), at: -1, wired: false };
    charts.set(id, Object.assign(chart, { plan, options }));
    clear(chart);
    const { traces, layout: form, note, legend: items } = plan();
    legend(id, items);
    chart.traces = traces;
    chart.home = { "xaxis.range": form.xaxis.range, "yaxis.range": form.yaxis.range };
    chart.at = -1;
    document.getElementById(`${id}-note`).textContent = note || "";
    if (form.height) place.style.height = `${form.height}px`;
    if (printing) Object.assign(form, { width: PRINT_WIDTH, height: Math.min(form.height, PRINT_HEIGHT) });
    chart.xaxis = chart.yaxis = "";
    for (const [way, value] of Object.entries(ticks(chart, form))) form[way.slice(0, 5)][way.slice(6)] = value;
    place.hidden = !traces.some((trace) => trace.x.length);
    if (place.hidden) return;
    const shown = traces.map(({ items, ...trace }) => ({ hoverinfo: items ? "none" : "skip", ...trace }));
    await Plotly.react(place, shown, form, { displayModeBar: false, responsive: true, doubleClick: "reset+autosize" });
    if (!chart.wired) wire(chart);
    retick(chart);
  }

  // A log axis is labelled at round numbers of one size, as many as there is room for.
  function rounds(low, high, most) {
    // Not left to the library: its small ticks between labels that are given take without end over many powers of ten.
    const sets = [
      [
        1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.2, 3.4, 3.6, 3.8, 4, 4.5, 5, 5.5, 6,
        6.5, 7, 7.5, 8, 8.5, 9, 9.5,
      ],
      [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9],
      [1, 1.5, 2, 3, 4, 5, 7],
      [1, 2, 5],
      [1, 3],
      [1],
    ];
    for (const set of sets) {
      const found = [];
      for (let power = Math.floor(low); power <= high; power++)
        for (const one of set)
          if (Math.log10(one) + power >= low && Math.log10(one) + power <= high) found.push(Number(`${one}e${power}`));
      if (found.length <= most) return found;
    }
    return [];
  }

  // The ticks of the log axes of a layout that has ranges, where they are other ones than are drawn: "xaxis.tickvals" -> …
  function ticks(chart, form) {
    const change = {};
    for (const one of ["xaxis", "yaxis"]) {
      const { type, range } = form[one];
      if (type !== "log" || !range || !(range[1] - range[0] < 40)) continue; // some are without end, where nothing is drawn
      const found = rounds(
        range[0],
        range[1],
        one === "xaxis" ? Math.min(14, Math.floor(chart.place.offsetWidth / 62)) : 9,
      );
      const set =
        found.length < 2 ? { tickmode: "auto" } : { tickmode: "array", tickvals: found, ticktext: found.map(tick) };
      if (JSON.stringify(set) === chart[one]) continue;
      chart[one] = JSON.stringify(set);
      for (const [key, value] of Object.entries(set)) change[`${one}.${key}`] = value;
    }
    return change;
  }

  function retick(chart) {
    const change = ticks(chart, chart.place._fullLayout);
    if (Object.keys(change).length) Plotly.relayout(chart.place, change);
  }

  function tick(value) {
    if (value < 1e6) return site.figures.grouped(String(Number(value.toPrecision(4))));
    const [mantissa, power] = value.toExponential().split("e");
    return `${mantissa === "1" ? "" : mantissa + "·"}10<sup>${Number(power)}</sup>`;
  }

  function overlay(place) {
    const over = document.createElement("div");
    over.className = "over";
    over.innerHTML = '<svg aria-hidden="true"><polyline/></svg><i class="ring"></i><div class="tip"></div>';
    place.after(over);
    return over;
  }

  function clear(chart) {
    chart.over.classList.remove("on");
    chart.over.querySelector("polyline").setAttribute("points", "");
    chart.shown = null;
  }

  function wire(chart) {
    chart.wired = true;
    const { place } = chart;
    place.on("plotly_hover", (event) => {
      const { curveNumber, pointNumber, bbox } = event.points[0];
      show(chart, chart.traces[curveNumber]?.items?.[pointNumber], bbox);
    });
    place.on("plotly_unhover", () => clear(chart));
    place.on("plotly_relayout", () => {
      clear(chart);
      retick(chart);
    });
    place.on("plotly_click", (event) => {
      const { curveNumber, pointNumber } = event.points[0];
      open(chart, chart.traces[curveNumber]?.items?.[pointNumber]);
    });
    place.addEventListener("keydown", (event) => key(chart, event));
    place.addEventListener("blur", () => clear(chart));
  }

  function show(chart, item, box) {
    if (item === undefined) return;
    const { over, place, options } = chart;
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
    over.style.top = `${place.offsetTop}px`;
    over.querySelector(".ring").style.translate = `${x}px ${y}px`;
    over.classList.add("on");
    const width = tip.offsetWidth,
      height = tip.offsetHeight,
      room = place.offsetWidth;
    const left = x + 16 + width < room ? x + 16 : x - 16 - width;
    tip.style.translate = `${Math.max(0, Math.min(left, room - width))}px ${Math.max(0, Math.min(y - height / 2, place.offsetHeight - height))}px`;
    chart.shown = item;
    over.querySelector("polyline").setAttribute("points", "");
    options.curve?.(item, (columns) => chart.shown === item && trace(chart, columns));
  }

  // Laid over the chart and not into it: the library would work out every point anew.
  function trace(chart, [xs, ys]) {
    const { xaxis, yaxis } = chart.place._fullLayout;
    const { l, t, w, h } = chart.place._fullLayout._size;
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
    const way = item !== undefined && chart.options.open?.(item);
    if (way) location.href = way + (location.hash.includes("=") ? location.hash : "");
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

  // To the next point in view, by its place on the horizontal axis.
  function step(chart, move) {
    const { xaxis, yaxis } = chart.place._fullLayout,
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
    document.getElementById(`${chart.place.id}-note`).textContent = chart.options
      .describe(item)
      .filter(Boolean)
      .join(". ");
  }

  function zoom(chart, how) {
    if (!chart?.traces || chart.place.hidden) return;
    if (how === "reset" || how === "all") {
      const home = how === "reset" ? chart.home : {};
      const free = Object.fromEntries(
        ["xaxis", "yaxis"]
          .filter((one) => !home[`${one}.range`])
          .map((one) => [
            `${one}.autorange`,
            one === "yaxis" && chart.place._fullLayout.yaxis.autorange === "reversed" ? "reversed" : true,
          ]),
      );
      Plotly.relayout(chart.place, {
        ...Object.fromEntries(Object.entries(home).filter(([, range]) => range)),
        ...free,
      });
      return;
    }
    const change = {},
      factor = how === "in" ? 0.5 / 1.6 : 0.5 * 1.6;
    for (const one of ["xaxis", "yaxis"]) {
      const [low, high] = chart.place._fullLayout[one].range.map((end) => chart.place._fullLayout[one].r2l(end));
      const middle = (low + high) / 2,
        half = (high - low) * factor;
      change[`${one}.range`] = [middle - half, middle + half].map((end) => chart.place._fullLayout[one].l2r(end));
    }
    Plotly.relayout(chart.place, change);
  }

  // items: {colour?, shape?, dash?, text}; colour alone is a filled mark, dash a line.
  function legend(id, items) {
    document.getElementById(`${id}-legend`).replaceChildren(
      ...items.map((item) => {
        const part = document.createElement("span");
        part.innerHTML = glyph(item);
        part.append(item.text);
        return part;
      }),
    );
  }

  function glyph({ colour: fill = "var(--soft)", shape, dash, hollow }) {
    const lines = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 3" };
    const paths = {
      circle: "M12 4a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z",
      square: "M8 4.5h8v8h-8z",
      diamond: "M12 3l5.5 5.5l-5.5 5.5l-5.5-5.5z",
      triangle: "M12 4l5 9h-10z",
      cross: "M10 4h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
      star: "M12 3l2 4h4l-3 3l1 4l-4-2l-4 2l1-4l-3-3h4z",
      hexagon: "M12 3.5l4.5 2.5v5l-4.5 2.5l-4.5-2.5v-5z",
    };
    const mark = shape
      ? `<path d="${paths[shape]}" fill="${hollow ? "none" : fill}" stroke="${hollow ? fill : "var(--ink)"}" stroke-width="${hollow ? 1.6 : 0.7}"/>`
      : "";
    const line = dash
      ? `<path d="M1 8.5h22" stroke="${fill}" stroke-width="2" stroke-dasharray="${lines[dash]}"/>`
      : "";
    if (!mark && !line) return "";
    return `<svg width="24" height="17" viewBox="0 0 24 17" aria-hidden="true">${line}${mark}</svg>`;
  }

  const again = () => [...charts].map(([id, { plan, options }]) => draw(id, plan, options));
  function print(on) {
    if (printing === on) return;
    printing = on;
    document.documentElement.classList.toggle("printing", on); // light colours, whatever the theme
    for (const { place } of charts.values()) place.style.width = on ? `${PRINT_WIDTH}px` : "";
    again();
    if (!on) for (const { place } of charts.values()) Plotly.Plots.resize(place);
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
