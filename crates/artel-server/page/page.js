"use strict";

const byId = (id) => document.getElementById(id);
const key = () => byId("key").value.trim();
const headers = () => key() ? { authorization: `Bearer ${key()}` } : {};

/* Chat */

let messages = [];
let running = null;

function show(role, text) {
  const box = document.createElement("div");
  box.className = `message ${role}`;
  box.textContent = text;
  byId("messages").append(box);
  scroll();
  return box;
}

function scroll() {
  const log = byId("messages");
  log.scrollTop = log.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  byId("send").disabled = running !== null;
  byId("stop").disabled = running === null;
}

/* The data of each event of a response, as objects. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: "))
        .map((line) => line.slice(6)).join("\n");
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

function request() {
  const body = { model: "default", messages, stream: true, stream_options: { include_usage: true } };
  const temperature = byId("temperature").value;
  const tokens = byId("tokens").value;
  if (temperature !== "") body.temperature = Number(temperature);
  if (tokens !== "") body.max_completion_tokens = Number(tokens);
  return body;
}

async function answer() {
  const controller = new AbortController();
  setRunning(controller);
  const box = show("assistant", "");
  const thought = document.createElement("details");
  const summary = document.createElement("summary");
  const thoughtText = document.createElement("span");
  summary.textContent = "Thoughts";
  thought.append(summary, thoughtText);
  const said = document.createElement("span");
  const foot = document.createElement("footer");
  box.append(said, foot);
  const started = performance.now();
  let first = 0;
  let usage = null;
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...headers() },
      body: JSON.stringify(request()),
      signal: controller.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      const delta = chunk.choices?.[0]?.delta;
      if (!delta) continue;
      first ||= performance.now();
      if (delta.reasoning_content) {
        if (!thought.isConnected) box.prepend(thought);
        thoughtText.textContent += delta.reasoning_content;
      }
      said.textContent += delta.content ?? "";
      scroll();
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      show("error", error.message);
      if (!said.textContent) box.remove();
    } else {
      foot.textContent = "stopped";
    }
  }
  if (usage && first) {
    const seconds = Math.max((performance.now() - first) / 1000, 1e-3);
    const count = usage.completion_tokens;
    foot.textContent = `${count} tokens, ${(Math.max(count - 1, 0) / seconds).toFixed(0)}/s, ` +
      `first after ${(first - started).toFixed(0)} ms`;
  }
  if (said.textContent) messages.push({ role: "assistant", content: said.textContent });
  else messages.pop();
  setRunning(null);
  byId("text").focus();
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text || running) return;
  byId("text").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  answer();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("messages").replaceChildren();
  byId("text").focus();
});

/* Engine */

const SECONDS = 120;
const history = [];
let before = null;
let load = [];

/* Prometheus' text as [name without prefix, labels, value]. */
function samples(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^[a-z_0-9]+:([a-z_0-9]+)(?:\{(.*)\})? ([^ ]+)$/i.exec(line);
    if (!match || match[1].endsWith("_bucket")) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, "$1");
    }
    found.push([match[1], labels, Number(match[3])]);
  }
  return found;
}

function reading(text) {
  const now = { at: performance.now(), values: {}, layers: [], experts: [], ranks: [], path: "" };
  for (const [name, labels, value] of samples(text)) {
    if (name === "expert_tokens_total") {
      if (!now.layers.includes(labels.layer)) now.layers.push(labels.layer);
      (now.experts[now.layers.indexOf(labels.layer)] ??= [])[labels.expert] = value;
    } else if (name === "rank_load") {
      (now.ranks[now.layers.indexOf(labels.layer)] ??= [])[labels.rank] = value;
    } else if (name === "moe_path_info") {
      now.path = labels.path;
    } else {
      now.values[name] = (now.values[name] ?? 0) + value;
    }
  }
  return now;
}

function draw(canvas, paint) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  paint(context, width, height, scale);
}

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);

/* Lines over time; each its values, its largest value and its color. */
function lines(canvas, series, label) {
  draw(canvas, (context, width, height, scale) => {
    for (const { values, most, stroke } of series) {
      context.beginPath();
      context.strokeStyle = stroke;
      context.lineWidth = 1.5 * scale;
      values.forEach((value, index) => {
        const x = width * (SECONDS - values.length + index) / (SECONDS - 1);
        const y = height - 2 * scale - (height - 4 * scale) * value / Math.max(most, 1e-9);
        if (index) context.lineTo(x, y); else context.moveTo(x, y);
      });
      context.stroke();
    }
    context.fillStyle = color("--faint");
    context.font = `${11 * scale}px system-ui, sans-serif`;
    context.fillText(label, 4 * scale, 13 * scale);
  });
}

