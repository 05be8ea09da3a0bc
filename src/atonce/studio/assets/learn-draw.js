// Drawing for the Learn tab: from points and noise levels to SVG. Nothing is decided here.
(() => {
  "use strict";
  const atonce = (window.atonce = window.atonce || {});
  const learn = (atonce.learn = atonce.learn || {});

  /** Where a point is drawn: scaled so that noise and data fit one picture, with x2 upwards. */
  function shown(world, x, sigma) {
    const s = world.sigma_data / Math.hypot(sigma, world.sigma_data);
    return [s * x[0], -s * x[1]];
  }

  /** The point that is drawn at a place. */
  function back(world, place, sigma) {
    const s = world.sigma_data / Math.hypot(sigma, world.sigma_data);
    return [place[0] / s, -place[1] / s];
  }

  const at = (p) => `${p[0].toFixed(4)} ${p[1].toFixed(4)}`;

  function path(places, kind) {
    return `<path class="learn-line learn-${kind}" d="M${places.map(at).join("L")}"/>`;
  }

  /** A straight line in x between two noise levels, which bends in the picture. */
  function bend(world, a, t, b, r) {
    const out = [];
    for (let i = 0; i <= 24; i++) {
      const sigma = Math.exp(Math.log(t) + (i / 24) * (Math.log(r) - Math.log(t)));
      const share = t === r ? 0 : (sigma - t) / (r - t);
      out.push(shown(world, [a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])], sigma));
    }
    return out;
  }

  /** Marks of one size each, in pixels: `unit` is the picture's length of one pixel. */
  function mark(kind, p, unit) {
    const r = 7 * unit, [x, y] = p;
    switch (kind) {
      case "origin":
        return `<path class="learn-origin" d="M${x} ${y - 1.3 * r}L${x + 1.3 * r} ${y}L${x} ${y + 1.3 * r}L${x - 1.3 * r} ${y}Z"/>`;
      case "model":
        return `<rect class="learn-model" x="${x - r}" y="${y - r}" width="${2 * r}" height="${2 * r}"/>`;
      case "cross":
        return `<path class="learn-cross" d="M${x - 1.4 * r} ${y}H${x + 1.4 * r}M${x} ${y - 1.4 * r}V${y + 1.4 * r}"/>`;
      default:
        return `<circle class="learn-${kind}" cx="${x}" cy="${y}" r="${kind === "walk" ? 0.6 * r : kind === "dot" || kind === "spread" ? 0.45 * r : r}"/>`;
    }
  }

  function text(p, words, unit, dx, dy) {
    return `<text x="${p[0] + dx * unit}" y="${p[1] + dy * unit}" font-size="${15 * unit}" class="learn-text">${words}</text>`;
  }

  function arrow(a, b, unit, kind) {
    const length = Math.hypot(b[0] - a[0], b[1] - a[1]);
    if (length < 12 * unit) return "";
    const u = [(b[0] - a[0]) / length, (b[1] - a[1]) / length], h = 9 * unit;
    const end = [b[0] - 8 * unit * u[0], b[1] - 8 * unit * u[1]];
    const left = [end[0] - h * u[0] - 0.6 * h * u[1], end[1] - h * u[1] + 0.6 * h * u[0]];
    const right = [end[0] - h * u[0] + 0.6 * h * u[1], end[1] - h * u[1] - 0.6 * h * u[0]];
    return `<path class="learn-line learn-${kind}" d="M${at(a)}L${at(end)}M${at(left)}L${at(end)}L${at(right)}"/>`;
  }

  function clusters(world, weights) {
    return world.means
      .map((mean, k) => {
        const shade = weights ? 0.06 + 0.5 * weights[k] : 0.16;
        return `<circle class="learn-cluster" cx="${mean[0]}" cy="${-mean[1]}" r="${2 * world.stds[k]}" fill-opacity="${shade.toFixed(3)}"/>`;
      })
      .join("");
  }

  function cloud(world, sigma, unit) {
    return world.points
      .map((y, i) => {
        const z = world.noise[i], p = shown(world, [y[0] + sigma * z[0], y[1] + sigma * z[1]], sigma);
        return `<circle class="learn-speck" cx="${p[0].toFixed(4)}" cy="${p[1].toFixed(4)}" r="${2.2 * unit}"/>`;
      })
      .join("");
  }

  const LOW = 0.002, HIGH = 80;
  const share = (sigma) => (100 * Math.log(sigma / LOW)) / Math.log(HIGH / LOW);

  /** The axis of noise levels: the grid, the pair, and for iCT where pairs lie and their weight. Coordinates are shares. */
  function ruler(levels, pair, bars, weights) {
    const base = 60, out = [`<line class="learn-axis" x1="0" x2="100%" y1="${base}" y2="${base}"/>`];
    for (const [kind, values] of Object.entries(bars || {})) {
      const top = Math.max(...bars.here, ...bars.equal);
      values.forEach((value, j) => {
        const x = (100 * j) / values.length, height = (52 * value) / top;
        if (kind === "here") {
          out.push(`<rect class="learn-bin" x="${x + 0.2}%" y="${base - height}" width="${100 / values.length - 0.4}%" height="${height}"/>`);
        } else {
          out.push(`<line class="learn-equal" x1="${x}%" x2="${x + 100 / values.length}%" y1="${base - height}" y2="${base - height}"/>`);
        }
      });
    }
    if (weights) {
      const logs = weights.map(Math.log), low = Math.min(...logs), high = Math.max(...logs);
      const place = (j) => [share(Math.sqrt(levels[j] * levels[j + 1])), base - 4 - (46 * (logs[j] - low)) / (high - low || 1)];
      const pace = Math.max(1, Math.floor(weights.length / 60));
      for (let j = 0; j + pace < weights.length; j += pace) {
        const a = place(j), b = place(j + pace);
        out.push(`<line class="learn-weight" x1="${a[0]}%" y1="${a[1]}" x2="${b[0]}%" y2="${b[1]}"/>`);
      }
    }
    if (levels.length <= 161) {
      for (const t of levels) out.push(`<line class="learn-tick" x1="${share(t)}%" x2="${share(t)}%" y1="${base - 7}" y2="${base}"/>`);
    }
    pair.forEach((t, j) => {
      out.push(`<line class="learn-pair" x1="${share(t)}%" x2="${share(t)}%" y1="4" y2="${base + 4}"/>`);
      out.push(`<circle class="${j ? "learn-other" : "learn-point"}" cx="${share(t)}%" cy="${base}" r="6"/>`);
    });
    for (const t of [0.002, 0.02, 0.2, 2, 80]) {
      const anchor = t === LOW ? "start" : t === HIGH ? "end" : "middle";
      out.push(`<text x="${share(t)}%" y="${base + 22}" text-anchor="${anchor}">${t}</text>`);
    }
    return out.join("");
  }

  /** Mass of each of `count` equal parts of the axis of ln sigma. */
  function bins(levels, masses, count) {
    const out = new Array(count).fill(0);
    masses.forEach((mass, i) => {
      // an interval may reach over several parts
      const a = (share(levels[i]) / 100) * count, b = (share(levels[i + 1]) / 100) * count;
      for (let j = Math.max(0, Math.floor(a)); j < Math.min(count, Math.ceil(b)); j++) {
        out[j] += (mass * Math.max(0, Math.min(b, j + 1) - Math.max(a, j))) / (b - a);
      }
    });
    return out;
  }

  learn.draw = { shown, back, path, bend, mark, text, arrow, clusters, cloud, ruler, bins, share };
})();
