() => {
  // The keyboard of the whole page (words/keys.yaml has the list), dark and light, the focus at the start.
  const find = (...names) => names.map(name => document.querySelector(name)).find(one => one && one.offsetParent);
  const press = (...names) => { const one = find(...names); if (one && !one.disabled) one.click(); return Boolean(one); };
  const prompt = () => document.querySelector("#prompt textarea");
  const dialog = () => document.getElementById("keys");

  // Dark and light: the system's until somebody chooses.
  const themed = () => {
    const chosen = localStorage.getItem("fewstep-theme");
    if (chosen) document.body.classList.toggle("dark", chosen === "dark");
    document.documentElement.style.colorScheme = document.body.classList.contains("dark") ? "dark" : "light";
  };
  themed();
  new MutationObserver(themed).observe(document.body, {attributes: true, attributeFilter: ["class"]});
  const turn = () => {
    localStorage.setItem("fewstep-theme", document.body.classList.contains("dark") ? "light" : "dark");
    themed();
  };
  const help = () => dialog()?.open || dialog()?.showModal();
  document.addEventListener("click", event => {
    const what = event.target.closest?.("[data-do]")?.dataset.do;
    if (what === "theme") turn();
    if (what === "keys") help();
  });

  // The tab that is open is the part of the names of its buttons: "create-vary", "history-favourite".
  const tab = () => [...document.querySelectorAll("[id^=tab-][role=tabpanel]")].find(one => one.offsetParent)?.id.slice(4);
  const ofTab = (...names) => names.map(name => `#${tab()}-${name}`);
  const browse = by => {
    const [gallery] = ofTab("gallery");
    const seen = kind => [...document.querySelectorAll(`${gallery} ${kind}`)].filter(one => one.offsetParent);
    // While one is shown large the others are a row of small ones; before, the first one is on the stage.
    const small = seen(".thumbnail-small"), all = small.length ? small : seen(".thumbnail-item");
    if (!all.length) return false;
    const at = Math.max(0, all.findIndex(one => one.classList.contains("selected")));
    all[(at + by + all.length) % all.length].click();
    return true;
  };
  const quality = place => {
    const stop = document.querySelectorAll("#create-quality input[type=radio]")[place - 1];
    if (stop && stop.closest("#create-quality").offsetParent) stop.click();
    return Boolean(stop);
  };
  const letters = {
    u: () => press(...ofTab("enlarge", "send-extras")),
    e: () => press(...ofTab("send-inpaint")),
    v: () => press(...ofTab("vary")),
    f: () => press(...ofTab("favourite")) || Boolean(find("#live") && (window.fewstep?.favourite(), true)),
    c: () => { window.fewstep?.peek(true); return true; },
    "/": () => { if (!find("#prompt")) document.getElementById("tab-create-button")?.click(); prompt()?.focus(); return true; },
    "?": () => { help(); return true; },
    arrowleft: () => browse(-1),
    arrowright: () => browse(1),
  };
  for (let place = 1; place <= 8; place++) letters[place] = () => quality(place);

  // Weights as the WebUI writes them: (words:1.1); at 1 the brackets go. Every press adds or takes 0.1.
  const weigh = (field, by) => {
    const text = field.value;
    let [from, to] = [field.selectionStart, field.selectionEnd];
    if (from === to) { // the brackets around the caret, else its word
      const open = text.lastIndexOf("(", from - 1), close = text.indexOf(")", from);
      const inside = open >= 0 && close >= 0 && !text.slice(open + 1, from).includes(")") && !text.slice(from, close).includes("(");
      if (inside) [from, to] = [open, close + 1];
      else {
        while (from > 0 && !/[\s,.()<>]/.test(text[from - 1])) from--;
        while (to < text.length && !/[\s,.()<>]/.test(text[to])) to++;
      }
    }
    while (to > from && /\s/.test(text[to - 1])) to--;
    while (from < to && /\s/.test(text[from])) from++;
    if (from === to) return;
    let found = /^\(([^()]*?)(?::([\d.]+))?\)$/.exec(text.slice(from, to));
    if (!found) { // the words alone are selected: the brackets that are around them
      const after = /^(?::([\d.]+))?\)/.exec(text.slice(to));
      if (text[from - 1] === "(" && after) {
        found = [null, text.slice(from, to), after[1]];
        [from, to] = [from - 1, to + after[0].length];
      }
    }
    const words = found ? found[1] : text.slice(from, to);
    // Brackets without a number are 1.1.
    const weight = Math.max(0, Math.round(((found ? Number(found[2] ?? 1.1) : 1) + by) * 100) / 100);
    const bare = weight === 1;
    field.setSelectionRange(from, to);
    // Unlike setting the value, this can be undone, and is heard as typing.
    document.execCommand("insertText", false, bare ? words : `(${words}:${weight.toFixed(2).replace(/0$/, "")})`);
    const start = from + (bare ? 0 : 1);
    field.setSelectionRange(start, start + words.length);
  };

  const WRITES = "textarea, select, [contenteditable], input:not([type=range]):not([type=checkbox]):not([type=radio]):not([type=button])";
  const MOVES = "input, [role=tab], [role=slider], [role=option], [role=listbox], [role=menu], canvas";
  const inPrompt = event => {
    const control = event.ctrlKey || event.metaKey;
    if (control && (event.key === "ArrowUp" || event.key === "ArrowDown")) {
      weigh(event.target, event.key === "ArrowUp" ? 0.1 : -0.1);
    } else if (event.key === "Enter" && event.shiftKey) {
      return event.stopImmediatePropagation(); // a new line, see below
    } else if (event.key === "Enter") {
      if (!control && window.fewstep?.live()) window.fewstep.keep();
      else press("#create-draw");
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  };
  addEventListener("keydown", event => {
    // Enter, too, belongs to an input method while it composes.
    if (event.isComposing || event.keyCode === 229 || dialog()?.open) return;
    const target = event.target, field = target.closest?.("#prompt textarea, #create-negative textarea, #create-negative input");
    if (event.key === "Escape") {
      if (!field && target.closest?.(WRITES)) return;
      window.fewstep?.stop();
      press("#create-stop");
      return;
    }
    if (field && (field.closest("#prompt") || event.key.startsWith("Arrow"))) return inPrompt(event);
    if (target.closest?.(WRITES) || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key.startsWith("Arrow") && target.closest?.(MOVES)) return;
    if (event.key === "Enter" && target === document.body) return void (window.fewstep?.live() && window.fewstep.keep());
    const run = letters[event.key.toLowerCase()];
    if (run && (!event.repeat || event.key.startsWith("Arrow")) && run()) {
      event.preventDefault();
      event.stopImmediatePropagation();
    }
  }, true);
  // Gradio draws on Shift+Enter, and listens to this event.
  addEventListener("keypress", event => {
    if (event.key === "Enter" && event.target.closest?.("#prompt textarea")) event.stopImmediatePropagation();
  }, true);
  addEventListener("keyup", event => event.key.toLowerCase() === "c" && window.fewstep?.peek(false), true);
  addEventListener("blur", () => window.fewstep?.peek(false));
}
