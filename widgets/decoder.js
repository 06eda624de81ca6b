// The book's decoder: tokenizer, Transformer with a cache, temperature and top-p. Each
// function computes what fmkit computes: fmkit.data.tokens, fmkit.models.transformer,
// fmkit.models.heads and fmkit.generate. fmkit.book.live packs the weights.

// The packed bytes, of which each character holds 15 bits.
const bytesOf = ({ bytes, text }) => {
  const all = new Uint8Array(bytes);
  let held = 0, bits = 0, end = 0;
  for (let i = 0; end < bytes; i++) {
    held = (held << 15) | (text.charCodeAt(i) - 0x3000);
    bits += 15;
    while (bits >= 8) {
      bits -= 8;
      if (end < bytes) all[end++] = held >>> bits;
      held &= (1 << bits) - 1;
    }
  }
  return all;
};

// The header, and every weight by its name: {rows, columns, values} in float32.
const readModel = async (packed) => {
  const stream = new Blob([bytesOf(packed)]).stream();
  const inflated = stream.pipeThrough(new DecompressionStream("deflate-raw"));
  const buffer = await new Response(inflated).arrayBuffer();
  const view = new DataView(buffer);
  let place = 4 + view.getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, place - 4)));
  const weights = {};
  for (const [name, rows, columns] of header.weights) {
    const values = new Float32Array(rows * (columns ?? 1));
    if (columns === undefined) {
      for (let i = 0; i < rows; i++) values[i] = view.getFloat32(place + 4 * i, true);
      place += 4 * rows;
    } else {
      const scale = new Float32Array(rows);
      const halves = new Uint32Array(scale.buffer); // the upper half of each float32
      for (let i = 0; i < rows; i++) halves[i] = view.getUint16(place + 2 * i, true) << 16;
      const integers = new Int8Array(buffer, place + 2 * rows, rows * columns);
      for (let i = 0; i < values.length; i++) values[i] = integers[i] * scale[Math.floor(i / columns)];
      place += 2 * rows + values.length;
    }
    weights[name] = { rows, columns, values };
  }
  return { header, weights };
};

// Byte pairs: a text is cut into words as by GPT-2, and each word is merged by itself.
const WORD = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
  "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");
const makeTokenizer = ({ bytes, merges, start }) => {
  const spelled = []; // the bytes of each token
  bytes.forEach((id, byte) => { spelled[id] = [byte]; });
  const ranks = new Map();
  merges.forEach(([left, right, both], rank) => {
    ranks.set(left * 65536 + right, [rank, both]);
    spelled[both] = [...spelled[left], ...spelled[right]];
  });
  const ofWord = (word) => {
    const ids = [...new TextEncoder().encode(word)].map((byte) => bytes[byte]);
    for (;;) {
      let best = [Infinity], at = -1;
      for (let i = 0; i + 1 < ids.length; i++) {
        const merge = ranks.get(ids[i] * 65536 + ids[i + 1]);
        if (merge !== undefined && merge[0] < best[0]) { best = merge; at = i; }
      }
      if (at < 0) return ids;
      ids.splice(at, 2, best[1]);
    }
  };
  const known = new Map();
  const encode = (text) => {
    const ids = [];
    for (const [word] of text.matchAll(WORD)) {
      if (!known.has(word)) known.set(word, ofWord(word));
      ids.push(...known.get(word));
    }
    return ids;
  };
  // The start symbol has no bytes. Bytes that are no character become �.
  const decode = (ids) => new TextDecoder("utf-8", { ignoreBOM: true }).decode(
    new Uint8Array(ids.filter((id) => id !== start).flatMap((id) => spelled[id])));
  return { encode, decode, spelled };
};

