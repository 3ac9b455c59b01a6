// Draws the charts of a report from the data in the page. Every text is set as text, never as markup.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const MARGIN = { left: 52, right: 12, top: 10, bottom: 34 };
const NUM_COLORS = 6;
const data = JSON.parse(document.getElementById("data").textContent);
const state = { axis: "generated_tokens", hidden: new Set(), smooth: 0 };

function element(parent, name, attributes = {}, text = null) {
  const isDrawn = parent instanceof SVGElement || name === "svg";
  const made = isDrawn ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.append(made);
  return made;
}

function short(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return `${+(value / unit).toPrecision(3)}${letter}`;
  }
  if (size && size < 1e-3) return value.toExponential(1).replace(".0e", "e");
  return String(+value.toPrecision(3));
}

function time(seconds) {
  if (seconds < 100) return `${+seconds.toPrecision(3)} s`;
  if (seconds < 5400) return `${+(seconds / 60).toPrecision(3)} min`;
  return `${+(seconds / 3600).toPrecision(3)} h`;
}

function shown(value, format) {
  if (format === "share") return value.toFixed(3);
  if (format === "gib") return `${value.toFixed(2)} GiB`;
  return short(value);
}

// Round numbers from `low` to `high`, about `count` of them.
function ticks(low, high, count, bases = [1, 2, 5, 10]) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * bases.find((base) => base * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function timeTicks(low, high, count) {
  const unit = high < 100 ? 1 : high < 5400 ? 60 : 3600;
  return ticks(low / unit, high / unit, count).map((tick) => tick * unit);
}

// Exponential mean over the points before; leaves gaps alone.
function smoothed(values) {
  const keep = state.smooth / 10;
  let last = null;
  return values.map((value) => (value === null ? null : (last = last === null ? value : keep * last + (1 - keep) * value)));
}

// One entry for each visible run and line of a chart: name, colour, dash, x, y (and raw y, low, high).
function seriesOf(chart) {
  const found = [];
  data.runs.forEach((run, number) => {
    if (state.hidden.has(number)) return;
    const rows = run[chart.kind];
    chart.lines.forEach((line, index) => {
      const raw = rows.y[line.metric];
      if (!raw) return;
      const isAlone = data.runs.length === 1;
      const isSmooth = state.smooth > 0 && chart.kind === "train";
      const ends = index === 0 && chart.band ? chart.band.map((metric) => rows.y[metric]) : [];
      found.push({
        name: [isAlone ? "" : run.name, line.label].filter(Boolean).join(" · ") || chart.title,
        color: `var(--series-${((isAlone ? index : number) % NUM_COLORS) + 1})`,
        dash: isAlone ? "" : DASHES[index % DASHES.length],
        x: rows.x[state.axis],
        y: isSmooth ? smoothed(raw) : raw,
        raw: isSmooth ? raw : null,
        low: ends[0], high: ends[1],
      });
    });
  });
  return found;
}

function extent(lists) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) for (const value of list ?? []) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return [low, high];
}

function yRange(series, format) {
  let [low, high] = extent(series.flatMap((one) => [one.y, one.raw, one.low, one.high]));
  if (!(low <= high)) return [0, 1];
  if (format === "gib" || format === "share") low = Math.max(0, Math.min(low, low - (high - low) * 0.1));
  const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1;
  const bottom = low >= 0 ? Math.max(0, low - room) : low - room;
  return [bottom, format === "share" ? Math.min(high + room, Math.max(1, high)) || 1 : high + room];
}

// Path through the points; a gap where a value is missing.
function pathOf(x, y, toX, toY) {
  let text = "", isOpen = false;
  y.forEach((value, i) => {
    if (value === null || x[i] === null) { isOpen = false; return; }
    text += `${isOpen ? "L" : "M"}${toX(x[i]).toFixed(1)} ${toY(value).toFixed(1)}`;
    isOpen = true;
  });
  return text;
}

function bandOf(one, toX, toY) {
  const there = one.x.map((_, i) => i).filter((i) => one.low[i] !== null && one.high[i] !== null);
  if (there.length < 2) return "";
  const point = (i, values) => `${toX(one.x[i]).toFixed(1)} ${toY(values[i]).toFixed(1)}`;
  return `M${there.map((i) => point(i, one.high)).join("L")}L${there.reverse().map((i) => point(i, one.low)).join("L")}Z`;
}

