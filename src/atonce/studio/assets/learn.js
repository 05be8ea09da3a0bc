// The Learn tab: one point, its trajectory and its origin, and what teacher, CD, CT and iCT make of it, step by step.
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const learn = (atonce.learn = atonce.learn || {});
  const STORE = "atonce-learn", PARTS = 1000, RUN = 1000, BINS = 44, SECONDS = 4, SIDE = 1.35;
  const BEGIN = { step: 0, phases: {}, x: [-4.13, -2.76], sigma: 2, n: 6, order: 1, N: 18, i: 12, k: 0, seed: 1 };

  /** A number with the digits that a reader needs; `close` is for small distances, whose first two digits count. */
  function plain(value, close) {
    const size = Math.abs(value), digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.02 ? 2 : 3;
    const few = close && size < 0.1 && size > 0 ? String(Number(value.toPrecision(2))) : value.toFixed(digits);
    return few.replace(/e-(\d+)/, "\u00b710^\u2212$1").replace("-", "\u2212");
  }
  const near = (value) => plain(value, true);
  const point = (x) => `(${plain(x[0])}, ${plain(x[1])})`;

  function kept() {
    try {
      const found = JSON.parse(localStorage.getItem(STORE));
      const sound = found && Array.isArray(found.x) && found.x.length === 2 && [...found.x, found.sigma].every(Number.isFinite);
      return sound ? { ...BEGIN, ...found } : { ...BEGIN };
    } catch (_) {
      return { ...BEGIN };
    }
  }

  function mount(root) {
    const m = learn.math, d = learn.draw, find = (id) => root.querySelector(`#learn-${id}`);
    const facts = JSON.parse(find("facts").textContent), world = facts.world, net = m.network(facts.layers);
    const low = world.sigma_min, high = world.sigma_max, svg = find("svg"), handle = find("handle");
    const state = kept();
    let speaking = 0, playing = 0, samples = null, field = null;
    state.step = Math.max(0, Math.min(facts.steps.length - 1, Math.round(state.step) || 0));

    const key = () => facts.steps[state.step];
    const phase = () => state.phases[key()] || 0;
    const unit = () => 2 * SIDE / Math.max(200, svg.getBoundingClientRect().width || 520);
    const sigmaAt = (place) => low * Math.pow(high / low, place / PARTS);
    const placeOf = (sigma) => Math.round((PARTS * Math.log(sigma / low)) / Math.log(high / low));
    const answer = (x, sigma) => m.trained(net, x, sigma, world.sigma_data, low);
    const points = () => (key() === "ict" ? m.nIct(state.k, RUN, world.s0, world.s1) : state.N);
    const levels = () => m.grid(points(), low, high, world.rho);
    const paired = () => ["cd", "ct", "ict"].includes(key());

    function go(sigma) {
      // Along the trajectory; on the first step the point stays where it is drawn.
      const to = Math.min(high, Math.max(low, sigma));
      state.x = key() === "noise" ? d.back(world, d.shown(world, state.x, state.sigma), to) : m.flow(world, state.x, state.sigma, to);
      state.sigma = to;
    }

    function settle() {
      if (key() === "teacher" && state.sigma !== high) go(high);
      if (!paired()) return;
      const grid = levels();
      if (!(state.i >= 1 && state.i < grid.length)) state.i = Math.round(grid.length / 2);
      if (state.sigma !== grid[state.i]) go(grid[state.i]);
    }

    /** Pairs are shown where the trajectory bends. */
    function enter(step) {
      state.step = step;
      if (!paired()) return;
      go(Math.min(1.2, Math.max(0.2, state.sigma)));
      nearest();
    }

    function nearest() {
      const grid = levels();
      let best = 1;
      for (let i = 1; i < grid.length; i++) {
        if (Math.abs(Math.log(grid[i] / state.sigma)) < Math.abs(Math.log(grid[best] / state.sigma))) best = i;
      }
      state.i = best;
    }

    // ---- what is drawn for each step: {lines, marks, numbers, said}; the point itself is drawn by the handle

    function pair(second) {
      const grid = levels(), t = grid[state.i], r = grid[state.i - 1], u = unit(), x = state.x, shows = phase();
      const there = second(t, r), a = answer(x, t), b = answer(there.x, r), out = { lines: there.lines || "", marks: "", numbers: [] };
      const gap = m.distance(a, b);
      out.numbers.push(["t<sub>n+1</sub>, t<sub>n</sub>", `${plain(t)}, ${plain(r)}`]);
      if (shows >= 1) {
        out.lines += d.path(d.bend(world, x, t, there.x, r), "walk");
        out.marks += d.mark("other", d.shown(world, there.x, r), u);
        out.numbers.push(["second point", point(there.x)]);
        out.numbers.push(["origins of both, apart", near(m.distance(m.origin(world, x, t, low), m.origin(world, there.x, r, low)))]);
      }
      if (shows >= 2) {
        const one = d.shown(world, a, low), two = d.shown(world, b, low);
        out.lines += d.path([d.shown(world, x, t), one], "jump") + d.path([d.shown(world, there.x, r), two], "jump");
        out.marks += d.mark("model", one, u) + d.mark("model", two, u) + d.text(one, "1", u, 11, 5) + d.text(two, "2", u, -20, 5);
        if (shows >= 3 && key() !== "ct") out.lines += d.arrow(one, two, u, "pull");
        out.numbers.push(["answers 1 and 2", `${point(a)}, ${point(b)}`], ["their distance", near(gap)]);
      }
      out.said = shows >= 2 ? `The two answers are ${near(gap)} apart.` : "";
      return { ...out, grid, t, r, there, gap };
    }

    function clean(t) {
      return m.clean(world, state.x, t, m.random(state.seed));
    }

    function sameNoise(t, r) {
      const y = clean(t), z = [0, 1].map((j) => (state.x[j] - y[j]) / t), u = unit();
      const lines = d.path(d.bend(world, y, low, state.x, t), "noise") + d.mark("data", d.shown(world, y, low), u);
      return { x: [0, 1].map((j) => y[j] + r * z[j]), lines, y };
    }

    const PARTS_OF = {
      noise: () => ({
        lines: "",
        marks: d.mark("mean", d.shown(world, m.denoiser(world, state.x, state.sigma), low), unit()),
        weights: m.posterior(world, state.x, state.sigma).weights,
        cloud: true,
      }),
      ode: (way, origin) => ({
        lines: others() + d.path(way, "way"),
        marks: d.mark("origin", origin, unit()) + d.mark("mean", d.shown(world, m.denoiser(world, state.x, state.sigma), low), unit()),
      }),
      consistency: (way, origin) => ({
        lines: d.path(way, "way") + d.path([d.shown(world, state.x, state.sigma), origin], "jump"),
        marks: d.mark("origin", origin, unit()) + d.mark("mean", d.shown(world, m.denoiser(world, state.x, state.sigma), low), unit()),
      }),
      teacher: (way, origin, exact) => {
        const times = m.grid(state.n + 1, low, high, world.rho).reverse(), states = m.walk(world, state.x, times, state.order), u = unit();
        let lines = d.path(way, "way"), marks = d.mark("origin", origin, u);
        for (let i = 0; i < state.n; i++) {
          lines += d.path(d.bend(world, states[i], times[i], states[i + 1], times[i + 1]), "walk");
          marks += d.mark("walk", d.shown(world, states[i + 1], times[i + 1]), u);
        }
        const error = m.distance(states[state.n], exact), calls = state.n * state.order;
        return {
          lines, marks,
          numbers: [["calls", String(calls)], ["end of the solver", point(states[state.n])], ["distance to the origin", near(error)]],
          said: `${state.n} ${state.order === 1 ? "Euler" : "Heun"} steps, ${calls} calls, end ${near(error)} from the origin.`,
        };
      },
      cd: (way, origin) => {
        const found = pair((t, r) => ({ x: m.step(world, state.x, t, r, state.order), lines: d.path(way, "way") }));
        if (phase() >= 2) found.marks += d.mark("origin", origin, unit());
        return { ...found, cloud: phase() === 0, ruler: d.ruler(found.grid, [found.t, found.r]) };
      },
      ct: (way, origin) => {
        const found = pair(sameNoise), u = unit();
        if (phase() === 2) found.marks += d.mark("origin", origin, u);
        if (phase() === 3) {
          const draw = m.random(77), euler = m.step(world, state.x, found.t, found.r, 1);
          for (let j = 0; j < 120; j++) {
            const y = m.clean(world, state.x, found.t, draw);
            const x = [0, 1].map((c) => y[c] + (found.r / found.t) * (state.x[c] - y[c]));
            found.lines += d.mark("spread", d.shown(world, x, found.r), u);
          }
          found.marks += d.mark("cross", d.shown(world, euler, found.r), u);
          found.numbers.push(["Euler's step with D", point(euler)]);
        }
        return { ...found, ruler: d.ruler(found.grid, [found.t, found.r]) };
      },
      ict: () => {
        const found = pair(sameNoise), masses = m.lognormal(found.grid, world.p_mean, world.p_std), n = found.grid.length;
        const equal = masses.map(() => 1 / masses.length), weights = m.inverseDelta(found.grid);
        const above = (p) => p.reduce((sum, value, i) => sum + (found.grid[i + 1] > 10 ? value : 0), 0);
        const bars = phase() === 1 ? { here: d.bins(found.grid, masses, BINS), equal: d.bins(found.grid, equal, BINS) } : null;
        const told = [
          "",
          ` ${(100 * above(masses)).toFixed(0)} % of pairs begin above \u03c3 = 10 (bars); with equal shares (lines) it would be ${(100 * above(equal)).toFixed(0)} %.`,
          " The line is the weight, on a logarithmic scale.",
          "",
        ][phase()];
        const c = 0.00054 * Math.SQRT2;
        found.numbers.push(["probability of this interval", near(masses[state.i - 1])], ["weight", near(weights[state.i - 1])]);
        found.numbers.push(["pseudo-Huber distance", near(m.huber(found.gap, c))]);
        return { ...found, told, ruler: d.ruler(found.grid, [found.t, found.r], bars, phase() === 2 && n > 2 ? weights : null) };
      },
      trained: (way, origin) => {
        const u = unit();
        samples = samples || world.noise.map((z) => answer([high * z[0], high * z[1]], high));
        const dots = samples.map((x) => d.mark("dot", d.shown(world, x, low), u)).join("");
        return { lines: dots + d.path(way, "way"), marks: d.mark("origin", origin, u) };
      },
    };

    function others() {
      // a dozen other trajectories, for the eye; they never change
      field = field || world.noise.slice(0, 12).map((z) => m.solve(world, [high * z[0], high * z[1]], high, low).map((at) => d.shown(world, at.x, at.sigma)));
      return field.map((way) => d.path(way, "faint")).join("");
    }

    function redraw() {
      settle();
      const x = state.x, sigma = state.sigma, u = unit();
      const up = m.solve(world, x, sigma, high).reverse(), down = m.solve(world, x, sigma, low), exact = down[down.length - 1].x;
      const way = [...up, ...down.slice(1)].map((at) => d.shown(world, at.x, at.sigma)), origin = d.shown(world, exact, low);
      const model = answer(x, sigma), miss = m.distance(model, exact), mean = m.denoiser(world, x, sigma);
      const made = PARTS_OF[key()](way, origin, exact);
      if (key() === "consistency" || key() === "trained") made.marks += d.mark("model", d.shown(world, model, low), u);
      find("clusters").innerHTML = d.clusters(world, made.weights);
      find("cloud").innerHTML = made.cloud ? d.cloud(world, sigma, u) : "";
      find("lines").innerHTML = made.lines;
      find("marks").innerHTML = made.marks;
      const place = d.shown(world, x, sigma);
      handle.setAttribute("transform", `translate(${place[0]} ${place[1]})`);
      handle.querySelector(".learn-hit").setAttribute("r", 24 * u);
      handle.querySelector(".learn-point").setAttribute("r", 10 * u);
      handle.setAttribute("aria-valuenow", x[0].toFixed(3));
      handle.setAttribute("aria-valuetext", `x1 ${plain(x[0])}, x2 ${plain(x[1])}`);
      const rows = [["\u03c3", plain(sigma)], ["x", point(x)], ["D(x, \u03c3)", point(mean)], ["origin x<sub>\u03b5</sub>", point(exact)]];
      rows.push(["trained model", point(model)], ["its distance to the origin", near(miss)], ...(made.numbers || []));
      find("numbers").innerHTML = rows.map(([name, value]) => `<tr><th scope="row">${name}</th><td>${value}</td></tr>`).join("");
      const answered = `The trained model answers ${point(model)}, ${near(miss)} away.`;
      const line = `Noise level ${plain(sigma)}, point ${point(x)}. Its origin is ${point(exact)}. ${answered} ${made.said || ""}`.trim();
      find("summary").textContent = line;
      if (made.ruler) {
        find("ruler").innerHTML = made.ruler;
        find("ruler-text").textContent = `N = ${points()} noise levels from 0.002 to 80; the pair stands at ${plain(made.t)} and ${plain(made.r)}.${made.told || ""}`;
      }
      if (key() === "teacher") errors(exact);
      controls();
      try { localStorage.setItem(STORE, JSON.stringify(state)); } catch (_) { /* a full or closed store */ }
      return line;
    }

    function errors(exact) {
      const cells = [1, 2, 4, 8, 16, 32, 64].map((n) => {
        const times = m.grid(n + 1, low, high, world.rho).reverse();
        const [euler, heun] = [1, 2].map((order) => near(m.distance(m.walk(world, state.x, times, order)[n], exact)));
        return `<tr><th scope="row">${n}</th><td>${euler}</td><td>${n}</td><td>${heun}</td><td>${2 * n}</td></tr>`;
      });
      find("errors").innerHTML = cells.join("");
    }

    function controls() {
      const set = (name, value, said, most) => {
        const slide = find(`${name}-slide`);
        if (most) slide.max = most;
        if (document.activeElement !== slide || Number(slide.value) !== value) slide.value = value;
        slide.setAttribute("aria-valuetext", said);
        find(`${name}-value`).textContent = said;
      };
      const moved = find("sigma-slide");
      if (Math.abs(sigmaAt(Number(moved.value)) / state.sigma - 1) > 1e-9) moved.value = placeOf(state.sigma);
      set("sigma", Number(moved.value), plain(state.sigma));
      set("n", state.n, String(state.n));
      set("N", state.N, String(state.N));
      set("k", state.k, `${Math.round((100 * state.k) / RUN)} %, N = ${m.nIct(state.k, RUN, world.s0, world.s1)}`);
      if (paired()) set("i", state.i, `${state.i} of ${points() - 1}`, points() - 1);
      find(state.order === 1 ? "euler" : "heun").checked = true;
      for (const part of root.querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(key());
      for (const item of root.querySelectorAll(".learn-legend li")) {
        const drawn = find("lines").innerHTML + find("marks").innerHTML, name = item.dataset.key;
        item.hidden = name !== "point" && !new RegExp(`class="(learn-line )?learn-${name}"`).test(drawn);
      }
      for (const button of root.querySelectorAll("[data-step]")) {
        if (Number(button.dataset.step) === state.step) button.setAttribute("aria-current", "step");
        else button.removeAttribute("aria-current");
      }
      for (const section of root.querySelectorAll("[data-section]")) {
        section.hidden = Number(section.dataset.section) !== state.step;
        if (section.hidden) continue;
        for (const item of section.querySelectorAll("[data-phase]")) {
          item.hidden = Number(item.dataset.phase) > phase();
          item.classList.toggle("learn-now", Number(item.dataset.phase) === phase());
        }
        const back = section.querySelector('[data-move="-1"]');
        if (back) back.disabled = phase() === 0;
      }
    }

    /** Redraw after something that a person did; what has changed is said a little later, once. */
    function changed() {
      const line = redraw();
      clearTimeout(speaking);
      speaking = setTimeout(() => atonce.say && atonce.say(line), 700);
    }

    function halt() {
      cancelAnimationFrame(playing);
      playing = 0;
      find("play").textContent = "Follow the trajectory";
    }

    function play() {
      if (playing) return halt();
      if (state.sigma < low * 1.01) go(high);
      if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
        go(low);
        return changed();
      }
      const from = Math.log(state.sigma), way = m.solve(world, state.x, state.sigma, low), begun = performance.now();
      const total = (SECONDS * (from - Math.log(low))) / Math.log(high / low);
      find("play").textContent = "Stop";
      const tick = (now) => {
        const share = Math.min(1, (now - begun) / 1000 / Math.max(total, 0.1));
        const sigma = Math.exp(from + share * (Math.log(low) - from));
        const before = way.reduce((best, at) => (at.sigma >= sigma && at.sigma < best.sigma ? at : best), way[0]);
        state.x = m.flow(world, before.x, before.sigma, sigma);
        state.sigma = share === 1 ? low : sigma;
        if (share < 1) {
          redraw();
          playing = requestAnimationFrame(tick);
        } else {
          halt();
          changed();
        }
      };
      playing = requestAnimationFrame(tick);
      return undefined;
    }

    function put(place) {
      const inside = place.map((value) => Math.max(0.04 - SIDE, Math.min(SIDE - 0.04, value)));
      state.x = d.back(world, inside, state.sigma);
      changed();
    }

    function placeOfEvent(event) {
      const box = svg.getBoundingClientRect(), size = (2 * SIDE) / box.width;
      return [(event.clientX - box.left) * size - SIDE, (event.clientY - box.top) * size - SIDE];
    }

    let held = null;
    svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" && !handle.contains(event.target)) return;
      halt();
      held = event.pointerId;
      svg.setPointerCapture(held);
      handle.focus({ preventScroll: true });
      put(placeOfEvent(event));
      event.preventDefault();
    });
    svg.addEventListener("pointermove", (event) => {
      if (event.pointerId === held) put(placeOfEvent(event));
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = null; });
    svg.addEventListener("click", (event) => {
      // a tap beside the point puts it there; a swipe scrolls the page
      if (event.pointerType !== "mouse" && !handle.contains(event.target)) put(placeOfEvent(event));
    });
    handle.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      halt();
      const size = event.shiftKey ? 0.2 : 0.03, place = d.shown(world, state.x, state.sigma);
      put([place[0] + size * move[0], place[1] + size * move[1]]);
    });

    const listen = (name, act) => find(name).addEventListener("input", (event) => {
      halt();
      act(Number(event.target.value));
      changed();
    });
    listen("sigma-slide", (place) => go(sigmaAt(place)));
    listen("n-slide", (value) => { state.n = value; });
    listen("N-slide", (value) => { state.N = value; nearest(); });
    listen("k-slide", (value) => { state.k = value; nearest(); });
    listen("i-slide", (value) => { state.i = value; });
    for (const [name, order] of [["euler", 1], ["heun", 2]]) find(name).addEventListener("change", () => { state.order = order; changed(); });
    find("play").addEventListener("click", play);
    find("other").addEventListener("click", () => { state.seed += 1; changed(); });
    find("draw").addEventListener("click", () => {
      state.seed += 1;
      const masses = m.lognormal(levels(), world.p_mean, world.p_std);
      let u = m.random(1000 + state.seed)(), i = 0;
      while (i < masses.length - 1 && u >= masses[i]) u -= masses[i++];
      state.i = i + 1;
      changed();
    });
    find("new").addEventListener("click", () => {
      halt();
      state.seed += 1;
      const draw = m.random(5000 + state.seed), z = m.normal(draw), y = world.points[Math.floor(draw() * world.points.length)];
      put(d.shown(world, [0, 1].map((j) => y[j] + state.sigma * z[j]), state.sigma));
    });
    root.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => {
      halt();
      enter(Number(button.dataset.step));
      changed();
    }));
    root.querySelectorAll("[data-move]").forEach((button) => button.addEventListener("click", () => {
      const count = button.closest("[data-section]").querySelectorAll("[data-phase]").length, next = phase() + Number(button.dataset.move);
      if (next >= count && state.step + 1 < facts.steps.length) {
        enter(state.step + 1);
      } else {
        state.phases = { ...state.phases, [key()]: Math.max(0, Math.min(count - 1, next)) };
      }
      changed();
    }));
    new ResizeObserver(() => redraw()).observe(svg);
    redraw();
  }

  learn.mount = mount;
})();
