"use strict";

const REFRESH_MS = 1000;
const KEPT = 11; // figures of the last ten seconds, for the rates
const byId = (id) => document.getElementById(id);
const known = (value, text) => (value === null || value === undefined ? "unknown" : text(value));
const fixed = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });
const history = [];
let asked = 0;

function element(tag, text) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return made;
}

function showAnswer(answer) {
  byId("problem").hidden = true;
  byId("intent").textContent = answer.intent;
  const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]).map(([intent, probability]) => {
    const row = element("tr");
    const name = element("th", intent);
    name.scope = "row";
    const bar = element("meter");
    bar.value = probability;
    bar.setAttribute("aria-label", intent);
    const cell = element("td");
    cell.append(bar);
    row.append(name, cell, element("td", `${fixed(probability * 100, 1)} %`));
    return row;
  });
  byId("probabilities").tBodies[0].replaceChildren(...rows);
  byId("probabilities").hidden = false;
}

function showProblem(message) {
  byId("intent").textContent = "";
  byId("probabilities").hidden = true;
  byId("problem").textContent = message;
  byId("problem").hidden = false;
}

async function ask(event) {
  event.preventDefault();
  const mine = ++asked; // an answer that comes after a newer question's is not shown
  const query = new URLSearchParams({ query: byId("query").value });
  try {
    const response = await fetch(`/predict?${query}`, { headers: { Accept: "application/json" } });
    const answer = await response.json();
    if (mine !== asked) return;
    if (response.ok) showAnswer(answer);
    else showProblem(answer.detail);
  } catch (error) {
    if (mine === asked) showProblem("The service does not answer.");
  }
}

function fillList(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => [element("dt", name), element("dd", value)]));
}

function showGpus(gpus) {
  const simulated = gpus.source === "simulated";
  byId("gpu-note").textContent = gpus.devices.length
    ? (simulated ? "Simulated: it follows the service's own CPU time." : "")
    : `No GPU can be read. ${gpus.why_empty}`;
  const blocks = gpus.devices.map((gpu) => {
    const block = element("div");
    const list = element("dl");
    const mebibytes = (bytes) => `${fixed(bytes / 2 ** 20, 0)} MiB`;
    fillList(list, [
      ["Duty cycle, last window", known(gpu.duty_cycle, (v) => `${fixed(v, 1)} %`)],
      ["Busy in all", known(gpu.busy_seconds, (v) => `${fixed(v, 1)} s`)],
      ["Memory", `${known(gpu.memory_used_bytes, mebibytes)} of ${known(gpu.memory_total_bytes, mebibytes)}`],
      ["Temperature", known(gpu.temperature_celsius, (v) => `${fixed(v, 0)} °C`)],
      ["Power", known(gpu.power_milliwatts, (v) => `${fixed(v / 1000, 0)} W`)],
      ["Age of the reading", known(gpu.sample_age_seconds, (v) => `${fixed(v, 1)} s`)],
    ]);
    block.append(element("h3", gpu.up ? gpu.name : `${gpu.name} (not readable now)`), list);
    return block;
  });
  byId("gpus").replaceChildren(...blocks);
}

function showRequests(now) {
  history.push({ at: performance.now() / 1000, ...now });
  if (history.length > KEPT) history.shift();
  const then = history[0];
  const seconds = history.at(-1).at - then.at;
  const ended = now.requests.ended - then.requests.ended;
  const batches = now.batches.ended - then.batches.ended;
  const mean = (sum, count, scale, unit) => (count > 0 ? `${fixed((sum / count) * scale, 1)}${unit}` : "–");
  fillList(byId("requests"), [
    ["In flight", known(now.requests.in_flight, (v) => fixed(v, 0))],
    ["Answered in all", fixed(now.requests.ended, 0)],
    ["Answered per second", seconds > 0 ? fixed(ended / seconds, 1) : "–"],
    ["Mean time", mean(now.requests.seconds - then.requests.seconds, ended, 1000, " ms")],
    ["Waiting for the model", known(now.batches.waiting, (v) => fixed(v, 0))],
    ["Mean batch", mean(now.batches.texts - then.batches.texts, batches, 1, " texts")],
    ["Mean time of a batch", mean(now.batches.seconds - then.batches.seconds, batches, 1000, " ms")],
  ]);
}

async function refresh() {
  try {
    const response = await fetch("/figures");
    const figures = await response.json();
    byId("model").textContent = figures.model ? `Model: ${figures.model}.` : `The service is ${figures.state}.`;
    showGpus(figures.gpus);
    showRequests(figures);
  } catch (error) {
    byId("model").textContent = "The service does not answer.";
  } finally {
    setTimeout(refresh, REFRESH_MS); // after the answer: a slow service is not asked ever more often
  }
}

byId("ask").addEventListener("submit", ask);
refresh();
