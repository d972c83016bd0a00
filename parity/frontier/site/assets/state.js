// What is shown, kept in the address after #: so that a link or the Back button shows the same. And the theme's button.
"use strict";
window.site = {};
site.state = (() => {
  const listeners = [];
  const read = () => Object.fromEntries(new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : ""));
  let now = read();

  function write() {
    const query = new URLSearchParams(Object.entries(now).filter(([, value]) => value)).toString();
    try {
      history.replaceState(null, "", query ? "#" + query : location.pathname + location.search);
    } catch {
      location.hash = query;
    }
  }

  function set(patch) {
    now = { ...now, ...patch };
    write();
    for (const listener of listeners) listener(now, patch);
  }

  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) {
      now = read();
      for (const listener of listeners) listener(now, now);
    }
  });
  return { get: () => now, set, changed: (listener) => listeners.push(listener) };
})();

site.theme = (() => {
  const listeners = [];
  const dark = () =>
    (document.documentElement.dataset.theme ||
      (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  function show() {
    const button = document.getElementById("theme");
    if (!button) return;
    button.textContent = dark() ? "light" : "dark";
    button.setAttribute("aria-label", dark() ? "switch to light colours" : "switch to dark colours");
    button.setAttribute("aria-pressed", String(dark()));
  }

  function toggle() {
    const chosen = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = chosen;
    try {
      localStorage.setItem("theme", chosen);
    } catch {
      /* it holds for this page */
    }
    changed();
  }

  function changed() {
    show();
    for (const listener of listeners) listener();
  }

  document.addEventListener("DOMContentLoaded", () => {
    show();
    document.getElementById("theme")?.addEventListener("click", toggle);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  return { dark, changed: (listener) => listeners.push(listener) };
})();

// Links inside the page move the focus and leave the address, which holds the filters, as it is.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const target = link && document.getElementById(link.getAttribute("href").slice(1));
  if (!target || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  target.scrollIntoView();
  target.focus({ preventScroll: true });
});
// Links to the first page, and from one attempt to the next, keep the filters.
document.addEventListener(
  "click",
  (event) => {
    const link = event.target.closest?.("a[href]");
    const path = link?.getAttribute("href");
    if (link && /^[^#:]+\.html$/.test(path) && location.hash.includes("=")) link.href = path + location.hash;
  },
  true,
);
