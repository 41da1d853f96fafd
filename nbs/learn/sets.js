// The arithmetic of every norm: which numbers share a mean, forward and backward. No page in here.
// A batch is a flat list of numbers and its shape [N, C, H, W], as in normnotes.sets, against which the tests compare it.

export const EPS = 1e-5, MOMENTUM = 0.1;

export const NORMS = {  // names, colours and whether the mean is subtracted, of normnotes.sets
  bn: ['batch', '#0072B2', true], ln: ['layer', '#D55E00', true], gn: ['group', '#009E73', true],
  in: ['instance', '#CC79A7', true], rms: ['RMS', '#56B4E9', false], lnc: ['channel layer', '#E69F00', true],
};
export const centred = kind => NORMS[kind][2];

export const counting = n => Array.from({length: n}, (_, i) => i + 1);
export const join = (items, word) => items.join(', ').replace(/, (\d+)$/, ` ${word} $1`);  // 1, 2 or 4
export const divisors = n => counting(n).filter(d => n % d === 0);
export function checkGroups(channels, groups) {
  if (divisors(channels).includes(groups)) return;
  throw new RangeError(`groups=${groups} does not divide ${channels} channels; use ${join(divisors(channels), 'or')}`);
}

// The set of every number, 0..K-1.
export function statSets(kind, [N, C, ...space], groups) {
  const P = space.reduce((product, side) => product * side, 1);
  if (kind === 'gn') checkGroups(C, groups);
  const label = {
    bn: (n, c) => c,
    ln: n => n,
    gn: (n, c) => n * groups + Math.floor(c / (C / groups)),
    in: (n, c) => n * C + c,
    rms: n => n,
    lnc: (n, c, p) => n * P + p,
  }[kind];
  return Array.from({length: N * C * P}, (_, i) => label(Math.floor(i / (C * P)), Math.floor(i / P) % C, i % P));
}

// The sum of some values over each set.
function sums(values, sets) {
  const total = [];
  sets.forEach((s, i) => { total[s] = (total[s] ?? 0) + values[i]; });
  return total;
}

// Count, mean and biased variance of every set; zeros and mean squares where no mean is subtracted.
export function setStats(x, sets, mid = true) {
  const count = sums(x.map(() => 1), sets), mean = sums(x, sets).map((total, s) => mid ? total / count[s] : 0);
  const variance = sums(x.map((v, i) => (v - mean[sets[i]]) ** 2), sets).map((total, s) => total / count[s]);
  return {count, mean, variance};
}

const channelOf = (i, [, C, ...space]) => Math.floor(i / space.reduce((a, b) => a * b, 1)) % C;

// Every norm of the book. `running`: a mean and a variance per channel, which batch norm uses in evaluation mode.
// `gamma` and `beta`: a number per channel each.
export function normalize(x, shape, kind, {groups, running, gamma, beta} = {}) {
  const sets = statSets(running ? 'bn' : kind, shape, groups), {mean, variance} = running ?? setStats(x, sets, centred(kind));
  return x.map((value, i) => {
    const c = channelOf(i, shape), hat = (value - mean[sets[i]]) / Math.sqrt(variance[sets[i]] + EPS);
    return hat * (gamma?.[c] ?? 1) + (beta?.[c] ?? 0);
  });
}

// The gradient that arrives at the outputs, taken back to the inputs, as the three paths it takes: straight through,
// through the mean of the set, and through its variance. `constant`: only the first, as if the statistics were fixed.
export function backward(grad, x, shape, kind, {groups, running, gamma, constant} = {}) {
  const sets = statSets(running ? 'bn' : kind, shape, groups);
  const {count, mean, variance} = running ? {...running, count: []} : setStats(x, sets, centred(kind));
  const std = variance.map(v => Math.sqrt(v + EPS)), fixed = constant || running;
  const hat = x.map((v, i) => (v - mean[sets[i]]) / std[sets[i]]);
  const into = grad.map((g, i) => g * (gamma?.[channelOf(i, shape)] ?? 1));  // before gamma and beta
  const pull = sums(into, sets), lean = sums(into.map((g, i) => g * hat[i]), sets);
  const straight = into.map((g, i) => g / std[sets[i]]);
  const byMean = x.map((_, i) => fixed || !centred(kind) ? 0 : -pull[sets[i]] / count[sets[i]] / std[sets[i]]);
  const byVariance = x.map((_, i) => fixed ? 0 : -hat[i] * lean[sets[i]] / count[sets[i]] / std[sets[i]]);
  return {straight, byMean, byVariance, total: straight.map((v, i) => v + byMean[i] + byVariance[i])};
}

// What batch norm keeps for evaluation mode, after some training steps on x. The variance is the unbiased one.
export function runningStats(x, shape, steps) {
  const {count, mean, variance} = setStats(x, statSets('bn', shape));
  const kept = {mean: mean.map(() => 0), variance: mean.map(() => 1)};
  const update = (old, now) => (1 - MOMENTUM) * old + MOMENTUM * now;
  for (let step = 0; step < steps; step++) {
    kept.mean = kept.mean.map((old, c) => update(old, mean[c]));
    kept.variance = kept.variance.map((old, c) => update(old, variance[c] * count[c] / (count[c] - 1)));
  }
  return kept;
}

// ---- Batches

const BRIGHT_DARK = [  // a row per image, and in it a pair (bright, dark) per channel
  [[10, 4], [4, 2], [10, 0], [12, 6]], [[12, 4], [9, 7], [10, 8], [11, 3]],
  [[12, 8], [6, 2], [4, 0], [8, 0]], [[8, 6], [9, 1], [10, 6], [11, 5]],
];
const SHAPES = [[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]];
export const fourImages = () => BRIGHT_DARK.flatMap((pairs, n) =>
  pairs.flatMap(([bright, dark]) => SHAPES[n].map(on => on ? bright : dark)));

export function random(seed, purpose = '') {  // numbers from 0 to 1, the same for a seed and purpose everywhere (mulberry32)
  let state = seed | 0;
  for (const letter of purpose) state = Math.imul(state ^ letter.charCodeAt(0), 0x9E3779B1);
  return () => {
    state = (state + 0x6D2B79F5) | 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// ---- The four images of the book have four channels of two by two pixels: image, channel and pixel of a number

export const place = i => [i >> 4, (i >> 2) % 4, i % 4];
export const PIXELS = ['top left', 'top right', 'bottom left', 'bottom right'];
export const where = i => `image ${place(i)[0] + 1}, channel ${place(i)[1] + 1}, ${PIXELS[i % 4]}`;

export function sharing(kind, i, images, groups) {  // which numbers share a mean with number i
  const [n, c, p] = place(i), image = `image ${n + 1}`, each = 4 / groups, first = c - c % each;
  return {
    bn: `channel ${c + 1} of ${images > 1 ? `all ${images} images` : 'the only image'}`,
    ln: `all channels of ${image}`,
    rms: `all channels of ${image}`,
    gn: `channel${each > 1 ? 's' : ''} ${join(counting(each).map(k => first + k), 'and')} of ${image}`,
    in: `channel ${c + 1} of ${image}`,
    lnc: `the ${PIXELS[p]} pixels of ${image}, one per channel`,
  }[kind];
}
