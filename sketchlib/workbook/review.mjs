// The browser half of the review: shows `state`, sends back what was pressed.

const KEYS = {
  k: ["keep", "Keep"],
  d: ["drop", "Drop"],
  n: ["not_duplicate", "Not a duplicate"],
  r: ["relabel", "Relabel"],
  u: ["undo", "Undo"],
  s: ["skip", "Skip"],
};

function make(tag, parent, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  parent.append(element);
  return element;
}

function render({ model, el }) {
  const panel = make("div", el, "sketch-review");
  panel.tabIndex = 0;
  panel.setAttribute("role", "application");
  panel.setAttribute("aria-label", "Review of doubtful pictures");
  panel.setAttribute("data-lm-suppress-shortcuts", "true"); // d d would delete the cell
  const head = make("div", panel, "head");
  const title = make("strong", head, "title");
  const progress = make("span", head, "counted");
  const pictures = make("div", panel, "pictures");
  const buttons = make("div", panel, "buttons");
  const relabel = make("div", panel, "relabel");
  relabel.hidden = true;
  const chooser = make("select", relabel, "chooser");
  chooser.setAttribute("aria-label", "New class");
  const enter = make("button", relabel, "", "Set class ");
  make("kbd", enter, "", "Enter");
  enter.type = "button";
  const told = make("div", panel, "told");
  told.setAttribute("aria-live", "polite");
  let target = 0;
  let busy = false;

  const shown = () => model.get("state").pictures;

  function send(action, extra = {}) {
    if (busy) return; // a held key must not answer a question not yet seen
    busy = true;
    model.send({ action, id: shown()[target]?.id ?? "", ...extra });
  }

  function press(action) {
    const needsItem = !["undo", "skip"].includes(action);
    if (needsItem && !shown().length) return;
    if (action !== "relabel") return send(action);
    if (shown()[target].subset !== "train") {
      told.textContent = "A test picture has no label to change; choose the other with ← →.";
      return;
    }
    chooser.value = model.get("state").suggestion;
    relabel.hidden = false;
    chooser.focus();
  }

  function aim(place) {
    target = place;
    [...pictures.children].forEach((one, number) =>
      one.classList.toggle("aimed", number === target));
  }

  function closeChooser() {
    relabel.hidden = true;
    panel.focus();
  }

  function choose() {
    const chosen = chooser.value;
    closeChooser();
    if (chosen) send("relabel", { new: chosen });
  }

  function show() {
    const state = model.get("state");
    busy = false;
    title.textContent = state.title;
    progress.textContent = state.progress;
    told.textContent = state.told;
    pictures.replaceChildren();
    state.pictures.forEach((one, number) => {
      const figure = make("figure", pictures);
      const image = make("img", figure);
      image.src = one.source;
      image.alt = one.id;
      make("b", figure, "", one.subset === "test" ? "test picture" : one.name);
      make("span", figure, "id", one.id);
      figure.addEventListener("click", () => aim(number));
    });
    // Drop and relabel mean the second picture, unless that is a test picture.
    const trains = state.pictures.map((one) => one.subset === "train");
    aim(Math.max(trains.lastIndexOf(true), 0));
    relabel.hidden = true;
    for (const button of buttons.children) {
      const forPairs = button.dataset.action === "not_duplicate";
      button.disabled = forPairs && state.pictures.length < 2;
    }
  }

  for (const [key, [action, label]] of Object.entries(KEYS)) {
    const button = make("button", buttons, "", `${label} `);
    make("kbd", button, "", key);
    button.type = "button";
    button.dataset.action = action;
    button.addEventListener("click", () => press(action));
  }
  for (const name of model.get("classes")) make("option", chooser, "", name).value = name;

  chooser.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") closeChooser();
    if (event.key === "Enter") {
      event.preventDefault();
      choose();
    }
  });
  enter.addEventListener("click", choose);
  panel.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (event.target === chooser) return;
    const found = KEYS[event.key.toLowerCase()];
    const step = { ArrowLeft: 0, ArrowRight: 1 }[event.key];
    if (!found && step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (found) press(found[0]);
    else aim(Math.min(step, Math.max(shown().length - 1, 0)));
  });
  model.on("change:state", show);
  show();
  requestAnimationFrame(() => panel.focus());
  return () => model.off("change:state", show);
}

export default { render };
