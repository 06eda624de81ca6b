// Write on: the decoder continues a text, and shows its heads of attention. It is loaded
// once the figure is in view. `root.live` has its functions, for tests and for a console.
const SHOWN = 7; // of the most probable tokens
const MANY = 20; // tokens that the button writes
const PACE = 60; // milliseconds between them, so that one can stop
const still = matchMedia("(prefers-reduced-motion: reduce)");
const state = { ids: [], temperature: 1, topP: 1, layer: 1, head: 2, from: 0, writing: 0 };
const pinned = { layer: 1, head: 2, from: 0 }; // what is shown when nothing is hovered
let live; // the tokenizer and the decoder, once they are loaded

const visible = (text) => text.replace(/\n/g, "↵").replace(/\t/g, "⇥")
  .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
const nameOf = (id) => {
  if (id === live.start) return "⊥";
  const text = live.decode([id]);
  if (!text.includes("\ufffd")) return visible(text);
  return `byte ${live.spelled[id].map((byte) => byte.toString(16).toUpperCase()).join(" ")}`;
};
// What the model sees: all, or the end of a text that is longer than its context. The
// beginning moves by a quarter of the context, so that most steps need one new token.
const seen = () => {
  const over = state.ids.length - live.context, jump = live.context / 4;
  return over > 0 ? state.ids.slice(Math.ceil(over / jump) * jump) : state.ids;
};

const text = make("textarea", {
  rows: 5, maxlength: 2000, spellcheck: "false", autocapitalize: "off", autocomplete: "off",
  oninput: () => { stop(); read(text.value); },
});
const begin = chooser("start", data.starts.map((start, i) => [String(i), start.replace(/\n+/g, " ↵ ")]),
  "0", () => restart());
const restart = () => { stop(); text.value = data.starts[begin.querySelector("select").value]; read(text.value); };
const again = make("button", { type: "button", onclick: () => restart() }, "start again");
const slider = (label, key, least, most) => {
  const output = make("output", {}, state[key].toFixed(2));
  const input = make("input", {
    type: "range", min: least, max: most, step: 0.05, value: state[key],
    oninput: () => { state[key] = Number(input.value); output.textContent = state[key].toFixed(2); showTokens(); },
  });
  return make("label", {}, `${label} `, input, output);
};
const writer = make("button", { type: "button", class: "go", disabled: true,
  onclick: () => (state.writing ? stop("Stopped.") : write()) });
const label = () => { writer.textContent = state.writing ? "stop" : `write on: ${MANY} tokens`; };

const rows = Array.from({ length: SHOWN }, () => {
  const token = make("span", { class: "token" }), number = make("span", { class: "number" });
  const bar = make("span", { class: "bar" }), before = make("span", { class: "before" });
  const button = make("button", { type: "button", disabled: true, title: "append this token" },
    token, make("span", { class: "track" }, bar, before), number);
  const row = { item: make("li", {}, button), button, token, bar, before, number, id: undefined };
  button.addEventListener("click", () => { stop(`${nameOf(row.id)} was appended.`); append(row.id); });
  return row;
});
const others = { bar: make("span", { class: "bar" }), number: make("span", { class: "number" }) };
const tokens = make("ol", { class: "tokens", "aria-label": "most probable next tokens" },
  ...rows.map((row) => row.item),
  make("li", { class: "rest" }, make("span", { class: "token" }, "others"),
    make("span", { class: "track" }, others.bar), others.number));
const facts = make("p", { class: "facts two" });
const said = make("p", { class: "said", role: "status" });

const map = make("div", { class: "heads" });
const strip = make("ol", { class: "strip", "aria-label": "tokens that the model reads" });
const looks = make("p", { class: "looks" });
const inside = make("div", { class: "attention", role: "group", "aria-label": "attention" },
  make("p", {}, make("b", {}, "Attention. "),
    `Each square is a head, each row of squares one of ${data.layers} layers. `,
    "Inside a square, every token has a row, which is stronger where the token attends more. ",
    "Point at a square and at a token: bars show how much this head attends from this token to those before it."),
  make("div", { class: "both" }, map, strip), looks);
let places = [];

