// The loss of one image: softmax of its similarities over tau, and its gradient.
const { classes, trained, untrained, views } = data;
const state = { anchor: 0, tau: 0.1, source: "trained", s: [] };
const take = () => {
  if (state.source !== "hand") state.s = [...data[state.source][state.anchor]];
};
const softmax = (u) => {
  const largest = Math.max(...u);
  const e = u.map((x) => Math.exp(x - largest));
  const sum = e.reduce((a, b) => a + b);
  return e.map((x) => x / sum);
};
const view = (row, column) => make("span", {
  class: "view", role: "presentation",
  style: `background-image: url(${views}); background-position: ${-100 * column}% ${-100 * row}%; ` +
    `background-size: ${100 * classes.length}% 200%`,
});

const tauOut = make("output");
const tau = make("input", {
  type: "range", min: Math.log(0.02), max: Math.log(2), step: 0.01, value: Math.log(state.tau),
  "aria-label": "temperature tau", oninput: () => { state.tau = Math.exp(tau.value); show(); },
});
const source = chooser("similarities", [
  ["trained", "after training"], ["untrained", "before training"], ["hand", "set by hand"],
], state.source, (value) => { state.source = value; take(); show(); });
const anchors = chooser("image", classes.map((name, i) => [String(i), name]), "0", (value) => {
  state.anchor = Number(value); take(); show();
});
const byHand = () => {
  state.source = "hand";
  source.querySelector("select").value = "hand";
};
const step = make("button", {
  type: "button",
  onclick: () => {
    byHand();
    const p = softmax(state.s.map((x) => x / state.tau));
    // A step of 0.1 tau: no similarity moves by more than 0.1.
    state.s = state.s.map((x, j) =>
      Math.max(-1, Math.min(1, x - 0.1 * (p[j] - (j === state.anchor ? 1 : 0)))));
    show();
  },
}, "one step down the gradient");

const rows = classes.map((name, j) => {
  const slider = make("input", {
    type: "range", min: -1, max: 1, step: 0.01, "aria-label": `similarity to the view of the ${name}`,
    oninput: () => { byHand(); state.s[j] = Number(slider.value); show(); },
  });
  const cosine = make("output");
  const bar = make("span", { class: "bar" });
  const share = make("output");
  const pull = make("output", { class: "pull" });
  const row = make("tr", {},
    make("th", { scope: "row" }, view(1, j), make("span", { class: "spare" }, name)),
    make("td", {}, slider, cosine),
    make("td", { class: "wide-cell" },
      make("div", { class: "bars" }, make("span", { class: "track" }, bar), share)),
    make("td", {}, pull));
  return { row, slider, cosine, bar, share, pull };
});
const said = make("p", { "aria-live": "polite", class: "said" });
const anchorView = make("span");

const show = () => {
  const p = softmax(state.s.map((x) => x / state.tau));
  tauOut.textContent = state.tau.toFixed(2);
  anchorView.replaceChildren(view(0, state.anchor));
  rows.forEach((parts, j) => {
    const positive = j === state.anchor;
    const slope = (p[j] - (positive ? 1 : 0)) / state.tau;
    parts.row.className = positive ? "positive" : "";
    parts.slider.value = state.s[j];
    parts.cosine.textContent = state.s[j].toFixed(2);
    parts.bar.style.width = `${100 * p[j]}%`;
    parts.share.textContent = p[j].toFixed(3);
    parts.pull.replaceChildren(slope < 0 ? "→ " : "← ",
      make("span", { class: "spare" }, slope < 0 ? "closer, " : "apart, "), Math.abs(slope).toFixed(2));
    parts.pull.style.opacity = Math.abs(slope) < 0.005 ? 0.7 : 1;
  });
  const loss = -Math.log(p[state.anchor]);
  const nothing = Math.log(classes.length);
  said.replaceChildren("The loss is −log ", make("b", {}, p[state.anchor].toFixed(3)), " = ",
    make("b", { class: "loss" }, loss.toFixed(3)), ` nats; where all are alike it is log ${classes.length} = ${nothing.toFixed(3)}.`);
};

take();
root.append(
  make("div", { class: "controls" }, anchors, anchorView, source,
    make("label", {}, "τ ", tau, tauOut), step),
  make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "view by view" },
    make("table", {},
      make("thead", {}, make("tr", {},
        ...[["other ", "view"], ["similarity ", "s"], ["", "softmax", " of s/τ"], ["descent ", "moves s"]].map(
          ([before, text, after = ""]) => make("th", { scope: "col" },
            make("span", { class: "spare" }, before), text, make("span", { class: "spare" }, after))))),
      make("tbody", {}, ...rows.map((parts) => parts.row)))),
  said);
show();