/* From the ground to the accent, by the share of the busiest expert or rank. */
function heat(canvas, load, noun, further) {
  const columns = Math.max(...load.map((layer) => layer.length));
  const most = Math.max(...load.flat(), 1e-9);
  draw(canvas, (context, width, height) => {
    context.fillStyle = color("--accent");
    load.forEach((layer, row) => layer.forEach((value, column) => {
      context.globalAlpha = value / most;
      const [left, right] = [column, column + 1].map((at) => Math.round(width * at / columns));
      const [top, bottom] = [row, row + 1].map((at) => Math.round(height * at / load.length));
      context.fillRect(left, top, Math.max(right - left - 1, 1), Math.max(bottom - top - 1, 1));
    }));
    context.globalAlpha = 1;
  });
  const worst = load.map((layer) => {
    const mean = layer.reduce((sum, value) => sum + value, 0) / layer.length;
    return mean > 0 ? Math.max(...layer) / mean : 0;
  });
  const layer = worst.indexOf(Math.max(...worst));
  const text = `${load.length} layers (rows) of ${columns} ${noun}s (columns). Most uneven is layer ` +
    `${before.layers[layer]}: its busiest ${noun} has ${worst[layer].toFixed(2)} times the mean load.${further}`;
  byId(`${noun}s-text`).textContent = text;
  canvas.setAttribute("aria-label", text);
}

/* What balancing has done; nothing where it is off. */
function balancing(values) {
  if (values.eplb_rebalances_total === undefined) return "";
  const moving = values.eplb_layers_to_move ? `, ${values.eplb_layers_to_move} layers to move` : "";
  const failed = values.eplb_failed_moves_total ? `, ${values.eplb_failed_moves_total} moves failed` : "";
  return ` Experts were placed anew ${values.eplb_rebalances_total} times: ` +
    `${values.eplb_moved_slots_total} slots changed${moving}${failed}.`;
}

function update(now) {
  const value = (name) => now.values[name] ?? 0;
  const seconds = before ? (now.at - before.at) / 1000 : 1;
  const made = before ? value("generation_tokens_total") - (before.values.generation_tokens_total ?? 0) : 0;
  const point = {
    rate: Math.max(made, 0) / seconds,
    running: value("num_requests_running"),
    waiting: value("num_requests_waiting"),
    cache: value("kv_cache_usage_perc"),
  };
  history.push(point);
  if (history.length > SECONDS) history.shift();
  /* What came lately counts more; a pause changes nothing. */
  const grown = now.experts.map((layer, row) =>
    layer.map((count, column) => count - (before?.experts[row]?.[column] ?? 0)));
  if (grown.flat().some((count) => count > 0)) {
    load = grown.map((layer, row) =>
      layer.map((count, column) => 0.8 * (load[row]?.[column] ?? 0) + Math.max(count, 0)));
  }
  before = now;
  const queried = value("prefix_cache_queries_total");
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  byId("n-rate").textContent = point.rate.toFixed(0);
  byId("n-running").textContent = point.running;
  byId("n-waiting").textContent = point.waiting;
  byId("n-cache").textContent = percent(point.cache);
  byId("n-hits").textContent = percent(queried ? value("prefix_cache_hits_total") / queried : 0);
  byId("n-active").textContent = value("last_step_active_experts").toFixed(1);
  byId("n-path").textContent = now.path || "none yet";
}

function paint() {
  const of = (name) => history.map((point) => point[name]);
  const rate = Math.max(...of("rate"), 1);
  lines(byId("rate"), [{ values: of("rate"), most: rate, stroke: color("--accent") }],
    `up to ${rate.toFixed(0)}`);
  const most = Math.max(...of("running"), ...of("waiting"), 1);
  lines(byId("queue"), [
    { values: of("cache"), most: 1, stroke: color("--line") },
    { values: of("running"), most, stroke: color("--accent") },
    { values: of("waiting"), most, stroke: color("--bad") },
  ], `up to ${most} requests`);
  if (load.length) heat(byId("experts"), load, "expert", "");
  const ranks = before?.ranks ?? [];
  byId("ranks-part").hidden = !ranks.length;
  if (ranks.length) heat(byId("ranks"), ranks, "rank", balancing(before.values));
}

async function poll() {
  try {
    const response = await fetch("metrics");
    update(reading(await response.text()));
    byId("state").textContent = "";
    if (!document.hidden) paint();
  } catch {
    byId("state").textContent = "The server does not answer.";
  }
  setTimeout(poll, 1000);
}

async function name() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    const models = await response.json();
    if (!response.ok) throw new Error("an API key is needed: see Settings");
    const { id, max_model_len: context } = models.data[0];
    byId("model").textContent = `${id}, ${context} tokens of context`;
  } catch (error) {
    byId("model").textContent = error.message;
  }
}

byId("key").addEventListener("change", name);
window.addEventListener("resize", paint);
name();
poll();
