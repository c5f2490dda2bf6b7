"use strict";

const DIGITS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

// Networks, as in vae/networks.py. Weights lie transposed, (in, out), so that an input of 0 costs nothing.

const ACTIVATIONS = {
  ReLU: (v) => (v > 0 ? v : 0),
  SiLU: (v) => v / (1 + Math.exp(-v)),
};

function linear({ weight, bias }, x) {
  const output = Float64Array.from(bias), size = bias.length;
  for (let i = 0; i < x.length; i++) {
    const value = x[i];
    if (value === 0) continue;
    for (let o = 0, w = i * size; o < size; o++, w++) output[o] += value * weight[w];
  }
  return output;
}

class MLP {
  constructor(layers, activation, labelEmbedding) {
    [this.input, ...this.others] = layers;
    this.activation = ACTIVATIONS[activation];
    this.labelEmbedding = labelEmbedding; // one row for each label, or none at all
  }

  // The wide product W_x x is computed once per x, however many labels y follow it.
  forward(x, y) {
    if (this.x !== x) [this.x, this.product] = [x, linear(this.input, x)];
    const label = this.labelEmbedding?.[y];
    let hidden = label ? this.product.map((h, i) => h + label[i]) : this.product;
    for (const layer of this.others) hidden = linear(layer, hidden.map(this.activation));
    return hidden;
  }
}

// What the networks return: q(z|x, y), p(x|y, z), q(y|x). A model without labels is given no y.

const sigmoid = (l) => 1 / (1 + Math.exp(-l));
const softplus = (l) => Math.max(l, 0) + Math.log1p(Math.exp(-Math.abs(l)));
const sum = (values, f) => values.reduce((total, value, i) => total + f(value, i), 0);
const argmax = (values) => values.indexOf(Math.max(...values));

function encoder(model, x, y) {
  const output = model.encoder.forward(x, y), size = output.length / 2;
  return { mean: output.slice(0, size), scale: output.slice(size).map(Math.exp) };
}

function decoder(model, z, y) {
  const logits = model.decoder.forward(z, y);
  return { logits, mean: logits.map(sigmoid) };
}

function classifier(model, x) {
  const logits = model.classifier.forward(x), highest = Math.max(...logits);
  const weights = Array.from(logits, (l) => Math.exp(l - highest)), total = sum(weights, (w) => w);
  return weights.map((w) => w / total);
}

// The bounds, as in vae/objectives.py: in nats, the higher the better. Grey pixels get their expected log-likelihood.

const labelPosterior = classifier;
const entropy = (probs) => -sum(probs, (p) => (p > 0 ? p * Math.log(p) : 0));
const logLikelihood = (x, { logits }) => sum(logits, (l, i) => x[i] * l - softplus(l));
const klDivergence = ({ mean, scale }) => sum(mean, (m, i) => (m * m + scale[i] ** 2 - 1) / 2 - Math.log(scale[i]));

// log p(x) ≥ E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z))
function elbo(x, posterior, likelihood) {
  return logLikelihood(x, likelihood) - klDivergence(posterior);
}

// log p(x, y) ≥ E_q(z|x,y)[log p(x|y, z)] + log p(y) − KL(q(z|x, y) ‖ p(z)) = −L(x, y), at one draw z
function labeledElbo(m2, x, y) {
  const posterior = encoder(m2, x, y);
  const z = posterior.mean.map((mean, i) => mean + posterior.scale[i] * m2.noise[i]);
  return elbo(x, posterior, decoder(m2, z, y)) + m2.logLabelPrior[y];
}

// log p(x) ≥ Σ_y q(y|x) (−L(x, y)) + H(q(y|x)) = −U(x)
function unlabeledElbo(labeledElbos, probs) {
  return sum(probs, (q, y) => q * labeledElbos[y]) + entropy(probs);
}

// Everything that M2 believes about x, and the style of x in all labels.
function beliefs(m2, x) {
  const probs = labelPosterior(m2, x);
  const bounds = DIGITS.map((y) => labeledElbo(m2, x, y));
  const style = encoder(m2, x, argmax(probs)).mean;
  const pictures = DIGITS.map((y) => decoder(m2, style, y).mean);
  return { probs, bounds, entropy: entropy(probs), bound: unlabeledElbo(bounds, probs), pictures };
}

