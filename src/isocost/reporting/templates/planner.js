"use strict";
// The page: reads what is asked for, lets plan.js answer, and shows it. Text is only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const POINTS = 1500; // more would be slow to draw, and hide one another
  const at = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const styleOf = (checkpoint) => data.styles[checkpoint] || { colour: "#7F7F7F", symbol: "circle" };

  const make = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const fill = (id, ...children) => at(id).replaceChildren(...children.filter((child) => child !== null));
  // Plotly reads a little HTML in its texts.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // --- what is asked for: kept in the address, so that it can be sent to somebody ---

  const state = { metric: data.views[0].metric, unit: data.start.unit, budget: data.start.budget, filters: { ...data.start.filters } };
  let found = null; // the answer to that

  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    const known = (list, value, key) => list.some((one) => one[key] === value);
    if (known(data.units, asked.get("unit"), "unit")) state.unit = asked.get("unit");
    if (known(data.views, asked.get("metric"), "metric")) state.metric = asked.get("metric");
    for (const { column, values } of data.filters) {
      const kept = asked.getAll(column).filter((value) => values.includes(value));
      if (kept.length) state.filters[column] = kept;
    }
    const budget = Number(asked.get("budget"));
    if (budget > 0 && Number.isFinite(budget)) state.budget = budget;
  };

  const keep = () => {
    const asked = new URLSearchParams({ unit: state.unit, budget: String(state.budget) });
    if (data.views.length > 1) asked.set("metric", state.metric);
    for (const [column, values] of Object.entries(state.filters)) values.forEach((value) => asked.append(column, value));
    try { history.replaceState(null, "", `#${asked}`); } catch { /* a page that may not: then it is not kept */ }
  };

  // --- the slider: logarithmic, from the cheapest offer to the dearest ---

  const range = () => {
    const costs = found.all.map(({ cost }) => cost).filter((cost) => cost > 0);
    return costs.length ? [Plan.rounded(Math.min(...costs)), Plan.rounded(Math.max(...costs))] : [1, 1];
  };
  const place = (cost, [low, high]) => (high > low ? Math.log(cost / low) / Math.log(high / low) : 0);
  const costAt = (share, [low, high]) => Plan.rounded(low * (high / low) ** share);

  const showSlider = () => {
    const ends = range();
    const slider = at("slider");
    slider.value = String(Math.round(1000 * Math.min(1, Math.max(0, place(state.budget, ends)))));
    slider.setAttribute("aria-valuetext", Plan.costName(state.budget, found.unit));
    if (document.activeElement !== at("budget")) at("budget").value = Plan.number(state.budget).replace(/,/g, "");
    at("budget").setAttribute("aria-invalid", "false");
    at("words").textContent = found.unit.words;
    at("least").textContent = Plan.number(ends[0]);
    at("most").textContent = Plan.number(ends[1]);
    fill("ticks", ...found.front.map(({ cost }) => {
      const tick = make("i");
      tick.style.left = `${100 * place(cost, ends)}%`;
      return tick;
    }));
    at("cheaper").disabled = !neighbour(-1);
    at("better").disabled = !neighbour(1);
  };

  // The frontier's offer before (-1) or after (1) what is chosen.
  const neighbour = (step) => {
    const here = found.front.filter(({ cost }) => cost <= state.budget * (1 + 1e-9)).length - 1;
    return found.front[here + step];
  };

  const choose = (changes) => {
    Object.assign(state, changes);
    update();
  };

  // --- showing ---

  const fact = (value, label) => make("div", {}, make("dt", {}, label), make("dd", {}, value));

  const showAnswer = () => {
    const { winner, ties, view } = found;
    if (!winner) {
      const cheapest = found.cheapest;
      fill("answer", cheapest
        ? `Nothing that passes these filters costs so little. The cheapest is ${data.rows.label[cheapest.row]}, at ${Plan.costName(cheapest.cost, found.unit)} per image.`
        : "Nothing passes these filters: choose at least one of each.");
      fill("facts");
      fill("thrift");
      return;
    }
    const label = data.rows.label[winner.row];
    const cut = found.sentence.indexOf(` use ${label}`) + 5;
    fill("answer", make("span", { class: "quiet" }, found.sentence.slice(0, cut)), make("b", {}, label), found.sentence.slice(cut + label.length));
    const costs = data.units.map(({ unit, name }) => [data.rows[unit][winner.row], name]).filter(([cost]) => cost !== null);
    fill("facts", fact(view.words[winner.place], view.name),
      ...costs.map(([cost, name]) => fact(Plan.number(cost), name)));
    const cheaper = ties.filter(({ cost }) => cost < winner.cost);
    fill("thrift", cheaper.length
      ? `The cheapest that ties with it is ${data.rows.label[cheaper[0].row]}, at ${Math.round((100 * cheaper[0].cost) / winner.cost)}% of its cost.`
      : "Nothing cheaper ties with it.");
  };

  const showFrontier = () => {
    at("cost-heading").textContent = found.unit.words;
    at("value-heading").textContent = found.view.name;
    at("axis-note").textContent = found.unit.note;
    const here = found.winner ? neighbour(0) : null;
    fill("rows", ...found.front.map((offer) => {
      const pick = make("button", { type: "button", "aria-label": `Spend ${Plan.costName(offer.cost, found.unit)}` }, Plan.number(offer.cost));
      pick.addEventListener("click", () => choose({ budget: Plan.rounded(offer.cost) }));
      const ties = Plan.tiesOf(found.view, offer, Plan.within(found.all, offer.cost)).map(({ row }) => data.rows.short[row]);
      const row = make("tr", { "aria-current": String(offer === here) }, make("td", { class: "num" }, pick), make("td", {}, make("b", {}, data.rows.checkpoint[offer.row]),
        data.rows.label[offer.row].slice(data.rows.checkpoint[offer.row].length)), make("td", { class: "num" }, found.view.words[offer.place]),
        make("td", { class: "quiet" }, Plan.listed(ties, 2) || "none"));
      if (!found.view.valid[offer.place]) { row.className = "grey"; row.title = "too few images to be trusted"; }
      return row;
    }));
    document.querySelectorAll(".files [data-unit]").forEach((link) => { link.hidden = link.dataset.unit !== found.unit.unit; });
  };

  const showPictures = () => {
    const { winner } = found;
    const shown = winner ? [["one step cheaper", neighbour(-1)], ["your budget", winner], ["one step dearer", neighbour(1)]].filter(([, offer]) => offer) : [];
    const drawn = shown.filter(([, { row }]) => data.pictures[row]);
    at("strip").hidden = !drawn.length;
    at("pictures-note").textContent = drawn.length
      ? "The same captions from the same noise, at your budget and one step of the frontier to either side."
      : data.captions.length ? "No pictures are kept of these cells." : `No pictures are kept of this study's frontier: isocost plan ${data.store} --page planner.html draws them, where its checkpoints are.`;
    const rows = shown.map(([role, offer]) => {
      const sources = data.pictures[offer.row];
      const label = make("th", { scope: "row" }, make("em", {}, role), data.rows.short[offer.row], make("small", {}, `${Plan.costName(offer.cost, found.unit)} · ${found.view.words[offer.place]}`));
      const images = sources
        ? sources.map((source, k) => make("td", {}, make("img", { src: source, alt: `${data.rows.short[offer.row]}: ${data.captions[k]}`, title: data.captions[k] })))
        : [make("td", { class: "none", colspan: String(Math.max(1, data.captions.length)) }, "not drawn")];
      return make("tr", { class: role === "your budget" ? "chosen" : "" }, label, ...images);
    });
    const heads = data.captions.map((caption) => make("th", { scope: "col" }, caption));
    fill("strip", make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...rows));
  };

  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replace(/'/g, `'"'"'`)}'`);

  const planCommand = () => {
    const flags = [`--budget ${state.budget}`, `--unit ${found.unit.unit}`];
    if (found.view.metric !== data.default_metric) flags.push(`--metric ${quoted(found.view.metric)}`);
    const kept = data.filters.filter(({ column, values }) => (state.filters[column] || values).length < values.length);
    const single = kept.filter(({ column }) => state.filters[column].length === 1);
    single.forEach(({ column }) => flags.push(`--${column.replace("_", "-")} ${quoted(state.filters[column][0])}`));
    if (single.length === kept.length) return `isocost plan ${quoted(data.store)} ${flags.join(" ")}`;
    const filters = Object.fromEntries(kept.map(({ column }) => [column, state.filters[column].map(column === "best_of" ? Number : String)]));
    return `python -c 'import isocost; print(isocost.plan(${JSON.stringify(data.store)}, ${state.budget}, ${JSON.stringify(found.unit.unit)}, ${JSON.stringify(found.view.metric)}, ${JSON.stringify(filters)}).sentence)'`;
  };

  const showSnippets = () => {
    const snippet = found.winner && data.snippets[found.winner.row];
    at("use").hidden = !snippet;
    if (!snippet) return;
    at("isocost").textContent = `${planCommand()}\n${snippet.isocost}`;
    at("diffusers").textContent = snippet.diffusers;
    at("diffusers-box").hidden = !snippet.diffusers;
    at("diffusers-note").textContent = snippet.diffusers
      ? "The same network, sampler, steps and guidance; the noise is diffusers' own, so that images differ from the study's as another seed's would."
      : `No diffusers code for this one: ${snippet.reason}`;
  };

  // --- plots ---

  const axis = () => ({ gridcolor: colour("--line"), linecolor: colour("--line"), tickcolor: colour("--line"), automargin: true, zeroline: false });
  const title = (text) => ({ text, standoff: 10, font: { size: 12.5 } });
  const layout = (given) => ({
    font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--quiet") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 12, b: 8 }, dragmode: false, hovermode: "closest",
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" }, ...given,
  });
  const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };

  const hover = (offers, view) => offers.map(({ row, place }) => `<b>${plain(data.rows.label[row])}</b><br>${plain(view.quality[place])}`);
  const points = (offers, view) => ({ x: offers.map(({ cost }) => cost), y: offers.map(({ place }) => view.value[place]), hovertext: hover(offers, view), hoverinfo: "text", customdata: offers.map(({ cost }) => cost) });

  // Every k-th point where there are too many; never one of `kept`.
  const thinned = (offers, kept) => {
    const every = Math.ceil(offers.length / POINTS);
    return offers.filter((offer, k) => k % every === 0 || kept.has(offer.place));
  };

  const drawChart = () => {
    const { view, unit, winner, ties, front } = found;
    const ink = colour("--ink");
    const accent = colour("--accent");
    const shown = thinned(found.all, new Set([...front, ...ties].map(({ place }) => place)));
    at("drawn").textContent = shown.length < found.all.length ? `${Plan.number(shown.length, 6)} of ${Plan.number(found.all.length, 6)} points are drawn; the CSV holds all.` : "Choose a point of the staircase to spend as much.";
    const checkpoints = [...new Set(shown.map(({ row }) => data.rows.checkpoint[row]))];
    const traces = checkpoints.map((checkpoint) => {
      const own = shown.filter(({ row }) => data.rows.checkpoint[row] === checkpoint);
      const { colour: fillColour, symbol } = styleOf(checkpoint);
      return { ...points(own, view), type: "scatter", mode: "markers", name: plain(checkpoint), marker: { symbol, size: 8, opacity: dark.matches ? 0.95 : 0.62, color: own.map(({ place }) => (view.valid[place] ? fillColour : "#9aa0a6")) } };
    });
    traces.push({ ...points(front, view), type: "scatter", mode: "lines+markers", name: "frontier", line: { color: ink, width: 1.6, shape: "hv" }, marker: { symbol: "circle-open", size: 11, color: ink, line: { width: 1.6, color: ink } } });
    if (ties.length) traces.push({ ...points(ties, view), type: "scatter", mode: "markers", name: "ties", marker: { symbol: "square-open", size: 13, color: accent, line: { width: 1.6, color: accent } } });
    if (winner) {
      const half = view.half_width[winner.place];
      traces.push({ ...points([winner], view), type: "scatter", mode: "markers", name: "the answer", marker: { symbol: "star", size: 19, color: accent, line: { width: 1.5, color: colour("--card") } },
        error_y: half === null ? undefined : { type: "data", array: [half], color: accent, thickness: 2, width: 6 } });
    }
    const values = shown.map(({ place }) => view.value[place]);
    const wide = Math.min(...values) > 0 && Math.max(...values) > 8 * Math.min(...values);
    const edge = { type: "line", x0: state.budget, x1: state.budget, y0: 0, y1: 1, yref: "paper", line: { color: accent, width: 1.4, dash: "dash" } };
    Plotly.react(at("chart"), traces, layout({
      xaxis: { ...axis(), type: "log", dtick: narrow.matches ? 1 : "D2", title: title(unit.axis) }, yaxis: { ...axis(), type: wide ? "log" : "linear", dtick: wide ? "D1" : undefined, title: title(view.name) },
      shapes: [edge], legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, uirevision: `${unit.unit} ${view.metric}`,
    }), OPTIONS);
    if (!at("chart").dataset.ready) {
      at("chart").dataset.ready = "yes";
      at("chart").on("plotly_click", ({ points: [point] }) => choose({ budget: Plan.rounded(point.customdata) }));
    }
  };

  const drawMap = () => {
    if (!data.maps.length) return;
    const map = data.maps[Number(at("map-sampler").value)];
    const winner = found.winner && found.winner.row;
    const x = winner === null || winner === undefined ? -1 : map.steps.indexOf(String(data.rows.steps[winner]));
    const y = winner === null || winner === undefined || data.rows.sampler[winner] !== map.sampler ? -1 : map.checkpoints.indexOf(data.rows.checkpoint[winner]);
    const frame = x < 0 || y < 0 ? [] : [{ type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line: { color: "#D55E00", width: 3 } }];
    const trace = { type: "heatmap", x: map.steps, y: map.checkpoints.map(plain), z: map.guidance, text: map.words, texttemplate: "%{text}", xgap: 3, ygap: 3, showscale: false,
      colorscale: [[0, "#e3eef6"], [1, "#0072B2"]], hovertemplate: "%{y}, %{x} steps: guidance %{text}<extra></extra>" };
    at("map").style.height = `${Math.min(900, 90 + 44 * map.checkpoints.length)}px`;
    Plotly.react(at("map"), [trace], layout({ xaxis: { ...axis(), type: "category", showgrid: false, title: title("steps") }, yaxis: { ...axis(), type: "category", showgrid: false }, shapes: frame }), OPTIONS);
  };

  let drawing = 0;
  const draw = () => {
    if (!window.Plotly || drawing) return;
    drawing = requestAnimationFrame(() => { drawing = 0; drawChart(); drawMap(); });
  };

  const update = () => {
    found = Plan.answer(data, state);
    showSlider();
    showAnswer();
    showFrontier();
    showPictures();
    showSnippets();
    draw();
    keep();
  };

  // --- listening ---

  const SHAPES = {
    circle: "M-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0", square: "M-5-5h10v10h-10z", diamond: "M0-7L7 0L0 7L-7 0z", "triangle-up": "M0-6L7 6H-7z",
    "triangle-down": "M0 6L7-6H-7z", cross: "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z", x: "M-6-4L-4-6L0-2L4-6L6-4L2 0L6 4L4 6L0 2L-4 6L-6 4L-2 0z", star: "M0-7L2-2H7L3 1L4.500 6L0 3L-4.500 6L-3 1L-7-2H-2z",
  };
  document.querySelectorAll(".mark").forEach((mark) => {
    const { colour: fillColour, symbol } = styleOf(data.of_member[mark.dataset.member]);
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", SHAPES[symbol.replace("-open", "")]);
    path.setAttribute("fill", fillColour);
    mark.append(path);
  });

  const showControls = () => {
    document.querySelectorAll("input[name=unit]").forEach((input) => { input.checked = input.value === state.unit; });
    if (at("metric")) at("metric").value = state.metric;
    document.querySelectorAll("[data-filter]").forEach((box) => {
      const kept = state.filters[box.dataset.filter];
      box.querySelectorAll("input").forEach((input) => { input.checked = !kept || kept.includes(input.value); });
    });
  };

  // In another unit the budget that the same answer costs.
  document.querySelectorAll("input[name=unit]").forEach((input) => input.addEventListener("change", () => {
    const costs = data.rows[input.value];
    const same = found.winner && costs[found.winner.row];
    choose({ unit: input.value, budget: same ? Plan.rounded(same) : Plan.rounded(Math.max(...costs)) });
  }));
  at("slider").addEventListener("input", () => choose({ budget: costAt(Number(at("slider").value) / 1000, range()) }));
  at("budget").addEventListener("input", () => {
    const asked = Number(at("budget").value.replace(/,/g, ""));
    const fine = asked > 0 && Number.isFinite(asked);
    if (fine) choose({ budget: asked });
    at("budget").setAttribute("aria-invalid", String(!fine));
  });
  at("budget").addEventListener("blur", showSlider);
  for (const [id, step] of [["cheaper", -1], ["better", 1]]) at(id).addEventListener("click", () => choose({ budget: Plan.rounded(neighbour(step).cost) }));
  if (at("metric")) at("metric").addEventListener("change", () => choose({ metric: at("metric").value }));
  document.querySelectorAll("[data-filter]").forEach((box) => box.addEventListener("change", () => {
    const kept = [...box.querySelectorAll("input:checked")].map((input) => input.value);
    choose({ filters: { ...state.filters, [box.dataset.filter]: kept } });
  }));
  if (at("map-sampler")) at("map-sampler").addEventListener("change", draw);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => { read(); showControls(); update(); });
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);

  document.querySelectorAll("[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    const text = at(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch { // no permission: leave it selected, to be copied by hand
      getSelection().selectAllChildren(text);
      at("copied").textContent = "Selected: copy it with the keyboard.";
      return;
    }
    at("copied").textContent = "Copied.";
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, calm.matches ? 4000 : 1500);
  }));

  read();
  showControls();
  update();
  document.addEventListener("DOMContentLoaded", draw);
})();
