// Keeps the overview up to date: asks once a second, for what is new, and not while nobody sees it.

import { $, count, get, span } from "./app.js";
import { logarithmic, stacked } from "./chart.js";

const CLASSES = ["exact", "semantic", "joined", "miss", "bypass", "failed"];
/** Seconds of one bar, and seconds that charts have room for at least. */
const BAR_S = 5, ROOM_S = 120;
const STATES = {
  normal: "All as it should be",
  degraded: "Much to do: new conversations get the small tier",
  shedding: "Too much to do: new conversations are refused",
};

let seconds = [];
/** Whether an answer is waited for: two would tell the same seconds. */
let asks = false;

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

const share = (part, of) => (of === 0 ? "–" : `${((100 * part) / of).toFixed(1)} %`);
const money = (micros) => (micros / 1e6).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: Math.abs(micros) < 1e6 ? 4 : 2 });

function fill(figures, abouts = {}) {
  for (const [name, text] of Object.entries(figures)) document.querySelector(`[data-figure="${name}"]`).textContent = text;
  for (const [name, text] of Object.entries(abouts)) document.querySelector(`[data-about="${name}"]`).textContent = text;
}

function figures({ hits, rest, since_start: all, inside, load }) {
  const late = seconds.slice(-10);
  const turns = late.reduce((sum, second) => sum + second.parts.reduce((a, b) => a + b, 0), 0);
  const costs = all.saved_micros !== 0 || all.cost_micros > 0;
  const saved = all.saved_micros - all.background_micros;
  fill({
    rate: (turns / Math.max(late.length, 1)).toFixed(1),
    cached: share(all.hits, all.turns),
    saved: costs ? money(saved) : all.saved_tokens.toLocaleString("en"),
    hits: span(hits.p50),
    rest: span(rest.p50),
    input: all.input_tokens.toLocaleString("en"),
    output: all.output_tokens.toLocaleString("en"),
    spared: all.saved_tokens.toLocaleString("en"),
    background: money(all.background_micros),
  }, {
    rate: `${count(all.turns, "turn")} so far`,
    cached: `${all.hits.toLocaleString("en")} of ${all.turns.toLocaleString("en")}`,
    saved: costs ? `of ${money(all.saved_micros + all.cost_micros)}` : "tokens",
    hits: hits.count === 0 ? "in the last minute: none" : `95 of 100 within ${span(hits.p95)}`,
    rest: rest.count === 0 ? "in the last minute: none" : `95 of 100 within ${span(rest.p95)}`,
  });
  // Of all tenants, and for operators only.
  if (inside) whole(inside);
  state(load, STATES[load]);
}

function whole(inside) {
  fill({
    inside: inside.in_flight.toLocaleString("en"),
    entries: inside.entries.toLocaleString("en"),
    bytes: size(inside.bytes),
    invalidated: inside.invalidated.toLocaleString("en"),
    refreshed: inside.refreshed.toLocaleString("en"),
    agreed: inside.agreed.toLocaleString("en"),
    disagreed: inside.disagreed.toLocaleString("en"),
    barred: inside.barred.toLocaleString("en"),
    bound: inside.judged === 0 ? "–" : share(inside.bound, 1),
  }, {
    inside: inside.waiting === 0 ? "none waits in a queue" : `${inside.waiting} wait in a queue`,
  });
}

function state(level, text) {
  $("state").dataset.level = level;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
}

function charts(seconds_max) {
  // Bars keep their seconds, so that they do not flicker.
  const bars = new Map();
  for (const { at_ms, parts } of seconds) {
    const bar = Math.floor(at_ms / 1e3 / BAR_S);
    const sum = bars.get(bar) ?? CLASSES.map(() => 0);
    bars.set(bar, sum.map((part, place) => part + parts[place]));
  }
  const sums = CLASSES.map((_, place) => seconds.reduce((sum, second) => sum + second.parts[place], 0));
  CLASSES.forEach((name, place) => (document.querySelector(`[data-sum="${name}"]`).textContent = sums[place].toLocaleString("en")));
  const has_turns = sums.some((sum) => sum > 0);
  document.querySelectorAll("[data-waits]").forEach((waiting) => (waiting.hidden = has_turns));
  // Charts begin with two minutes, and grow.
  const room = Math.min(Math.max(ROOM_S, Math.ceil(seconds.length / 60) * 60), seconds_max);
  document.querySelectorAll("[data-from]").forEach((from) => (from.textContent = `${room / 60} minutes ago`));
  if (!has_turns) return;
  const last = Math.max(...bars.keys());
  const first = Math.min(...bars.keys());
  const list = Array.from({ length: last - first + 1 }, (_, at) => bars.get(first + at) ?? CLASSES.map(() => 0));
  stacked($("levels"), list.slice(-room / BAR_S), CLASSES, room / BAR_S);
  $("levels").setAttribute("aria-label", `Where answers came from in the last ten minutes: ${CLASSES.map((name, place) => `${name} ${sums[place]}`).join(", ")}`);
  const line = (name) => seconds.map((second) => second.times[name]);
  logarithmic($("times"), { p50: line("p50"), p95: line("p95") }, room, span);
  const now = seconds.at(-1).times;
  document.querySelector('[data-sum="p50"]').textContent = span(now.p50);
  document.querySelector('[data-sum="p95"]').textContent = span(now.p95);
  $("times").setAttribute("aria-label", `Half of the answers take at most ${span(now.p50)}, 95 of 100 within ${span(now.p95)}`);
}

async function update() {
  if (document.hidden || asks) return;
  asks = true;
  try {
    const numbers = await (await get(`/ui/numbers?after=${seconds.at(-1)?.at_ms ?? 0}`)).json();
    const fresh = numbers.seconds.map((second) => ({ ...second, parts: [...second.answered, second.failed] }));
    seconds = [...seconds, ...fresh].slice(-numbers.seconds_max);
    figures(numbers);
    charts(numbers.seconds_max);
  } catch (error) {
    state("lost", `Not up to date: ${error.message}`);
  }
  asks = false;
}

update();
setInterval(update, 1000);
document.addEventListener("visibilitychange", update);