function drawAxes(plot, size, xRange, range, toX, toY, format) {
  const isTime = state.axis === "seconds";
  const xs = (isTime ? timeTicks : ticks)(xRange[0], xRange[1], Math.max(2, Math.floor(size.width / 90)));
  for (const tick of ticks(range[0], range[1], 4)) {
    element(plot, "line", { class: "grid", x1: MARGIN.left, x2: size.width - MARGIN.right, y1: toY(tick), y2: toY(tick) });
    element(plot, "text", { x: MARGIN.left - 7, y: toY(tick) + 4, "text-anchor": "end" },
      format === "share" ? String(+tick.toFixed(3)) : short(tick));
  }
  const bottom = size.height - MARGIN.bottom;
  element(plot, "line", { class: "axis", x1: MARGIN.left, x2: size.width - MARGIN.right, y1: bottom, y2: bottom });
  for (const tick of xs) {
    element(plot, "text", { x: toX(tick), y: bottom + 15, "text-anchor": "middle" }, (isTime ? time : short)(tick));
  }
  element(plot, "text", { x: size.width - MARGIN.right, y: size.height - 4, "text-anchor": "end" }, data.axes[state.axis]);
}

class ChartView {
  constructor(parent, chart) {
    this.chart = chart;
    this.figure = element(parent, "figure", { class: "panel chart" });
    const caption = element(this.figure, "figcaption");
    element(caption, "b", {}, chart.title);
    if (chart.lines.length > 1) this.keys(element(caption, "span", { class: "keys" }));
    if (chart.note) element(caption, "span", { class: "soft" }, chart.note);
    this.plot = element(this.figure, "svg", { class: "plot", tabindex: 0, role: "img", "aria-label": chart.title });
    this.tip = element(this.figure, "div", { class: "tip", hidden: "" });
    this.plot.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.leave());
    this.plot.addEventListener("blur", () => this.leave());
    this.plot.addEventListener("keydown", (event) => this.key(event));
  }

  keys(parent) {
    this.chart.lines.forEach((line, index) => {
      const isAlone = data.runs.length === 1;
      const key = element(parent, "span");
      const stroke = isAlone ? `var(--series-${index + 1})` : "currentColor";
      const mark = element(key, "svg", { viewBox: "0 0 22 8" });
      element(mark, "line", { x1: 0, x2: 22, y1: 4, y2: 4, "stroke-width": 2, "stroke-dasharray": isAlone ? "" : DASHES[index % DASHES.length] })
        .style.stroke = stroke;
      key.append(line.label);
    });
  }

  draw() {
    const size = { width: Math.max(this.plot.clientWidth, 200), height: 210 };
    this.plot.replaceChildren();
    this.leave();
    this.plot.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    this.series = seriesOf(this.chart);
    const [first, last] = extent(this.series.map((one) => one.x));
    const xRange = first < last ? [first, last] : [(first || 0) - 0.5, (first || 0) + 0.5];
    const range = yRange(this.series, this.chart.format);
    const scale = (from, low, high) => (value) => low + ((value - from[0]) / (from[1] - from[0])) * (high - low);
    this.toX = scale(xRange, MARGIN.left, size.width - MARGIN.right);
    this.toY = scale(range, size.height - MARGIN.bottom, MARGIN.top);
    drawAxes(this.plot, size, xRange, range, this.toX, this.toY, this.chart.format);
    for (const one of this.series) if (one.low && one.high) {
      element(this.plot, "path", { class: "band", d: bandOf(one, this.toX, this.toY) }).style.fill = one.color;
    }
    for (const one of this.series) {
      if (one.raw) element(this.plot, "path", { class: "raw", d: pathOf(one.x, one.raw, this.toX, this.toY) }).style.stroke = one.color;
      element(this.plot, "path", { class: "curve", d: pathOf(one.x, one.y, this.toX, this.toY), "stroke-dasharray": one.dash })
        .style.stroke = one.color;
      if (one.y.length <= 30) one.y.forEach((value, i) => {
        if (value === null) return;
        element(this.plot, "circle", { cx: this.toX(one.x[i]), cy: this.toY(value), r: 2.6 }).style.fill = one.color;
      });
    }
  }

  // All x at which a visible curve has a value, in order.
  places() {
    const found = new Set();
    for (const one of this.series) one.x.forEach((x, i) => one.y[i] !== null && x !== null && found.add(x));
    return [...found].sort((a, b) => a - b);
  }

  point(pixel) {
    const places = this.places();
    if (!places.length) return;
    this.show(places.reduce((best, x) => (Math.abs(this.toX(x) - pixel) < Math.abs(this.toX(best) - pixel) ? x : best)));
  }

  key(event) {
    const places = this.places();
    const moves = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in moves) || !places.length) return;
    event.preventDefault();
    const now = places.indexOf(this.at);
    this.show(places[now < 0 ? 0 : Math.min(Math.max(now + moves[event.key], 0), places.length - 1)]);
  }

  show(x) {
    this.leave();
    this.at = x;
    const isTime = state.axis === "seconds";
    element(this.tip, "div").append(element(this.tip, "b", {}, `${(isTime ? time : short)(x)} ${isTime ? "" : data.axes[state.axis]}`));
    const left = this.toX(x);
    element(this.plot, "line", { class: "cursor mark", x1: left, x2: left, y1: MARGIN.top, y2: 210 - MARGIN.bottom });
    for (const one of this.series) {
      let best = -1;  // the value nearest to x, of those not further than half the way to the neighbour
      one.x.forEach((at, i) => {
        if (one.y[i] !== null && (best < 0 || Math.abs(at - x) <= Math.abs(one.x[best] - x))) best = i;
      });
      if (best < 0) continue;
      const line = element(this.tip, "div");
      element(line, "span", {}, one.name).style.color = one.color;
      const ends = one.low?.[best] != null && one.high?.[best] != null
        ? ` [${shown(one.low[best], this.chart.format)}, ${shown(one.high[best], this.chart.format)}]` : "";
      element(line, "span", { class: "number" }, shown(one.y[best], this.chart.format) + ends);
      element(this.plot, "circle", { class: "mark", cx: this.toX(one.x[best]), cy: this.toY(one.y[best]), r: 4.5 }).style.fill = one.color;
    }
    this.tip.hidden = false;
    const isRight = left > this.plot.clientWidth / 2;
    // Beside the pointer, but within the plot (which begins 14px inside its figure): long names would push it out.
    const most = Math.max(this.plot.clientWidth - this.tip.offsetWidth + 14, 14);
    this.tip.style.left = isRight ? "" : `${Math.min(left + 26, most)}px`;
    this.tip.style.right = isRight ? `${Math.min(this.plot.clientWidth - left + 26, most)}px` : "";
    const above = this.plot.getBoundingClientRect().top - this.figure.getBoundingClientRect().top;
    this.tip.style.top = `${above + 8}px`;
  }

  leave() {
    this.at = null;
    this.tip.hidden = true;
    this.tip.replaceChildren();
    for (const mark of this.plot.querySelectorAll(".mark")) mark.remove();
  }
}

