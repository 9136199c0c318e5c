"use strict";
// The page of `guerdon label`. One answer is on its way at a time; the next pair is shown when it is on the disk.
(() => {
  const SPEEDS = [0.25, 0.5, 1, 2, 4];
  const CHOICES = { ArrowLeft: "first", ArrowRight: "second", ArrowDown: "tie", t: "tie", ArrowUp: "skip", s: "skip" };
  const NAMES = { first: "A is better", second: "B is better", tie: "equally good", skip: "cannot tell" };
  const STILL = matchMedia("(prefers-reduced-motion: reduce)");
  const $ = (id) => document.getElementById(id);
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  let rater = "", state = null, shownAt = 0;
  // starting → asking → loading ↔ ready ↔ sending; done when no pair is open; stopped after an error that stays
  const phase = () => document.body.dataset.phase;
  const enter = (name) => { document.body.dataset.phase = name; buttons(); };

  // ---- server ----

  class Temporary extends Error {}  // worth another try
  class Final extends Error {}

  /** Send a request; a refusal that a second try would meet again is final, a lost connection or full disk is not. */
  async function call(path, sent, binary) {
    const stop = new AbortController(), timer = setTimeout(() => stop.abort(), 20000);
    const options = { signal: stop.signal, cache: "no-store", credentials: "omit", headers: { "X-Guerdon-Token": TOKEN } };
    if (sent) {
      Object.assign(options, { method: "POST", body: JSON.stringify(sent) });
      options.headers["Content-Type"] = "application/json";
    }
    let status, body;
    try {
      const response = await fetch(path, options);
      status = response.status;
      body = binary && response.ok ? await response.arrayBuffer() : await response.json();
    } catch (problem) {
      throw new Temporary("The server does not answer; if it was stopped, run the same command again and open its new address.");
    } finally {
      clearTimeout(timer);
    }
    if (status === 200 || status === 409 || (binary && status === 422)) return { status, body };
    const detail = typeof body.detail === "string" ? body.detail : `The server answered with status ${status}.`;
    if (status >= 500) throw new Temporary(detail);
    if (status === 403) throw new Final("This address is no longer valid: open the one that the command printed last.");
    throw new Final(detail);
  }

  /** Repeat until it works; say what is wrong as long as it does not. */
  async function insist(work, comfort) {
    let said = false;
    for (let wait = 500; ; wait = Math.min(2 * wait, 4000)) {
      try {
        const result = await work();
        if (said) notice("");
        return result;
      } catch (problem) {
        if (!(problem instanceof Temporary)) throw problem;
        notice(`${problem.message} ${comfort}`, true);
        said = true;
        await pause(wait);
      }
    }
  }

  /** Run an action of the user; what cannot be repaired stays on the page. */
  const run = (action) => action().catch((problem) => { notice(problem.message, true); enter("stopped"); });

  // ---- clips ----

  const loaded = new Map();  // name of the pair → promise of two clips

  async function fetchClip(pair, side) {
    const { status, body } = await call(`/clip?pair=${encodeURIComponent(pair)}&side=${side}`, null, true);
    if (status === 422) return { problem: body.detail, times: [], seconds: 0, frames: [] };
    const length = new DataView(body).getUint32(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(body, 4, length)));
    let at = 4 + length;
    const blobs = header.sizes.map((size) => new Blob([new Uint8Array(body, (at += size) - size, size)], { type: "image/jpeg" }));
    try {
      return { times: header.times, seconds: header.seconds, frames: await Promise.all(blobs.map((b) => createImageBitmap(b))) };
    } catch (problem) {
      return { problem: `this browser cannot show its pictures (${problem.message})`, times: [], seconds: 0, frames: [] };
    }
  }

  function load(pair) {
    if (!loaded.has(pair)) {
      const clips = Promise.all(["first", "second"].map((side) => insist(() => fetchClip(pair, side), "The clips come when it does.")));
      clips.catch(() => loaded.delete(pair));
      loaded.set(pair, clips);
    }
    return loaded.get(pair);
  }

  function forgetOthers(kept) {
    for (const [pair, clips] of loaded) {
      if (kept.includes(pair)) continue;
      loaded.delete(pair);
      clips.then((both) => both.forEach((clip) => clip.frames.forEach((frame) => frame.close())), () => {});
    }
  }

  // ---- playback: one clock for both clips; the shorter one holds its last picture ----

  const player = { clips: [], position: 0, playing: false, before: 0, drawn: [-1, -1], speed: 1 };
  const longest = () => Math.max(0, ...player.clips.map((clip) => clip.seconds));

  function draw() {
    player.clips.forEach((clip, place) => {
      let index = clip.times.findLastIndex((time) => time <= player.position + 1e-6);
      index = Math.max(index, 0);
      if (!clip.frames.length || player.drawn[place] === index) return;
      const canvas = $(place ? "second" : "first").querySelector("canvas"), frame = clip.frames[index];
      if (canvas.width !== frame.width || canvas.height !== frame.height) {
        canvas.width = frame.width;
        canvas.height = frame.height;
      }
      canvas.getContext("2d").drawImage(frame, 0, 0);
      player.drawn[place] = index;
    });
    $("timeline").style.transform = `scaleX(${longest() ? player.position / longest() : 0})`;
  }

  function tick(now) {
    if (player.playing) {
      player.position += Math.min((now - player.before) / 1000, 0.25) * player.speed;  // a sleeping tab does not jump
      if (player.position >= longest()) {
        player.position = longest();
        player.playing = false;
      }
      draw();
    }
    player.before = now;
    requestAnimationFrame(tick);
  }

  function replay() {
    if (!["ready", "sending"].includes(phase())) return;
    player.position = 0;
    player.playing = true;
    draw();
  }

  function changeSpeed(by) {
    const place = SPEEDS.indexOf(player.speed) + by;
    if (place < 0 || place >= SPEEDS.length) return;
    player.speed = SPEEDS[place];
    keep(localStorage, "guerdon-speed", String(player.speed));
    $("speed").textContent = `${player.speed}×`;
  }

  // ---- what is shown ----

  function notice(text, bad = false) {
    $("notice").textContent = text;
    $("notice").hidden = !text;
    $("notice").className = bad ? "bad" : "";
  }

  function view(name) {
    for (const id of ["compare", "done", "ask"]) $(id).hidden = id !== name;
  }

  function buttons() {
    const ready = phase() === "ready", broken = player.clips.some((clip) => clip.problem);
    for (const choice of ["first", "tie", "second"]) $(`do-${choice}`).disabled = !ready || broken;
    $("do-skip").disabled = !ready;
    $("do-undo").disabled = $("do-undo-done").disabled = !["ready", "done"].includes(phase()) || !state?.last;
  }

  function time(seconds) {
    if (seconds === null) return "";
    return seconds < 45 ? "less than a minute left" : `about ${Math.round(seconds / 60)} min left`;
  }

  function report() {
    const { answered, total } = state;
    $("count").textContent = `${rater}: ${answered} of ${total}`;
    $("left").textContent = answered < total ? time(state.seconds_left) : "";
    $("bar").setAttribute("aria-valuemax", total);
    $("bar").setAttribute("aria-valuenow", answered);
    $("bar").firstElementChild.style.width = `${(100 * answered) / total}%`;
  }

  /** Show where the rater stands: the first open pair, or the end. */
  async function show(where) {
    state = where;
    report();
    if (!state.pair) {
      player.clips = [];
      player.playing = false;
      $("task").textContent = "Every pair has your answer";
      view("done");
      enter("done");
      $("done").focus();
      return;
    }
    enter("loading");
    const clips = await load(state.pair.id);
    $("task").textContent = state.pair.instructions.filter(Boolean).join(" / ") || "not named";
    view("compare");
    Object.assign(player, { clips, position: 0, drawn: [-1, -1], playing: !STILL.matches });
    clips.forEach((clip, place) => {
      const figure = $(place ? "second" : "first");
      figure.classList.remove("chosen");
      figure.querySelector("canvas").hidden = Boolean(clip.problem);
      figure.querySelector("p").hidden = !clip.problem;
      figure.querySelector("p").textContent = clip.problem ? `This clip cannot be shown: ${clip.problem}. Choose “cannot tell”.` : "";
    });
    draw();
    shownAt = performance.now();
    enter("ready");
    if (document.activeElement === document.body) $("compare").focus({ preventScroll: true });
    if (state.following) load(state.following.id).catch(() => {});
    forgetOthers([state.pair.id, state.following?.id, state.last]);
  }

  // ---- answers ----

  const pending = () => `guerdon-pending-${rater}`;

  function keep(storage, key, text) {
    try {
      if (text === null) storage.removeItem(key);
      else storage.setItem(key, text);
    } catch (problem) { /* a private window may keep nothing; the answer is still in memory */ }
  }

  function kept(storage, key) {
    try { return storage.getItem(key); } catch (problem) { return null; }
  }

  async function answer(choice) {
    if (phase() !== "ready") return;
    if (choice !== "skip" && player.clips.some((clip) => clip.problem)) return;
    enter("sending");
    if (choice === "first" || choice === "second") $(choice).classList.add("chosen");
    const seconds = Math.round(performance.now() - shownAt) / 1000;
    await deliver({ rater, pair: state.pair.id, choice, seconds });
  }

  /** Send an answer until the server has it on its disk; until then it is kept, also across a reload of the page. */
  async function deliver(sent, again = false) {
    keep(sessionStorage, pending(), JSON.stringify({ token: TOKEN, sent }));
    let tries = again ? 1 : 0;
    notice("");
    const { status, body } = await insist(() => {
      tries += 1;
      return call("/answer", sent);
    }, "Your answer is kept here and sent again until it is saved.").finally(() => keep(sessionStorage, pending(), null));
    const own = status === 200 || (tries > 1 && body.choice === sent.choice);  // an earlier try may have arrived
    if (!own) notice(`This pair has an answer already (${NAMES[body.choice]}), such as from another tab: here is the next open one.`);
    $("status").textContent = own ? `Saved: ${NAMES[sent.choice]}. ${body.answered} of ${body.total}.` : "";
    if (own) document.dispatchEvent(new CustomEvent("guerdon-saved", { detail: sent }));
    await show(body);
  }

  async function undo() {
    if (!["ready", "done"].includes(phase()) || !state.last) return;
    enter("sending");
    notice("");
    let tries = 0;
    const sent = { rater, pair: state.last };
    const { status, body } = await insist(() => {
      tries += 1;
      return call("/undo", sent);
    }, "The answer is withdrawn when it does.");
    if (status === 409 && tries === 1) notice("Nothing was withdrawn: another tab has answered since. Undo again to withdraw the last answer.");
    else $("status").textContent = "The last answer is withdrawn.";
    await show(body);
  }

  // ---- start and keys ----

  function ask(problem) {
    view("ask");
    enter("asking");
    notice(problem, Boolean(problem));
    $("name").hidden = $("who").querySelector("button").hidden = RATERS.length > 0;
    $("names").replaceChildren(...RATERS.map((name) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, className: "main" });
      button.addEventListener("click", () => run(() => begin(name)));
      return button;
    }));
    $(RATERS.length ? "names" : "who").querySelector("button, input").focus();
  }

  async function begin(name) {
    rater = name.trim();
    if (!rater || (RATERS.length && !RATERS.includes(rater))) return ask(rater ? `${rater} is no rater of this session.` : "");
    let where;
    try {
      where = await insist(() => call(`/state?rater=${encodeURIComponent(rater)}`), "The page goes on when it does.");
    } catch (problem) {
      if (problem.message.includes("is no name")) return ask(problem.message);
      throw problem;
    }
    const address = new URL(location.href);
    address.searchParams.set("rater", rater);
    history.replaceState(null, "", address);
    document.title = `${rater}: which clip is better?`;
    notice("");
    const left = JSON.parse(kept(sessionStorage, pending()) ?? "null");
    state = where.body;
    if (left?.token === TOKEN) await deliver(left.sent, true);
    else await show(where.body);
  }

  const ACTIONS = { z: undo, u: undo, Backspace: undo, r: replay, " ": replay, "+": () => changeSpeed(1), "=": () => changeSpeed(1),
    "-": () => changeSpeed(-1), _: () => changeSpeed(-1) };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.target.tagName === "INPUT") return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === " " && event.target.tagName === "BUTTON") return;  // the focused button takes it
    const choice = CHOICES[key], action = ACTIONS[key];
    if (!choice && !action) return;
    event.preventDefault();
    if (event.repeat) return;  // a key that is held down answers one pair
    run(async () => (choice ? answer(choice) : action()));
  });

  const onClick = (id, action) => $(id).addEventListener("click", (event) => {
    if (event.detail) event.currentTarget.blur();  // after a tap or click, the space bar replays instead of answering
    run(async () => action());
  });
  for (const choice of ["first", "second", "tie", "skip"]) onClick(`do-${choice}`, () => answer(choice));
  onClick("do-undo", undo);
  onClick("do-undo-done", undo);
  onClick("do-replay", replay);
  onClick("do-slower", () => changeSpeed(-1));
  onClick("do-faster", () => changeSpeed(1));
  for (const side of ["first", "second"]) $(side).addEventListener("click", replay);
  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    run(() => begin($("name").value));
  });

  const speed = Number(kept(localStorage, "guerdon-speed"));
  if (SPEEDS.includes(speed)) player.speed = speed;
  $("speed").textContent = `${player.speed}×`;
  requestAnimationFrame(tick);
  run(() => begin(new URLSearchParams(location.search).get("rater") ?? (RATERS.length === 1 ? RATERS[0] : "")));
})();
