// Pictures while somebody types, over /api/v1/live (docs/reference/live.md), kept, scrubbed and compared.
// props.value is what the form says: {order, wrap, shown}. Texts are set as text, never as markup.
window.fewstep?.close();
const part = Object.fromEntries(
  [...element.querySelectorAll("[data-part]")].map(one => [one.dataset.part, one]));
const say = (name, fields = {}) => (props.words[name] ?? name).replace(/\{(\w+)\}/g, (whole, field) => fields[field] ?? whole);
const MOST = 48; // frames that the strip keeps
const PATIENT = 250; // ms; a shorter press of C opens the comparison instead of peeking
const FACTS = "prompt negative_prompt model student steps solver guidance_scale seed size strength adapters".split(" ");
const life = new AbortController();
const ownSeed = Math.floor(Math.random() * 2 ** 32); // where the form leaves it open: one for the whole visit
const wishes = new Map(); // by id: {message, order, text, at, compare}
const frames = []; // of the strip: pictures, {url, alt, facts, order, id, final, image}
let socket = null, token = null, header = null, tries = 0, timer = 0;
let count = 0, floor = 0; // the newest wish, and the last that is not wanted any more
let current = null, before = null, newest = null, other = null, comparing = false, shown = null, kept = null, refused = false;
let on = localStorage.getItem("fewstep-live") !== "off";

const prompt = () => document.querySelector("#prompt textarea");
const given = () => props.value || {};
const state = name => {
  part.state.dataset.state = name;
  part.state.textContent = say(`state_${name}`);
  part.stop.hidden = !["drawing", "waiting"].includes(name);
};
const wrong = text => { part.error.textContent = text ?? ""; };
// The connection. It is made anew when it breaks, and goes on with the session that it had.
const send = message => {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  else connect(); // which sends the newest wish
};
function connect() {
  if (socket && socket.readyState <= WebSocket.OPEN) return;
  clearTimeout(timer);
  const mine = socket = new WebSocket(`${location.origin.replace("http", "ws")}/api/v1/live`);
  mine.binaryType = "arraybuffer";
  mine.onmessage = ({data}) => {
    if (typeof data !== "string") take(header, data);
    else if ((header = JSON.parse(data)).type !== "frame") told(header);
  };
  mine.onclose = ({code}) => {
    if (mine !== socket || life.signal.aborted) return;
    // Said nothing for long, or taken over by another window: the next wish connects again.
    if (code === 4008 || code === 4001) return state(on ? "idle" : "off");
    state("offline");
    timer = setTimeout(connect, Math.min(8000, 300 * 2 ** tries++));
  };
}
function told(message) {
  if (message.type === "hello") {
    tries = 0;
    if (token) return send({type: "resume", token, id: `resume ${message.token}`});
    token = message.token;
    again();
  } else if (message.type === "resumed") again(message.id, message.final);
  else if (message.type === "same" && newest) { show(newest); if (message.final) state("idle"); }
  else if (message.type === "error") {
    if (String(message.id).startsWith("resume ")) { token = message.id.slice(7); return again(); }
    if (message.error.code === "queue_full") return state("waiting");
    refuse(message.error);
  }
}
// The page may know what helps, and then offers it.
const refuse = ({message, code, field}) => { state("failed"); wrong(message); refused = true; trigger("refused", {code, field}); };
function again(id, final) {
  if (count > floor && !(count === id && final)) send(wishes.get(count).message);
  else state(on ? "idle" : "off");
}
const alive = setInterval(() => socket?.readyState === WebSocket.OPEN && send({type: "ping"}), 120_000);