// The data at the end of this file: for each name, gzip, which has a checksum, of a line of JSON and of arrays.

async function unpack(name) {
  const packed = Uint8Array.from(atob(document.getElementById(name).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(stream).arrayBuffer();
  let at = new Uint8Array(buffer).indexOf(10) + 1;
  const header = JSON.parse(new TextDecoder().decode(buffer.slice(0, at)));
  const take = (Type, size) => new Type(buffer.slice(at, (at += size * Type.BYTES_PER_ELEMENT)));
  return { header, take };
}

// Weights are whole numbers in −127 … 127, times a scale for each output.
function takeLinear(take, inputs, outputs) {
  const bytes = take(Int8Array, inputs * outputs), scales = take(Float32Array, outputs);
  const weight = new Float32Array(bytes.length);
  for (let i = 0, w = 0; i < inputs; i++) {
    for (let o = 0; o < outputs; o++, w++) weight[w] = bytes[w] * scales[o];
  }
  return { weight, bias: take(Float32Array, outputs) };
}

async function loadModel(name) {
  const { header, take } = await unpack(name);
  const model = { logLabelPrior: header.logLabelPrior };
  for (const { part, sizes, activation, numClasses } of header.networks) {
    const layers = sizes.slice(1).map((outputs, i) => takeLinear(take, sizes[i], outputs));
    const labelEmbedding = Array.from({ length: numClasses }, () => take(Float32Array, sizes[1]));
    model[part] = new MLP(layers, activation, labelEmbedding);
  }
  return Object.assign(model, { noise: take(Float32Array, header.zDim) });
}

async function loadImages() {
  const { header, take } = await unpack("images");
  const codes = take(Float32Array, 2 * header.numCodes), labels = take(Uint8Array, header.numCodes);
  const names = DIGITS.map(() => take(Float32Array, 2)); // where the plane says which digit is there
  const takePicture = () => Float32Array.from(take(Uint8Array, 784), (v) => v / 255);
  return { codes, labels, names, examples: Array.from({ length: header.numExamples }, takePicture) };
}

// A drawing, prepared as MNIST was: its box scaled into 20×20, averaged, then centred by its mass in 28×28.
// `ink` (size²) lies in [0, 1]. Returns 784 pixels, or null where there is no ink. A dot is not blown up to a block.
function prepare(ink, size) {
  let [left, top, right, bottom] = [size, size, -1, -1];
  ink.forEach((value, i) => {
    if (value === 0) return;
    const [column, row] = [i % size, Math.floor(i / size)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
  });
  if (right < 0) return null;
  const step = Math.max(right + 1 - left, bottom + 1 - top, size / 4) / 20; // pixels of the drawing in one of MNIST's
  const box = new Float32Array(400);
  for (let row = 0; row < 20; row++) {
    for (let column = 0; column < 20; column++) {
      box[20 * row + column] = averageOf(ink, size, left + column * step, top + row * step, step);
    }
  }
  const mass = sum(box, (v) => v);
  const shiftX = Math.round(14 - sum(box, (v, i) => v * (i % 20)) / mass);
  const shiftY = Math.round(14 - sum(box, (v, i) => v * Math.floor(i / 20)) / mass);
  const x = new Float32Array(784);
  box.forEach((value, i) => {
    const [column, row] = [(i % 20) + shiftX, Math.floor(i / 20) + shiftY];
    if (column >= 0 && column < 28 && row >= 0 && row < 28) x[28 * row + column] = value;
  });
  return x;
}

// The mean of a square of ink, its partly covered pixels by their share.
function averageOf(ink, size, left, top, width) {
  let total = 0;
  for (let row = Math.floor(top); row < Math.min(top + width, size); row++) {
    const height = Math.min(row + 1, top + width) - Math.max(row, top);
    for (let column = Math.floor(left); column < Math.min(left + width, size); column++) {
      total += ink[size * row + column] * height * (Math.min(column + 1, left + width) - Math.max(column, left));
    }
  }
  return total / width ** 2;
}

// What is seen. Ink is black on nothing; the style sheet inverts it in dark mode.

const COLORS = ["#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581",
  "#92dadd"]; // of Petroff 2021, as in vae/plotting.py
const $ = (id) => document.getElementById(id);
const number = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1").replace("-", "−"); // no −0.0
const some = (digit) => `${digit === 8 ? "an" : "a"} ${digit}`;
const point = (z) => `z = (${number(z[0], 1)}, ${number(z[1], 1)})`;
const timings = new Map();

function tell(name, milliseconds) {
  timings.set(name, `${name} ${milliseconds.toFixed(milliseconds < 10 ? 1 : 0)} ms`);
  $("timings").textContent = `On this device: ${[...timings.values()].join("; ")}.`;
}

function timed(name, action) {
  const start = performance.now(), result = action();
  tell(name, performance.now() - start);
  return result;
}

function add(parent, html) {
  parent.insertAdjacentHTML("beforeend", html);
  return parent.lastElementChild;
}

const picture = (label) => `<canvas class="ink" width="28" height="28" role="img" aria-label="${label}"></canvas>`;

function show(canvas, pixels) {
  const image = new ImageData(28, 28);
  pixels.forEach((value, i) => (image.data[4 * i + 3] = 255 * value));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Ten small pictures with their digits below them; returns the function that shows others.
function addPictures(parent, style) {
  const html = (digit) => `<figure>${picture(`${digit} in ${style}`)}<figcaption>${digit}</figcaption></figure>`;
  const canvases = DIGITS.map((digit) => add(parent, html(digit)).firstElementChild);
  return (pictures) => pictures.forEach((pixels, i) => show(canvases[i], pixels));
}

// A square over [−limit, limit]² on which mouse, finger and arrow keys move z.
function addPlane(plane, limit, onMove) {
  const cross = plane.querySelector(".cross"), clamp = (v) => Math.max(-limit, Math.min(limit, v));
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  let z;
  function move(first, second) {
    z = Float32Array.of(clamp(first), clamp(second));
    [cross.style.left, cross.style.top] = [`${50 + (50 * z[0]) / limit}%`, `${50 - (50 * z[1]) / limit}%`];
    onMove(z);
  }
  function follow(event) {
    const { left, top, width, height } = plane.getBoundingClientRect();
    move(limit * ((2 * (event.clientX - left)) / width - 1), limit * (1 - (2 * (event.clientY - top)) / height));
  }
  plane.addEventListener("click", follow);
  plane.addEventListener("pointermove", (event) => { // elsewhere than on the ring a finger scrolls the page
    if (event.pointerType !== "touch" || event.target === cross) follow(event);
  });
  plane.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key], step = event.shiftKey ? 0.5 : 0.1;
    if (!arrow) return;
    event.preventDefault();
    move(z[0] + step * arrow[0], z[1] + step * arrow[1]);
  });
  return move;
}

// 1. Draw a digit.

const EMPTY = "Draw a digit, and I will read it.", TEST_IMAGE = "A test image: your first stroke clears it";
const ROW = '<td class="chart" aria-hidden="true"><div></div></td><td></td><td></td>';

// What one network answers: a sentence, ten digits, and the numbers behind them. Returns the function that reads x.
function addReader(name, m2) {
  const part = (kind) => $(`${name}-${kind}`), threshold = Number(part("threshold").value);
  const showStyles = addPictures(part("styles"), "your style");
  const rows = DIGITS.map((digit) => add(part("beliefs"), `<tr><th scope="row">${digit}</th>${ROW}</tr>`).cells);
  part("threshold").textContent = number(threshold, 1);
  return (x) => {
    const { probs, bounds, entropy, bound, pictures } = beliefs(m2, x);
    part("answer").textContent = bound < threshold ? unseen(argmax(probs)) : seen(probs);
    part("entropy").textContent = number(entropy, 2);
    part("bound").textContent = number(bound, 1);
    rows.forEach(([, chart, probability, bound], y) => {
      chart.firstElementChild.style.width = `${100 * probs[y]}%`;
      probability.textContent = `${number(100 * probs[y], 1)} %`;
      bound.textContent = number(bounds[y], 1);
    });
    showStyles(pictures);
  };
}

const unseen = (digit) => `I have never seen anything like this. If it is a digit, I say ${digit}.`;

function seen(probs) {
  const digit = argmax(probs), percent = Math.min(99, Math.round(100 * probs[digit]));
  return `I read ${some(digit)}, and am ${percent} % sure.`;
}

// The pad: strokes on it, or a test image, or nothing. Calls onChange with 784 pixels, or null for nothing.
function startPad(onChange) {
  const pad = $("pad"), context = pad.getContext("2d", { willReadFrequently: true });
  let strokes = [], stroke = [], example = null, waiting = false;
  Object.assign(context, { lineCap: "round", lineJoin: "round", lineWidth: pad.width / 12 });

  function update() {
    context.clearRect(0, 0, pad.width, pad.height);
    if (example) context.drawImage(example.canvas, 0, 0, pad.width, pad.height);
    strokes.forEach((stroke) => drawStroke(context, stroke));
    $("hint").textContent = example ? TEST_IMAGE : strokes.length ? "Your drawing" : "Draw a digit here";
    $("undo").disabled = !strokes.length;
    onChange(example ? example.x : prepare(inkOf(context), pad.width));
  }

  function put(newStrokes, newExample = null) {
    [strokes, example] = [newStrokes, newExample];
    update();
  }

  function lineTo(event) {
    const { left, top, width } = pad.getBoundingClientRect(), scale = pad.width / width;
    stroke.push([scale * (event.clientX - left), scale * (event.clientY - top)]);
    if (!waiting) requestAnimationFrame(() => { waiting = false; update(); });
    waiting = true;
  }

  pad.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button) return;  // a second finger, a right click
    pad.setPointerCapture(event.pointerId);
    stroke = [];
    [strokes, example] = [[...strokes, stroke], null];
    lineTo(event);
  });
  pad.addEventListener("pointermove", (event) => {
    if (!pad.hasPointerCapture(event.pointerId)) return;
    const points = event.getCoalescedEvents?.() ?? [];  // none in some browsers
    (points.length ? points : [event]).forEach(lineTo);
  });
  $("undo").addEventListener("click", () => put(strokes.slice(0, -1)));
  $("clear").addEventListener("click", () => put([]));
  return (x, canvas) => put([], { x, canvas });
}

