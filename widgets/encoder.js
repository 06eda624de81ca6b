// The contrastive encoder: convolutions with batch norm folded in, and the nearest of a
// gallery of silhouettes. Each function computes what fmkit computes:
// fmkit.models.resnet and fmkit.book.drawing, which packs the weights.
const SIDE = 28, PIXELS = SIDE * SIDE;

const normalized = (vector) => {
  let sum = 0;
  for (const value of vector) sum += value * value;
  const length = Math.max(Math.sqrt(sum), 1e-12);
  return Float32Array.from(vector, (value) => value / length);
};
const product = (row, bank, at, n) => {
  let sum = 0;
  for (let i = 0; i < n; i++) sum += row[i] * bank[at + i];
  return sum;
};

// run(pixels): the representation of an image, of which 0 is black and 255 white.
const makeEncoder = ({ config }, weights) => {
  // Maps have the channels of a pixel side by side, so a window is a few long pieces. Its
  // product with four rows of weights at once loads each of its values once.
  const convolve = ({ side, channels, values }, name, stride) => {
    const { rows, columns, values: kernel } = weights[name], bias = weights[`${name}.bias`].values;
    const size = Math.sqrt(columns / channels), reach = (size - 1) / 2;
    const out = Math.floor((side - 1) / stride) + 1;
    const result = new Float32Array(out * out * rows), window = new Float32Array(columns);
    for (let y = 0; y < out; y++) {
      for (let x = 0; x < out; x++) {
        for (let dy = 0; dy < size; dy++) {
          for (let dx = 0; dx < size; dx++) {
            const row = y * stride + dy - reach, column = x * stride + dx - reach;
            const to = (dy * size + dx) * channels, from = (row * side + column) * channels;
            if (row < 0 || column < 0 || row >= side || column >= side) window.fill(0, to, to + channels);
            else for (let c = 0; c < channels; c++) window[to + c] = values[from + c];
          }
        }
        const place = (y * out + x) * rows;
        for (let r = 0; r < rows; r += 4) {
          let a = bias[r], b = bias[r + 1], c = bias[r + 2], d = bias[r + 3];
          const first = r * columns, second = first + columns, third = second + columns, last = third + columns;
          for (let i = 0; i < columns; i++) {
            const value = window[i];
            a += value * kernel[first + i];
            b += value * kernel[second + i];
            c += value * kernel[third + i];
            d += value * kernel[last + i];
          }
          result[place + r] = a;
          result[place + r + 1] = b;
          result[place + r + 2] = c;
          result[place + r + 3] = d;
        }
      }
    }
    return { side: out, channels: rows, values: result };
  };
  const rectify = (map) => {
    for (let i = 0; i < map.values.length; i++) if (map.values[i] < 0) map.values[i] = 0;
    return map;
  };
  const block = (map, i, stride) => {
    const inner = rectify(convolve(map, `${i}.1`, stride));
    const sum = convolve(inner, `${i}.2`, 1);
    const beside = weights[`${i}.0`] ? convolve(map, `${i}.0`, stride) : map;
    for (let j = 0; j < sum.values.length; j++) sum.values[j] += beside.values[j];
    return rectify(sum);
  };
  return (pixels) => {
    const values = Float32Array.from(pixels, (value) => (2 * value) / 255 - 1);
    let map = rectify(convolve({ side: SIDE, channels: 1, values }, "stem", config.stem_stride));
    let number = 0;
    config.blocks.forEach((count, stage) => {
      for (let i = 0; i < count; i++) map = block(map, number++, stage > 0 && i === 0 ? 2 : 1);
    });
    const mean = new Float32Array(map.channels), places = map.side * map.side;
    for (let i = 0; i < map.values.length; i++) mean[i % map.channels] += map.values[i] / places;
    return mean;
  };
};

// The silhouettes of the gallery, and two ways to compare a drawing with them: each has a
// code for a drawing, and the codes of the gallery as rows.
const makeGallery = ({ grey }, weights, rest, represent, classes) => {
  const { rows: n, columns: m } = weights.codes;
  const images = new Uint8Array(2 * rest.length); // two pixels in a byte
  for (let i = 0; i < images.length; i++) images[i] = (i % 2 ? rest[i >> 1] & 15 : rest[i >> 1] >> 4) * grey;
  const example = (i) => images.subarray(i * PIXELS, (i + 1) * PIXELS); // one of each class
  const image = (i) => example(classes + i);
  const mean = new Float64Array(PIXELS);
  for (let i = 0; i < n * PIXELS; i++) mean[i % PIXELS] += images[classes * PIXELS + i] / n;
  const minus = (vector, mean) => normalized(Float32Array.from(vector, (value, i) => value - mean[i]));
  const codes = new Float32Array(n * m), raw = new Float32Array(n * PIXELS);
  for (let i = 0; i < n; i++) {
    codes.set(normalized(weights.codes.values.subarray(i * m, (i + 1) * m)), i * m);
    raw.set(minus(image(i), mean), i * PIXELS);
  }
  const ways = {
    encoder: { code: (pixels) => minus(represent(pixels), weights.mean.values), bank: codes },
    pixels: { code: (pixels) => minus(pixels, mean), bank: raw },
  };
  // The nearest silhouettes, [position, cosine] of each.
  const nearest = (way, code, count) => {
    const { bank } = ways[way];
    const cosines = Float32Array.from({ length: n }, (_, i) => product(code, bank, i * code.length, code.length));
    return [...cosines.keys()].sort((a, b) => cosines[b] - cosines[a] || a - b)
      .slice(0, count).map((i) => [i, cosines[i]]);
  };
  const point = (code) => ["across", "up"].map((axis) => product(code, weights[axis].values, 0, m));
  const points = Array.from({ length: n }, (_, i) => point(codes.subarray(i * m, (i + 1) * m)));
  return { image, example, ways, nearest, point, points };
};

// Move and scale what is bright into the frame: fmkit.book.drawing.fitted.
const fit = (pixels, longer) => {
  let top = SIDE, bottom = 0, left = SIDE, right = 0;
  for (let i = 0; i < PIXELS; i++) {
    if (pixels[i] <= 127) continue;
    const y = Math.floor(i / SIDE), x = i % SIDE;
    top = Math.min(top, y); bottom = Math.max(bottom, y + 1);
    left = Math.min(left, x); right = Math.max(right, x + 1);
  }
  if (bottom === 0) return pixels;
  const scale = longer / Math.max(bottom - top, right - left);
  // How much of each pixel from start to end is in each one of the output
  const shares = (start, end) => {
    const first = Math.floor((SIDE - Math.floor(scale * (end - start) + 0.5)) / 2) - scale * start;
    const edge = (i) => first + scale * Math.max(start, Math.min(end, i));
    return Array.from({ length: SIDE }, (_, to) => Array.from({ length: SIDE }, (_, from) =>
      Math.max(0, Math.min(edge(from + 1), to + 1) - Math.max(edge(from), to))));
  };
  const down = shares(top, bottom), across = shares(left, right);
  const rows = down.map((row) => Array.from({ length: SIDE }, (_, x) =>
    row.reduce((sum, share, y) => sum + share * pixels[y * SIDE + x], 0)));
  return Uint8Array.from({ length: PIXELS }, (_, i) => Math.floor(0.5 +
    across[i % SIDE].reduce((sum, share, x) => sum + share * rows[Math.floor(i / SIDE)][x], 0)));
};
