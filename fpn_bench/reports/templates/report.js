"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const make = (tag, text, className) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text; // text only: nothing that comes from files is markup
    if (className) element.className = className;
    return element;
  };
  const designs = read("design-data");
  const at = new Map(designs.keys.map((key, row) => [key, row]));
  // As `fpn_bench.reports.details.hover_text` says it; plotly reads a few tags in it, so that < and & are escaped.
  const escaped = (text) => text.slice(0, designs.letters).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const hover = (key) => {
    if (!at.has(key)) return "";
    const row = designs.rows[at.get(key)];
    const lines = designs.columns.flatMap((c, i) => (c.hovered && row[i] !== "" ? [escaped(c.title + ": " + row[i])] : []));
    return ["<b>" + escaped(row[column("label")]) + "</b>", ...lines].join("<br>");
  };
  const column = (name) => designs.columns.findIndex((c) => c.name === name);

  // ---- figures -------------------------------------------------------------------------------------------------
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Text and grid take the page's colours, so that they follow light, dark and print.
  const theme = (element) => {
    const flat = { "font.color": colour("--ink"), "modebar.color": colour("--quiet"), "modebar.activecolor": colour("--ink"), "hoverlabel.bgcolor": colour("--soft"), "hoverlabel.bordercolor": colour("--rule"), "hoverlabel.font.color": colour("--ink") };
    const grid = { gridcolor: colour("--grid"), linecolor: colour("--quiet"), tickcolor: colour("--quiet") };
    for (const axis of Object.keys(element.layout)) {
      if (/^[xy]axis\d*$/.test(axis)) for (const key in grid) flat[axis + "." + key] = grid[key];
      if (axis === "scene") for (const side of ["xaxis", "yaxis", "zaxis"]) {
        flat["scene." + side + ".gridcolor"] = colour("--grid");
        flat["scene." + side + ".color"] = colour("--quiet");
        flat["scene." + side + ".backgroundcolor"] = colour("--paper");
      }
    }
    return flat;
  };
  const narrow = () => window.innerWidth < 600;
  const figures = [...document.querySelectorAll("[data-figure]")];
  const draw = (element) => {
    const figure = read(element.dataset.figure);
    for (const trace of figure.data) {
      if (trace.customdata) trace.hovertext = trace.customdata.map(hover);
      if (narrow() && trace.mode === "markers+text") trace.mode = "markers";
    }
    if (!element.closest(".wide")) figure.layout.height = element.clientHeight;
    else element.style.height = figure.layout.height + "px";
    if (narrow() && !figure.layout.scene) figure.layout.margin = { ...figure.layout.margin, l: Math.min(figure.layout.margin.l, 46), r: 6 };
    return Plotly.newPlot(element, figure.data, figure.layout, { responsive: true, displaylogo: false, modeBarButtons: [["toImage", ...(figure.layout.scene ? ["resetCameraDefault3d"] : ["zoom2d", "pan2d", "resetScale2d"])]] })
      .then(() => Plotly.relayout(element, theme(element)))
      .then(() => element.on("plotly_click", (event) => {
        const point = event.points.find((p) => at.has(p.customdata));
        if (point) select(point.customdata);
      }));
  };
  const repaint = () => figures.forEach((element) => element.data && Plotly.relayout(element, theme(element)));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  window.matchMedia("print").addEventListener("change", repaint);
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));

  // The points of a design in a figure, as a trace of rings for each kind of axes they are drawn on.
  const RING = "selected design";
  const ring = (element, key) => {
    const old = element.data.flatMap((trace, i) => (trace.meta === RING ? [i] : []));
    const rings = [];
    if (key !== null) for (const trace of element.data) {
      if (!Array.isArray(trace.customdata)) continue;
      const places = trace.customdata.flatMap((k, i) => (k === key ? [i] : []));
      if (!places.length) continue;
      const flat = trace.type !== "scatter3d";
      const added = { type: trace.type ?? "scatter", mode: "markers", meta: RING, hoverinfo: "skip", showlegend: false, x: places.map((i) => trace.x[i]), y: places.map((i) => trace.y[i]), marker: { symbol: "circle-open", size: flat ? 17 : 14, color: colour("--selected"), line: { width: 3, color: colour("--selected") } } };
      if (!flat) added.z = places.map((i) => trace.z[i]);
      if (trace.yaxis) added.yaxis = trace.yaxis;
      if (trace.xaxis) added.xaxis = trace.xaxis;
      rings.push(added);
    }
    let done = Promise.resolve();
    if (old.length) done = done.then(() => Plotly.deleteTraces(element, old));
    if (rings.length) done = done.then(() => Plotly.addTraces(element, rings));
    return done;
  };

  // ---- the selected design -------------------------------------------------------------------------------------
  let selected = null;
  let queue = Promise.resolve();
  const select = (key) => {
    if (key !== null && !at.has(key)) return;
    selected = key;
    for (const element of document.querySelectorAll("[data-key]")) element.classList.toggle("selected", element.dataset.key === key);
    panel(key);
    if (key !== null) gallery(key);
    // Rings are drawn one selection after the other, and only for the last one.
    queue = queue.then(() => key === selected ? Promise.all(figures.filter((f) => f.data).map((f) => ring(f, key))) : null).catch(console.error);
    document.body.dataset.selected = key ?? "";
    try {
      history.replaceState(null, "", key === null ? location.pathname + location.search : "#design=" + encodeURIComponent(key));
    } catch { /* a frame without an address of its own */ }
  };
  const unpacked = new Map();
  const drawing = (number) => {
    const chunk = Math.floor(number / designs.chunk);
    if (!unpacked.has(chunk)) {
      const bytes = Uint8Array.from(atob(designs.chunks[chunk]), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      unpacked.set(chunk, new Response(stream).json());
    }
    return unpacked.get(chunk).then((svgs) => svgs[number % designs.chunk]);
  };
  const panel = (key) => {
    const aside = byId("selected");
    const opened = !aside.hidden;
    aside.hidden = key === null;
    if (document.body.classList.toggle("with-selected", key !== null) !== opened) dispatchEvent(new Event("resize"));
    if (key === null) return;
    const row = designs.rows[at.get(key)];
    byId("selected-title").textContent = row[column("label")];
    const facts = byId("selected-facts");
    facts.replaceChildren();
    const tell = (title, text) => {
      const line = make("div");
      line.append(make("dt", title), make("dd", text));
      facts.append(line);
    };
    designs.columns.forEach((c, i) => { if (row[i] !== "" && c.name !== "label") tell(c.title, row[i]); });
    tell("Candidate", key);
    const place = byId("selected-drawing");
    place.replaceChildren();
    const number = designs.drawings[at.get(key)];
    if (number < 0) place.append(make("p", "No drawing of it on this page.", "quiet"));
    else drawing(number).then((svg) => {
      // Our own drawing, in which text from files is escaped; parsed as an image would be, where no script runs.
      if (selected === key) place.replaceChildren(document.importNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement, true));
    });
  };
  byId("selected-close").addEventListener("click", () => select(null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && selected !== null && !event.target.closest?.("input")) select(null);
    const row = event.target.closest?.("[data-key]");
    if (row && (event.key === "Enter" || event.key === " ") && event.target === row) { event.preventDefault(); select(row.dataset.key); }
  });
  document.addEventListener("click", (event) => {
    const row = event.target.closest("[data-key]");
    if (row && !event.target.closest("a, button, input, select, summary") && !getSelection().toString()) select(row.dataset.key);
  });

  // ---- sample images -------------------------------------------------------------------------------------------
  const shots = byId("gallery") ? read("gallery-data") : null;
  const kept = new Map(Object.entries(shots?.detections ?? {}));
  const gallery = (key) => {
    if (!shots) return;
    byId("gallery-neck").value = kept.has(key) ? key : "";
    document.querySelectorAll("#gallery .image").forEach((figure) => {
      const found = figure.querySelector(".found");
      const width = figure.querySelector("svg").viewBox.baseVal.width;
      found.replaceChildren();
      for (const [x1, y1, x2, y2, label, score] of kept.get(key)?.[figure.dataset.image] ?? []) {
        const svg = (tag, attributes, text) => {
          const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
          for (const name in attributes) element.setAttribute(name, attributes[name]);
          if (text !== undefined) element.textContent = text;
          found.append(element);
        };
        const hue = "hsl(" + (label * 137) % 360 + " 85% 55%)";
        svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, stroke: hue });
        svg("text", { x: x1 + width * 0.006, y: Math.max(y1 + width * 0.035, width * 0.035), fill: hue, "font-size": width * 0.036 }, shots.classes[label] + " " + score.toFixed(2));
      }
    });
  };
  if (shots) {
    const none = make("option", "no detections of this neck are kept");
    none.value = "";
    none.hidden = true;
    byId("gallery-neck").append(none);
    for (const key of Object.keys(shots.labels)) {
      const option = make("option", shots.labels[key]);
      option.value = key;
      byId("gallery-neck").append(option);
    }
    byId("gallery-neck").addEventListener("change", (event) => select(event.target.value));
    gallery(shots.chosen);
  }

  // ---- the table of designs ------------------------------------------------------------------------------------
  const PAGE = 100;
  const table = byId("design-table");
  if (table) {
    byId("design-tools").hidden = false;
    const listed = designs.columns.flatMap((c, i) => (c.listed ? [i] : []));
    const status = column("status");
    listed.push(status);
    const statuses = [...new Set(designs.rows.map((row) => row[status]))];
    const lower = designs.rows.map((row, i) => [designs.keys[i], ...row].join("\n").toLowerCase());
    const state = { sort: null, up: false, page: 0, statuses: new Set(statuses), words: "" };
    const head = make("tr");
    for (const i of listed) {
      const th = make("th", undefined, designs.columns[i].numeric ? "n" : "");
      const button = make("button", designs.columns[i].title);
      button.type = "button";
      button.addEventListener("click", () => {
        state.up = state.sort === i ? !state.up : !designs.columns[i].numeric;
        state.sort = i;
        state.page = 0;
        head.childNodes.forEach((other) => other.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", state.up ? "ascending" : "descending");
        list();
      });
      th.append(button);
      head.append(th);
    }
    table.tHead.append(head);
    const list = () => {
      let rows = designs.rows.map((_, i) => i).filter((i) => state.statuses.has(designs.rows[i][status]) && lower[i].includes(state.words));
      if (state.sort !== null) {
        const numeric = designs.columns[state.sort].numeric;
        const value = (i) => numeric ? parseFloat(designs.rows[i][state.sort]) : designs.rows[i][state.sort];
        const missing = (v) => v === "" || Number.isNaN(v);
        rows = rows.map((i) => [value(i), i]).sort(([a], [b]) => {
          if (missing(a) || missing(b)) return missing(a) - missing(b); // what is missing stays last either way
          const order = numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
          return state.up ? order : -order;
        }).map(([, i]) => i);
      }
      const pages = Math.max(1, Math.ceil(rows.length / PAGE));
      state.page = Math.min(state.page, pages - 1);
      const page = rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
      table.tBodies[0].replaceChildren(...page.map((i) => {
        const tr = make("tr", undefined, designs.rows[i][status] === "on the front" ? "front" : "");
        tr.dataset.key = designs.keys[i];
        tr.tabIndex = 0;
        tr.classList.toggle("selected", designs.keys[i] === selected);
        for (const c of listed) tr.append(make("td", designs.rows[i][c], designs.columns[c].numeric ? "n" : ""));
        const reason = designs.rows[i][column("reason")];
        if (reason) tr.lastChild.append(make("br"), make("small", reason));
        return tr;
      }));
      const first = state.page * PAGE;
      byId("design-count").textContent = rows.length ? (first + 1) + " to " + (first + page.length) + " of " + rows.length : "none";
      byId("design-back").disabled = state.page === 0;
      byId("design-next").disabled = state.page >= pages - 1;
    };
    if (statuses.length > 1) for (const name of statuses) {
      const label = make("label");
      const box = make("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => { state.statuses[box.checked ? "add" : "delete"](name); state.page = 0; list(); });
      label.append(box, " " + name);
      byId("design-filter").append(label);
    }
    byId("design-search").addEventListener("input", (event) => { state.words = event.target.value.toLowerCase(); state.page = 0; list(); });
    byId("design-back").addEventListener("click", () => { state.page -= 1; list(); });
    byId("design-next").addEventListener("click", () => { state.page += 1; list(); });
    list();
  }

  Promise.all(figures.map(draw)).then(() => {
    const named = () => {
      try {
        const wanted = decodeURIComponent(location.hash.match(/^#design=(.+)$/)?.[1] ?? "");
        return at.has(wanted) ? wanted : null;
      } catch {
        return null; // no such encoding
      }
    };
    if (named() !== null) select(named());
    addEventListener("hashchange", () => { if (location.hash.startsWith("#design=")) select(named()); });
    document.body.dataset.ready = "true";
  });
})();
