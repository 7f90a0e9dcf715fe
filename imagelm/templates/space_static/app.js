// The page: a drawing or a picture → tokens → class, completions and new pictures, all of it in the browser.
// One idea: the paper is a canvas of the picture's own size, so that the codec reads the pixels of the file.

import { loadModel, randomOf } from "./model.js";

const MOST_PIXELS = 1 << 24; // of a picture: phones allow no larger canvas
const DRAWING_SIDE = 448; // pixels of an empty paper's longer side
const FAST = 300; // milliseconds: a model that answers within them answers after each stroke
const SMALL = 96; // pictures of fewer pixels a side are shown with hard edges
const MOST_TRIES = 50; // drawings per picture of a class
const NAMED_TOKENS = 16; // columns of the widest grid that has room for numbers

const $ = (id) => document.getElementById(id);
const paper = $("paper");
const ink = paper.getContext("2d", { willReadFrequently: true }); // kept in memory, where pixels stay exact
const buttons = ["classify", "complete", "draw"].map($);
let model = null;
let picture = null; // what was uploaded, below the strokes
let strokes = []; // { colour, width, points: [x, y, x, y, …] }
let running = null; // { button, stopped } of the work that goes on
let lastTime = Infinity; // milliseconds that the last answer took

/** The address of the model's files: the repository that model_id.txt names, or a folder beside the page. */
async function modelAddress() {
  const local = new URLSearchParams(location.search).get("model");
  if (local !== null) {
    const address = new URL(local.replace(/\/?$/, "/"), location.href);
    if (address.origin !== location.origin) throw new Error("?model= names a folder of another site; give one beside this page.");
    return [address.href, address.href, address.pathname.split("/").at(-2)];
  }
  const response = await fetch("model_id.txt");
  if (!response.ok) throw new Error("The page's file model_id.txt is missing, so it knows no model.");
  const name = (await response.text()).trim();
  const home = `https://huggingface.co/${name}`;
  return [`${home}/resolve/main/`, home, name.split("/").at(-1)];
}

async function start() {
  try {
    const [files, home, name] = await modelAddress();
    [$("title").textContent, document.title, $("link").href] = [name, name, home];
    model = await loadModel(files, (done, total) => {
      if (total) [$("progress").max, $("progress").value] = [total, done];
    });
  } catch (error) {
    $("loading").textContent = error.message;
    $("loading").classList.add("error");
    return;
  }
  const { codec, names } = model;
  $("loading").hidden = true;
  $("facts").hidden = false;
  const colours = codec.channels === 1 ? "grey" : "colour";
  $("facts").textContent =
    `${names.length} classes. Pictures of ${codec.height} × ${codec.width} pixels in ${colours} become ` +
    `${codec.rows} × ${codec.columns} tokens, each one of ${codec.size}.`;
  names.forEach((name, label) => $("class").append(new Option(name, label)));
  [$("kept").max, $("kept").value] = [codec.rows, Math.floor(codec.rows / 2)];
  const { background } = codec.config;
  [$("paper-colour").value, $("ink").value] = [grey(background), grey(background < 128 ? 255 : 0)];
  for (const button of buttons) button.disabled = false;
  showKept();
  clear();
}

function grey(value) {
  return `#${value.toString(16).padStart(2, "0").repeat(3)}`;
}

/* The paper */

function clear() {
  [picture, strokes] = [null, []];
  const { width, height } = model.codec;
  const scale = DRAWING_SIDE / Math.max(width, height);
  [paper.width, paper.height] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  repaint();
}

function repaint() {
  ink.fillStyle = $("paper-colour").value;
  ink.fillRect(0, 0, paper.width, paper.height);
  if (picture) ink.drawImage(picture, 0, 0);
  strokes.forEach(paint);
}

/** Paints a stroke from its point number `from` on. */
function paint({ colour, width, points }, from = 0) {
  [ink.strokeStyle, ink.lineWidth, ink.lineCap, ink.lineJoin] = [colour, width, "round", "round"];
  ink.beginPath();
  const first = Math.max(0, from - 1) * 2;
  ink.moveTo(points[first], points[first + 1]);
  for (let i = first; i < points.length; i += 2) ink.lineTo(points[i], points[i + 1]);
  ink.stroke();
}

/** The point of an event on the paper, in pixels of the canvas, which is shown with its sides in proportion. */
function pointOf(event) {
  const box = paper.getBoundingClientRect();
  const scale = Math.min(box.width / paper.width, box.height / paper.height);
  const [left, top] = [(box.width - paper.width * scale) / 2, (box.height - paper.height * scale) / 2];
  return [(event.clientX - box.left - left) / scale, (event.clientY - box.top - top) / scale];
}

