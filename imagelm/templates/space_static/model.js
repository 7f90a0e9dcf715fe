// The model of a repository: its files, its graph in onnxruntime-web, and what it answers.
// One idea: a row of tokens is before_image, the image's codes, after_image; the class is the next token.

import { openCodec, readSafetensors } from "./codec.js";

const GRAPHS = { float32: "onnx/model.onnx", int8: "onnx/model_quantized.onnx" };

/**
 * Loads a model from the address of its files, which ends with a slash.
 * progress(done, total) is told the bytes of the graph. Throws an Error of one sentence.
 */
export async function loadModel(base, progress) {
  const record = await read(base, "onnx/imagelm.json", "The model has no ONNX export; imagelm export --format onnx writes it.");
  const [{ layout }, config, weights] = await Promise.all([
    read(base, "processor_config.json", "The model has no codec, so it can't read pictures."),
    read(base, "codec.json"),
    fetchFile(base, "codec.safetensors").then((response) => response.arrayBuffer()),
  ]);
  const codec = openCodec(config, readSafetensors(weights));
  const runtime = import("onnxruntime-web").catch(() => {
    throw new Error("The runtime could not be loaded from its CDN: check the connection, and reload the page.");
  });
  const [graph, ort] = await Promise.all([download(base, GRAPHS[record.weights], progress), runtime]);
  ort.env.wasm.wasmPaths = new URL(".", import.meta.resolve("onnxruntime-web")).href;
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  return new Model(ort, session, record.cache, layout, codec);
}

class Model {
  constructor(ort, session, cache, layout, codec) {
    Object.assign(this, { ort, session, cache, layout, codec, names: layout.class_names });
  }

  /** The probability of each class, for the entries of an image. */
  async classify(entries) {
    const { before_image: before, after_image: after, code_ids: codes } = this.layout;
    const { logits } = await this.#step([[...before, ...entries.map((entry) => codes[entry]), ...after]], {}, 0);
    return this.#classes(logits[0]);
  }

  /**
   * Draws images that begin with the entries `kept`; temperature 0 takes the most probable tokens.
   * random() gives numbers from 0 to 1. await shown(images) is told the entries after each token, and ends the
   * drawing by returning false. Gives [{ entries, probabilities }], or null if it was ended.
   */
  async draw(count, kept, temperature, random, shown) {
    const { before_image: before, after_image: after, code_ids: codes } = this.layout;
    const images = Array.from({ length: count }, () => [...kept]);
    let fed = images.map(() => [...before, ...kept.map((entry) => codes[entry])]);
    let [past, length] = [{}, 0];
    const advance = async () => {
      const { logits, present } = await this.#step(fed, past, length);
      [past, length] = [present, length + fed[0].length];
      return logits;
    };
    while (images[0].length < this.codec.numTokens) {
      const logits = await advance();
      images.forEach((image, row) => image.push(choose(codes.map((id) => logits[row][id]), temperature, random)));
      fed = images.map((image) => [codes[image.at(-1)]]);
      if ((await shown(images)) === false) return null;
    }
    fed = fed.map((ids) => [...ids, ...after]);
    const logits = await advance();
    return images.map((entries, row) => ({ entries, probabilities: this.#classes(logits[row]) }));
  }

  /** The logits after each row's last id, and the cache; all rows have one length, and follow `length` earlier ids. */
  async #step(rows, past, length) {
    const { ort, session } = this;
    const [count, added] = [rows.length, rows[0].length];
    const whole = (width, value) => {
      const values = rows.flatMap((_, row) => Array.from({ length: width }, (_, i) => BigInt(value(row, i))));
      return new ort.Tensor("int64", BigInt64Array.from(values), [count, width]);
    };
    const feeds = {
      input_ids: whole(added, (row, i) => rows[row][i]),
      attention_mask: whole(length + added, () => 1),
      position_ids: whole(added, (_, i) => length + i),
    };
    for (const [name, [heads, width]] of Object.entries(this.cache))
      feeds[name] = past[name] ?? new ort.Tensor("float32", new Float32Array(0), [count, heads, 0, width]);
    for (const name of Object.keys(feeds)) if (!session.inputNames.includes(name)) delete feeds[name];
    const output = await session.run(feeds);
    const { data, dims: [, , size] } = output.logits;
    const logits = rows.map((_, row) => data.subarray(((row + 1) * added - 1) * size, (row + 1) * added * size));
    const pairs = Object.keys(this.cache).map((name) => [name, output[name.replace("past_key_values", "present")]]);
    return { logits, present: Object.fromEntries(pairs) };
  }

  #classes(logits) {
    return softmax(this.layout.class_ids.map((id) => logits[id]));
  }
}

/** Numbers from 0 to 1 that a seed determines (mulberry32). */
export function randomOf(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

function choose(logits, temperature, random) {
  if (temperature === 0) return logits.indexOf(Math.max(...logits));
  let rest = random();
  const probabilities = softmax(logits.map((logit) => logit / temperature));
  const found = probabilities.findIndex((probability) => (rest -= probability) < 0);
  return found < 0 ? probabilities.indexOf(Math.max(...probabilities)) : found; // the sum may miss 1 by a rounding
}

function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

async function read(base, name, missing) {
  const response = await fetchFile(base, name, missing);
  return response.json();
}

async function fetchFile(base, name, missing) {
  const response = await fetch(base + name).catch(() => {
    throw new Error(`The model's file ${name} could not be loaded: check the connection, and reload the page.`);
  });
  if (response.ok) return response;
  if ([401, 403].includes(response.status)) throw new Error("The model is missing or not public, so this page can't read it.");
  if (response.status === 404 && missing) throw new Error(missing);
  throw new Error(`The model's file ${name} could not be loaded: the server answered ${response.status}.`);
}

async function download(base, name, progress) {
  const response = await fetchFile(base, name);
  const total = Number(response.headers.get("content-length"));
  const [parts, reader] = [[], response.body.getReader()];
  let done = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    progress((done += part.value.length), total);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}