function inkOf(context) {
  const { width, height } = context.canvas, { data } = context.getImageData(0, 0, width, height);
  return new Float32Array(width * height).map((_, i) => data[4 * i + 3] / 255);
}

function drawStroke(context, stroke) {
  context.beginPath();
  context.moveTo(...stroke[0]);
  stroke.forEach((point) => context.lineTo(...point));
  context.stroke();
}

// Ten test images to choose from, then ten others; a first one is chosen.
function startExamples({ examples }, choose) {
  let round = 0;
  const pixels = (digit) => examples[10 * round + digit], label = (digit) => `A test image of ${some(digit)}`;
  const buttons = DIGITS.map((digit) => add($("examples"), `<button>${picture(label(digit))}</button>`));
  const canvases = buttons.map((button) => button.firstElementChild);
  const showAll = () => canvases.forEach((canvas, digit) => show(canvas, pixels(digit)));
  buttons.forEach((button, digit) => button.addEventListener("click", () => choose(pixels(digit), canvases[digit])));
  $("others").addEventListener("click", () => { round = (round + 1) % (examples.length / 10); showAll(); });
  showAll();
  buttons[4].click();
}

function startDrawing(models, images) {
  const readers = Object.entries(models).map(([name, m2]) => addReader(name, m2)), writeNumber = startNumber();
  const choose = startPad((x) => {
    show($("prepared"), x ?? new Float32Array(784));
    document.body.classList.toggle("empty", !x);
    if (x) timed("a drawing read twice in", () => readers.forEach((read) => read(x)));
    else document.querySelectorAll(".answer").forEach((answer) => (answer.textContent = EMPTY));
    writeNumber();
  });
  startExamples(images, choose);
}

