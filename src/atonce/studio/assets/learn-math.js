// The plane of the Learn tab in closed form: what atonce.noise.worlds, .karras, .draws and .curricula compute, for one point.
// A point is [x1, x2]; a world has means, stds and weights; times are noise levels. No page is touched here.
(function () {
  "use strict";

  // Karras et al. 2022, equation 5, ascending: n points from low to high.
  function grid(n, low, high, rho) {
    const a = Math.pow(low, 1 / rho), b = Math.pow(high, 1 / rho), out = [];
    for (let i = 0; i < n; i++) out.push(Math.pow(a + (i / (n - 1)) * (b - a), rho));
    out[0] = low;
    out[n - 1] = high;
    return out;
  }

  // Probability of each cluster given x, and its variance at this noise level.
  function posterior(world, x, sigma) {
    const logs = [], variances = [];
    for (let k = 0; k < world.means.length; k++) {
      const v = world.stds[k] * world.stds[k] + sigma * sigma;
      const a = world.means[k][0] - x[0], b = world.means[k][1] - x[1];
      logs.push(Math.log(world.weights[k]) - Math.log(2 * Math.PI * v) - (a * a + b * b) / (2 * v));
      variances.push(v);
    }
    const top = Math.max.apply(null, logs);
    const shares = logs.map((value) => Math.exp(value - top));
    const sum = shares.reduce((a, b) => a + b, 0);
    return { weights: shares.map((value) => value / sum), variances: variances };
  }

  // D(x, sigma) = E[y | x].
  function denoiser(world, x, sigma) {
    const p = posterior(world, x, sigma), out = [x[0], x[1]];
    for (let k = 0; k < world.means.length; k++) {
      const w = (p.weights[k] * sigma * sigma) / p.variances[k];
      out[0] += w * (world.means[k][0] - x[0]);
      out[1] += w * (world.means[k][1] - x[1]);
    }
    return out;
  }

  // dx/dsigma = (x - D) / sigma, without the difference of nearly equal numbers at small sigma.
  function velocity(world, x, sigma) {
    const p = posterior(world, x, sigma), out = [0, 0];
    for (let k = 0; k < world.means.length; k++) {
      const w = (p.weights[k] * sigma) / p.variances[k];
      out[0] -= w * (world.means[k][0] - x[0]);
      out[1] -= w * (world.means[k][1] - x[1]);
    }
    return out;
  }

  function plus(x, factor, v) {
    return [x[0] + factor * v[0], x[1] + factor * v[1]];
  }

  const COUNTS = [2, 4, 6, 8, 10, 12];

  // One step of dx/dw = slope(w, x): modified midpoint rules, extrapolated (Gragg, Bulirsch and Stoer), as the package has it.
  function extrapolated(slope, x, w, width) {
    const first = slope(w, x);
    let row = [];
    for (let i = 0; i < COUNTS.length; i++) {
      const h = width / COUNTS[i];
      let before = x, now = plus(x, h, first);
      for (let j = 1; j < COUNTS[i]; j++) {
        const next = plus(before, 2 * h, slope(w + j * h, now));
        before = now;
        now = next;
      }
      const last = slope(w + width, now);
      const column = [[0.5 * (before[0] + now[0] + h * last[0]), 0.5 * (before[1] + now[1] + h * last[1])]];
      for (let j = 0; j < i; j++) {
        const ratio = COUNTS[i] / COUNTS[i - 1 - j], scale = 1 / (ratio * ratio - 1);
        column.push([
          column[j][0] + (column[j][0] - row[j][0]) * scale,
          column[j][1] + (column[j][1] - row[j][1]) * scale,
        ]);
      }
      row = column;
    }
    return row[row.length - 1];
  }

  // The probability-flow ODE from one noise level to another, exactly for the eye: every state on the way, the ends included.
  function solve(world, x, from, to) {
    const scale = Math.min.apply(null, world.stds);
    const start = Math.asinh(from / scale), end = Math.asinh(to / scale);
    const count = Math.max(1, Math.ceil(8 * Math.abs(end - start))), width = (end - start) / count;
    const slope = (w, state) => {
      const v = velocity(world, state, scale * Math.sinh(w)), factor = scale * Math.cosh(w);
      return [v[0] * factor, v[1] * factor];
    };
    const way = [{ sigma: from, x: x }];
    for (let i = 0; i < count; i++) {
      const state = extrapolated(slope, way[i].x, start + i * width, width);
      way.push({ sigma: i === count - 1 ? to : scale * Math.sinh(start + (i + 1) * width), x: state });
    }
    return way;
  }

  function flow(world, x, from, to) {
    if (from === to) return x;
    const way = solve(world, x, from, to);
    return way[way.length - 1].x;
  }

  // The exact consistency function.
  function origin(world, x, sigma, end) {
    return flow(world, x, sigma, end);
  }

  // One step of a solver from noise level t to r: order 1 is Euler's, 2 is Heun's.
  function step(world, x, t, r, order) {
    const slope = velocity(world, x, t), there = plus(x, r - t, slope);
    if (order === 1) return there;
    const other = velocity(world, there, r);
    return plus(x, r - t, [0.5 * (slope[0] + other[0]), 0.5 * (slope[1] + other[1])]);
  }

  // A solver over descending noise levels: the state at each of them.
  function walk(world, x, times, order) {
    const states = [x];
    for (let i = 0; i + 1 < times.length; i++) states.push(step(world, states[i], times[i], times[i + 1], order));
    return states;
  }

  // Points of iCT's doubling curriculum at progress k of K.
  function nIct(k, K, s0, s1) {
    const length = Math.floor(K / (Math.log2(Math.floor(s1 / s0)) + 1));
    return Math.min(s0 * Math.pow(2, Math.floor(Math.min(k, K) / length)), s1) + 1;
  }

  function erf(x) {
    const a = Math.abs(x);
    let value;
    if (a < 3) {
      let term = a, sum = a;
      for (let n = 1; n < 200 && term > 1e-18 * sum; n++) {
        term *= (2 * a * a) / (2 * n + 1);
        sum += term;
      }
      value = (2 / Math.sqrt(Math.PI)) * Math.exp(-a * a) * sum;
    } else {
      let fraction = 0;
      for (let n = 60; n > 0; n--) fraction = n / 2 / (a + fraction);
      value = 1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * (a + fraction));
    }
    return x < 0 ? -value : value;
  }

  // Probability of each interval when ln sigma is normal (iCT).
  function lognormal(levels, mean, std) {
    const at = levels.map((t) => erf((Math.log(t) - mean) / (Math.SQRT2 * std)));
    const mass = at.slice(1).map((value, i) => value - at[i]);
    const sum = mass.reduce((a, b) => a + b, 0);
    return mass.map((value) => value / sum);
  }

  function inverseDelta(levels) {
    return levels.slice(1).map((t, i) => 1 / (t - levels[i]));
  }

  function distance(a, b) {
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  }

  function huber(e, c) {
    return (e * e) / (Math.sqrt(e * e + c * c) + c);
  }

  // Numbers in [0, 1) that are the same each time for one seed (mulberry32).
  function random(seed) {
    let state = seed >>> 0;
    return function () {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }

  function normal(draw) {
    const radius = Math.sqrt(-2 * Math.log(1 - draw())), angle = 2 * Math.PI * draw();
    return [radius * Math.cos(angle), radius * Math.sin(angle)];
  }

  // A data point that x may have come from: drawn from p(y | x).
  function clean(world, x, sigma, draw) {
    const p = posterior(world, x, sigma);
    let k = 0, u = draw();
    while (k < p.weights.length - 1 && u >= p.weights[k]) u -= p.weights[k++];
    const s = world.stds[k], share = (s * s) / p.variances[k], spread = (s * sigma) / Math.sqrt(p.variances[k]), z = normal(draw);
    return [0, 1].map((i) => world.means[k][i] + share * (x[i] - world.means[k][i]) + spread * z[i]);
  }

  function floats(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), view = new DataView(bytes.buffer), out = [];
    for (let i = 0; i < bytes.length; i += 4) out.push(view.getFloat32(i, true));
    return out;
  }

  function network(layers) {
    return layers.map((layer) => ({
      rows: layer.rows,
      columns: layer.columns,
      weight: floats(layer.weight),
      bias: floats(layer.bias),
    }));
  }

  // f(x, sigma) of the trained model: c_skip x + c_out F(c_in x, c_noise), with the boundary at `end` (Song et al. 2023).
  function trained(layers, x, sigma, data, end) {
    const shifted = sigma - end, root = Math.sqrt(sigma * sigma + data * data), time = 0.25 * Math.log(sigma);
    let h = [x[0] / root, x[1] / root, time, time * time];
    for (let l = 0; l < layers.length; l++) {
      const layer = layers[l], next = new Array(layer.rows);
      for (let i = 0; i < layer.rows; i++) {
        let sum = layer.bias[i];
        for (let j = 0; j < layer.columns; j++) sum += layer.weight[i * layer.columns + j] * h[j];
        next[i] = l === layers.length - 1 ? sum : sum / (1 + Math.exp(-sum));
      }
      h = next;
    }
    const skip = (data * data) / (shifted * shifted + data * data), out = (shifted * data) / root;
    return [skip * x[0] + out * h[0], skip * x[1] + out * h[1]];
  }

  const atonce = (window.atonce = window.atonce || {});
  atonce.learn = atonce.learn || {};
  atonce.learn.math = {
    grid, posterior, denoiser, velocity, solve, flow, origin, step, walk, nIct, erf, lognormal, inverseDelta, distance, huber,
    random, normal, clean, network, trained,
  };
})();
