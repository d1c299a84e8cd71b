"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // "ink" stands for the page's text colour, wherever a figure uses it.
  const inked = (value, ink) => {
    if (value === "ink") return ink;
    if (Array.isArray(value)) return value.map((item) => inked(item, ink));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, inked(item, ink)]));
  };

  // A phone has room for half the ticks.
  const thinned = (axis) => {
    if (!narrow.matches || !axis.tickvals || axis.tickvals.length < 7) return axis;
    const every = (list) => list.filter((_, place) => place % 2 === 0);
    return { ...axis, tickvals: every(axis.tickvals), ticktext: every(axis.ticktext) };
  };

  const layout = (given, canvas) => {
    const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line"), automargin: true };
    const title = (text) => ({ standoff: 10, font: { size: 12.5 }, ...text });
    const many = canvas.classList.contains("tall");
    return {
      ...given,
      xaxis: { ...axis, ...thinned(given.xaxis), title: title(given.xaxis.title) },
      yaxis: { ...axis, ...given.yaxis, title: title(given.yaxis.title) },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--quiet") },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 8, r: 10, t: 12, b: 8 },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" },
      hovermode: "closest", dragmode: narrow.matches ? false : "zoom",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: many ? 12.5 : 11.5 } },
    };
  };

  const draw = (canvas) => {
    const figure = inked(figures[canvas.dataset.plot], colour("--ink"));
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    Plotly.react(canvas, figure.data, layout(figure.layout, canvas), options);
    canvas.dataset.drawn = "yes";
  };
  const visible = () => [...document.querySelectorAll(".canvas")].filter((canvas) => canvas.offsetParent !== null);
  const drawVisible = () => visible().filter((canvas) => !canvas.dataset.drawn).forEach(draw);
  const redraw = () => {
    document.querySelectorAll(".canvas").forEach((canvas) => delete canvas.dataset.drawn);
    drawVisible();
  };

  document.querySelectorAll(".tabs button").forEach((button) => button.addEventListener("click", () => {
    document.querySelectorAll(".tabs button").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
    document.querySelectorAll(".unit").forEach((unit) => { unit.hidden = unit.dataset.unit !== button.dataset.unit; });
    drawVisible();
  }));
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  drawVisible();
})();
