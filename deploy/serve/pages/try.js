"use strict";
// Draw or choose an image, send it as the raw sample that the model's metadata states, show the answer.

const $ = (id) => document.getElementById(id);
const canvas = $("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const MOST_BARS = 10;
let key = "";
let model = null; // metadata, with width, height, channels and scale of its image
let chosen = null; // RGBA of an image file, as large as the model's input; null while drawing
let asked = 0;
let last = null; // where the pen is down

async function call(method, path, body) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const said = await answer.json();
  if (answer.status === 401) $("key-form").hidden = false;
  if (!answer.ok) throw new Error(said.error);
  return said;
}

const say = (text) => { $("note").textContent = text; };

const guarded = (work) => async (...given) => {
  try {
    await work(...given);
  } catch (error) {
    say(error.message);
  }
};

const start = guarded(async () => {
  const models = await call("POST", "/v2/repository/index", {});
  $("key-form").hidden = true;
  $("model").replaceChildren(...models.map(({ name, version }) => {
    const option = new Option(`${name} ${version}`);
    option.value = `/v2/models/${name}/versions/${version}`;
    return option;
  }));
  await open();
});

const open = guarded(async () => {
  const path = $("model").value;
  const about = await call("GET", path);
  const [input] = about.inputs;
  const [, height, width, channels = 1] = input.shape;
  const rank = input.shape.length;
  const isImage = input.datatype === "UINT8" && width
    && (rank === 3 || (rank === 4 && (channels === 1 || channels === 3)));
  $("stage").hidden = !isImage;
  model = null;
  if (!isImage) {
    say(`${about.name} takes ${input.datatype} samples of shape ${input.shape.slice(1).join(" × ")}, which no image is: ask it at ${path}/infer.`);
    return;
  }
  const scale = Math.max(1, Math.floor(280 / Math.max(width, height)));
  model = { ...about, path, input, width, height, channels, scale };
  canvas.width = width * scale;
  canvas.height = height * scale;
  clear();
});

function clear() {
  chosen = null;
  asked += 1; // an answer that is still on its way is to another image
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  $("file").value = "";
  $("label").textContent = "";
  $("bars").replaceChildren();
  say(`Draw ${model.width} × ${model.height} pixels, or choose an image.`);
}

function drawn() {
  // The mean of every square of the canvas that stands for one pixel.
  const { width, height, scale } = model;
  const from = pen.getImageData(0, 0, canvas.width, canvas.height).data;
  const sums = new Float64Array(width * height * 4);
  for (let y = 0; y < canvas.height; y += 1) {
    const row = Math.floor(y / scale) * width;
    for (let x = 0; x < canvas.width; x += 1) {
      const to = (row + Math.floor(x / scale)) * 4;
      for (let c = 0; c < 4; c += 1) sums[to + c] += from[(y * canvas.width + x) * 4 + c];
    }
  }
  return sums.map((sum) => Math.round(sum / (scale * scale)));
}

function sample() {
  const rgba = chosen ?? drawn();
  const flip = $("invert").checked ? (value) => 255 - value : (value) => value;
  const data = [];
  for (let at = 0; at < rgba.length; at += 4) {
    const [red, green, blue] = [rgba[at], rgba[at + 1], rgba[at + 2]];
    if (model.channels === 3) data.push(flip(red), flip(green), flip(blue));
    // ITU-R 601-2 in integers, to the last bit as Pillow makes grey of colour.
    else data.push(flip((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16));
  }
  return data;
}

const ask = guarded(async () => {
  if (!model) return;
  asked += 1;
  const turn = asked;
  const { name, datatype, shape } = model.input;
  const said = await call("POST", `${model.path}/infer`, {
    inputs: [{ name, datatype, shape: [1, ...shape.slice(1)], data: sample() }],
  });
  if (turn !== asked) return; // something newer was asked
  show(said.outputs);
});

function show(outputs) {
  const { labels, task, unit } = model.parameters;
  const data = Object.fromEntries(outputs.map((output) => [output.name, output.data]));
  const [first] = outputs;
  const rounded = (value) => String(Number(value.toPrecision(6)));
  switch (task) {
    case "classification":
      $("label").textContent = data.label[0];
      bars(data.probabilities);
      break;
    case "multi_label":
      $("label").textContent = labels.filter((_, index) => first.data[index] >= 0.5).join(", ") || "no label";
      bars(first.data);
      break;
    case "regression":
      $("label").textContent = first.data
        .map((value, index) => `${labels[index]} ${rounded(value)} ${unit}`.trim()).join(", ");
      break;
    default:
      $("label").textContent = `anomaly score ${rounded(first.data[0])}`;
  }
}

function bars(shares) {
  const order = shares.map((p, index) => [p, index]).sort((a, b) => b[0] - a[0]);
  $("bars").replaceChildren(...order.slice(0, MOST_BARS).map(([p, index]) => {
    const line = document.createElement("li");
    const [text, percent, bar] = ["span", "span", "meter"].map((tag) => document.createElement(tag));
    text.textContent = model.parameters.labels[index];
    percent.textContent = `${(100 * p).toFixed(1)} %`;
    bar.value = p;
    line.append(text, bar, percent);
    return line;
  }));
}

function at(event) {
  const box = canvas.getBoundingClientRect();
  return [
    (event.clientX - box.left) * canvas.width / box.width,
    (event.clientY - box.top) * canvas.height / box.height,
  ];
}

canvas.addEventListener("pointerdown", (event) => {
  if (chosen) clear();
  canvas.setPointerCapture(event.pointerId);
  last = at(event);
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => { if (last) stroke(event); });
canvas.addEventListener("pointerup", () => { if (last) { last = null; ask(); } });
canvas.addEventListener("pointercancel", () => { last = null; });

function stroke(event) {
  const to = at(event);
  pen.strokeStyle = "#fff";
  pen.lineWidth = Math.max(canvas.width / 14, 2 * model.scale); // two pixels of a digit of 28
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...to);
  pen.stroke();
  last = to;
}

$("file").addEventListener("change", guarded(async () => {
  const [file] = $("file").files;
  if (!file || !model) return;
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = model;
  const fits = image.width === width && image.height === height;
  const small = Object.assign(document.createElement("canvas"), { width, height });
  const brush = small.getContext("2d", { willReadFrequently: true });
  brush.imageSmoothingEnabled = !fits;
  brush.imageSmoothingQuality = "high";
  brush.drawImage(image, 0, 0, width, height);
  chosen = brush.getImageData(0, 0, width, height).data;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  say(fits ? "" : `Brought from ${image.width} × ${image.height} to ${width} × ${height} pixels here.`);
  await ask();
}));
$("clear").addEventListener("click", () => { if (model) clear(); });
$("invert").addEventListener("change", ask);
$("model").addEventListener("change", open);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  start();
});
start();