// Of several buttons one is a tab stop; arrow keys lead to the others.
const roving = (box, list, across) => box.addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -Infinity, End: Infinity };
  const at = list().indexOf(event.target);
  if (at < 0 || !(event.key in steps)) return;
  event.preventDefault();
  list()[Math.max(0, Math.min(list().length - 1, at + steps[event.key]))].focus();
});
// Hovering shows, focus and touch keep it.
const look = (button, what) => {
  const keep = () => { Object.assign(pinned, what); Object.assign(state, pinned); showAttention(); };
  button.addEventListener("pointerenter", () => { Object.assign(state, what); showAttention(); });
  button.addEventListener("pointerleave", () => { Object.assign(state, pinned); showAttention(); });
  button.addEventListener("focus", keep);
  button.addEventListener("click", keep);
};

const squares = Array.from({ length: data.layers * data.heads }, (_, i) => {
  const what = { layer: Math.floor(i / data.heads), head: i % data.heads };
  const name = `layer ${what.layer + 1}, head ${what.head + 1}`;
  const button = make("button", { type: "button", "aria-label": name, title: name }, make("canvas"));
  look(button, what);
  return button;
});
map.style.setProperty("--across", data.heads);
map.append(...squares);
roving(map, () => squares, data.heads);
roving(strip, () => places, 1);

const showTokens = () => {
  if (!live) return;
  const p = reshaped(state.logits, state), before = reshaped(state.logits, { temperature: 1, topP: 1 });
  const order = ranked(state.logits).slice(0, SHOWN);
  order.forEach((id, i) => {
    const row = rows[i];
    row.id = id;
    row.token.textContent = nameOf(id);
    row.bar.style.width = `${100 * p[id]}%`;
    row.before.style.left = `${100 * before[id]}%`;
    row.number.textContent = p[id].toFixed(3);
    row.item.classList.toggle("cut", p[id] === 0);
    row.button.disabled = id === live.start; // no text contains the start symbol
  });
  const rest = Math.max(0, 1 - order.reduce((sum, id) => sum + p[id], 0));
  others.bar.style.width = `${100 * rest}%`;
  others.number.textContent = rest.toFixed(3);
  const left = p.reduce((count, share) => count + (share > 0), 0);
  const nats = p.reduce((sum, share) => sum - (share > 0 ? share * Math.log(share) : 0), 0);
  const end = seen().length < state.ids.length ? ", the end of the text" : "";
  facts.textContent = `${left.toLocaleString("en")} of ${p.length.toLocaleString("en")} tokens can be drawn; ` +
    `entropy ${nats.toFixed(2)} nats. The model sees ${seen().length} tokens${end}; ` +
    `${state.milliseconds.toFixed(1)} ms a token.`;
};

const paint = (canvas, n, layer, head) => {
  const [red, green, blue] = state.colour;
  const image = new ImageData(n, n);
  for (let t = 0; t < n; t++) {
    live.attention(layer, head, t).forEach((weight, s) => {
      image.data.set([red, green, blue, 255 * Math.sqrt(weight)], 4 * (t * n + s));
    });
  }
  canvas.width = canvas.height = n;
  canvas.getContext("2d").putImageData(image, 0, 0);
};
const showMaps = () => {
  const value = getComputedStyle(root).getPropertyValue("--bar").trim();
  state.colour = [1, 3, 5].map((i) => parseInt(value.slice(i, i + 2), 16));
  squares.forEach(({ firstChild }, i) => paint(firstChild, seen().length, Math.floor(i / data.heads), i % data.heads));
};
const showPlaces = () => {
  const ids = seen();
  places = ids.map((id, i) => {
    const button = make("button", { type: "button" }, make("span", {}, nameOf(id)), make("span", { class: "weight" }));
    look(button, { from: i });
    return button;
  });
  strip.replaceChildren(...places.map((button, i) =>
    make("li", { class: nameOf(ids[i]).includes("↵") ? "end" : "" }, button)));
  strip.scrollTop = strip.scrollHeight;
};
const showAttention = () => {
  const ids = seen();
  squares.forEach((square, i) => {
    const on = i === state.layer * data.heads + state.head;
    square.setAttribute("aria-pressed", String(on));
    square.tabIndex = i === pinned.layer * data.heads + pinned.head ? 0 : -1;
  });
  const weights = live.attention(state.layer, state.head, state.from);
  places.forEach((button, s) => {
    button.lastChild.style.height = `${0.9 * (weights[s] ?? 0)}rem`;
    button.setAttribute("aria-pressed", String(s === state.from));
    button.tabIndex = s === pinned.from ? 0 : -1;
    button.parentElement.classList.toggle("later", s > state.from);
  });
  const most = [...weights.keys()].filter((s) => weights[s] >= 0.005)
    .sort((a, b) => weights[b] - weights[a]).slice(0, 3);
  looks.setAttribute("aria-live", inside.contains(document.activeElement) ? "polite" : "off");
  looks.textContent = `Layer ${state.layer + 1}, head ${state.head + 1}: from ${nameOf(ids[state.from])}, ` +
    `token ${state.from + 1}, it attends most to ` +
    `${most.map((s) => `${nameOf(ids[s])} (${weights[s].toFixed(2)})`).join(", ")}.`;
};
const show = () => { showTokens(); showMaps(); showPlaces(); showAttention(); };

