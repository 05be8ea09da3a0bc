// The form of the Return tab: slider and field move together, every change is sent to be reckoned, and nothing is lost on a
// reload. No costs are computed here: the server does that, with the functions that the command line uses.
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const STORE = "atonce-return", PARTS = 1000, PAUSE = 40;

  /** A value for a place of the slider: in equal steps, or in equal ratios (from 0 where the low end is 0). */
  function valueAt(row, place) {
    const low = Number(row.dataset.low), high = Number(row.dataset.high), step = Number(row.dataset.step), share = place / PARTS;
    if (step > 0) return Number((low + Math.round((share * (high - low)) / step) * step).toPrecision(10));
    if (low === 0 && place <= 0) return 0;
    const start = low || 1, value = start * Math.pow(high / start, share);
    return row.dataset.whole ? Math.max(1, Math.round(Number(value.toPrecision(3)))) : Number(value.toPrecision(3));
  }

  /** The place of a value, kept within the slider. */
  function placeOf(row, value) {
    const low = Number(row.dataset.low), high = Number(row.dataset.high), step = Number(row.dataset.step);
    if (!(value > 0) && step === 0) return 0;
    const start = low || 1;
    const share = step > 0 ? (value - low) / (high - low) : Math.log(value / start) / Math.log(high / start);
    return Math.max(0, Math.min(PARTS, Math.round(PARTS * share)));
  }

  function copy(value) {
    return JSON.parse(JSON.stringify(value));
  }

  function mount(element, trigger) {
    const form = element.querySelector("#return-form"), facts = JSON.parse(form.dataset.facts);
    const rows = [...form.querySelectorAll("[data-key]")], field = (key) => form.querySelector(`[id="return-${key}"]`);
    let state = copy(facts.beginning), waiting = 0, spoken = 0, news = "", quiet = true;

    try {
      const found = JSON.parse(localStorage.getItem(STORE));
      if (found && typeof found.values === "object") state = { ...state, ...found, values: { ...state.values, ...found.values } };
    } catch (_) { /* nothing kept, or not by us */ }

    function keep() {
      try { localStorage.setItem(STORE, JSON.stringify(state)); } catch (_) { /* a full or closed store: the page works on */ }
    }

    function said(row, value) {
      const unit = row.querySelector(".return-unit").textContent;
      return `${value} ${unit}`;
    }

    // `by` names the part that was moved by hand, which is left as it is.
    function show(row, by) {
      const key = row.dataset.key, entry = state.values[key], slide = row.querySelector("input[type=range]");
      const number = entry.number === null || entry.number === "" ? "" : entry.number;
      if (by !== "field") field(key).value = number;
      if (by !== "slider") slide.value = placeOf(row, Number(number));
      slide.setAttribute("aria-valuetext", number === "" ? "empty" : said(row, number));
      const badge = row.querySelector(".return-badge"), source = entry.source in facts.sources ? entry.source : "given";
      badge.textContent = facts.sources[source];
      badge.className = `return-badge return-is-${source}`;
      const note = entry.note && entry.note !== facts.sources[source] ? entry.note : "";
      row.querySelector(".return-note").textContent = note.replace(/^(assumed|published): /, "");
    }

    function showAll() {
      for (const row of rows) {
        const unit = row.querySelector(".return-unit");
        unit.dataset.plain = unit.dataset.plain || unit.textContent;
        unit.textContent = unit.dataset.plain.replace("\u00a4", state.currency);
        show(row, "");
      }
      field("currency").value = state.currency;
      field("power_included").checked = state.power_included;
    }

    function send() {
      keep();
      if (waiting) return;
      waiting = setTimeout(() => {
        waiting = 0;
        trigger("input", state);
      }, PAUSE);
    }

    function change(row, number, by) {
      state.values[row.dataset.key] = { number: number, source: "given", note: "" };
      if (row.dataset.key.startsWith("calls@")) {
        // a published quality belongs to published calls
        delete state.quality[row.dataset.key.slice(6)];
      }
      show(row, by);
      quiet = false;
      send();
    }

    for (const row of rows) {
      row.querySelector("input[type=range]").addEventListener("input", (event) => change(row, valueAt(row, Number(event.target.value)), "slider"));
      field(row.dataset.key).addEventListener("input", (event) => {
        const text = event.target.value.trim(), plain = /^\d{1,3}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(",", "") : text;
        change(row, plain !== "" && Number.isFinite(Number(plain)) ? Number(plain) : plain, "field");
      });
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    field("currency").addEventListener("change", (event) => {
      state.currency = event.target.value;
      showAll();
      send();
    });
    field("power_included").addEventListener("change", (event) => {
      state.power_included = event.target.checked;
      quiet = false;
      send();
    });
    field("published").addEventListener("change", (event) => {
      if (!event.target.value) return;
      trigger("select", { title: event.target.value, state: state });
      event.target.value = "";
    });
    field("reset").addEventListener("click", () => {
      state = copy(facts.beginning);
      quiet = false;
      showAll();
      send();
    });

    /** What came back: numbers to put in (published or measured), or results to be said, or lines on what is wrong. */
    function heard(place) {
      const told = place.querySelector("[data-form]");
      if (told && told.dataset.at !== news) {
        news = told.dataset.at;
        const sent = JSON.parse(told.dataset.form);
        state = { ...state, ...sent, values: { ...state.values, ...sent.values }, names: { ...state.names, ...sent.names } };
        quiet = false;
        showAll();
        send();
      }
      const results = place.querySelector(".return-results");
      if (!results) return;
      const wrong = results.dataset.wrong ? JSON.parse(results.dataset.wrong) : {};
      for (const row of rows) {
        const line = wrong[row.dataset.key] || "";
        row.querySelector(".return-wrong").textContent = line;
        field(row.dataset.key).setAttribute("aria-invalid", line ? "true" : "false");
      }
      form.querySelector(".return-strip").textContent = Object.values(wrong).join(" ") || results.dataset.summary;
      clearTimeout(spoken);
      if (!quiet) {
        const line = Object.values(wrong).join(" ") || results.dataset.summary;
        spoken = setTimeout(() => atonce.say && atonce.say(line), 700);
      }
    }

    for (const id of ["return-results", "return-told"]) {
      const place = document.getElementById(id);
      new MutationObserver(() => heard(place)).observe(place, { childList: true, subtree: true, attributes: true });
    }
    showAll();
    send();
  }

  atonce.returns = { mount, valueAt, placeOf };
})();
