// The page: a conversation whose answers show how speculation made them.

import * as cycles from "./cycles.js";
import * as settings from "./settings.js";
import { Refused, events, get, useKey } from "./stream.js";

const at = (id) => document.getElementById(id);
const TRACE = "/eagle/trace";
const messages = [];
let running = null; // what aborts the answer under way

function made(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

function complain(error) {
  at("problem").textContent = error ? error.message : "";
  at("problem").hidden = !error;
  if (error?.status === 401) {
    at("key-form").hidden = false;
    at("options").open = true;
    at("key").focus();
  }
}

// Adds to the conversation, and goes on showing its end if that is what was shown.
function append(parent, ...children) {
  const log = at("log");
  const end = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  parent.append(...children);
  if (end) log.scrollTop = log.scrollHeight;
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("log").setAttribute("aria-busy", is);
  at("clear").disabled = is;
}

const figure = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function showFigures(eagle, plain) {
  at("tau").textContent = figure(eagle?.tau, 2);
  at("rate").textContent = figure(eagle?.tokens_per_second, 1);
  at("plain-rate").textContent = figure(plain?.tokens_per_second, 1);
  const both = eagle && plain;
  at("ratio").textContent = both ? figure(eagle.tokens_per_second / plain.tokens_per_second, 2) : "–";
  at("ratio-what").textContent = both ? "as plain" : "needs plain";
}

function turn(role) {
  at("empty").hidden = true;
  const article = made("article", role);
  append(at("log"), article);
  append(article, made("h2", "unseen", role === "user" ? "You" : "Answer"));
  return article;
}

async function connect() {
  try {
    const info = await get("/eagle/info");
    at("model").textContent = info.model;
    at("lossless").textContent = info.lossless ? "lossless" : "not lossless";
    at("lossless").hidden = false;
    at("key-form").hidden = true;
    settings.offer(info);
    complain(null);
    at("prompt").focus();
  } catch (error) {
    at("model").textContent = error.status === 401 ? "asks for a key" : "not connected";
    complain(error);
  }
}

// Streams one answer into an element; returns its text, and the `end` event unless it was stopped.
async function stream(path, body, text, signal, told) {
  const answer = { text: "", end: null, tokens: [] };
  try {
    for await (const event of events(path, body, signal)) {
      if (event.type === "start" && path === TRACE) at("lossless").textContent = event.lossless ? "lossless" : "not lossless";
      if (event.type === "end") answer.end = event;
      if (event.type !== "cycle") continue;
      answer.tokens.push(...event.tokens);
      for (const piece of event.pieces) {
        answer.text += piece.text;
        const token = made("span", `token ${piece.origin}`, piece.text);
        token.dataset.cycle = event.cycle;
        append(text, token);
      }
      told(event);
    }
  } catch (error) {
    if (error.name !== "AbortError") throw Object.assign(error, { answer });
  }
  return answer;
}

async function ask(prompt) {
  const wanted = settings.read();
  complain(null);
  messages.push({ role: "user", content: prompt });
  append(turn("user"), made("p", "text", prompt));
  const article = turn("assistant");
  const text = made("p", "text");
  append(article, text);
  const list = [];
  article.addEventListener("click", (event) => {
    const token = event.target.closest(".answer .token");
    if (token) cycles.select(list, Number(token.dataset.cycle));
  });
  text.classList.add("answer");
  owners.set(list, article);
  cycles.begin(list);
  showFigures(null, null);
  at("same").hidden = true;
  at("status").textContent = "answering";
  running = new AbortController();
  busy(true);
  const asked = [...messages];
  let latest = null;
  try {
    const answer = await stream(TRACE, settings.body(asked, wanted), text, running.signal, (event) => {
      latest = event;
      cycles.add(list, event);
      showFigures(event, null);
    });
    messages.push({ role: "assistant", content: answer.text });
    append(article, made("p", "said", summary(answer, latest)));
    at("status").textContent = summary(answer, latest);
    if (answer.end && settings.compares()) await compare(article, asked, wanted, answer);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    failed(error, prompt, article);
  } finally {
    running = null;
    busy(false);
  }
}

// An answer that broke off is not part of the conversation, and its question can be sent again.
function failed(error, prompt, article) {
  complain(error);
  at("status").textContent = "";
  if (messages.at(-1).role === "assistant") return; // it was plain decoding that failed
  messages.pop();
  article.previousElementSibling.classList.add("failed");
  if (error.answer?.text) article.classList.add("failed");
  else {
    article.previousElementSibling.remove();
    article.remove();
  }
  if (!at("prompt").value) at("prompt").value = prompt;
}

function summary(answer, latest) {
  const { end } = answer;
  const last = end ?? latest;
  if (!last) return "stopped";
  const number = end ? end.cycles : latest.cycle;
  const parts = [
    `${answer.tokens.length} tokens in ${number} cycles`,
    `tau ${figure(last.tau, 2)}`,
    `${figure(last.tokens_per_second, 1)} tokens/s`,
  ];
  if (!end) parts.push("stopped");
  else {
    if (end.finish_reason === "length") parts.push("at its longest");
    parts.push(`seed ${end.seed}`);
  }
  return parts.join(" · ");
}

async function compare(article, asked, wanted, eagle) {
  const details = made("details", "plain");
  const title = made("summary", "", "plain decoding …");
  const text = made("p", "text");
  append(article, details);
  details.append(title, text);
  at("status").textContent = "decoding plainly";
  // The same draw, where one is drawn; which tokens it gives differs, their distribution does not.
  const body = settings.body(asked, { ...plainly(wanted), seed: eagle.end.seed });
  let latest = null;
  const plain = await stream("/eagle/plain", body, text, running.signal, (event) => {
    latest = event;
    showFigures(eagle.end, event);
    title.textContent = `plain decoding: ${figure(event.tokens_per_second, 1)} tokens/s`;
  });
  const stopped = plain.end ? "" : " · stopped";
  title.textContent = `plain decoding: ${plain.tokens.length} tokens · ${figure(latest?.tokens_per_second, 1)} tokens/s${stopped}`;
  at("same").textContent = plain.end ? likeness(eagle, plain, wanted.fields.temperature ?? 1) : "Plain decoding was stopped.";
  at("same").hidden = false;
  at("status").textContent = at("same").textContent;
}

// Without what only drafting has.
function plainly({ fields }) {
  const { spec, tree, acceptance, ...rest } = fields;
  return { fields: rest };
}

function likeness(eagle, plain, temperature) {
  if (temperature > 0) return "Above temperature 0 both draw from one distribution, so the texts may differ.";
  const differs = eagle.tokens.findIndex((token, place) => token !== plain.tokens[place]);
  if (differs < 0 && eagle.tokens.length === plain.tokens.length) return "Both gave the same tokens, one by one.";
  return `The texts part at token ${(differs < 0 ? eagle.tokens.length : differs) + 1}, where rounding may decide between two tokens.`;
}

const owners = new WeakMap(); // the answer that a list of cycles is of

function mark(list, number) {
  for (const token of document.querySelectorAll(".token.shown")) token.classList.remove("shown");
  const own = list && owners.get(list)?.querySelectorAll(`.answer .token[data-cycle="${number}"]`);
  for (const token of own ?? []) token.classList.add("shown");
}

function stop() {
  running?.abort();
}

async function submit() {
  const prompt = at("prompt").value.trim();
  if (running || !prompt) return;
  try {
    settings.read(); // before the question leaves its field
  } catch (error) {
    if (!(error instanceof settings.Mistake)) throw error;
    complain(error);
    at("options").open = true;
    error.field.focus();
    return;
  }
  at("prompt").value = "";
  await ask(prompt);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
at("prompt").addEventListener("keydown", (event) => {
  // While a word is composed, Enter is the input method's.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("stop").addEventListener("click", () => {
  stop();
  at("prompt").focus();
});
at("clear").addEventListener("click", () => {
  messages.length = 0;
  for (const article of at("log").querySelectorAll("article")) article.remove();
  at("empty").hidden = false;
  at("same").hidden = true;
  cycles.begin([]);
  showFigures(null, null);
  complain(null);
  at("prompt").focus();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value.trim());
  connect();
});
if (matchMedia("(max-width: 1099px)").matches) at("options").open = false;
settings.watch();
cycles.watch(mark);
cycles.begin([]);
connect();
