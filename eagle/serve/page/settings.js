// What is asked besides the words: reads the fields, says what is wrong with them in a sentence.

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens"];
const at = (id) => document.getElementById(id);

export class Mistake extends Error {
  constructor(message, field) {
    super(message);
    this.field = field;
  }
}

let known = null;

function option(value, text = value) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

const nameOf = (component) => (typeof component === "string" ? component : component.name);

function settingsOf(component) {
  if (typeof component === "string") return "";
  const pairs = Object.entries(component).filter(([key]) => key !== "name");
  return pairs.map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`).join(" ");
}

const chosen = () => (at("spec").value ? known.specs[at("spec").value] : known);

// Fills the lists with what the server has.
export function offer(info) {
  known = info;
  const others = Object.keys(info.specs).filter((name) => name !== info.spec);
  at("spec").replaceChildren(option("", `${info.spec}, as served`), ...others.map((name) => option(name)));
  at("tree").replaceChildren(option("", "the spec's"), ...info.trees.map((name) => option(name)));
  at("acceptance").replaceChildren(option("", "the spec's"), ...info.acceptances.map((name) => option(name)));
  tell();
}

function tell() {
  if (!known) return;
  const { tree, acceptance } = chosen();
  at("tree").options[0].textContent = `${nameOf(tree)}, as the spec`;
  at("acceptance").options[0].textContent = `${nameOf(acceptance)}, as the spec`;
  at("tree-settings").placeholder = at("tree").value ? "as it has them; key=value ..." : settingsOf(tree) || "none";
  const temperature = at("temperature").value || "1";
  at("summary").textContent = `T ${temperature} · ${at("tree").value || nameOf(tree)}`;
}

export function watch() {
  at("options").addEventListener("input", tell);
}

// Returns `key=value ...` as an object; what is no JSON is a word.
function parsed(text) {
  const found = {};
  for (const word of text.trim().split(/\s+(?![^[]*\])/).filter(Boolean)) {
    const [, key, value] = word.match(/^(\w+)=(.+)$/s) ?? [];
    if (!key) throw new Mistake(`Tree settings should be key=value, such as depth=3, not ${word}.`, at("tree-settings"));
    try {
      found[key] = JSON.parse(value);
    } catch {
      found[key] = value;
    }
  }
  return found;
}

// Returns the fields of a request, and the seed apart: as text, since it has up to 63 bits.
export function read() {
  const fields = {};
  for (const name of NUMBERS) {
    const field = at(name);
    if (!field.value && !field.validity.badInput) continue;
    if (!field.validity.valid) {
      const most = field.max ? `from ${field.min} to ${field.max}` : `a whole number from ${field.min} on`;
      throw new Mistake(`${field.parentElement.firstChild.textContent.trim()} should be ${most}.`, field);
    }
    fields[name] = field.valueAsNumber;
  }
  const seed = at("seed").value.trim();
  if (seed && !/^-?\d{1,19}$/.test(seed)) throw new Mistake("Seed should be a whole number.", at("seed"));
  if (at("spec").value) fields.spec = at("spec").value;
  const own = parsed(at("tree-settings").value);
  const name = at("tree").value;
  if (name) fields.tree = { name, ...own };
  else if (Object.keys(own).length) {
    const base = chosen().tree;
    fields.tree = { ...(typeof base === "string" ? { name: base } : base), ...own };
  }
  if (at("acceptance").value) fields.acceptance = at("acceptance").value;
  return { fields, seed: seed && String(BigInt(seed)) };
}

export const compares = () => at("compare").checked;

export function body(messages, { fields, seed }) {
  const text = JSON.stringify({ messages, ...fields });
  return seed ? `${text.slice(0, -1)},"seed":${seed}}` : text;
}