// Wishes and what comes of them.
function order(text) {
  const [front, back] = given().wrap ?? ["", ""];
  return {...given().order, prompt: front + text + back, seed: given().order?.seed ?? ownSeed};
}
function wish(what, text, compare = false) {
  wrong();
  const id = ++count;
  const message = {...what, type: "draw", id, format: "jpeg", ...(compare ? {idle_ms: 0} : {})};
  wishes.set(id, {message, order: what, text, at: performance.now(), compare});
  wishes.delete(id - 2 * MOST);
  state("drawing");
  send(message);
}
function typed() {
  const text = prompt()?.value ?? "";
  if (on) !text.trim() ? stop() : given().message ? refuse(given()) : wish(order(text), text);
}
function stop() {
  floor = count;
  if (socket?.readyState === WebSocket.OPEN) send({type: "stop"});
  state(on ? "idle" : "off");
}
async function take(head, data) {
  const from = wishes.get(head.id);
  if (!from || (from.compare && !head.final)) return;
  const url = URL.createObjectURL(new Blob([data], {type: `image/${head.format}`}));
  const facts = {...from.order, steps: head.num_inference_steps, seed: head.seed, size: `${head.width}x${head.height}`};
  const picture = {url, alt: from.text, facts, order: from.order, id: head.id, final: head.final,
                   image: await drawn(url, from.text)};
  if (head.id === count && count > floor && head.final) state("idle");
  if (refused && head.id === count) refused = Boolean(trigger("refused", {}));
  if (from.compare) return comparing && head.id > floor ? against(picture) : free(picture);
  if (newest && (newest.id > picture.id || (newest.id === picture.id && newest.final))) return free(picture);
  newest = picture;
  collect(picture);
  const seconds = ((performance.now() - from.at) / 1000).toFixed(2);
  if (head.id > floor) show(picture, say(facts.steps === 1 ? "facts_one" : "facts", {...facts, seconds}));
}
const free = picture => [current, before, other, newest].includes(picture) || URL.revokeObjectURL(picture.url);
async function drawn(url, alt) {
  const image = Object.assign(new Image(), {src: url, alt, draggable: false});
  await image.decode().catch(() => {});
  return image;
}
function show(picture, text) {
  // What is compared with: the last picture that was finished, not the one of the letter before.
  if (current && current.id !== picture.id && (current.final || !before)) before = current;
  current = picture;
  part.now.replaceChildren(picture.image);
  part.hint.hidden = true;
  part.facts.textContent = text ?? say("facts_short", picture.facts);
  part.keep.disabled = Boolean(picture.kept);
  part.compare.disabled = false;
  part.star.hidden = !picture.kept;
  part.star.setAttribute("aria-pressed", Boolean(picture.favourite));
  if (comparing && (picture.final || part.with.value === "before")) choose();
}

// The strip of earlier frames: one for each wish, its last.
function collect(picture) {
  const thumb = picture.thumb = picture.image.cloneNode();
  thumb.alt = "";
  thumb.addEventListener("pointerdown", () => scrub(frames.indexOf(picture)));
  thumb.addEventListener("pointerenter", event => event.buttons && scrub(frames.indexOf(picture)));
  if (frames.at(-1)?.id === picture.id) drop(frames.pop());
  if (frames.length === MOST) drop(frames.shift());
  frames.push(picture);
  part.thumbs.append(thumb);
  part.strip.hidden = frames.length < 2;
  part.scrub.max = frames.length - 1; // first, or it would bound the value
  part.scrub.value = frames.length - 1;
  part.thumbs.scrollLeft = part.thumbs.scrollWidth;
}
const drop = picture => { picture.thumb.remove(); free(picture); };
function scrub(place) {
  const picture = frames[place];
  part.scrub.value = place;
  picture.thumb.scrollIntoView({block: "nearest", inline: "nearest"});
  frames.forEach(one => one.thumb.classList.toggle("chosen", one === picture));
  show(picture, say("facts_earlier", {...picture.facts, place: place + 1, of: frames.length, text: picture.alt}));
}

// Keeping: a job of the server's, which typing on does not take back.
async function ask(path, body, method = "POST") {
  const headers = {"Content-Type": "application/json"};
  const answer = await fetch(path, body && {method, headers, body: JSON.stringify(body)});
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw Error(found.error?.message ?? `${answer.status}`);
  return found;
}
async function keep() {
  const text = prompt()?.value ?? "";
  const scrubbed = current && current !== newest && frames.includes(current);
  const what = scrubbed || !on || !text.trim() || given().message ? current?.order : order(text);
  if (!what || (current?.kept && count === floor && current.order.prompt === what.prompt)) return;
  wrong();
  part.keep.disabled = true;
  if (!scrubbed) stop();
  state("keeping");
  try {
    let job = await ask("/api/v1/jobs", {...what, kind: "generate", n: 1, save: true});
    while (["queued", "running"].includes(job.state)) {
      await new Promise(done => setTimeout(done, 100));
      job = await ask(`/api/v1/jobs/${job.id}`);
    }
    if (job.state !== "done") throw Error(job.error ?? job.state);
    if (!job.result.images.length) throw Error(say("unsaved"));
    kept = job.result.images[0];
    trigger("kept", {id: kept});
    if (count === floor) state("kept");
  } catch (error) {
    state("failed");
    wrong(error.message);
  }
  part.keep.disabled = Boolean(current?.kept);
}

// A picture of the history: chosen in the gallery, drawn by the button, or just kept.
async function look(id) {
  shown = id;
  if (id === kept && count > floor) return; // somebody types on: what they type is in front
  floor = count;
  try {
    const view = await ask(`/api/v1/images/${id}`), record = view.record ?? {};
    const facts = {...record, student: record.student?.name, steps: record.num_inference_steps,
                   size: `${view.width}x${view.height}`};
    const order = {prompt: view.prompt, negative_prompt: view.negative_prompt, seed: record.seed, model: record.model,
                   width: record.width, height: record.height,
                   adapters: (record.adapters ?? []).map(({name, weight}) => ({name, weight}))};
    const picture = {alt: view.prompt, facts, order, id: `kept ${id}`, final: true, kept: id,
                     favourite: view.favourite, fixed: record.task !== "txt2img", image: await drawn(view.url, view.prompt)};
    if (shown === id) show(picture);
  } catch (error) { wrong(error.message); }
}