// run(ids): the logits of the token after `ids`. Keys and values of tokens that `ids`
// shares with the last call, from the first on, are kept.
const makeDecoder = ({ config }, weights) => {
  const d = config.width, h = config.heads, k = config.kv_heads, T = config.context;
  const w = config.own_head_width ?? d / h;
  const hidden = config.hidden;
  const blocks = Array.from({ length: config.layers }, (_, layer) => {
    const of = (name) => weights[`blocks.${layer}.${name}.weight`];
    return {
      norm1: of("norm_1"), qkv: of("attention.qkv"), out: of("attention.out"),
      norm2: of("norm_2"), gateUp: of("mlp.gate_up"), down: of("mlp.down"),
      keys: new Float32Array(T * k * w), values: new Float32Array(T * k * w),
      attention: new Float32Array(h * T * T), // head, from, to
    };
  });
  const embedding = weights["embedding.weight"];
  const x = new Float32Array(d), normed = new Float32Array(d), branch = new Float32Array(d);
  const qkv = new Float32Array((h + 2 * k) * w), mixed = new Float32Array(h * w);
  const gateUp = new Float32Array(2 * hidden), inner = new Float32Array(hidden);
  const logits = new Float32Array(config.vocabulary);
  const frequencies = Array.from({ length: w / 2 }, (_, i) => config.rope_base ** ((-2 * i) / w));
  let read = [], computed = 0;

  const product = ({ rows, columns, values }, vector, result) => {
    for (let row = 0, i = 0; row < rows; row++) {
      let sum = 0;
      for (let column = 0; column < columns; column++, i++) sum += values[i] * vector[column];
      result[row] = sum;
    }
  };
  const norm = ({ values }, vector, result) => {
    let sum = 0;
    for (let i = 0; i < d; i++) sum += vector[i] * vector[i];
    const scale = 1 / Math.sqrt(sum / d + config.norm_epsilon);
    for (let i = 0; i < d; i++) result[i] = vector[i] * scale * values[i];
  };
  // Pair (i, i + w/2) of each query and key turns by the i-th angle of its position.
  const rotate = (t) => {
    for (let i = 0; i < w / 2; i++) {
      const cos = Math.cos(t * frequencies[i]), sin = Math.sin(t * frequencies[i]);
      for (let head = 0; head < h + k; head++) {
        const first = head * w + i, second = first + w / 2;
        const a = qkv[first], b = qkv[second];
        qkv[first] = a * cos - b * sin;
        qkv[second] = a * sin + b * cos;
      }
    }
  };
  // Softmax of the products with the keys of tokens 0 to t, and the mean of their values.
  const attend = (block, t) => {
    block.keys.set(qkv.subarray(h * w, (h + k) * w), t * k * w);
    block.values.set(qkv.subarray((h + k) * w), t * k * w);
    mixed.fill(0);
    for (let head = 0; head < h; head++) {
      const shared = Math.floor((head * k) / h) * w; // of several heads one key
      const weights = block.attention.subarray((head * T + t) * T, (head * T + t + 1) * T);
      let largest = -Infinity, sum = 0;
      for (let s = 0; s <= t; s++) {
        let score = 0;
        for (let i = 0; i < w; i++) score += qkv[head * w + i] * block.keys[s * k * w + shared + i];
        weights[s] = score / Math.sqrt(w);
        largest = Math.max(largest, weights[s]);
      }
      for (let s = 0; s <= t; s++) sum += weights[s] = Math.exp(weights[s] - largest);
      for (let s = 0; s <= t; s++) {
        weights[s] /= sum;
        for (let i = 0; i < w; i++) mixed[head * w + i] += weights[s] * block.values[s * k * w + shared + i];
      }
    }
  };
  const step = (id, t) => {
    x.set(embedding.values.subarray(id * d, (id + 1) * d));
    for (const block of blocks) {
      norm(block.norm1, x, normed);
      product(block.qkv, normed, qkv);
      rotate(t);
      attend(block, t);
      product(block.out, mixed, branch);
      for (let i = 0; i < d; i++) x[i] += branch[i];
      norm(block.norm2, x, normed);
      product(block.gateUp, normed, gateUp);
      for (let i = 0; i < hidden; i++) {
        inner[i] = (gateUp[i] / (1 + Math.exp(-gateUp[i]))) * gateUp[hidden + i];
      }
      product(block.down, inner, branch);
      for (let i = 0; i < d; i++) x[i] += branch[i];
    }
  };
  const run = (ids) => {
    if (ids.length < 1 || ids.length > T) throw new RangeError(`ids must be 1 to ${T}, got ${ids.length}.`);
    let same = 0;
    while (same < read.length && read[same] === ids[same]) same++;
    same = Math.min(same, ids.length - 1); // the last one is computed again: x is its vector
    read = read.slice(0, same);
    computed = ids.length - same;
    for (let t = same; t < ids.length; t++) {
      step(ids[t], t);
      read.push(ids[t]);
    }
    norm(weights["norm.weight"], x, normed);
    product(embedding, normed, logits);
    return logits.slice();
  };
  const attention = (layer, head, from) =>
    blocks[layer].attention.subarray((head * T + from) * T, (head * T + from) * T + from + 1);
  return { run, attention, computed: () => computed };
};

// The tokens, from the most probable on; of equal ones the first comes first.
const ranked = (logits) => [...logits.keys()].sort((a, b) => logits[b] - logits[a] || a - b);
// The probabilities after temperature and top-p; temperature 0 leaves the most probable.
const reshaped = (logits, { temperature, topP }) => {
  const largest = Math.max(...logits);
  if (temperature === 0) {
    const p = new Float64Array(logits.length);
    p[logits.indexOf(largest)] = 1;
    return p;
  }
  const p = Float64Array.from(logits, (u) => Math.exp((u - largest) / temperature));
  const divide = () => {
    const sum = p.reduce((a, b) => a + b);
    for (let i = 0; i < p.length; i++) p[i] /= sum;
  };
  divide();
  if (topP < 1) {
    const enough = topP - 8 * 2 ** -23; // a sum that is off by rounding has reached it
    let before = 0;
    for (const i of ranked(logits)) {
      const share = p[i];
      if (before >= enough && before > 0) p[i] = 0;
      before += share;
    }
    divide();
  }
  return p;
};
const draw = (p) => {
  let left = Math.random();
  for (let i = 0; i < p.length; i++) if (p[i] > 0 && (left -= p[i]) < 0) return i;
  return p.indexOf(Math.max(...p)); // the sum was below 1 by rounding
};
