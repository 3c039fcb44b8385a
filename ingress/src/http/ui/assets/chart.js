// Plots as SVG: stacked bars and lines over time. Colours are the style sheet's, by class.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 800, HEIGHT = 220;

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A round number that is not below, and whose half is whole. */
function ceiling(value) {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [2, 4, 6, 8, 10].map((step) => step * unit).find((round) => round >= value);
}

function scale(plot, marks) {
  plot.parentElement.querySelectorAll(".scale").forEach((mark) => mark.remove());
  for (const { y, text } of marks) {
    plot.append(shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    const mark = document.createElement("span");
    mark.className = "scale";
    mark.textContent = text;
    mark.style.top = `${(y / HEIGHT) * 100}%`;
    plot.parentElement.append(mark);
  }
}

/** Bars of parts on top of each other: `bars` are lists of numbers, drawn from the right; `classes` names the parts. */
export function stacked(plot, bars, classes, room) {
  const sums = bars.map((parts) => parts.reduce((sum, part) => sum + part, 0));
  const top = ceiling(Math.max(...sums, 1));
  plot.replaceChildren();
  scale(plot, [{ y: 0, text: top.toLocaleString("en") }, { y: HEIGHT / 2, text: (top / 2).toLocaleString("en") }, { y: HEIGHT, text: "" }]);
  const step = WIDTH / room;
  bars.forEach((parts, at) => {
    const x = WIDTH - (bars.length - at) * step;
    let y = HEIGHT;
    parts.forEach((part, place) => {
      if (part === 0) return;
      const height = (part / top) * HEIGHT;
      y -= height;
      plot.append(shape("rect", { class: classes[place], x: x + step * 0.1, y, width: step * 0.8, height }));
    });
  });
}

/** Lines on a logarithmic scale: `lines` has points by class, null where there is none, drawn from the right. */
export function logarithmic(plot, lines, room, named) {
  const values = Object.values(lines).flat().filter((value) => value > 0);
  plot.replaceChildren();
  if (values.length === 0) return;
  const low = Math.floor(Math.log10(Math.min(...values)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...values))), low + 1);
  const y = (value) => HEIGHT - ((Math.log10(value) - low) / (high - low)) * HEIGHT;
  const powers = Array.from({ length: high - low + 1 }, (_, step) => 10 ** (low + step));
  scale(plot, powers.map((power) => ({ y: y(power), text: power === 10 ** low ? "" : named(power) })));
  for (const [name, points] of Object.entries(lines)) {
    let path = "", drawing = false;
    points.forEach((value, at) => {
      const x = WIDTH - ((points.length - 1 - at) / (room - 1)) * WIDTH;
      // A point alone is a line without length, whose ends are round.
      if (value > 0) path += drawing ? `L${x.toFixed(1)} ${y(value).toFixed(1)}` : `M${x.toFixed(1)} ${y(value).toFixed(1)}h0`;
      drawing = value > 0;
    });
    plot.append(shape("path", { class: `line ${name}`, d: path }));
  }
}
