"use strict";
// The page of the neural debugger. The state is the server's: each command answers with all of it.

const $ = (id) => document.getElementById(id);
const API = "debugger/api/sessions";
const KEYS = { s: "step", n: "next", o: "out", c: "continue", b: "back", r: "reset", t: "retry" };
const POLL_MS = 400; // while a command runs
const VERDICTS = { same: "✓ true", different: "✗ differs", unknown: "? not compared" };

let session = null; // its id
let state = null;
let selected = 0; // number of the frame that is shown
let busy = false;

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && name !== "role") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children); // strings become text, never markup
  return made;
}

async function call(path, body, method = body === undefined ? "GET" : "POST", options = {}) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const key = $("api-key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  let reply;
  try {
    reply = await fetch(API + path, { method, headers, body: body && JSON.stringify(body), ...options });
  } catch (error) {
    throw new Error(`The server cannot be reached (${error.message}).`);
  }
  if (reply.status === 204) return null;
  const text = await reply.text();
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    throw new Error(`The server answers ${reply.status}: ${text.slice(0, 200)}`);
  }
  if (!reply.ok) throw new Error(messageOf(answer, reply.status));
  return answer;
}

function messageOf(answer, status) {
  const said = answer.detail ?? answer.error?.message ?? answer.message ?? answer;
  if (status === 401) return "The server wants an API key: give it below the program.";
  if (Array.isArray(said)) return said.map((d) => `${(d.loc || []).slice(1).join(".")}: ${d.msg}`).join("\n");
  return typeof said === "string" ? said : JSON.stringify(said);
}

function say(problem) {
  $("problem").textContent = problem || "";
}

// One thing at a time; meanwhile the frames that have come are shown.
async function work(action) {
  if (busy) return;
  setBusy(true);
  say("");
  const polled = session;
  const timer = setInterval(async () => {
    if (!polled || !busy) return;
    try {
      const now = await call(`/${polled}`);
      if (busy && session === polled) {
        $("status").textContent = `Predicting … ${now.frames.length} frames`;
      }
    } catch { /* the command itself says what is wrong */ }
  }, POLL_MS);
  try {
    await action();
  } catch (error) {
    say(error.message);
  } finally {
    clearInterval(timer);
    setBusy(false);
  }
}

function setBusy(value) {
  busy = value;
  document.body.setAttribute("aria-busy", String(value));
  for (const button of document.querySelectorAll("#toolbar [data-command], #compare, #start")) {
    button.setAttribute("aria-disabled", String(value)); // disabled ones would lose the focus
  }
  $("interrupt").disabled = !value;
}

const run = (command, fields = {}) => work(async () => {
  if (!session) return;
  take(await call(`/${session}/commands`, { command, ...fields }));
});

function take(answer) {
  if (answer.id) session = answer.id;
  state = answer;
  selected = Math.max(0, state.frames.length - 1);
  say(state.error);
  show();
}

function start(event) {
  event.preventDefault();
  work(async () => {
    const seed = $("seed").value.trim();
    const old = session;
    const answer = await call("", {
      source: $("source").value,
      call: $("call").value.trim() || null,
      temperature: Number($("temperature").value),
      top_p: Number($("top-p").value),
      seed: seed === "" ? null : Number(seed),
      constrain: $("constrain").checked,
      compare: $("compare-first").checked,
    });
    if (old) call(`/${old}`, undefined, "DELETE").catch(() => {});
    take(answer);
    editProgram(false);
    document.querySelector('[data-command="step"]').focus();
  });
}

function editProgram(open) {
  $("program").hidden = !open;
  $("session").hidden = open;
  $("edit-program").hidden = open;
  if (open) $("source").focus();
}

// What is shown --------------------------------------------------------------------------------

function show() {
  showCode();
  showLocals();
  showStack();
  showTimeline();
  showStatus();
}

function showStatus() {
  const parts = [];
  if (state.why === "breakpoint") parts.push("Breakpoint.");
  if (state.why === "limit") parts.push("Many frames were predicted; Continue goes on.");
  if (state.why === "interrupted") parts.push("Interrupted.");
  if (state.finished) parts.push("The trace is at its end: the entry has returned.");
  for (const note of state.notes) parts.push(note[0].toUpperCase() + note.slice(1) + ".");
  const frame = state.frames[selected];
  if (frame && !parts.length) parts.push(described(frame));
  if (frame) for (const problem of frame.problems) parts.push(`Problem: ${problem}.`);
  $("status").textContent = parts.join(" ");
  $("compare").setAttribute("aria-pressed", String(state.comparing));
}

