// Models that run in a page, unpacked from the script that fmkit.book.packing made.

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

// The header, every weight by its name, {rows, columns, values} in float32, and the bytes
// that follow.
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
  return { header, weights, rest: new Uint8Array(buffer, place) };
};