async function favourite() {
  const picture = current;
  if (!picture?.kept) return;
  const view = await ask(`/api/v1/images/${picture.kept}`, {favourite: !picture.favourite}, "PATCH");
  picture.favourite = view.favourite;
  part.star.setAttribute("aria-pressed", view.favourite);
}

// Comparing: another picture under a divider that a mouse, a finger and the arrow keys move.
async function compare(open = !comparing) {
  if (open && !current) return;
  comparing = open;
  element.toggleAttribute("data-comparing", open);
  part.compare.setAttribute("aria-pressed", open);
  part.compared.hidden = part.wipe.hidden = !open;
  if (!open) { part.other.hidden = true; other = null; return changes(); }
  const model = await ask(`/api/v1/models/${encodeURIComponent(await ofModel())}`);
  const counts = [...new Set([...model.students.flatMap(one => one.steps), model.num_inference_steps])];
  part.with.replaceChildren(new Option(say("before"), "before"),
    ...counts.sort((a, b) => a - b).map(n => new Option(say(n === 1 ? "one_step" : "steps", {n}), n)));
  part.with.options[0].disabled = !before;
  part.with.value = before ? "before" : String(counts[0]);
  choose();
}
const ofModel = async () => current.order.model ?? given().order?.model
  ?? (await ask("/api/v1/models")).models.find(one => one.default).name;
function choose() {
  if (part.with.value === "before") return against(before);
  if (current.fixed) return wrong(say("fixed"));
  const {student, solver, guidance_scale, guidance_rescale, eta, hires, upscale, ...rest} = current.order;
  wish({...rest, num_inference_steps: Number(part.with.value)}, current.alt, true);
}
function against(picture) {
  other = picture;
  part.other.hidden = !picture;
  if (picture) part.other.replaceChildren(picture.image.cloneNode()); // an element has one place only
  wipe();
  changes();
}
const wipe = () => element.style.setProperty("--wipe", `${part.wipe.value}%`);
function changes() {
  if (!comparing || !other) return part.changes.textContent = "";
  const said = FACTS.map(name => {
    const [now, then] = [current.facts[name], other.facts[name]].map(plain);
    return now && then && now !== then ? `${say(`fact_${name}`)} ${then} → ${now}` : "";
  }).filter(Boolean);
  part.changes.textContent = said.length ? said.join(props.words.comma) : say("no_change");
}
function plain(value) {
  if (Array.isArray(value)) return value.map(one => `${one.name} ${one.weight ?? 1}`).join(" ") || "–";
  return String(value ?? "");
}
let pressed = 0; // when C was, in ms
function peek(down) {
  if (down) {
    if (pressed) return;
    pressed = performance.now();
    if (!other && before) part.other.replaceChildren(before.image.cloneNode());
    part.other.hidden = !(other || before);
    element.setAttribute("data-peeking", "");
  } else if (pressed) {
    const short = performance.now() - pressed < PATIENT;
    pressed = 0;
    element.removeAttribute("data-peeking");
    part.other.hidden = !comparing || !other;
    if (short) compare();
  }
}

function toggle(now = !on) {
  on = now;
  localStorage.setItem("fewstep-live", on ? "on" : "off");
  part.toggle.setAttribute("aria-checked", on);
  if (on) { connect(); state("idle"); } else stop();
}
const listen = (one, what, run) => one.addEventListener(what, run, {signal: life.signal});
// Letters that an input method is still composing are none of the prompt's words yet.
for (const what of ["input", "compositionend"])
  listen(document, what, event => event.target.matches?.("#prompt textarea") && !event.isComposing && typed());
for (const [name, run] of Object.entries({toggle: () => toggle(), stop, keep, star: favourite, compare: () => compare()}))
  listen(part[name], "click", () => Promise.resolve(run()).catch(error => wrong(error.message)));
listen(part.with, "change", choose);
listen(part.wipe, "input", wipe);
listen(part.scrub, "input", () => scrub(Number(part.scrub.value)));
let known = JSON.stringify({...given(), shown: 0});
watch("value", () => {
  const now = JSON.stringify({...given(), shown: 0});
  if (now !== known && (newest || refused || count > floor)) typed(); // the form has changed under a picture, or a wish
  known = now;
  if (given().shown && given().shown !== shown) look(given().shown);
});
const close = () => { life.abort(); clearInterval(alive); clearTimeout(timer); socket?.close(); };
window.fewstep = {keep, stop, compare, peek, favourite, toggle, live: () => on, order: () => given().order, close};
toggle(on);