function build() {
  const views = [];
  let grid = null, group = null;
  for (const chart of data.charts) {
    if (chart.group !== group) {
      group = chart.group;
      const place = document.getElementById("charts");
      element(place, "h3", {}, group);
      grid = element(place, "div", { class: "charts" });
    }
    views.push(new ChartView(grid, chart));
  }
  const drawAll = () => views.forEach((view) => view.draw());

  for (const button of document.querySelectorAll("[data-axis]")) {
    button.addEventListener("click", () => { state.axis = button.dataset.axis; press(); drawAll(); });
  }
  for (const button of document.querySelectorAll("[data-run]")) {
    button.addEventListener("click", () => {
      const number = Number(button.dataset.run);
      if (!state.hidden.delete(number)) state.hidden.add(number);
      press();
      drawAll();
    });
  }
  function press() {
    for (const button of document.querySelectorAll("[data-axis]")) {
      button.setAttribute("aria-pressed", String(button.dataset.axis === state.axis));
    }
    for (const button of document.querySelectorAll("[data-run]")) {
      button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.run))));
    }
  }
  document.getElementById("smooth").addEventListener("input", (event) => {
    state.smooth = Number(event.target.value);
    drawAll();
  });
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  let isChosen = false;
  const follow = () => { if (!isChosen) root.dataset.theme = system.matches ? "dark" : "light"; };
  system.addEventListener("change", follow);
  document.getElementById("theme").addEventListener("click", () => {
    isChosen = true;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  });
  follow();
  press();
  new ResizeObserver(drawAll).observe(document.getElementById("charts"));
  drawAll();
}

build();