paper.addEventListener("pointerdown", (event) => {
  if (!model || event.button !== 0) return;
  paper.setPointerCapture(event.pointerId);
  const width = ($("brush").value / 100) * Math.max(paper.width, paper.height);
  strokes.push({ pointer: event.pointerId, colour: $("ink").value, width, points: pointOf(event) });
  paint(strokes.at(-1));
});

paper.addEventListener("pointermove", (event) => {
  const stroke = strokes.at(-1);
  if (stroke?.pointer !== event.pointerId) return;
  const from = stroke.points.length / 2;
  for (const one of event.getCoalescedEvents?.() ?? [event]) stroke.points.push(...pointOf(one));
  paint(stroke, from);
});

for (const name of ["pointerup", "pointercancel"])
  paper.addEventListener(name, (event) => {
    if (strokes.at(-1)?.pointer !== event.pointerId) return;
    strokes.at(-1).pointer = null;
    changed();
  });

async function upload(file) {
  if (!file || !model) return;
  say("input", "");
  try {
    picture = await openPicture(file);
  } catch (error) {
    say("input", error.message, true);
    return;
  }
  strokes = [];
  $("paper-colour").value = grey(model.codec.config.background); // below what is transparent, as the codec has it
  [paper.width, paper.height] = [picture.width, picture.height];
  repaint();
  run($("classify"), classify);
}