// 2. Write a number, in the digits that the first network shows.

const PIXEL = 8, ADVANCE = 20; // of the picture for each of the digit's; of these from one digit to the next

// Returns the function that writes it again.
function startNumber() {
  const input = $("digits"), canvas = $("number"), context = canvas.getContext("2d");
  function write() {
    const styles = $("m2-100-styles").querySelectorAll("canvas");
    input.value = input.value.replace(/\D/g, "");
    canvas.width = PIXEL * (28 - ADVANCE + ADVANCE * input.value.length); // which clears it
    canvas.height = PIXEL * 28;
    canvas.ariaLabel = `${input.value || "Nothing"} in your style`;
    [...input.value].forEach((digit, i) => {
      context.drawImage(styles[digit], PIXEL * ADVANCE * i, 0, PIXEL * 28, PIXEL * 28);
    });
    $("save").disabled = !input.value;
  }
  input.addEventListener("input", write);
  $("save").addEventListener("click", () => save(canvas, `${input.value}.png`));
  return write;
}

// Saves what is on a canvas as a picture on white.
function save(canvas, name) {
  const sheet = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const context = sheet.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, sheet.width, sheet.height);
  context.drawImage(canvas, 0, 0);
  Object.assign(document.createElement("a"), { href: sheet.toDataURL(), download: name }).click();
}

