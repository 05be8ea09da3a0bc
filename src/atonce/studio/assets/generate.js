/* The own parts of the tab Generate: the image, the noise levels, the wall and the kept strip. */
(() => {
  "use strict";
  const atonce = window.atonce;
  const parsed = (text, other) => {
    try {
      return text ? JSON.parse(text) : other;
    } catch {
      return other;
    }
  };

  /** The image with its words and its files. */
  atonce.generatePicture = (element, props, watch) => {
    const draw = () => {
      const facts = parsed(props.value, null);
      const image = element.querySelector("img");
      if (!facts || !image) return;
      const wrong = element.querySelector("[data-wrong]");
      wrong.textContent = facts.error ?? "";
      element.querySelector(".generate-frame").classList.toggle("generate-stale", Boolean(facts.error));
      if (facts.error) return;
      image.hidden = false;
      image.width = facts.width;
      image.height = facts.height;
      image.classList.toggle("at-crisp", facts.width < 256);
      image.src = facts.src;
      image.alt = `Generated image: ${facts.title}`;
      const record = facts.record;
      const parts = [
        ["Model", `${record.model} (version ${record.version})`],
        ["Seed", record.seed],
        ["Label", record.class ?? (record.label ?? null)],
        ["σ", record.sigmas.map(atonce.number).join(", ")],
        ["Network calls", record.calls],
        ["Guidance", record.guidance],
      ].filter(([, value]) => value !== null && value !== undefined);
      element.querySelector("figcaption").innerHTML =
        "<dl>" + parts.map(([name, value]) => `<div><dt>${atonce.escape(name)}</dt><dd>${atonce.escape(value)}</dd></div>`).join("") + "</dl>";
      const [png, json] = ["png", "json"].map((kind) => element.querySelector(`[data-file=${kind}]`));
      png.href = facts.src;
      png.download = `${facts.file}.png`;
      json.href = `data:application/json,${encodeURIComponent(JSON.stringify(record, null, 2) + "\n")}`;
      json.download = `${facts.file}.json`;
    };
    watch("value", draw);
    draw();
  };

  /** One slider and one field for each noise level; both on a logarithmic scale where they can be. */
  atonce.generateSigmas = (element, trigger, props, watch) => {
    const most = 8;
    const rows = element.querySelector("[data-rows]");
    const note = element.querySelector("[data-note]");
    let state = { sigmas: [], own: false, low: 0.002, high: 80 };
    const place = (sigma) => (1000 * Math.log(sigma / state.low)) / Math.log(state.high / state.low);
    const sigmaAt = (at) => state.low * Math.pow(state.high / state.low, at / 1000);

    const tell = () => {
      props.value = JSON.stringify({ ...state, own: true });
      state.own = true;
      say();
      trigger("input");
    };
    const say = () => {
      const range = `between ${atonce.number(state.low)} and ${atonce.number(state.high)}, descending`;
      if (state.sigmas.length > most) {
        note.textContent = `Resolved: ${state.sigmas.map(atonce.number).join(", ")}`;
        return;
      }
      note.innerHTML = state.own
        ? `Set by hand, ${range}. <button type="button" class="at-button" data-reset>Back to the model's own</button>`
        : `The model's own for this number of steps; ${range}.`;
    };
    const draw = () => {
      const next = parsed(props.value, null);
      if (!next) return;
      state = next;
      const shown = state.sigmas.length > most ? [] : state.sigmas;
      if (rows.children.length !== shown.length) {
        rows.innerHTML = shown
          .map(
            (_, i) => `<div class="generate-sigma"><label for="generate-sigma-${i}">σ of step ${i + 1}</label>
            <input type="range" min="0" max="1000" step="1" id="generate-sigma-${i}" data-slide="${i}">
            <input type="number" step="any" data-field="${i}" aria-label="σ of step ${i + 1}, as a number"></div>`,
          )
          .join("");
      }
      shown.forEach((sigma, i) => show(i, sigma));
      say();
    };
    const show = (i, sigma, keepField = false) => {
      const slide = rows.querySelector(`[data-slide="${i}"]`);
      slide.value = Math.round(place(Math.min(Math.max(sigma, state.low), state.high)));
      slide.setAttribute("aria-valuetext", `σ ${atonce.number(sigma)}`);
      if (!keepField) rows.querySelector(`[data-field="${i}"]`).value = Number(sigma.toPrecision(4));
    };
    rows.addEventListener("input", (event) => {
      const { slide } = event.target.dataset;
      if (slide === undefined) return;
      const i = Number(slide);
      const upper = i > 0 ? state.sigmas[i - 1] / 1.01 : state.high;
      const lower = i + 1 < state.sigmas.length ? state.sigmas[i + 1] * 1.01 : state.low * 1.01;
      state.sigmas[i] = Number(Math.min(Math.max(sigmaAt(Number(event.target.value)), lower), upper).toPrecision(6));
      show(i, state.sigmas[i]);
      tell();
    });
    rows.addEventListener("change", (event) => {
      const { field } = event.target.dataset;
      if (field === undefined) return;
      const i = Number(field);
      const typed = Number(event.target.value);
      if (event.target.value.trim() === "" || !Number.isFinite(typed)) {
        show(i, state.sigmas[i]);
        return;
      }
      state.sigmas[i] = typed; // a value that cannot be is for the server to name
      show(i, typed, true);
      tell();
    });
    note.addEventListener("click", (event) => {
      if (!event.target.closest("[data-reset]")) return;
      state.own = false;
      props.value = JSON.stringify({ ...state, own: false });
      trigger("clear");
    });
    watch("value", draw);
    draw();
  };

  /** Buttons with small images; a click or Enter makes one the current image. */
  atonce.generateWall = (element, trigger, props, watch) => {
    const wall = element.querySelector(".generate-wall");
    const draw = () => {
      const images = parsed(props.value, []);
      wall.innerHTML = images
        .map(
          (each) => `<button type="button" data-seed="${each.seed}" title="Seed ${each.seed}"
          aria-label="Take the variation of seed ${each.seed}"><img class="at-crisp" src="${each.src}" alt=""></button>`,
        )
        .join("");
      if (images.length) atonce.say(`${images.length} variations are shown`);
    };
    wall.addEventListener("click", (event) => {
      const button = event.target.closest("[data-seed]");
      if (!button) return;
      wall.querySelectorAll("[aria-current]").forEach((each) => each.removeAttribute("aria-current"));
      button.setAttribute("aria-current", "true");
      trigger("select", { seed: Number(button.dataset.seed) });
      atonce.say(`Seed ${button.dataset.seed} is the current image`);
    });
    wall.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const buttons = [...wall.querySelectorAll("button")];
      const at = buttons.indexOf(document.activeElement);
      if (!step || at < 0) return;
      event.preventDefault();
      buttons[Math.min(Math.max(at + step, 0), buttons.length - 1)].focus();
    });
    watch("value", draw);
    draw();
  };

  /** What is kept: back to its settings, download, remove. */
  atonce.generateKept = (element, trigger, props, watch) => {
    const list = element.querySelector("ul");
    const empty = element.querySelector("[data-empty]");
    const draw = () => {
      const images = parsed(props.value, []);
      empty.hidden = images.length > 0;
      const all = `<li class="generate-all"><a class="at-button" href="./kept.zip" download="kept.zip">Download all (zip)</a></li>`;
      list.innerHTML =
        images
          .map(
            (each) => `<li data-id="${each.id}"><button type="button" data-back title="${atonce.escape(each.title)}"
            aria-label="Back to ${atonce.escape(each.title)}"><img class="at-crisp" src="${each.src}" alt=""></button>
            <span><a href="${each.src}" download="${atonce.escape(each.file)}" aria-label="Download ${atonce.escape(each.title)}">PNG</a>
            <button type="button" data-drop aria-label="Remove ${atonce.escape(each.title)}">Remove</button></span></li>`,
          )
          .join("") + (images.length ? all : "");
    };
    list.addEventListener("click", (event) => {
      const id = event.target.closest("[data-id]")?.dataset.id;
      if (!id) return;
      if (event.target.closest("[data-drop]")) trigger("delete", { id });
      else if (event.target.closest("[data-back]")) trigger("select", { id });
    });
    watch("value", draw);
    draw();
  };
})();