async function openPicture(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    // Reads the size alone; the pixels are decoded below.
    await new Promise((resolve, reject) => [image.onload, image.onerror] = [resolve, reject]);
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    if (width * height > MOST_PIXELS)
      throw new Error(`${file.name} has ${width} × ${height} pixels; the most is ${MOST_PIXELS}: make it smaller first.`);
    // Without colour management, as Python reads it.
    return await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch (error) {
    if (error instanceof Error && error.message.includes(file.name)) throw error;
    throw new Error(`${file.name} is no picture that this browser can read; give a PNG, JPEG or WebP file.`);
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

$("file").addEventListener("change", (event) => {
  upload(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
paper.addEventListener("dragover", (event) => event.preventDefault());
paper.addEventListener("drop", (event) => {
  event.preventDefault();
  upload(event.dataTransfer.files[0]);
});
$("clear").addEventListener("click", () => model && clear());
$("undo").addEventListener("click", () => {
  strokes.pop();
  repaint();
  changed();
});
$("paper-colour").addEventListener("input", repaint);

/* The answers */

/** The entries of what is on the paper. */
function read() {
  if (!picture && !strokes.length) throw new Error("The paper is empty: draw something or upload a picture first.");
  return model.codec.encode(model.codec.pixels(ink.getImageData(0, 0, paper.width, paper.height)));
}

/** Answers at once where the model is fast, after each change of the paper. */
function changed() {
  if (lastTime < FAST && (picture || strokes.length)) run($("classify"), classify);
}

async function classify() {
  const [entries, count] = [read(), strokes.length];
  const start = performance.now();
  const probabilities = await model.classify(entries);
  lastTime = performance.now() - start;
  const order = probabilities.map((_, label) => label).sort((a, b) => probabilities[b] - probabilities[a]);
  $("answer").textContent = `${model.names[order[0]]}, ${percent(probabilities[order[0]])}`;
  $("bars").replaceChildren(...order.slice(0, 10).map((label) => {
    const item = document.createElement("li");
    item.style.setProperty("--share", `${probabilities[label] * 100}%`);
    item.append(span(model.names[label]), span(percent(probabilities[label])));
    item.dataset.probability = probabilities[label];
    return item;
  }));
  show($("seen"), entries);
  showTokens(entries);
  // A stroke that ended meanwhile; one that goes on asks when it ends.
  if (strokes.length > count && strokes.at(-1).pointer === null && lastTime < FAST) await classify();
}

function showTokens(entries) {
  const { columns, rows, size } = model.codec;
  const named = columns <= NAMED_TOKENS;
  $("tokens").style.gridTemplateColumns = `repeat(${columns}, 1fr)`;
  $("tokens").style.fontSize = `min(1rem, ${40 / columns}vw)`;
  $("tokens").replaceChildren(...entries.map((entry, i) => {
    const cell = span(named ? entry : "");
    // Neighbouring numbers get hues far apart: the golden angle.
    cell.style.background = `hsl(${(entry * 137.508) % 360} 70% ${62 + (entry % 3) * 9}%)`;
    cell.title = `row ${Math.floor(i / columns) + 1}, column ${(i % columns) + 1}: token ${entry}`;
    return cell;
  }));
  $("tokens").setAttribute("aria-label", `Token grid: ${entries.join(" ")}`);
  $("tokens-caption").textContent = `${rows} × ${columns} tokens of ${size}`;
}

async function complete() {
  const rows = Number($("kept").value);
  const kept = rows ? read().slice(0, rows * model.codec.columns) : [];
  const figure = newPicture();
  show(figure.firstChild, kept);
  figure.lastChild.textContent = "kept";
  $("completions").replaceChildren(figure);
  await drawInto("complete", $("completions"), number("count"), kept, null);
}

async function draw() {
  $("drawings").replaceChildren();
  await drawInto("draw", $("drawings"), number("count"), [], $("class").value === "" ? null : Number($("class").value));
}

/** Draws `count` pictures that begin with `kept` and have the class `label`, or any if it is null. */
async function drawInto(name, gallery, count, kept, label) {
  const [temperature, work] = [number("temperature"), running];
  const seed = $("seed").value === "" ? Math.floor(Math.random() * 1e6) : number("seed");
  const random = randomOf(seed);
  let [found, tries, stopped] = [0, 0, false];
  while (found < count && !stopped && tries < (label === null ? count : count * MOST_TRIES)) {
    const figures = Array.from({ length: count }, newPicture).slice(0, count - found);
    gallery.append(...figures);
    const images = await model.draw(figures.length, kept, temperature, random, async (images) => {
      images.forEach((entries, i) => show(figures[i].firstChild, entries));
      say(name, `Drawing: ${images[0].length} of ${model.codec.numTokens} tokens`);
      await new Promise(requestAnimationFrame);
      return !work.stopped;
    });
    stopped = images === null;
    images?.forEach(({ entries, probabilities }, i) => {
      const best = probabilities.indexOf(Math.max(...probabilities));
      if (label !== null && best !== label) return figures[i].remove();
      found += 1;
      const text = `${model.names[best]}, ${percent(probabilities[best])}`;
      show(figures[i].firstChild, entries, `A drawn picture: ${text}`);
      figures[i].lastChild.textContent = text;
    });
    if (stopped) for (const figure of figures) figure.remove();
    tries += figures.length;
    if (temperature === 0) break; // the same picture again
  }
  const enough = label === null || found === count || stopped;
  const drawn = enough ? "" : `${found} of ${count} found among ${tries} drawings. `;
  say(name, stopped ? "Stopped." : `${drawn}Seed ${seed}: enter it above to draw the same pictures.`);
}

function newPicture() {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.className = "picture";
  canvas.setAttribute("role", "img");
  figure.append(canvas, document.createElement("figcaption"));
  return figure;
}

/** Shows the picture of entries, complete or not. */
function show(canvas, entries, label) {
  const image = model.codec.decode(entries);
  if (canvas.width !== image.width || canvas.height !== image.height)
    [canvas.width, canvas.height] = [image.width, image.height];
  canvas.classList.toggle("small", Math.max(image.width, image.height) < SMALL);
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (label) canvas.setAttribute("aria-label", label);
}

function showKept() {
  $("kept-shown").textContent = `${$("kept").value} of ${$("kept").max}`;
}

/** Works for a button, one at a time; the button stops the work while it goes on. */
async function run(button, work) {
  if (running) {
    if (running.button === button) running.stopped = true;
    return;
  }
  running = { button, stopped: false };
  const text = button.textContent;
  button.textContent = button.id === "classify" ? text : "Stop";
  for (const other of buttons) other.disabled = other !== button;
  const message = button.id === "classify" ? "input" : button.id;
  say(message, "");
  try {
    await work();
  } catch (error) {
    say(message, error.message, true);
  } finally {
    running = null;
    button.textContent = text;
    for (const other of buttons) other.disabled = false;
  }
}

function say(name, text, isError = false) {
  $(`${name}-message`).textContent = text;
  $(`${name}-message`).classList.toggle("error", isError);
}

/** The value of a number's field; an Error if it is out of its range. */
function number(id) {
  const field = $(id);
  if (!field.value || !field.checkValidity())
    throw new Error(`${field.labels[0].textContent.trim()} must be a number from ${field.min} to ${field.max}.`);
  return Number(field.value);
}

function span(text) {
  const element = document.createElement("span");
  element.textContent = text;
  return element;
}

function percent(share) {
  return `${(share * 100).toFixed(1)} %`;
}

$("kept").addEventListener("input", showKept);
$("classify").addEventListener("click", async () => {
  await run($("classify"), classify);
  if ($("bars").firstChild) $("bars").scrollIntoView({ block: "nearest" }); // on a phone it lies below
});
$("complete").addEventListener("click", () => run($("complete"), complete));
$("draw").addEventListener("click", () => run($("draw"), draw));
start();
