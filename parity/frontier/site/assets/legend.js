// A chart's legend, as text of the page: it wraps on a phone, and follows the theme.
"use strict";
site.legend = (() => {
  const dashes = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "9 3" };
  const shapes = {
    circle: "M12 4a4.5 4.5 0 1 1 0 9a4.5 4.5 0 1 1 0-9z",
    square: "M8 4.5h8v8h-8z",
    diamond: "M12 3l5.5 5.5l-5.5 5.5l-5.5-5.5z",
    triangle: "M12 4l5 9h-10z",
    cross: "M10 4h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    star: "M12 3l2 4h4l-3 3l1 4l-4-2l-4 2l1-4l-3-3h4z",
    hexagon: "M12 3.5l4.5 2.5v5l-4.5 2.5l-4.5-2.5v-5z",
  };

  function glyph({ colour = "var(--soft)", shape, dash, hollow }) {
    if (!shape && !dash) return "";
    const line = `<path d="M1 8.5h22" stroke="${colour}" stroke-width="2" stroke-dasharray="${dashes[dash]}"/>`;
    const look = hollow
      ? `fill="none" stroke="${colour}" stroke-width="1.6"`
      : `fill="${colour}" stroke="var(--ink)" stroke-width="0.7"`;
    const mark = `<path d="${shapes[shape]}" ${look}/>`;
    const drawn = (dash ? line : "") + (shape ? mark : "");
    return `<svg width="24" height="17" viewBox="0 0 24 17" aria-hidden="true">${drawn}</svg>`;
  }

  // items: {text, colour?, shape?, hollow?, dash?}: a mark, a line, both or none before the text.
  function show(element, items) {
    const parts = items.map((item) => {
      const part = document.createElement("span");
      part.innerHTML = glyph(item); // contains only the constants above
      part.append(item.text);
      return part;
    });
    element.replaceChildren(...parts);
  }
  return { show };
})();