const ask = () => {
  const ids = seen(), start = performance.now();
  state.logits = live.run(ids);
  state.milliseconds = (performance.now() - start) / live.computed();
  pinned.from = state.from = ids.length - 1;
};
const read = (value) => {
  if (!live) return;
  state.ids = [live.start, ...live.encode(value)];
  ask();
  show();
};
const append = (id) => {
  state.ids = [...state.ids, id];
  ask();
  text.value = live.decode(state.ids);
  text.scrollTop = text.scrollHeight;
  show();
};
const stop = (words = "") => { state.writing = 0; said.textContent = words; label(); };
let runs = 0;
const write = async () => {
  const mine = state.writing = ++runs; // another text, or another click, ends this run
  said.textContent = "";
  label();
  for (let n = 0; n < MANY; n++) {
    const id = draw(reshaped(state.logits, state));
    if (id === live.start) return stop("The model ended the text: it drew ⊥, with which the next one would begin.");
    append(id);
    await new Promise((go) => setTimeout(go, still.matches ? 0 : PACE));
    if (state.writing !== mine) return undefined;
  }
  return stop(`${MANY} tokens written.`);
};

const open = async () => {
  const { header, weights } = await readModel(globalThis.fmkitDecoder);
  live = { ...header.config, start: header.start, ...makeTokenizer(header), ...makeDecoder(header, weights) };
  root.live = { ...live, reshaped, seen, state };
  rows.forEach((row) => { row.button.disabled = false; });
  writer.disabled = false;
  root.classList.add("loaded");
  said.textContent = "";
  read(text.value);
  new MutationObserver(showMaps).observe(document.documentElement, { attributeFilter: ["data-theme"] });
};
const fetchModel = () => {
  said.textContent = `Loading the model, ${data.size} MB.`;
  // The figure goes, and its still image comes back.
  const failed = () => root.classList.remove("alive");
  const script = make("script", {
    src: `${document.documentElement.dataset.content_root ?? "./"}${data.file}`,
    onload: () => open().catch(failed), onerror: failed,
  });
  document.head.append(script);
};

text.value = data.starts[0];
label();
root.append(
  make("div", { class: "controls one-line" }, begin, again),
  make("label", { class: "field" }, "your text", text),
  make("div", { class: "controls one-line status" }, writer, said),
  make("div", { class: "controls" }, slider("temperature", "temperature", 0, 2),
    slider("top-p", "topP", 0.05, 1)),
  make("p", { class: "facts" }, "The most probable next tokens: choose one to append it. " +
    "The line at each bar is the probability at temperature 1 and top-p 1."),
  tokens, facts, inside,
  make("p", { class: "facts" },
    `The weights are rounded to 8 bits. On five texts, ${data.errors.places} places, this changes a ` +
    `probability by at most ${data.errors.largest.toFixed(3)}; the largest change at a place is ` +
    `${data.errors.mean.toFixed(3)} on average, and the most probable token is the same at ` +
    `${(100 * data.errors.same).toFixed(1)} % of them.`));
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  observer.disconnect();
  fetchModel();
}).observe(root);
