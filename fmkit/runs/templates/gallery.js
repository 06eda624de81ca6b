"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { points, parameters, metrics } = data;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const metric = document.getElementById("metric");
  const across = document.getElementById("across");
  const words = document.getElementById("words");
  const filters = all("select.filter");
  const views = all("input[name=view]");
  const has = (text, typed) =>
    typed.toLowerCase().split(/\s+/).every((word) => text.includes(word));

  // Which points are shown

  const indexOf = (name) => parameters.findIndex((one) => one.name === name);
  const view = () => views.find((one) => one.checked)?.value ?? "points";
  let visible = points.map((_, number) => number);

  function filter() {
    document.body.dataset.view = view();
    if (view() === "means") {  // a mean is one over all seeds
      for (const one of filters) if (one.dataset.name === data.seed) one.value = "";
    }
    const wanted = filters.filter((one) => one.value !== "")
      .map((one) => [indexOf(one.dataset.name), Number(one.value)]);
    visible = [...points.keys()].filter((number) =>
      wanted.every(([parameter, value]) => points[number].at[parameter] === value)
      && has(points[number].words, words?.value ?? ""));
    const kept = new Set(visible.map(String));
    const shows = (one) => one.dataset.points.split(" ").some((n) => kept.has(n));
    for (const one of all("tr[data-points], figure[data-points]")) {
      one.hidden = !shows(one);
    }
    for (const table of all(".metrics table, .findings table")) {
      const columns = [...table.tHead.rows[0].cells].map((cell) =>
        cell.dataset.points !== undefined && !shows(cell));
      for (const row of table.rows) {
        columns.forEach((gone, column) => { row.cells[column].hidden = gone; });
      }
    }
    document.getElementById("shown").textContent =
      `${visible.length} of ${points.length} points shown`;
    draw();
  }

  // The metric in the tables of points: its cells are those of the metrics' tables

  function choose() {
    const row = metric.selectedIndex;
    for (const table of all(".points-table table")) {
      const source = document.querySelector(`.metrics.${table.dataset.view} table`);
      const columns = [...source.tHead.rows[0].cells].map((one) => one.dataset.points);
      const place = [...table.tHead.rows[0].cells]
        .findIndex((one) => one.classList.contains("chosen"));
      const head = table.tHead.rows[0].cells[place];
      (head.querySelector("button") ?? head).textContent = metric.value;
      for (const one of table.tBodies[0].rows) {
        const from = source.tBodies[0].rows[row].cells[columns.indexOf(one.dataset.points)];
        const cell = from.cloneNode(true);
        cell.hidden = false;
        one.cells[place].replaceWith(cell);
      }
      if (head.hasAttribute("aria-sort")) sort(table, place, head.ariaSort);
    }
    draw();
  }

  // Sorting; what has no value comes last in both directions

  function sort(table, column, direction) {
    const value = (row) => {
      const cell = row.cells[column];
      const text = cell.dataset.sort ?? cell.textContent.trim();
      return [text, text === "" ? NaN : Number(text)];
    };
    const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
    const sign = direction === "descending" ? -1 : 1;
    rows.sort(([[a, x]], [[b, y]]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const both = !Number.isNaN(x) && !Number.isNaN(y);
      return sign * (both ? x - y : a.localeCompare(b, undefined, { numeric: true }));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    table.tHead.rows[0].cells[column].setAttribute("aria-sort", direction);
  }

  for (const table of all(".points-table table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if ("plain" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(table, column, now === "ascending" ? "descending" : "ascending");
      });
    });
  }

  // The chart: a line for each combination of the other parameters, dots for seeds

  const MOST = 8;  // lines that one can tell apart
  const APART = 30;  // how many times as large is a matter for a logarithm
  const SHAPES = [  // of the marks, so that nothing rests on colours alone
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z", "M-4-4h8v8h-8z", "M0-5l5 9h-10z",
    "M0-5.5l5 5.5l-5 5.5l-5-5.5z", "M0 5l5-9h-10z",
    "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    "M-4.500-4.500l3 0l1.500 2l1.500-2l3 0l-3 4.500l3 4.500l-3 0l-1.500-2l-1.500 2l-3 0l3-4.500z",
    "M-6-2h12v4h-12z",
  ];
  const NS = "http://www.w3.org/2000/svg";

  function add(parent, name, attributes, text) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }

  const shortly = (number) => String(Number(number.toPrecision(4)));
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;

  // Round numbers from low to high, about as many as `many`
  function ticks(low, high, many) {
    const rough = (high - low) / many;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
    const first = Math.ceil(low / step - 1e-9);
    const count = Math.floor(high / step + 1e-9) - first + 1;
    return Array.from({ length: count }, (_, i) =>
      Number(((first + i) * step).toPrecision(12)));
  }

  // Where the values of a parameter lie: in proportion, by their logarithm, or evenly
  function scale({ texts, numbers }, used) {
    const evenly = {
      kind: "",
      place: (value) => (used.indexOf(value) + 0.5) / used.length,
      marks: used.map((value) => [value, texts[value]]),
    };
    if (!numbers) return evenly;
    const those = used.map((value) => numbers[value]);
    const sizes = those.map(Math.abs).filter((size) => size > 0);
    const far = Math.max(...sizes) / Math.min(...sizes) > APART;
    const logarithmic = far && those.every((number) => number > 0);
    if (far && !logarithmic) return evenly;  // zero has no logarithm
    const of = logarithmic ? Math.log : (number) => number;
    const low = of(Math.min(...those));
    const wide = of(Math.max(...those)) - low;
    return {
      kind: logarithmic ? " (logarithmic)" : "",
      place: (value) => (wide ? 0.04 + 0.92 * (of(numbers[value]) - low) / wide : 0.5),
      marks: used.map((value) => [value, texts[value]]),
    };
  }

  // The points with a value of the metric, by line and by place on the axis
  function series(name, axis) {
    const other = parameters.map((one, index) => [one, index]).filter(([one, index]) =>
      index !== axis && one.name !== data.seed && one.texts.length > 1);
    const lines = new Map();
    for (const number of visible) {
      const value = metrics[name][number];
      if (value === null) continue;
      const { at } = points[number];
      const label = other.map(([one, index]) => `${one.name} = ${one.texts[at[index]]}`)
        .join(", ");
      if (!lines.has(label)) lines.set(label, new Map());
      const line = lines.get(label);
      if (!line.has(at[axis])) line.set(at[axis], []);
      line.get(at[axis]).push([value, number]);
    }
    return lines;
  }

  function draw() {
    if (!across) return;
    const drawing = document.getElementById("drawing");
    const axis = indexOf(across.value);
    const lines = series(metric.value, axis);
    const drawn = [...lines].slice(0, MOST);
    const told = document.getElementById("note");
    const legend = document.getElementById("lines");
    drawing.replaceChildren();
    legend.replaceChildren();
    document.getElementById("up").textContent = metric.value;
    document.getElementById("right").textContent = "";
    if (drawn.length === 0) {
      told.textContent = "No point that is shown has this metric.";
      return;
    }
    const used = [...new Set(drawn.flatMap(([, line]) => [...line.keys()]))]
      .sort((a, b) => (parameters[axis].numbers
        ? parameters[axis].numbers[a] - parameters[axis].numbers[b] : a - b));
    const { kind, place, marks } = scale(parameters[axis], used);
    document.getElementById("right").textContent = across.value + kind;

    const values = drawn.flatMap(([, line]) => [...line.values()].flat())
      .map(([value]) => value);
    const [least, largest] = [Math.min(...values), Math.max(...values)];
    const spare = (largest - least) * 0.06 || Math.abs(largest) * 0.05 || 1;
    const [low, high] = [least - spare, largest + spare];
    const levels = ticks(low, high, 5);

    const wide = Math.max(drawing.clientWidth, 240);
    const labels = marks.map(([value, text]) => [value, cut(text, 24), text]);
    const left = Math.max(...levels.map((level) => shortly(level).length)) * 7 + 14;
    const room = (wide - left - 12) / labels.length;
    const longest = Math.max(...labels.map(([, text]) => text.length)) * 7;
    const slanted = !parameters[axis].numbers && longest > room;
    const bottom = slanted ? Math.min(longest, 170) * 0.7 + 20 : 26;
    const up = wide < 600 ? 240 : 340;
    const tall = up + bottom + 8;
    const x = (value) => left + place(value) * (wide - left - 12);
    const y = (value) => 8 + up * (high - value) / (high - low);

    const svg = add(drawing, "svg", {
      viewBox: `0 0 ${wide} ${tall}`, role: "img",
      "aria-label": `${metric.value} against ${across.value}${kind}, `
        + `${drawn.length} ${drawn.length === 1 ? "line" : "lines"}; `
        + "the numbers are in the tables below",
    });
    for (const level of levels) {
      add(svg, "line", {
        class: "rule", x1: left, x2: wide - 12, y1: y(level), y2: y(level),
      });
      add(svg, "text", {
        x: left - 8, y: y(level) + 4, "text-anchor": "end",
      }, shortly(level));
    }
    add(svg, "path", { class: "frame", fill: "none", d: `M${left} 8v${up}H${wide - 12}` });
    let free = -Infinity;  // labels that would touch are left out
    for (const [value, text, whole] of labels) {
      const half = slanted ? 8 : text.length * 3.5 + 4;
      add(svg, "path", { class: "frame", d: `M${x(value)} ${8 + up}v5` });
      if (x(value) - half < free) continue;
      free = x(value) + half;
      const at = slanted ? `translate(${x(value) + 4} ${up + 22}) rotate(-40)`
        : `translate(${Math.min(x(value), wide - half)} ${up + 26})`;
      const label = add(svg, "text", {
        transform: at, "text-anchor": slanted ? "end" : "middle",
      }, text);
      if (whole !== text) add(label, "title", {}, whole);
    }

    let seeds = false;
    drawn.forEach(([label, line], index) => {
      const colour = `var(--line-${index})`;
      const whole = used.filter((value) => line.has(value)).map((value) =>
        [value, mean(line.get(value).map(([one]) => one)), line.get(value)]);
      add(svg, "path", {
        class: "line", style: `stroke: ${colour}`,
        d: `M${whole.map(([value, one]) => `${x(value)} ${y(one)}`).join("L")}`,
      });
      for (const [value, average, each] of whole) {
        for (const [one, number] of each.length > 1 ? each : []) {
          seeds = true;
          const dot = add(svg, "circle", {
            class: "dot", cx: x(value), cy: y(one), r: 3,
            style: `fill: none; stroke: ${colour}`,
          });
          const said = parameters.map((parameter, i) =>
            `${parameter.name} = ${parameter.texts[points[number].at[i]]}`);
          add(dot, "title", {}, `${said.join(", ")}: ${shortly(one)}`);
        }
        const mark = add(svg, "path", {
          class: "mark", d: SHAPES[index], style: `fill: ${colour}`,
          transform: `translate(${x(value)} ${y(average)})`,
        });
        const rest = label ? `, ${label}` : "";
        const of = each.length > 1 ? ` (mean of ${each.length} seeds)` : "";
        const said = `${across.value} = ${parameters[axis].texts[value]}${rest}`;
        add(mark, "title", {}, `${said}: ${shortly(average)}${of}`);
      }
      if (!label) return;
      const item = document.createElement("li");
      const key = add(item, "svg", { viewBox: "-16 -6 32 12", "aria-hidden": "true" });
      add(key, "path", { class: "line", style: `stroke: ${colour}`, d: "M-16 0H16" });
      add(key, "path", { d: SHAPES[index], style: `fill: ${colour}` });
      item.append(label);
      legend.append(item);
    });
    const left_out = lines.size - drawn.length;
    told.textContent = [
      seeds ? "Lines join the means over seeds; circles are single seeds." : "",
      left_out ? `${drawn.length} of ${lines.size} lines are drawn; choose values above to see others.` : "",
    ].filter(Boolean).join(" ");
  }

  // All of it

  const typed = document.querySelector("#names input");
  typed?.addEventListener("input", () => {
    for (const row of all(".metrics tbody tr")) {
      row.hidden = !has(row.cells[0].textContent.toLowerCase(), typed.value);
    }
  });
  for (const one of [...filters, ...views]) one.addEventListener("change", filter);
  words?.addEventListener("input", filter);
  metric?.addEventListener("change", choose);
  across?.addEventListener("change", draw);
  document.getElementById("controls").addEventListener("submit", (event) => {
    event.preventDefault();
  });
  for (const id of ["controls", "chart", "names"]) {  // which do nothing without scripts
    const one = document.getElementById(id);
    if (one) one.hidden = false;
  }
  filter();
  if (metric) choose();
  const drawing = document.getElementById("drawing");
  if (drawing) {
    let before = drawing.clientWidth;
    new ResizeObserver(() => {
      if (drawing.clientWidth !== before) {
        before = drawing.clientWidth;
        draw();
      }
    }).observe(drawing);
  }
})();