function showCode() {
  const frame = state.frames[selected];
  const here = frame ? frame.lines : [];
  const points = new Map(state.breakpoints.map((point) => [point.line, point]));
  const focused = document.activeElement?.dataset?.line;
  $("code").replaceChildren(...state.lines.map((text, index) => {
    const line = index + 1;
    const isHere = here.includes(line);
    const isMaybe = isHere && here.length > 1;
    const gutter = element("button", {
      type: "button", className: "gutter", "aria-pressed": String(points.has(line)),
      "aria-label": `Breakpoint at line ${line}`,
      title: points.get(line)?.condition ? `if ${points.get(line).condition}` : "", textContent: line,
    });
    gutter.dataset.line = line;
    gutter.addEventListener("click", () => run(points.has(line) ? "clear" : "break", { line }));
    const row = element("li", { className: isMaybe ? "maybe" : isHere ? "here" : "" }, gutter,
      element("span", { className: "arrow", textContent: isMaybe ? "?" : isHere ? "➜" : "" }),
      element("span", { className: "text", textContent: text }));
    if (line === state.marked) row.append(element("span", { className: "tag note", textContent: "entry" }));
    if (isHere) row.setAttribute("aria-current", "true");
    return row;
  }));
  if (focused) document.querySelector(`.gutter[data-line="${focused}"]`)?.focus();
  document.querySelector("#code .here")?.scrollIntoView({ block: "nearest" });
}

function showLocals() {
  const frame = state.frames[selected];
  if (!frame || !frame.locals.length && !frame.compared?.wrong_locals.length) {
    $("locals").replaceChildren(element("p", { className: "hint", textContent: "No locals." }), ...newVariable(frame));
    return;
  }
  const rows = frame.locals.map((local) => localRow(frame, local));
  const compared = frame.compared;
  const shown = new Set(frame.locals.map((local) => local.name));
  for (const name of compared?.wrong_locals ?? []) {
    if (!shown.has(name)) rows.push(element("tr", {}, element("th", { scope: "row", textContent: name }),
      element("td", { textContent: "(unbound)" }), element("td", {}, comparedTag(frame, name))));
  }
  $("locals").replaceChildren(element("table", {}, element("tbody", {}, ...rows)), ...newVariable(frame));
}

const isEditable = (frame) => frame && selected === state.frames.length - 1 && frame.shows_locals;

function localRow(frame, local) {
  let value = element("span", { textContent: local.unresolved ? "? (no frame says)" : local.value });
  if (isEditable(frame)) {
    value = element("input", { value: local.value, "aria-label": `Value of ${local.name}`, spellcheck: false });
    value.dataset.name = local.name;
    value.addEventListener("keydown", (event) => {
      if (event.key === "Enter") run("set", { name: local.name, value: value.value }).then(() => refocus(local.name));
      if (event.key === "Escape") { value.value = local.value; $("timeline").focus(); }
    });
  }
  const tags = element("td");
  if (local.changed) tags.append(element("span", { className: "tag changed", textContent: "changed" }), " ");
  if (frame.compared) tags.append(comparedTag(frame, local.name));
  return element("tr", { className: local.changed ? "changed" : "" },
    element("th", { scope: "row", textContent: local.name }), element("td", {}, value), tags);
}

function refocus(name) {
  [...document.querySelectorAll("#locals input")].find((input) => input.dataset.name === name)?.focus();
}

function newVariable(frame) {
  if (!isEditable(frame)) return [];
  const input = element("input", { placeholder: "new = value", "aria-label": "New variable, as name = value", spellcheck: false });
  input.addEventListener("keydown", (event) => {
    const at = input.value.indexOf("=");
    if (event.key !== "Enter") return;
    if (at < 1) say("Expected name = value.");
    else run("set", { name: input.value.slice(0, at).trim(), value: input.value.slice(at + 1) });
  });
  return [input];
}

function comparedTag(frame, name) {
  const compared = frame.compared;
  if (!frame.shows_locals || compared.verdict === "unknown") return element("span", { className: "tag unknown", textContent: "" });
  if (!compared.wrong_locals.includes(name)) {
    const hasTrue = compared.true && name in compared.true.locals;
    return element("span", { className: `tag ${hasTrue ? "same" : "unknown"}`, textContent: hasTrue ? "✓ true" : "" });
  }
  const truth = compared.true.locals[name];
  return element("span", { className: "tag different", textContent: `✗ truly ${truth ?? "unbound"}` });
}

function showStack() {
  const frame = state.frames[selected];
  $("stack").replaceChildren(...[...(frame?.stack ?? [])].reverse().map((scope) => element("li", {},
    `${scope.name}() line ${lineText(scope.lines)} `, element("span", { className: "source", textContent: scope.source }))));
}

