"use strict";
// What stands for a design has its key in data-key: a click or Enter selects it, Escape selects none.
// A button of the list of designs has in data-list what it asks for.
(() => {
  const set = (store, data) => window.dash_clientside.set_props("live-" + store, { data });
  const within = (event, what) => (event.target.closest ? event.target.closest(what) : null);
  document.addEventListener("click", (event) => {
    const asking = within(event, "[data-list]");
    if (asking) set("listed", JSON.parse(asking.dataset.list));
    const design = within(event, "[data-key]");
    if (design && !getSelection().toString()) set("chosen", design.dataset.key);
  });
  document.addEventListener("keydown", (event) => {
    const design = within(event, "[data-key]");
    if (event.key === "Escape") set("chosen", null);
    if (event.key === "Enter" && design && design === event.target) set("chosen", design.dataset.key);
  });
})();
