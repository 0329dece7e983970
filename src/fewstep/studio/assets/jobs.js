// The strip of jobs, on every tab. The server owns them: this asks now and then, seldom when the page is hidden.
const box = element.querySelector("#jobs"), words = JSON.parse(box.dataset.words);
const BUSY = 1000, IDLE = 5000, HIDDEN = 30000, FLEETING = 900;
const KEY = "fewstep-jobs-hidden", JOBS = "/api/v1/jobs";
const rows = new Map(); // by id: its elements, and where it was when it was first seen
let timer, busy = false;

const say = (name, fields = {}) => words[name].replace(/\{(\w+)\}/g, (_, field) => fields[field]);
const make = (tag, name, parent) => {
  const one = document.createElement(tag);
  one.className = name;
  parent.append(one);
  return one;
};
const put = (one, text) => { if (one.textContent !== text) one.textContent = text; };
const hidden = () => { try { return JSON.parse(localStorage.getItem(KEY)) || []; } catch { return []; } };
const clock = seconds => {
  const whole = Math.ceil(seconds), two = number => String(number).padStart(2, "0");
  if (whole < 60) return say("seconds", {n: whole});
  return `${Math.floor(whole / 3600) ? `${Math.floor(whole / 3600)}:` : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
};

const send = async (id, verb, row) => {
  for (const button of row.buttons) button.disabled = true;
  row.asked = verb;
  try {
    const answer = await fetch(`${JOBS}/${id}/${verb}`, {method: "POST"});
    if (!answer.ok) row.trouble = (await answer.json()).error.message;
  } catch { row.trouble = say("away"); }
  if (row.trouble) { row.asked = ""; for (const button of row.buttons) button.disabled = false; }
  soon(100);
};

const begin = job => {
  const line = make("li", "", box.firstElementChild);
  const row = {line, what: make("b", "", line), bar: make("progress", "", line), told: make("span", "", line),
    buttons: [], since: Date.now(), state: "", asked: "", trouble: ""};
  rows.set(job.id, row);
  return row;
};
const buttons = (job, row) => { // other ones in another state
  for (const button of row.buttons) button.remove();
  const offer = (name, act) => {
    const button = make("button", "", row.line);
    button.type = "button";
    button.dataset.job = name;
    button.textContent = say(name);
    button.setAttribute("aria-label", `${say(name)}: ${row.what.textContent}`);
    button.addEventListener("click", act);
    return button;
  };
  row.buttons = job.state === "cut_off"
    ? [offer("again", () => send(job.id, "requeue", row)), offer("hide", () => {
      localStorage.setItem(KEY, JSON.stringify([...hidden(), job.id].slice(-200)));
      soon(0);
    })]
    : [offer("cancel", () => send(job.id, "cancel", row))];
};
const told = (job, row) => {
  if (row.trouble) return row.trouble;
  if (row.asked === "cancel") return say("stopping");
  if (job.state === "cut_off") return say("cut_off");
  if (job.state === "queued") return job.position ? say("queued", {n: job.position}) : say("waits");
  const now = job.progress;
  if (!now || !now.total) return say("starts");
  const drawing = job.kind === "generate", unit = drawing ? "step" : "counted";
  // Long work spends its first seconds on other things: its pace is what was seen of it since.
  if (row.from === undefined || now.total !== row.total || now.step < row.from)
    Object.assign(row, {from: now.step, total: now.total, at: now.seconds});
  const done = drawing ? now.step : now.step - row.from, took = drawing ? now.seconds : now.seconds - row.at;
  const parts = [say(unit, {step: now.step, total: now.total})];
  if (done > 0 && took > 0) {
    const each = took / done;
    parts.push(each < 0.1 ? say("rate", {n: (1 / each).toFixed(0)}) : say("each", {n: each.toFixed(each < 10 ? 1 : 0)}));
    parts.push(say("left", {time: clock((now.total - now.step) * each)}));
  }
  return parts.join(" · ");
};
const show = jobs => {
  const away = new Set(hidden()), open = new Set();
  let shown = 0;
  for (const job of [...jobs].reverse()) {
    if (job.state === "cut_off" && away.has(job.id)) continue;
    open.add(job.id);
    const row = rows.get(job.id) || begin(job);
    if (row.state !== job.state) {
      Object.assign(row, {state: job.state, asked: "", trouble: "", from: undefined});
      put(row.what, `${words[`kind_${job.kind}`] || job.kind} ${job.title}`);
      buttons(job, row);
      row.line.dataset.id = job.id;
      row.line.dataset.state = job.state;
      row.bar.setAttribute("aria-label", row.what.textContent);
    }
    const now = job.state === "running" && job.progress;
    row.bar.hidden = job.state !== "running";
    if (now && now.total) { row.bar.max = now.total; row.bar.value = now.step; } else row.bar.removeAttribute("value");
    put(row.told, told(job, row));
    row.line.hidden = job.kind === "generate" && job.state !== "cut_off" && Date.now() - row.since < FLEETING;
    if (!row.line.hidden) shown += 1;
  }
  for (const [id, row] of rows) if (!open.has(id)) { row.line.remove(); rows.delete(id); }
  box.hidden = !shown;
  busy = jobs.some(job => job.state !== "cut_off");
};
const look = async () => {
  if (!box.isConnected) return;
  try {
    const answer = await fetch(`${JOBS}?state=queued&state=running&state=cut_off&limit=20`);
    if (answer.ok) show((await answer.json()).jobs);
    // A server that was started again knows nothing of this page: what is pressed would wait for ever.
    const {app_id} = await (await fetch("gradio_api/app_id")).json();
    if (app_id !== window.gradio_config.app_id) return location.reload(); // the form survives it
  } catch { /* the server is away; its next answer tells */ }
  soon(document.hidden ? HIDDEN : busy ? BUSY : IDLE);
};
const soon = wait => { clearTimeout(timer); timer = setTimeout(look, wait); };

document.addEventListener("visibilitychange", () => document.hidden || soon(0));
// Whoever presses something may have started a job.
document.addEventListener("click", () => busy || soon(400));
look();
