// The page of `alexnet serve`: one picture goes to /api, what comes back is shown. No other requests.
const root = element.querySelector(".alexnet");
const one = (selector) => root.querySelector(selector);
const settings = JSON.parse(props.settings);
let asked = 0;      // only the newest picture's answers are shown
let shown = null;   // the object URL of the preview
let stop = null;    // ends what an older picture still waits for

function fail(words) {
  one(".error").textContent = words;
  one(".error").hidden = !words;
  if (words) one(".answer").hidden = true;
}

async function answer(path, picture, signal) {
  let reply;
  try {
    reply = await fetch(path, {method: "POST", body: picture, signal});
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The server cannot be reached, or it did not take the picture.");
  }
  if (reply.ok) return reply;
  let said = null;
  try { said = (await reply.json()).error; } catch (error) { /* no JSON: the status will do */ }
  throw new Error(said ? said[0].toUpperCase() + said.slice(1) + "." : `The server answers ${reply.status}.`);
}

function bars(guesses) {
  one("ol").replaceChildren(...guesses.map((guess) => {
    const line = document.createElement("li");
    line.style.setProperty("--share", `${100 * guess.probability}%`);
    const name = document.createElement("b");
    name.textContent = guess.class.split(",")[0];
    name.title = guess.class;
    const share = document.createElement("span");
    share.textContent = guess.probability >= 0.005 ? `${Math.round(100 * guess.probability)} %` : "<1 %";
    line.append(name, share);
    return line;
  }));
}

function neighbours(found, guess) {
  one(".near").hidden = !found.length;
  one(".near small").textContent = found.length ? `of ${settings.indexed.toLocaleString()} in the index` : "";
  one(".row").replaceChildren(...found.map((near) => {
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = near.picture;
    image.alt = near.class || near.name;
    const caption = document.createElement("figcaption");
    caption.textContent = (near.class || near.name).split(",")[0];
    caption.title = near.name;
    if (near.class && near.class !== guess) caption.className = "other";
    figure.append(image, caption);
    return figure;
  }));
}

async function looks(picture, number, signal) {
  const still = () => number === asked;
  const frame = one(".occlusion .frame"), bar = frame.querySelector("progress"), map = frame.querySelector("img");
  const caption = one(".occlusion figcaption"), responses = one(".conv1 img");
  bar.hidden = false; bar.value = 0; map.hidden = true; responses.hidden = true;
  caption.textContent = "A grey square is moved over the picture\u2026";
  const conv1 = answer("/api/conv1", picture, signal).then((reply) => reply.json()).then((found) => {
    if (still()) { responses.src = found.picture; responses.hidden = false; }
  }).catch(() => {});
  try {
    const reader = (await answer("/api/occlusion", picture, signal)).body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += part.value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines.filter(Boolean).map((line) => JSON.parse(line))) {
        if (!still()) return;
        if (line.error) throw new Error(line.error);
        if (line.total) bar.value = line.done / line.total;
        if (line.picture) {
          map.src = line.picture; map.hidden = false; bar.hidden = true;
          const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
          caption.textContent = `In colour: what \u201c${line.class.split(",")[0]}\u201d depends on. Covered there, `
            + `its probability falls from ${percent(line.probability)} to ${percent(line.lowest)}.`;
        }
      }
    }
  } catch (error) {
    if (still()) { bar.hidden = true; caption.textContent = error.message; }
  }
  await conv1;
}

async function take(picture, name) {
  if (!picture) return;
  const number = ++asked;
  if (stop) stop.abort();
  stop = new AbortController();
  const signal = stop.signal;
  fail("");
  if (picture.size > settings.max_bytes) {
    fail(`The picture has ${(picture.size / 2 ** 20).toFixed(0)} MB; the limit here is ${settings.max_bytes / 2 ** 20} MB.`);
    return;
  }
  one(".answer").classList.add("busy");
  try {
    const found = await (await answer("/api/predict", picture, signal)).json();
    if (number !== asked) return;
    if (shown) URL.revokeObjectURL(shown);
    one(".picture img").src = shown = URL.createObjectURL(picture);
    one(".picture figcaption").textContent =
      `${name ? name + ", " : ""}${found.format}, ${found.width.toLocaleString()} \u00d7 ${found.height.toLocaleString()}`;
    bars(found.top5);
    neighbours(found.nearest, found.top5[0].class);
    one(".answer").hidden = false;
    one(".answer").classList.remove("busy");
    root.dataset.done = number;
    await looks(picture, number, signal);
  } catch (error) {
    if (number === asked && !signal.aborted) fail(error.message);
  } finally {
    if (number === asked) { one(".answer").classList.remove("busy"); root.dataset.finished = number; }
  }
}

for (const input of root.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => { take(input.files[0], input.files[0] && input.files[0].name); input.value = ""; });
}
one(".drop").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") one(".file").click(); });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); root.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) root.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  root.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) take(file, file.name); else fail("Only picture files can be dropped here.");
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files][0];
  if (file) take(file, "");
});

if (settings.examples) {
  const strip = one(".examples"), words = document.createElement("em");
  words.textContent = "Or try:";
  strip.append(words);
  for (let number = 0; number < settings.examples; number++) {
    const button = document.createElement("button"), image = document.createElement("img");
    button.type = "button";
    button.title = "an example";
    image.src = `/api/examples/${number}.jpg`;
    image.alt = `example ${number + 1}`;
    button.append(image);
    button.addEventListener("click", async () => take(await (await fetch(image.src)).blob(), ""));
    strip.append(button);
  }
  strip.hidden = false;
}