function showTimeline() {
  const frames = state.frames;
  $("timeline").replaceChildren(...frames.map((frame, number) => {
    const verdict = frame.compared?.verdict;
    const tags = element("span", { className: "tags" });
    if (frame.origin === "edited") tags.append(element("span", { className: "tag changed", textContent: "edited" }));
    if (frame.forced === "return") tags.append(element("span", { className: "tag note", textContent: "stepped over" }));
    if (frame.problems.length) tags.append(element("span", { className: "tag problem", textContent: "⚠ problem", title: frame.problems.join("\n") }));
    if (verdict) {
      const first = frame.compared.is_first ? " (first)" : "";
      tags.append(element("span", { className: `tag ${verdict}`, textContent: VERDICTS[verdict] + first, title: frame.compared.why_unknown || truthOf(frame.compared) }));
    }
    const source = element("span", { className: "source" }, "  ".repeat(Math.max(0, frame.depth - 1)) + frame.source);
    if (frame.value !== null) source.append("  ", element("span", { className: "value", textContent: `→ ${frame.value}` }));
    const changed = frame.shows_locals ? frame.locals.filter((local) => local.changed) : [];
    for (const local of changed) {
      source.append("  ", element("span", { className: "value", textContent: `${local.name}=${local.unresolved ? "?" : local.value}` }));
    }
    if (verdict === "different") source.append("  ", element("span", { className: "truth", textContent: difference(frame.compared) }));
    const row = element("li", { id: `frame-${number}`, role: "option", className: verdict ?? "", "aria-selected": String(number === selected) },
      element("span", { className: "number", textContent: number }), element("span", { textContent: frame.event }),
      element("span", { className: "line", textContent: lineText(frame.lines) }), source, tags);
    row.addEventListener("click", () => select(number));
    return row;
  }));
  $("timeline").setAttribute("aria-activedescendant", frames.length ? `frame-${selected}` : "");
  const row = $(`frame-${selected}`);
  if (row) $("timeline").scrollTop = Math.max(0, row.offsetTop - $("timeline").offsetTop - $("timeline").clientHeight / 2);
  const isPast = selected < frames.length - 1;
  $("past").hidden = !isPast;
  $("past-text").textContent = `Frame ${selected} of ${frames.length - 1}.`;
  $("summary").textContent = summary();
}

// Of the real run, what differs: "truly m=6", or the whole frame.
function difference(compared) {
  if (!compared.true) return "";
  if (compared.wrong.some((part) => part !== "locals")) return truthOf(compared);
  return `truly ${compared.wrong_locals.map((name) => `${name}=${compared.true.locals[name] ?? "(unbound)"}`).join("  ")}`;
}

function truthOf(compared) {
  const truth = compared.true;
  return truth ? `truly ${truth.event}, line ${truth.line}: ${truth.source}${truth.value === null ? "" : ` → ${truth.value}`}` : "";
}

function summary() {
  if (!state.comparing) return `${state.frames.length} frames.`;
  const same = state.frames.filter((frame) => frame.compared.verdict === "same").length;
  if (state.first_difference === null) return `${same} of ${state.frames.length} frames are those of the real run; none differs.`;
  const first = state.frames[state.first_difference];
  return `${same} of ${state.frames.length} frames are those of the real run. First difference at frame ${state.first_difference} (${first.compared.wrong.join(", ")}): ${difference(first.compared)}.`;
}

function described(frame) {
  const place = `line ${lineText(frame.lines)}: ${frame.source}`;
  if (frame.event === "line") return `About to run ${place}`;
  if (frame.event === "call") return `Called: ${frame.stack.at(-1).name}(), ${place}`;
  return `${frame.event === "return" ? "Returns" : "Raised"} ${frame.value} at ${place}`;
}

const lineText = (lines) => (lines.length ? lines.join("|") + (lines.length > 1 ? "?" : "") : "?");

function select(number) {
  if (!state || number < 0 || number >= state.frames.length) return;
  selected = number;
  state.notes = [];
  state.why = null;
  show();
}

// Input ----------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if ($("session").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, textarea, select")) return;
  if (event.key in KEYS) {
    event.preventDefault();
    run(KEYS[event.key]);
  } else if (["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"].includes(event.key)) {
    event.preventDefault();
    select(selected + (event.key === "ArrowUp" || event.key === "ArrowLeft" ? -1 : 1));
  } else if (event.key === "Home" || event.key === "End") {
    event.preventDefault();
    select(event.key === "Home" ? 0 : state.frames.length - 1);
  }
});
for (const button of document.querySelectorAll("[data-command]")) {
  button.addEventListener("click", () => run(button.dataset.command));
}
$("program").addEventListener("submit", start);
$("edit-program").addEventListener("click", () => editProgram(true));
$("compare").addEventListener("click", () => run("compare", { on: !state.comparing }));
$("interrupt").addEventListener("click", () => call(`/${session}/interrupt`, {}).catch((error) => say(error.message)));
window.addEventListener("pagehide", () => { // nobody sees what a command still predicts
  if (session && busy) call(`/${session}/interrupt`, {}, "POST", { keepalive: true }).catch(() => {});
});
$("rewind").addEventListener("click", () => run("rewind", { frame: selected }));
$("latest").addEventListener("click", () => select(state.frames.length - 1));
