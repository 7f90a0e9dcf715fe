// Images ↔ codebook entries, as codec_imagelm.py and the files beside it compute them: the same pixels become the same tokens.
// One idea: a codec is codec.json and codec.safetensors of the model; pixels are one Uint8Array, row by row, channels last.

const LUMA = [0.299, 0.587, 0.114]; // ITU-R BT.601

/** The codec of a model's two files; throws an Error for a kind that can't be computed in a page. */
export function openCodec(config, tensors) {
  if (config.kind === "patch") return new PatchCodec(config, tensors);
  const features = config.features ?? [];
  if (config.kind === "unified" && !features.includes("t") && ["R", "G", "B"].every((name) => features.includes(name)))
    return new PixelCodec(config, tensors);
  throw new Error(`The model's codec is of the kind "${config.kind}", which can't run in a page.`);
}

class Codec {
  constructor(config) {
    this.config = config;
    [this.height, this.width] = config.image_size;
    this.channels = config.channels;
  }

  get numTokens() {
    return this.rows * this.columns;
  }

  /** The pixels of opaque ImageData in the codec's format. */
  pixels({ data, width, height }) {
    const { channels, config } = this;
    const source = new Uint8Array(width * height * channels);
    for (let i = 0, j = 0; i < data.length; i += 4) {
      // Pillow's convert("L"), in its 16-bit integers.
      if (channels === 1) source[j++] = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16;
      else for (let c = 0; c < 3; c++) source[j++] = data[i + c];
    }
    if (config.fit === "resize") return resize(source, width, height, channels, this.width, this.height);
    const scale = Math.min(1, this.width / width, this.height / height);
    const [w, h] = [width, height].map((side) => Math.max(1, rint(side * scale)));
    const shrunk = resize(source, width, height, channels, w, h);
    const result = new Uint8Array(this.width * this.height * channels).fill(config.background);
    const [left, top] = [Math.floor((this.width - w) / 2), Math.floor((this.height - h) / 2)];
    for (let y = 0; y < h; y++)
      result.set(shrunk.subarray(y * w * channels, (y + 1) * w * channels), ((top + y) * this.width + left) * channels);
    return result;
  }

  /** ImageData of the first entries of an image; what has no entry yet is transparent. */
  decode(entries) {
    const image = new ImageData(this.width, this.height);
    const size = this.patchSize;
    entries.forEach((entry, token) => {
      const [top, left] = [Math.floor(token / this.columns) * size, (token % this.columns) * size];
      for (let y = 0; y < size; y++)
        for (let x = 0; x < size; x++) {
          const from = ((entry * size + y) * size + x) * this.channels;
          const to = ((top + y) * this.width + left + x) * 4;
          for (let c = 0; c < 3; c++) image.data[to + c] = this.entryPixels[from + (this.channels === 1 ? 0 : c)];
          image.data[to + 3] = 255;
        }
    });
    return image;
  }
}

/** Patches: each becomes the entry with the smallest squared distance, the first of equal ones. */
class PatchCodec extends Codec {
  constructor(config, { codebook }) {
    super(config);
    this.patchSize = config.patch_size;
    [this.rows, this.columns] = [this.height / this.patchSize, this.width / this.patchSize];
    this.entryPixels = codebook.values;
    this.size = codebook.shape[0];
  }

  encode(pixels) {
    const { patchSize: side, channels, entryPixels } = this;
    const length = side * side * channels;
    const patch = new Int32Array(length);
    return Array.from({ length: this.numTokens }, (_, token) => {
      const [top, left] = [Math.floor(token / this.columns) * side, (token % this.columns) * side];
      for (let y = 0, i = 0; y < side; y++) {
        const start = ((top + y) * this.width + left) * channels;
        for (let x = 0; x < side * channels; x++) patch[i++] = pixels[start + x];
      }
      let [best, smallest] = [0, Infinity];
      for (let entry = 0; entry < this.size; entry++) {
        let distance = 0;
        for (let i = 0, j = entry * length; i < length; i++, j++) distance += (patch[i] - entryPixels[j]) ** 2;
        if (distance < smallest) [best, smallest] = [entry, distance];
      }
      return best;
    });
  }
}

