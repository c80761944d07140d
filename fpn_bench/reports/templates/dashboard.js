"use strict";
// What stands for a design has its key in data-key: a click or Enter selects it, Escape selects none.
(() => {
  const choose = (key) => window.dash_clientside.set_props("chosen", { data: key });
  const keyed = (event) => (event.target.closest ? event.target.closest("[data-key]") : null);
  document.addEventListener("click", (event) => {
    const element = keyed(event);
    if (element && !getSelection().toString()) choose(element.dataset.key);
  });
  document.addEventListener("keydown", (event) => {
    const element = keyed(event);
    if (event.key === "Escape") choose(null);
    if (event.key === "Enter" && element && element === event.target) choose(element.dataset.key);
  });
})();
