// Labels of a log axis: at round numbers of one size, as many as there is room for.
// Small ticks between labels are not left to the plotting library: over many powers of ten it never finishes.
"use strict";
site.ticks = (() => {
  const fine = [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.2, 3.4, 3.6, 3.8, 4];
  const sets = [
    [...fine, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5],
    [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9],
    [1, 1.5, 2, 3, 4, 5, 7],
    [1, 2, 5],
    [1, 3],
    [1],
  ];
  const MAX_POWERS = 40; // the endless range of an empty chart has no ticks

  // The densest set of round numbers between two powers of ten that has no more than so many.
  function rounds(low, high, most) {
    for (const set of sets) {
      const values = [];
      for (let power = Math.floor(low); power <= high; power++)
        for (const mantissa of set)
          if (Math.log10(mantissa) + power >= low && Math.log10(mantissa) + power <= high)
            values.push(Number(`${mantissa}e${power}`));
      if (values.length <= most) return values;
    }
    return [];
  }

  function label(value) {
    if (value < 1e6) return site.figures.grouped(String(Number(value.toPrecision(4))));
    const [mantissa, power] = value.toExponential().split("e");
    return `${mantissa === "1" ? "" : mantissa + "·"}10<sup>${Number(power)}</sup>`;
  }

  // An axis's tick settings, or null where it is not a log axis with a range.
  function of({ type, range }, most) {
    if (type !== "log" || !range || !(range[1] - range[0] < MAX_POWERS)) return null;
    const values = rounds(range[0], range[1], most);
    return values.length < 2
      ? { tickmode: "auto" }
      : { tickmode: "array", tickvals: values, ticktext: values.map(label) };
  }
  return { of };
})();