/** Pixels with features such as place, colour and gradient: one token a pixel, compared in float64. */
class PixelCodec extends Codec {
  constructor(config, { codebook, scale }) {
    super(config);
    this.patchSize = 1;
    [this.rows, this.columns] = [this.height, this.width];
    [this.size, this.depth] = codebook.shape;
    this.scale = scale.values;
    this.scaled = codebook.values.map((value, i) => value * this.scale[i % this.depth]);
    const columns = ["R", "G", "B"].map((name) => config.features.indexOf(name));
    this.entryPixels = new Uint8ClampedArray(this.size * this.channels);
    for (let entry = 0; entry < this.size; entry++) {
      const colour = columns.map((column) => codebook.values[entry * this.depth + column]);
      const values = this.channels === 1 ? [dot(colour, LUMA)] : colour;
      values.forEach((value, c) => (this.entryPixels[entry * this.channels + c] = rint(value * 255)));
    }
  }

  encode(pixels) {
    const { scaled, depth } = this;
    const offsets = Array.from({ length: this.size }, (_, entry) => {
      const vector = scaled.subarray(entry * depth, (entry + 1) * depth);
      return -0.5 * dot(vector, vector);
    });
    return this.#features(pixels).map((vector) => {
      let [best, largest] = [0, -Infinity];
      for (let entry = 0; entry < this.size; entry++) {
        let score = offsets[entry];
        for (let i = 0; i < depth; i++) score += vector[i] * scaled[entry * depth + i];
        if (score > largest) [best, largest] = [entry, score];
      }
      return best;
    });
  }

  #features(pixels) {
    const { width, height, channels } = this;
    const colour = (i, c) => pixels[i * channels + (channels === 1 ? 0 : c)];
    const grey = Float64Array.from({ length: width * height }, (_, i) =>
      channels === 1 ? pixels[i] : dot([0, 1, 2].map((c) => colour(i, c)), LUMA));
    // numpy.gradient: half the difference of the neighbours, at an edge the difference to the only one.
    const slope = (i, place, side, step) => {
      const [before, after] = [place > 0 ? i - step : i, place < side - 1 ? i + step : i];
      return (grey[after] - grey[before]) / ((after - before) / step);
    };
    return Array.from({ length: width * height }, (_, i) => {
      const [x, y] = [i % width, Math.floor(i / width)];
      const values = {
        ...{ x, y, A: 1, R: colour(i, 0) / 255, G: colour(i, 1) / 255, B: colour(i, 2) / 255 },
        ...{ Gx: slope(i, x, width, 1), Gy: slope(i, y, height, width) },
      };
      return this.config.features.map((name, column) => values[name] * this.scale[column]);
    });
  }
}

/** Pillow's bicubic resize of 8-bit pixels: along both axes, each time rounded to 8 bits. */
function resize(source, width, height, channels, newWidth, newHeight) {
  // The order of Pillow 13, found by trying sizes: along y first if far more rows than columns go.
  if (height > newHeight && height - newHeight > 2 * (width - newWidth))
    return resample(resample(source, height, newHeight, width * channels), width, newWidth, channels);
  return resample(resample(source, width, newWidth, channels), height, newHeight, newWidth * channels);
}

/** Another number of pixels along one axis, whose neighbours are `stride` values apart. */
function resample(source, size, newSize, stride) {
  if (size === newSize) return source;
  const blocks = source.length / (size * stride);
  const result = new Uint8Array(blocks * newSize * stride);
  coefficients(size, newSize).forEach(([first, weights], position) => {
    for (let block = 0; block < blocks; block++)
      for (let i = 0; i < stride; i++) {
        let sum = 1 << 21; // a half, of 22 bits
        for (let j = 0, at = (block * size + first) * stride + i; j < weights.length; j++, at += stride)
          sum += source[at] * weights[j];
        result[(block * newSize + position) * stride + i] = Math.min(255, Math.max(0, sum >> 22));
      }
  });
  return result;
}

/** Of each output pixel: the first input pixel, and the weights, of 22 bits, of it and its followers. */
function coefficients(size, newSize) {
  const scale = size / newSize;
  const stretch = Math.max(1, scale);
  return Array.from({ length: newSize }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * stretch + 0.5));
    const end = Math.min(size, Math.trunc(center + 2 * stretch + 0.5));
    const weights = Array.from({ length: end - first }, (_, j) => bicubic((j + first - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return [first, weights.map((weight) => Math.trunc((weight / sum) * (1 << 22) + (weight < 0 ? -0.5 : 0.5)))];
  });
}

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** The tensors of a safetensors file: name → { shape, values }. */
export function readSafetensors(buffer) {
  const types = { U8: Uint8Array, F32: Float32Array, F64: Float64Array };
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  delete header.__metadata__;
  return Object.fromEntries(Object.entries(header).map(([name, { dtype, shape, data_offsets: [from, to] }]) =>
    [name, { shape, values: new types[dtype](buffer.slice(start + from, start + to)) }]));
}

/** Rounds halves to the even neighbour, as Python and numpy do. */
function rint(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}
