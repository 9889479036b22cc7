// The lane: a board of notes. No framework, no build; the API is on our own origin, under /api.

const view = document.querySelector("#view");
const alertBox = document.querySelector("#alert");
let notes = null; // null until the first answer
let fresh; // the id of the note just added, whose card moves in

// --- small helpers ---

// h("p", { className: "soft" }, "text", child): strings become text nodes, never markup.
function h(tag, props = {}, ...children) {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
}

async function api(method, path = "", body) {
  const response = await fetch("/api/notes" + path, {
    method,
    headers: body && { "Content-Type": "application/json" },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(10_000),
  });
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({}));
    throw Object.assign(new Error(error || `the server answered ${response.status}`), { status: response.status });
  }
  return response.status === 204 ? null : response.json();
}

function complain(what, error) {
  const why = error.name === "TimeoutError" ? "no answer within 10 seconds" : error.message;
  alertBox.firstElementChild.textContent = `${what}: ${why}.`;
  alertBox.hidden = false;
}

// --- what the user can do; each shows its failure and never throws ---

async function load() {
  try {
    const answer = await api("GET");
    if (!Array.isArray(answer)) throw new Error("unexpected answer");
    notes = answer;
    alertBox.hidden = true;
  } catch (error) {
    complain("The notes could not be loaded", error);
  }
  paint();
}

async function add(text) {
  try {
    const note = await api("POST", "", { text });
    if (!notes) return await load(), true; // the first load had failed
    notes = [note, ...notes];
    alertBox.hidden = true;
    fresh = note.id;
    paint();
    fresh = null;
    return true;
  } catch (error) {
    complain("The note was not added", error);
    return false;
  }
}

async function remove(note) {
  try {
    await api("DELETE", `/${note.id}`);
  } catch (error) {
    if (error.status !== 404) return complain("The note was not removed", error); // 404: gone already
  }
  alertBox.hidden = true;
  notes = notes.filter(({ id }) => id !== note.id);
  if (location.pathname === `/note/${note.id}`) go("/");
  else paint();
}

// --- views: each returns its title, its elements, and how to paint the notes into them ---

function court(note, single) {
  const button = h("button", { type: "button", className: "quiet", ariaLabel: `Remove note ${note.id}` }, "Remove");
  button.onclick = async () => {
    button.disabled = true;
    await remove(note);
    button.disabled = false;
  };
  const when = new Date(note.created_at);
  const short = when.toLocaleDateString(undefined, { month: "short", day: "numeric" });
  return h("article", { className: `court ${single ? "single" : ""} ${note.id === fresh ? "fresh" : ""}` },
    h("a", { className: "plate", href: `/note/${note.id}` }, `No. ${note.id}`),
    h("p", {}, note.text),
    h("footer", {},
      h("time", { dateTime: note.created_at, title: when.toLocaleString() }, single ? when.toLocaleString() : short),
      button));
}

function home() {
  const text = h("textarea", { maxLength: 1000, required: true, placeholder: "Put something up on the lane…", ariaLabel: "New note" });
  const submit = h("button", { className: "main" }, "Put up");
  const form = h("form", { className: "composer" }, text, h("div", {}, h("span", { className: "quiet" }, "Everyone can read it."), submit));
  form.onsubmit = async (event) => {
    event.preventDefault();
    submit.disabled = true;
    if (await add(text.value)) form.reset();
    submit.disabled = false;
    text.focus();
  };
  text.onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  };
  const board = h("section", { className: "board", ariaLabel: "Notes" });
  const empty = h("p", { className: "soft" });
  return {
    title: "The lane",
    elements: [form, empty, board],
    paint() {
      empty.textContent = notes ? "A quiet lane: no notes yet." : "Loading…";
      empty.hidden = notes?.length > 0 || (!notes && !alertBox.hidden);
      board.replaceChildren(...(notes || []).map((note) => court(note)));
    },
  };
}

function single(id) {
  const place = h("div");
  return {
    title: `No. ${id}`,
    elements: [place, h("a", { href: "/" }, "← Back to the lane")],
    paint() {
      const note = notes?.find((each) => each.id === Number(id));
      const words = notes ? `There is no note No. ${id}.` : alertBox.hidden ? "Loading…" : "";
      place.replaceChildren(note ? court(note, true) : h("p", { className: "soft" }, words));
    },
  };
}

function about() {
  return {
    title: "About",
    elements: [h("section", { className: "prose" },
      h("h1", { tabIndex: -1 }, "About the lane"),
      h("p", {}, "In a hutong, a lane of old Beijing, every family has its own courtyard behind its own door, and they share the lane."),
      h("p", {}, "This board is one courtyard: a folder of static files. Its neighbour, the notes app, keeps the notes in its own sandbox and database. They meet at /api: notes asks for that path, and board agrees to share it."))],
    paint() {},
  };
}

function lost() {
  return {
    title: "Not found",
    elements: [h("section", { className: "prose" },
      h("h1", { tabIndex: -1 }, "No such door"),
      h("p", {}, "Nobody lives at this address. "), h("a", { href: "/" }, "← Back to the lane"))],
    paint() {},
  };
}

// --- routes, with the History API ---

const routes = [[/^\/$/, home], [/^\/about\/?$/, about], [/^\/note\/(\d{1,15})\/?$/, single], [/^/, lost]];
let current;

function paint() {
  current.paint();
}

function show() {
  const [pattern, make] = routes.find(([pattern]) => pattern.test(location.pathname));
  current = make(...location.pathname.match(pattern).slice(1));
  document.title = current.title === "The lane" ? current.title : `${current.title} · The lane`;
  for (const link of document.querySelectorAll("nav a")) {
    link.ariaCurrent = link.pathname === location.pathname ? "page" : null;
  }
  view.replaceChildren(...current.elements);
  paint();
  view.querySelector("h1")?.focus();
}

function go(path) {
  history.pushState(null, "", path);
  scrollTo(0, 0);
  show();
}

addEventListener("popstate", show);
addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || link.origin !== location.origin || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  event.preventDefault();
  if (link.href !== location.href) go(link.pathname);
});
document.addEventListener("visibilitychange", () => document.hidden || load());
alertBox.lastElementChild.onclick = load;

show();
load();
