// Before anything is painted: says that scripts run, and which theme was chosen here before.
"use strict";
document.documentElement.classList.add("js");
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
} catch {
  /* no storage here: the system's theme holds */
}