// 3. A plane of digits.

const PLANE_LIMIT = 4;

function startPlane(m1, images) {
  const draw = () => drawCodes($("codes"), images);
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addPlane($("plane"), PLANE_LIMIT, (z) => {
    show($("decoded"), timed("a digit decoded in", () => decoder(m1, z).mean));
    $("plane-z").textContent = `${point(z)}\nThe nearest test image is ${some(nearestLabel(images, z))}.`;
  })(...images.names[0]);
}

function nearestLabel({ codes, labels }, z) {
  const distances = Array.from(labels, (_, i) => (codes[2 * i] - z[0]) ** 2 + (codes[2 * i + 1] - z[1]) ** 2);
  return labels[distances.indexOf(Math.min(...distances))];
}

function drawCodes(canvas, { codes, labels, names }) {
  const context = canvas.getContext("2d"), size = canvas.width;
  const { color: ink, backgroundColor: paper } = getComputedStyle(document.body);
  const place = (z1, z2) => [size * (0.5 + z1 / 2 / PLANE_LIMIT), size * (0.5 - z2 / 2 / PLANE_LIMIT)];
  context.clearRect(0, 0, size, size);
  Object.assign(context, { textAlign: "center", textBaseline: "middle", lineJoin: "round", lineWidth: size / 90 });
  context.font = `${size / 52}px system-ui, sans-serif`;
  labels.forEach((label, i) => {
    context.fillStyle = `color-mix(in srgb, ${COLORS[label]} 75%, ${ink})`; // easier to read, on light and on dark
    context.fillText(label, ...place(codes[2 * i], codes[2 * i + 1]));
  });
  Object.assign(context, { font: `bold ${size / 16}px system-ui, sans-serif`, fillStyle: ink, strokeStyle: paper });
  names.forEach((name, digit) => {
    context.strokeText(digit, ...place(...name));
    context.fillText(digit, ...place(...name));
  });
}

// 4. A plane of styles.

function startStyles(flat) {
  const showDigits = addPictures($("flat"), "the style z");
  addPlane($("style-plane"), 3, (z) => {
    showDigits(DIGITS.map((y) => decoder(flat, z, y).mean));
    $("style-z").textContent = point(z);
  })(0, 0);
}

// From the data to the page. What cannot be done is said.

function say(sentence) {
  $("notice").textContent = sentence;
  document.querySelector("main").hidden = true;
}

async function start() {
  const other = "open it in a current Firefox, Chrome, Edge or Safari.";
  if (!window.CanvasRenderingContext2D) return say(`This browser has no canvas, on which this page draws: ${other}`);
  if (!window.DecompressionStream) return say(`This browser cannot unpack the models in this page: ${other}`);
  try {
    const images = await loadImages();
    startDrawing({ "m2-100": await loadModel("m2-100"), "m2-naive": await loadModel("m2-naive") }, images);
    tell("first answer after", performance.now());
    startPlane(await loadModel("m1-2d"), images);
    startStyles(await loadModel("m2-2d"));
    $("notice").remove();
  } catch (error) {
    say("This file is damaged: fetch it again.");
    throw error;
  }
}

document.addEventListener("DOMContentLoaded", start);
