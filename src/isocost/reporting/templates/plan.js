"use strict";
// The answer for a budget, from the planner's data: what `isocost plan` does, once statistics have been made.
const Plan = (() => {
  const WITHIN = 1 + 1e-9;

  // To three significant digits, thousands grouped, without trailing zeros: as analysis/words.py writes numbers.
  const number = (value, digits = 3) => {
    if (value === 0) return "0";
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
    const [whole, fraction = ""] = value.toFixed(decimals).split(".");
    const kept = fraction.replace(/0+$/, "");
    return whole.replace(/\B(?=(\d{3})+$)/g, ",") + (kept ? `.${kept}` : "");
  };

  // A budget of three digits that still pays for `cost`: what is shown is then what was asked.
  const rounded = (cost) => {
    const place = 10 ** (Math.floor(Math.log10(cost)) - 2);
    const digits = Math.ceil(cost / place / WITHIN);
    return Number((digits * place).toPrecision(3));
  };

  const costName = (cost, unit) => {
    const text = number(cost);
    return `${text} ${text === "1" ? unit.words.replace("units", "unit").replace("seconds", "second") : unit.words}`;
  };

  const listed = (names, most = 3) => {
    const shown = names.length > most ? [...names.slice(0, most), `${names.length - most} more`] : names;
    return shown.length < 2 ? shown.join("") : `${shown.slice(0, -1).join(", ")} and ${shown[shown.length - 1]}`;
  };

  const bits = (text) => {
    const bytes = atob(text);
    return (place) => (bytes.charCodeAt(place >> 3) >> (place & 7)) & 1;
  };

  // Places in a view's rows that pass the filters and have a cost, cheapest first.
  const offers = (data, view, unit, filters) => {
    const costs = data.rows[unit];
    const passes = (row) => Object.entries(filters).every(([column, kept]) => kept.includes(data.rows[column][row]));
    return view.rows.map((row, place) => ({ row, place, cost: costs[row], loss: view.sign * view.seen[place] }))
      .filter(({ row, cost }) => cost !== null && passes(row))
      .sort((a, b) => a.cost - b.cost);
  };

  const within = (found, budget) => found.filter(({ cost }) => cost <= budget * WITHIN);

  // The best on the selection half; the cheapest of equals. Undefined where nothing is affordable.
  const best = (found) => found.reduce((kept, offer) => (kept && kept.loss <= offer.loss ? kept : offer), undefined);

  // Those of `found` that are not significantly worse than a winner.
  const tiesOf = (view, winner, found) => {
    const tied = view.ties[winner.place] ? bits(view.ties[winner.place]) : () => 0;
    return found.filter(({ place }) => place !== winner.place && tied(place));
  };

  // The offers that beat every cheaper one.
  const frontier = (found) => {
    let least = Infinity;
    return [...found].sort((a, b) => a.cost - b.cost || a.loss - b.loss)
      .filter(({ loss }) => loss < least && ((least = loss), true));
  };

  const sentence = (data, view, unit, budget, winner, ties) => {
    const said = `For at most ${costName(budget, unit)} per image`;
    const limit = unit.unit === "seconds" ? `${said} (${data.rows.seconds_as[0]})` : said;
    const names = listed(ties.map(({ row }) => data.rows.short[row]));
    const tie = ties.length ? `; ${names} ${ties.length === 1 ? "ties" : "tie"}` : "";
    return `${limit} use ${data.rows.label[winner.row]}: ${view.quality[winner.place]}${tie}.`;
  };

  // All that the page shows of a state {unit, metric, budget, filters}.
  const answer = (data, state) => {
    const view = data.views.find(({ metric }) => metric === state.metric) || data.views[0];
    const unit = data.units.find((one) => one.unit === state.unit) || data.units[0];
    const all = offers(data, view, unit.unit, state.filters);
    const found = within(all, state.budget);
    const winner = best(found);
    const ties = winner ? tiesOf(view, winner, found) : [];
    return {
      view, unit, all, winner, ties, front: frontier(all), cheapest: all[0],
      sentence: winner ? sentence(data, view, unit, state.budget, winner, ties) : "",
    };
  };

  return { answer, costName, frontier, listed, number, rounded, tiesOf, within };
})();
if (typeof module !== "undefined") module.exports = Plan;
