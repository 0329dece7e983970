// Choosing in the grid of the history, by mouse, finger and keyboard. Python is told of every change.
const options = () => [...element.querySelectorAll("[role=option]")];
const chosen = () => options().filter(one => one.ariaSelected === "true");
let anchor = null;

const tell = last => trigger("select", {ids: chosen().map(one => one.dataset.id), last: last.dataset.id});
const focus = one => {
  for (const other of options()) other.tabIndex = other === one ? 0 : -1;
  one.focus();
};
const choose = (one, how) => {
  const all = options();
  if (how === "toggle") one.ariaSelected = one.ariaSelected === "true" ? "false" : "true";
  else if (how === "range" && anchor && all.includes(anchor)) {
    const [from, to] = [all.indexOf(anchor), all.indexOf(one)].sort((a, b) => a - b);
    all.forEach((other, place) => other.ariaSelected = String(place >= from && place <= to));
  } else all.forEach(other => other.ariaSelected = String(other === one));
  if (how !== "range") anchor = one;
  focus(one);
  tell(one);
};

element.addEventListener("click", event => {
  const one = event.target.closest("[role=option]");
  if (!one) return;
  const toggle = event.ctrlKey || event.metaKey || event.target.classList.contains("pick");
  choose(one, event.shiftKey ? "range" : toggle ? "toggle" : "one");
});
element.addEventListener("keydown", event => {
  const one = event.target.closest("[role=option]");
  if (!one || event.altKey) return;
  const all = options(), place = all.indexOf(one);
  const columns = Math.max(1, all.filter(other => other.offsetTop === all[0].offsetTop).length);
  const moves = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
                 Home: -place, End: all.length - 1 - place};
  const key = event.key.toLowerCase(), control = event.ctrlKey || event.metaKey;
  if (event.key in moves) {
    const next = all[place + moves[event.key]];
    if (next) event.shiftKey ? choose(next, "range") : focus(next);
  } else if (event.key === " ") choose(one, "toggle");
  else if (event.key === "Enter") choose(one, "one");
  else if (key === "a" && control) { all.forEach(other => other.ariaSelected = "true"); tell(one); }
  else if (!control && (key === "f" || key === "delete")) {
    if (one.ariaSelected !== "true") choose(one, "one");
    const ids = chosen().map(other => other.dataset.id);
    trigger(key === "f" ? "like" : "delete", {ids, last: one.dataset.id});
  } else return;
  event.preventDefault();
});
