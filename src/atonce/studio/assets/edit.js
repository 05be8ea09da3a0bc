/* The own parts of the tab Edit: the canvas for masks and strokes, the before/after slider, the history. */
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const escape = (text) => atonce.escape(text);
  const parsed = (text, other) => {
    try {
      return text ? JSON.parse(text) : other;
    } catch {
      return other;
    }
  };
  const kept = {
    get: (key) => {
      try {
        return window.sessionStorage.getItem(`atonce-edit-${key}`);
      } catch {
        return null;
      }
    },
    set: (key, value) => {
      try {
        window.sessionStorage.setItem(`atonce-edit-${key}`, value);
      } catch {
        /* a full or closed store: the painting lasts as long as the page */
      }
    },
  };

  /** Cells of a line between two cells, both included. */
  atonce.editLine = ([x0, y0], [x1, y1]) => {
    const steps = Math.max(Math.abs(x1 - x0), Math.abs(y1 - y0), 1);
    return Array.from({ length: steps + 1 }, (_, i) => [Math.round(x0 + ((x1 - x0) * i) / steps), Math.round(y0 + ((y1 - y0) * i) / steps)]);
  };

  /** What a brush covers around a cell: a square for small sizes, a disc for larger ones. */
  atonce.editBrush = (size) => {
    const found = [];
    const half = (size - 1) / 2;
    for (let dy = 0; dy < size; dy++)
      for (let dx = 0; dx < size; dx++)
        if (size < 4 || Math.hypot(dx - half, dy - half) <= size / 2) found.push([dx - Math.floor(half), dy - Math.floor(half)]);
    return found;
  };

  const PANEL = (mode, width, height, channels) => {
    const mask = mode === "mask";
    const number = (name, label, value, low, high) =>
      `<label>${label}<input type="number" data-rect="${name}" value="${value}" min="${low}" max="${high}" inputmode="numeric"></label>`;
    return `<h3 id="edit-canvas-title">${mask ? "Mark what is to be made" : "Paint strokes"}</h3>
    <div class="edit-tools">
      <div role="radiogroup" aria-label="Tool">
        <label><input type="radio" name="edit-tool" value="brush" checked> Brush</label>
        <label><input type="radio" name="edit-tool" value="rectangle"> Rectangle</label>
        <label><input type="radio" name="edit-tool" value="erase"> Erase</label>
      </div>
      <label>Brush size <input type="range" data-size min="1" max="${Math.max(2, Math.min(64, Math.round(width / 3)))}" value="${Math.max(1, Math.round(width / 14))}"></label>
      ${mask ? "" : channels === 1 ? `<label>Grey <input type="range" data-grey min="0" max="255" value="255"><span class="edit-swatch" data-swatch></span></label>` : `<label>Colour <input type="color" data-colour value="#d0402c"></label>`}
    </div>
    <div class="edit-board"><canvas tabindex="0" role="application" aria-labelledby="edit-canvas-title" aria-describedby="edit-canvas-keys" width="${width}" height="${height}"></canvas></div>
    <p class="at-note" data-says role="status"></p>
    <div class="edit-actions">
      <button type="button" class="at-button" data-act="back">Take back</button>
      ${mask ? `<button type="button" class="at-button" data-act="invert">Swap marked and unmarked</button>` : `<button type="button" class="at-button" data-act="picture">Begin with the picture</button>`}
      <button type="button" class="at-button" data-act="clear">Clear</button>
    </div>
    <details class="edit-numbers"><summary>Rectangle by numbers, and keys</summary>
      <div class="edit-fields">${number("top", "From row", 1, 1, height)}${number("left", "From column", mask ? Math.floor(width / 2) + 1 : 1, 1, width)}${number("height", "Rows", height, 1, height)}${number("width", "Columns", mask ? width - Math.floor(width / 2) : width, 1, width)}
      <button type="button" class="at-button" data-act="add">${mask ? "Mark" : "Paint"} the rectangle</button>
      <button type="button" class="at-button" data-act="remove">${mask ? "Unmark" : "Erase"} it</button></div>
      <p class="at-note" id="edit-canvas-keys">On the canvas: arrow keys move the cursor, Space ${mask ? "marks" : "paints"}, Delete erases, Shift with arrows spans a rectangle that Enter ${mask ? "marks" : "paints"}, Control Z takes back.</p>
    </details>`;
  };

  /** The canvas. Its value gets "mask" or "drawing", a PNG as an address, whenever something changes. */
  atonce.editCanvas = (element, props, watch) => {
    const box = element.querySelector(".edit-canvas");
    let state = null, cells = null, picture = null, undo = [], cursor = [0, 0], corner = null, keys = false, drawn = "";

    const index = (x, y) => y * state.width + x;
    const inside = (x, y) => x >= 0 && y >= 0 && x < state.width && y < state.height;
    const name = () => `${state.mode}-${state.width}x${state.height}`;
    const paint = () => box.querySelector("canvas");

    const colour = () => {
      if (state.mode === "mask") return 1;
      if (state.channels === 1) {
        const grey = Number(box.querySelector("[data-grey]").value);
        return 0xff000000 + grey * 0x010101;
      }
      return 0xff000000 + parseInt(box.querySelector("[data-colour]").value.slice(1), 16);
    };
    const tool = () => box.querySelector("[name=edit-tool]:checked").value;
    const size = () => Number(box.querySelector("[data-size]").value);
    const rgb = (value) => [(value >>> 16) & 255, (value >>> 8) & 255, value & 255];

    const remember = () => {
      undo.push(cells.slice());
      if (undo.length > 40) undo.shift();
    };
    const stamp = (x, y, value) => {
      for (const [dx, dy] of atonce.editBrush(size())) if (inside(x + dx, y + dy)) cells[index(x + dx, y + dy)] = value;
    };
    const fill = ([x0, y0], [x1, y1], value) => {
      for (let y = Math.min(y0, y1); y <= Math.max(y0, y1); y++)
        for (let x = Math.min(x0, x1); x <= Math.max(x0, x1); x++) if (inside(x, y)) cells[index(x, y)] = value;
    };

    /** The PNG that the server gets: of the picture's own pixels, not of the screen's. */
    const export_ = () => {
      const count = cells.reduce((sum, cell) => sum + (cell ? 1 : 0), 0);
      const sheet = document.createElement("canvas");
      [sheet.width, sheet.height] = [state.width, state.height];
      const context = sheet.getContext("2d");
      const data = context.createImageData(state.width, state.height);
      cells.forEach((cell, i) => {
        const [r, g, b] = state.mode === "mask" ? (cell ? [255, 255, 255] : [0, 0, 0]) : cell ? rgb(cell) : [0, 0, 0];
        data.data.set([r, g, b, 255], 4 * i);
      });
      context.putImageData(data, 0, 0);
      const address = count ? sheet.toDataURL("image/png") : "";
      const { mask, drawing, ...rest } = state;
      state = state.mode === "mask" ? { ...rest, mask: address } : { ...rest, drawing: address };
      drawn = JSON.stringify(state);
      props.value = drawn;
      kept.set(name(), JSON.stringify([...cells]));
      box.querySelector("[data-says]").textContent =
        state.mode === "mask" ? `${count} of ${cells.length} pixels are marked.` : `${count} of ${cells.length} pixels are painted.`;
    };

    const show = () => {
      const canvas = paint();
      const scale = Math.max(1, Math.floor(Math.min(448, (box.clientWidth || 320) - 32) / state.width));
      const zoom = scale * Math.max(1, Math.round(Math.min(2, window.devicePixelRatio || 1)));
      [canvas.width, canvas.height] = [state.width * zoom, state.height * zoom];
      canvas.style.width = `${state.width * scale}px`;
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      if (state.mode === "mask" && picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
      for (let y = 0; y < state.height; y++)
        for (let x = 0; x < state.width; x++) {
          const cell = cells[index(x, y)];
          if (!cell) continue;
          if (state.mode === "mask") {
            context.fillStyle = "rgba(255, 128, 0, .78)";
            context.fillRect(x * zoom, y * zoom, zoom, zoom);
            if (zoom >= 6) {
              context.strokeStyle = "rgba(60, 20, 0, .55)"; // hatched, so that it is not told by its colour alone
              context.beginPath();
              context.moveTo(x * zoom, (y + 1) * zoom);
              context.lineTo((x + 1) * zoom, y * zoom);
              context.stroke();
            }
          } else {
            context.fillStyle = `rgb(${rgb(cell).join(",")})`;
            context.fillRect(x * zoom, y * zoom, zoom, zoom);
          }
        }
      const outline = ([x0, y0], [x1, y1]) => {
        const [left, top] = [Math.min(x0, x1), Math.min(y0, y1)];
        const place = [left * zoom, top * zoom, (Math.abs(x1 - x0) + 1) * zoom, (Math.abs(y1 - y0) + 1) * zoom];
        context.lineWidth = 3;
        context.strokeStyle = "#000";
        context.strokeRect(...place);
        context.lineWidth = 1.5;
        context.strokeStyle = "#fff";
        context.strokeRect(...place);
        context.lineWidth = 1;
      };
      if (corner) outline(corner, cursor);
      else if (keys) outline(cursor, cursor);
    };

    const done = () => {
      export_();
      show();
    };
    const where = (event) => {
      const area = paint().getBoundingClientRect();
      const x = Math.floor(((event.clientX - area.left) / area.width) * state.width);
      const y = Math.floor(((event.clientY - area.top) / area.height) * state.height);
      return [Math.min(Math.max(x, 0), state.width - 1), Math.min(Math.max(y, 0), state.height - 1)];
    };

    const begin = () => {
      const canvas = paint();
      let last = null;
      canvas.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        event.preventDefault();
        canvas.focus({ preventScroll: true });
        canvas.setPointerCapture(event.pointerId);
        keys = false;
        remember();
        cursor = last = where(event);
        if (tool() === "rectangle") corner = cursor;
        else stamp(...cursor, tool() === "erase" ? 0 : colour());
        show();
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!last) return;
        const at = where(event);
        if (tool() !== "rectangle") for (const cell of atonce.editLine(last, at)) stamp(...cell, tool() === "erase" ? 0 : colour());
        cursor = last = at;
        show();
      });
      const end = () => {
        if (!last) return;
        if (corner) fill(corner, cursor, colour());
        last = corner = null;
        done();
      };
      canvas.addEventListener("pointerup", end);
      canvas.addEventListener("pointercancel", end);
      canvas.addEventListener("focus", () => { keys = canvas.matches(":focus-visible"); show(); });
      canvas.addEventListener("blur", () => { keys = false; corner = null; show(); });
      canvas.addEventListener("keydown", (event) => {
        const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
        keys = true;
        if (step) {
          event.preventDefault();
          if (event.shiftKey) corner = corner || [...cursor];
          else corner = null;
          cursor = [Math.min(Math.max(cursor[0] + step[0], 0), state.width - 1), Math.min(Math.max(cursor[1] + step[1], 0), state.height - 1)];
          const cell = cells[index(...cursor)] ? (state.mode === "mask" ? "marked" : "painted") : "free";
          atonce.say(`row ${cursor[1] + 1}, column ${cursor[0] + 1}, ${cell}`);
          show();
        } else if (event.key === " " || event.key === "Delete" || event.key === "Backspace") {
          event.preventDefault();
          remember();
          stamp(...cursor, event.key === " " && tool() !== "erase" ? colour() : 0);
          done();
        } else if (event.key === "Enter") {
          event.preventDefault();
          remember();
          fill(corner || cursor, cursor, tool() === "erase" ? 0 : colour());
          corner = null;
          done();
        } else if (event.key === "Escape" && corner) {
          corner = null;
          show();
        } else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          act("back");
        }
      });
    };

    const act = (what) => {
      const field = (key) => Math.round(Number(box.querySelector(`[data-rect=${key}]`).value));
      if (what === "back") {
        if (undo.length) cells = undo.pop();
      } else {
        remember();
        if (what === "clear") cells.fill(0);
        else if (what === "invert") cells = cells.map((cell) => (cell ? 0 : 1));
        else if (what === "picture" && picture) {
          const sheet = document.createElement("canvas");
          [sheet.width, sheet.height] = [state.width, state.height];
          const context = sheet.getContext("2d", { willReadFrequently: true });
          context.drawImage(picture, 0, 0, state.width, state.height);
          const { data } = context.getImageData(0, 0, state.width, state.height);
          cells = cells.map((_, i) => 0xff000000 + data[4 * i] * 65536 + data[4 * i + 1] * 256 + data[4 * i + 2]);
        } else if (what === "add" || what === "remove") {
          const [height, width] = ["height", "width"].map(field);
          const [top, left] = ["top", "left"].map((key) => field(key) - 1); // counted from 1, as it is said
          const fits = top >= 0 && left >= 0 && height > 0 && width > 0 && top + height <= state.height && left + width <= state.width;
          if (!fits) {
            undo.pop();
            box.querySelector("[data-says]").textContent = `This rectangle does not lie within ${state.height} rows and ${state.width} columns: give smaller numbers.`;
            return;
          }
          fill([left, top], [left + width - 1, top + height - 1], what === "add" ? colour() : 0);
        }
      }
      done();
    };

    const draw = () => {
      if (props.value === drawn) return; // what was painted here
      const next = parsed(props.value, null);
      if (!next) return;
      const same = state && state.mode === next.mode && state.width === next.width && state.height === next.height && state.channels === next.channels;
      state = next;
      box.hidden = next.mode === "none";
      if (box.hidden) {
        cells = null;
        return;
      }
      if (!same || !cells) {
        box.innerHTML = PANEL(next.mode, next.width, next.height, next.channels);
        const before = parsed(kept.get(name()), null);
        cells = Array.isArray(before) && before.length === next.width * next.height ? before : new Array(next.width * next.height).fill(0);
        undo = [];
        cursor = [0, 0];
        begin();
        swatch();
      }
      picture = null;
      done();
      if (next.picture) {
        const image = new Image();
        image.onload = () => {
          picture = image;
          show();
        };
        image.src = next.picture;
      }
    };
    const swatch = () => {
      const place = box.querySelector("[data-swatch]");
      const grey = box.querySelector("[data-grey]")?.value;
      if (place) place.style.background = `rgb(${grey}, ${grey}, ${grey})`;
    };
    box.addEventListener("click", (event) => {
      const what = event.target.closest("[data-act]")?.dataset.act;
      if (what) act(what);
    });
    box.addEventListener("input", swatch);
    new ResizeObserver(() => { if (state && cells && !box.hidden) show(); }).observe(box);
    watch("value", draw);
    draw();
  };

  /** The picture with a slider between before and after, what there is to say about it, and its files. */
  atonce.editResult = (element, trigger, props, watch) => {
    const box = element.querySelector(".edit-result");
    const draw = () => {
      const facts = parsed(props.value, null);
      if (!facts) {
        box.innerHTML = `<p class="at-note">Choose a picture to begin with.</p>`;
        return;
      }
      const crisp = facts.size[0] < 256 ? ` class="at-crisp"` : "";
      const ratio = `style="aspect-ratio: ${facts.size[0]} / ${facts.size[1]}"`;
      const words = `<dl>${facts.facts.map(([name, value]) => `<div><dt>${escape(name)}</dt><dd>${escape(value)}</dd></div>`).join("")}</dl>`;
      const several = facts.pictures.length
        ? `<div class="edit-strip" role="group" aria-label="Pictures made together; choose one">${facts.pictures
            .map((src, i) => `<button type="button" data-number="${i}" aria-pressed="${i === facts.chosen}" aria-label="Picture ${i + 1} of ${facts.pictures.length}"><img${crisp} src="${src}" alt=""></button>`)
            .join("")}</div>`
        : "";
      const slider = facts.before
        ? `<div class="edit-slide"><input type="range" min="0" max="100" value="50" id="edit-divider" aria-label="Divider between before and after" aria-valuetext="half of each"></div>`
        : "";
      box.innerHTML = `<h3>${escape(facts.title)}</h3><div class="edit-pair" ${ratio}>
        <img${crisp} data-after src="${facts.after}" alt="${facts.before ? "After: " : ""}${escape(facts.title)}">
        ${facts.before ? `<img${crisp} data-before src="${facts.before}" alt="Before: ${escape(facts.before_title)}"><i aria-hidden="true"></i><b aria-hidden="true">Before</b><b aria-hidden="true">After</b>` : ""}</div>
        ${slider}${several}${words}<p class="edit-files"><a class="at-button" href="${facts.after}" download="${escape(facts.file)}.png">Download PNG</a>
        <a class="at-button" data-record download="${escape(facts.file)}.json">Download record</a></p>`;
      box.querySelector("[data-record]").href = `data:application/json,${encodeURIComponent(facts.record)}`;
      if (facts.before) divide(50);
    };
    const divide = (share) => {
      const before = box.querySelector("[data-before]");
      if (!before) return;
      before.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
      box.querySelector(".edit-pair i").style.left = `${share}%`;
      const [first, last] = box.querySelectorAll(".edit-pair b");
      first.hidden = share < 20;
      last.hidden = share > 80;
      box.querySelector("#edit-divider").setAttribute("aria-valuetext", `${share} percent before, ${100 - share} percent after`);
    };
    box.addEventListener("input", (event) => {
      if (event.target.id === "edit-divider") divide(Number(event.target.value));
    });
    box.addEventListener("click", (event) => {
      const button = event.target.closest("[data-number]");
      if (button) trigger("select", { number: Number(button.dataset.number) });
    });
    watch("value", draw);
    draw();
  };

  /** All steps; a click goes to one. */
  atonce.editHistory = (element, trigger, props, watch) => {
    const box = element.querySelector(".edit-history");
    const draw = () => {
      const steps = parsed(props.value, []);
      if (!steps.length) {
        box.innerHTML = "";
        return;
      }
      const crisp = "at-crisp";
      box.innerHTML = `<h3>History</h3><ol>${steps
        .map(
          (step) => `<li><button type="button" data-id="${step.id}"${step.current ? ` aria-current="step"` : ""} aria-label="${step.number}: ${escape(step.title)}${step.from ? `, from ${step.from}` : ""}${step.current ? ", shown" : ""}">
          ${step.src ? `<img class="${crisp}" src="${step.src}" alt="">` : ""}<span>${step.number}${step.from ? ` ← ${step.from}` : ""}</span></button></li>`,
        )
        .join("")}</ol>`;
    };
    box.addEventListener("click", (event) => {
      const button = event.target.closest("[data-id]");
      if (button) trigger("select", { id: button.dataset.id });
    });
    watch("value", draw);
    draw();
  };
})();
