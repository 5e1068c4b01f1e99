"use strict";
// Draws the page's figures: their data lie beside them as JSON, their colours are names of CSS variables.
(() => {
  const figures = new Map();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let style = getComputedStyle(document.documentElement);

  // Colours by name ("--ink") become what the theme says; long arrays hold no colours.
  const colored = (value) => {
    if (typeof value === "string") {
      return value.includes("--") ? value.replace(/--[a-z][a-z0-9]*/g, (name) => style.getPropertyValue(name).trim() || name) : value;
    }
    if (Array.isArray(value)) return value.length > 4000 ? value : value.map(colored);
    if (value && typeof value === "object" && !("bdata" in value)) {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, colored(inner)]));
    }
    return value;
  };

  const draw = (id) => {
    const found = figures.get(id);
    const place = document.getElementById(id);
    const layout = colored(found.figure.layout);
    if (found.drawn && place.layout) {
      for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
        if (place.layout[axis] && place.layout[axis].range) layout[axis].range = place.layout[axis].range.slice();
      }
    }
    found.drawn = true;
    if (document.documentElement.classList.contains("paper")) layout.width = 690;
    const narrow = place.clientWidth < 560;
    if (narrow && layout.legend) layout.legend.font = { size: 10 };
    return Plotly.react(place, colored(found.figure.data), layout, {
      responsive: true, displaylogo: false, scrollZoom: false, displayModeBar: narrow ? false : "hover",
      modeBarButtons: [layout.dragmode ? ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"] : ["toImage"]],
      doubleClick: "reset",
    });
  };
  const drawAll = () => {
    style = getComputedStyle(document.documentElement);
    for (const [id, found] of figures) if (found.drawn) draw(id);
  };

  for (const script of document.querySelectorAll("script[data-plot]")) {
    figures.set(script.dataset.plot, { figure: JSON.parse(script.textContent), drawn: false });
  }
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !figures.get(entry.target.id).drawn) draw(entry.target.id);
    }
  }, { rootMargin: "300px" });
  for (const id of figures.keys()) watcher.observe(document.getElementById(id));

  for (const bar of document.querySelectorAll(".windows")) {
    const buttons = [...bar.querySelectorAll("button")];
    const choose = (button) => buttons.forEach((other) => other.classList.toggle("on", other === button));
    choose(buttons[0]);
    bar.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      choose(button);
      Plotly.relayout(bar.dataset.for, { "xaxis.range": [Number(button.dataset.begin), Number(button.dataset.end)] });
    });
  }
  dark.addEventListener("change", drawAll);
  // On paper: everything drawn, everything open, in the colours of paper.
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    document.documentElement.classList.add("paper");
    style = getComputedStyle(document.documentElement);
    for (const id of figures.keys()) draw(id);
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    drawAll();
  });
  document.documentElement.dataset.ready = "yes";
})();
