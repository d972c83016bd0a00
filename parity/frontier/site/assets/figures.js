// Numbers as people read them.
"use strict";
site.figures = (() => {
  const units = { seconds: "s", steps: "steps", tokens: "tokens", flops: "FLOPs" };
  const powers = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const known = (value) => typeof value === "number" && isFinite(value);
  const minus = (text) => text.replace(/-/g, "−");
  // The browser's own way to group digits takes long to start.
  const grouped = (text) => text.replace(/^-?\d+/, (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ","));
  const name = (axis) => (axis === "flops" ? "FLOPs" : axis);
  const loss = (value) => (known(value) ? value.toFixed(4) : "–");
  const change = (value, digits = 4) => (known(value) ? minus((value > 0 ? "+" : "") + value.toFixed(digits)) : "–");
  const between = (low, high, digits = 4) =>
    known(low) && known(high) ? `[${change(low, digits)}, ${change(high, digits)}]` : "";

  function cost(value, axis, unit = true) {
    if (!known(value)) return "–";
    let text;
    if (axis === "flops" || value >= 1e8) {
      const [mantissa, exponent] = value.toExponential(2).split("e");
      const raised = [...exponent.replace("+", "")].map((digit) => (digit === "-" ? "⁻" : powers[digit]));
      text = `${mantissa}·10${raised.join("")}`;
    } else {
      const digits = axis === "seconds" ? 1 : 0;
      text = grouped(value.toFixed(digits));
    }
    return unit ? `${text} ${units[axis]}` : text;
  }

  return {
    units,
    known,
    loss,
    change,
    between,
    cost,
    minus,
    grouped,
    name,
    title: (axis) => (axis === "flops" ? "FLOPs" : axis[0].toUpperCase() + axis.slice(1)),
  };
})();
