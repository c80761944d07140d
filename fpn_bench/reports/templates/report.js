"use strict";
(() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Text and grid take the page's colours, so that they follow light, dark and print.
  const theme = () => {
    const grid = { gridcolor: colour("--grid"), linecolor: colour("--quiet"), tickcolor: colour("--quiet") };
    const flat = { "font.color": colour("--ink"), "modebar.color": colour("--quiet"), "modebar.activecolor": colour("--ink"), "hoverlabel.bgcolor": colour("--soft"), "hoverlabel.bordercolor": colour("--rule"), "hoverlabel.font.color": colour("--ink") };
    for (const axis of ["xaxis", "yaxis"]) for (const key in grid) flat[axis + "." + key] = grid[key];
    return flat;
  };
  const narrow = () => window.innerWidth < 600;
  const figures = [...document.querySelectorAll("[data-figure]")];
  for (const element of figures) {
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    figure.layout.height = element.clientHeight;
    if (narrow()) {
      figure.layout.margin = { ...figure.layout.margin, l: 46, r: 6 };
      for (const trace of figure.data) if (trace.mode === "markers+text") trace.mode = "markers";
    }
    Plotly.newPlot(element, figure.data, figure.layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] })
      .then(() => Plotly.relayout(element, theme()));
  }
  const repaint = () => figures.forEach((element) => Plotly.relayout(element, theme()));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.matchMedia("print").addEventListener("change", repaint);

  const table = document.getElementById("candidate-table");
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("n"));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("n");
    const key = (row) => {
      const text = row.cells[column].textContent.trim();
      return numeric ? parseFloat(text) : text;
    };
    const missing = (value) => value === "" || Number.isNaN(value);
    const keyed = [...body.rows].map((row) => [key(row), row]);
    keyed.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b); // what is missing stays last either way
      const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return up ? order : -order;
    });
    body.append(...keyed.map(([, row]) => row));
  }));

  const filter = document.getElementById("filter");
  if (filter) filter.addEventListener("change", () => {
    const shown = new Set([...filter.querySelectorAll("input:checked")].map((box) => box.value));
    for (const row of body.rows) row.hidden = !shown.has(row.dataset.status);
  });
})();
