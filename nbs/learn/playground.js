// The playground of normnotes: two networks that train side by side in the page.
// First the state and the address that holds it, then the controls, then the views. The networks live in worker.js.
import {h, shade} from './draw.js';
import {NORMS} from './network.js';
import {NORMS as TABLE, divisors} from './sets.js';

const WIDTH = 12;
export const NAMES = Object.fromEntries(NORMS.map(n =>
  [n, n === 'none' ? ['no norm', '#555555'] : [`${TABLE[n][0]} norm`, TABLE[n][1]]]));  // name and colour
const RATES = Array.from({length: 41}, (_, i) => +(10 ** (-3 + i / 10)).toPrecision(2));  // 0.001 to 10
const BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const MOMENTA = [0.01, 0.03, 0.1, 0.3, 1];
const SPEEDS = {slow: 400, steady: 60, fast: 0};  // milliseconds between two steps

const SIDE = {norm: 'bn', groups: 4, init: 'torch', rate: 0.05, batch: 32, depth: 4, residual: false, momentum: 0.1};
const START = {A: {...SIDE, norm: 'none'}, B: {...SIDE}, seed: 0};

export const PRESETS = {
  'the rate kills it': {A: {norm: 'none', init: 'he', rate: 1}, B: {rate: 1}},
  'depth kills it': {A: {norm: 'none', init: 'he', depth: 24}, B: {depth: 24, residual: true}},
  'batches of two': {A: {batch: 2, rate: 0.01}, B: {norm: 'gn', batch: 2, rate: 0.01}},
  'layer norm stops learning': {A: {norm: 'ln', depth: 8, rate: 0.3}, B: {depth: 8, rate: 0.3}},
  'evaluation mode disagrees': {A: {momentum: 0.01, rate: 0.2}, B: {momentum: 0.3, rate: 0.2}},
  'same start, two norms': {A: {norm: 'bn'}, B: {norm: 'gn'}},
};

// ---- The state is what the address says after '#': only what differs from the start

const clone = value => JSON.parse(JSON.stringify(value));
const ALLOWED = {
  norm: v => NORMS.includes(v), groups: v => divisors(WIDTH).includes(v), init: v => ['torch', 'he'].includes(v),
  rate: v => v >= 1e-3 && v <= 10, batch: v => Number.isInteger(v) && v >= 1 && v <= 256,
  depth: v => Number.isInteger(v) && v >= 2 && v <= 24, residual: v => typeof v === 'boolean', momentum: v => v > 0 && v <= 1,
};

export function parse(address) {
  const state = clone(START), given = new URLSearchParams(address.replace(/^#/, ''));
  if (PRESETS[given.get('preset')]) return withPreset(given.get('preset'));
  for (const [key, text] of given) {
    const [side, name] = key.split('.');
    if (key === 'seed' && /^\d{1,6}$/.test(text)) state.seed = +text;
    if (!(side in state) || !(name in SIDE)) continue;
    const kind = typeof SIDE[name], value = kind === 'number' ? +text : kind === 'boolean' ? text === 'true' : text;
    if (ALLOWED[name](value)) state[side][name] = value;
  }
  return state;
}

export function withPreset(name, seed = 0) {
  return {A: {...SIDE, ...PRESETS[name].A}, B: {...SIDE, ...PRESETS[name].B}, seed};
}

export function address(state) {
  const parts = [];
  for (const side of ['A', 'B']) for (const name of Object.keys(SIDE)) {
    if (state[side][name] !== START[side][name]) parts.push(`${side}.${name}=${state[side][name]}`);
  }
  if (state.seed) parts.push(`seed=${state.seed}`);
  return parts.join('&');
}

// ---- Words

export const describe = side => [
  NAMES[side.norm][0] + (side.norm === 'gn' ? ` (${side.groups} groups)` : ''), `rate ${side.rate}`,
  `batches of ${side.batch}`, `${side.depth} layers`, side.residual ? 'residual' : '', side.init === 'he' ? 'He' : '',
].filter(Boolean).join(', ');

export function diagnosis(failed, options) {
  if (!failed) return null;
  const calmer = `a rate of ${+(options.rate / 10).toPrecision(1)}`;
  const help = options.norm === 'none' ? `${calmer}, or a norm` : calmer;
  return {
    loss: ['Diverged: the loss is not a number any more.', `Try ${help}.`],
    dead: [`Dead: layer ${failed.layer} outputs zero for every image, so no gradient passes it.`, `Reset and try ${help}.`],
    constant: ['Constant: every image gets the same answer.', `Try ${help}${options.init === 'he' ? '' : ', or He initialization'}.`],
    use: ['Evaluation mode is far off: the running statistics do not fit the network.',
      'Train on with a lower rate, or raise the momentum of the running statistics.'],
  }[failed.kind];
}

// ---- Small tools

const format = v => v === null || !Number.isFinite(v) ? '–' : v >= 100 ? v.toFixed(0) : v >= 1 ? v.toFixed(2) : v.toPrecision(2);
const percent = v => v === null || !Number.isFinite(v) ? '–' : `${v.toFixed(1)} %`;

// ---- The page

export function mount(root) {
  const small = root.dataset.size === 'small';
  let state = parse(small ? root.dataset.state ?? '' : location.hash), playing = false, speed = 'steady', metric = 'accuracy';
  let latest = null, chosen = 0, seen = 0, waits = 0;
  let worker = null;
  const look = () => getComputedStyle(root);
  const ids = {count: 0};

  // Controls

  const labelled = (label, control, output = null) => {
    control.id = `pg-${root.id}-${ids.count++}`;
    return h('div', {className: 'pg-control'}, h('label', {for: control.id}, label), control, ...(output ? [output] : []));
  };
  const choose = (options, value, change) => h('select', {onchange: e => change(e.target.value)},
    ...Object.entries(options).map(([key, text]) => h('option', {value: key, selected: key === String(value)}, text)));
  const slide = (values, value, say, change) => {
    const at = values.reduce((best, v, i) => Math.abs(Math.log(v / value)) < Math.abs(Math.log(values[best] / value)) ? i : best, 0);
    const output = h('output', {}, say(value));
    const input = h('input', {type: 'range', min: 0, max: values.length - 1, step: 1, value: at,
      oninput: e => { output.value = say(values[e.target.value]); e.target.setAttribute('aria-valuetext', say(values[e.target.value])); },
      onchange: e => change(values[e.target.value])});
    input.setAttribute('aria-valuetext', say(value));
    return [input, output];
  };

  function controls(name) {
    const side = state[name], set = key => value => { side[key] = value; changed(name); };
    const norms = Object.fromEntries(NORMS.map(n => [n, NAMES[n][0]]));
    const fields = [
      labelled('norm', choose(norms, side.norm, set('norm'))),
      labelled('learning rate', ...slide(RATES, side.rate, v => `${v}`, set('rate'))),
    ];
    if (side.norm === 'gn') {
      const groups = Object.fromEntries(divisors(WIDTH).map(d => [d, `${d}`]));
      fields.splice(1, 0, labelled('groups', choose(groups, side.groups, v => set('groups')(+v))));
    }
    if (!small) fields.push(
      labelled('images in a batch', ...slide(BATCHES, side.batch, v => `${v}`, set('batch'))),
      labelled('layers', ...slide(Array.from({length: 23}, (_, i) => i + 2), side.depth, v => `${v}`, set('depth'))),
      labelled('first weights', choose({torch: 'torch’s default', he: 'He'}, side.init, set('init'))),
      labelled('momentum of statistics', choose(Object.fromEntries(MOMENTA.map(m => [m, `${m}`])), side.momentum,
        v => set('momentum')(+v))),
      labelled('residual connections', h('input', {type: 'checkbox', checked: side.residual, onchange: e => set('residual')(e.target.checked)})),
    );
    return fields;
  }

  const playButton = h('button', {type: 'button', className: 'pg-play', onclick: () => play(!playing)}, 'Play');
  const panels = {}, status = {};
  for (const name of ['A', 'B']) {
    status[name] = h('p', {className: 'pg-status'});
    panels[name] = h('fieldset', {className: 'pg-side'}, h('legend'), h('div', {className: 'pg-fields'}), status[name]);
  }
  const tabs = h('div', {className: 'pg-tabs', role: 'group', 'aria-label': 'Which network the controls are for'},
    ...['A', 'B'].map(name => h('button', {type: 'button', onclick: () => show(name)}, `Network ${name}`)));
  const show = name => {
    root.dataset.shown = name;
    [...tabs.children].forEach((b, i) => b.setAttribute('aria-pressed', 'AB'[i] === name));
  };
  const chart = h('canvas', {className: 'pg-chart', role: 'img'});
  const live = h('p', {className: 'pg-live', role: 'status', 'aria-live': 'polite'});
  const trouble = h('p', {className: 'pg-trouble', role: 'alert'});
  const seed = h('input', {type: 'number', min: 0, max: 999999, value: state.seed, onchange: e => { state.seed = Math.max(0, Math.floor(+e.target.value || 0)); changed(); }});
  const metrics = choose({accuracy: 'accuracy', loss: 'loss'}, metric, value => { metric = value; draw(); });
  const speeds = choose({slow: 'slow', steady: 'steady', fast: 'as fast as it goes'}, speed, value => { speed = value; if (playing) play(true); });
  const bar = h('div', {className: 'pg-bar'}, playButton,
    h('button', {type: 'button', onclick: () => { play(false); worker.postMessage({type: 'step'}); }}, 'Step'),
    h('button', {type: 'button', onclick: () => build()}, 'Reset'),
    ...(small ? [] : [labelled('show', metrics)]));
  const more = h('div', {className: 'pg-bar'}, labelled('speed', speeds), labelled('seed', seed));
  const views = small ? null : makeViews();
  const links = h('ul', {className: 'pg-presets'}, ...Object.keys(PRESETS).map(name => h('li', {},
    h('a', {href: `#preset=${encodeURIComponent(name)}`, onclick: e => { e.preventDefault(); state = withPreset(name, state.seed); fill(); build(); save(); }}, name))));
  root.replaceChildren(bar, tabs, h('div', {className: 'pg-sides'}, panels.A, panels.B), chart, live, trouble,
    ...(small ? [] : [h('p', {className: 'pg-try'}, 'Try: '), links, more, views.root]));
  show('A');

  function fill() {
    for (const name of ['A', 'B']) {
      panels[name].children[0].textContent = name;
      panels[name].style.setProperty('--norm', NAMES[state[name].norm][1]);
      panels[name].children[1].replaceChildren(...controls(name));
    }
    seed.value = state.seed;
  }

  function save() {
    if (!small) history.replaceState(null, '', `#${address(state)}`);
  }

  function changed(name) {
    const focused = document.activeElement?.previousSibling?.textContent;
    const where = name && panels[name].contains(document.activeElement) ? name : null;
    fill();
    if (where) [...panels[where].querySelectorAll('label')].find(l => l.textContent === focused)?.nextSibling?.focus();
    save();
    build(name ? [name] : ['A', 'B']);
  }

  function build(names = ['A', 'B']) {
    trouble.textContent = '';
    const message = {type: 'build'};
    for (const name of names) message[name] = {...state[name], seed: state.seed};
    if (names.length === 1) for (const other of ['A', 'B']) message[other] = {...state[other], seed: state.seed};  // a fair start for both
    worker.postMessage(message);
  }

  function play(on) {
    playing = on;
    playButton.textContent = on ? 'Pause' : 'Play';
    worker.postMessage({type: 'play', playing: on, delay: SPEEDS[speed]});
  }

  // Views

  function pixels(width, height, light) {  // a picture of greys, one pixel each; `light(i)`: from 0 to 1
    const made = h('canvas', {width, height}), pen = made.getContext('2d'), image = pen.createImageData(width, height);
    for (let i = 0; i < width * height; i++) image.data.set([255 * light(i), 255 * light(i), 255 * light(i), 255], 4 * i);
    pen.putImageData(image, 0, 0);
    return made;
  }

  function canvas(node, height) {
    const ratio = window.devicePixelRatio || 1, width = node.clientWidth || 300;
    node.style.height = `${height}px`;
    if (node.width !== Math.round(width * ratio) || node.height !== Math.round(height * ratio)) {
      node.width = Math.round(width * ratio);
      node.height = Math.round(height * ratio);
    }
    const pen = node.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = '12px system-ui, sans-serif';
    pen.imageSmoothingEnabled = false;
    return [pen, width, height];
  }

  const dark = () => document.body.classList.contains('quarto-dark');
  const color = name => shade(NAMES[state[name].norm][1], dark() ? 0.35 : 0.15, dark());  // of lines and bars
  const inked = name => shade(NAMES[state[name].norm][1], 0.45, dark());  // of words, which need more contrast

  function draw() {
    if (!latest) return;
    const height = small ? 150 : Math.min(260, Math.max(170, window.innerHeight * 0.26));
    const [pen, width] = canvas(chart, height), ink = look().color;
    const [left, right, top, bottom] = [44, 66, 10, 26], isLoss = metric === 'loss';
    const keys = isLoss ? {train: 'train', batch: 'testBatch', use: 'test'} : {train: 'trainAccuracy', batch: 'testBatchAccuracy', use: 'testAccuracy'};
    const steps = Math.max(10, ...['A', 'B'].map(n => latest[n].history.at(-1)?.step ?? 0));
    const losses = ['A', 'B'].flatMap(n => latest[n].history.flatMap(r => [r[keys.train], r[keys.use]])).filter(v => v > 0 && Number.isFinite(v));
    const low = isLoss ? Math.log10(Math.max(1e-4, Math.min(...losses, 1) / 1.3)) : 0, high = isLoss ? Math.log10(Math.min(1e3, Math.max(...losses, 3) * 1.2)) : 100;
    const X = step => left + (width - left - right) * step / steps;
    const Y = v => top + (height - top - bottom) * (1 - ((isLoss ? Math.log10(Math.max(v, 1e-4)) : v) - low) / (high - low));
    pen.strokeStyle = ink; pen.fillStyle = ink; pen.globalAlpha = 0.25; pen.lineWidth = 1;
    const ticks = isLoss ? [1e-3, 1e-2, 0.1, 1, 10, 100].filter(v => Math.log10(v) >= low && Math.log10(v) <= high) : [0, 25, 50, 75, 100];
    for (const tick of ticks) { pen.beginPath(); pen.moveTo(left, Y(tick)); pen.lineTo(width - right, Y(tick)); pen.stroke(); }
    pen.globalAlpha = 1;
    pen.textAlign = 'right'; pen.textBaseline = 'middle';
    for (const tick of ticks) pen.fillText(isLoss ? `${tick}` : `${tick} %`, left - 5, Y(tick));
    pen.textAlign = 'center'; pen.textBaseline = 'alphabetic';
    pen.fillText('0', left, height - 8); pen.fillText(`${steps} steps`, width - right, height - 8);
    const ends = [];
    for (const name of ['A', 'B']) {
      const rows = latest[name].history;
      pen.strokeStyle = pen.fillStyle = color(name);
      for (const [which, dash, wide, alpha] of [['train', [], 1, 0.45], ['batch', [2, 3], 1.6, 0.9], ['use', name === 'A' ? [] : [9, 4], 2.4, 1]]) {
        if (which === 'batch' && state[name].norm !== 'bn') continue;
        pen.setLineDash(dash); pen.lineWidth = wide; pen.globalAlpha = alpha;
        pen.beginPath();
        let started = false;
        for (const row of rows) {
          const v = row[keys[which]];
          if (v === null || !Number.isFinite(v)) { started = false; continue; }
          const y = Math.min(height - bottom, Math.max(top, Y(v)));
          if (started) pen.lineTo(X(row.step), y); else pen.moveTo(X(row.step), y);
          started = true;
        }
        pen.stroke();
      }
      const lastRow = rows.at(-1);
      if (lastRow && Number.isFinite(lastRow[keys.use])) ends.push([name, Math.min(height - bottom, Math.max(top, Y(lastRow[keys.use]))), lastRow[keys.use]]);
    }
    pen.setLineDash([]); pen.globalAlpha = 1; pen.textAlign = 'left'; pen.textBaseline = 'middle';
    if (ends.length === 2 && Math.abs(ends[0][1] - ends[1][1]) < 14) {
      const middle = (ends[0][1] + ends[1][1]) / 2, upper = ends[0][1] <= ends[1][1] ? 0 : 1;
      ends[upper][1] = middle - 7; ends[1 - upper][1] = middle + 7;
    }
    pen.font = '600 13px system-ui, sans-serif';
    for (const [name, y, v] of ends) { pen.fillStyle = inked(name); pen.fillText(`${name} ${isLoss ? format(v) : v.toFixed(0) + ' %'}`, width - right + 4, y); }
    chart.setAttribute('aria-label', `${metric} over ${steps} steps. ${summary()}`);
  }

  const summary = () => ['A', 'B'].map(name => {
    const {row, failed, epoch} = latest[name], [what] = diagnosis(failed, state[name]) ?? [''];
    return `Network ${name}, ${describe(state[name])}: ${epoch.toFixed(1)} epochs, test accuracy ${percent(row.testAccuracy)}. ${what}`;
  }).join(' ');

  function tell() {
    for (const name of ['A', 'B']) {
      const {row, failed, epoch} = latest[name], words = diagnosis(failed, state[name]);
      status[name].classList.toggle('pg-failed', Boolean(words));
      const apart = state[name].norm === 'bn' && Math.abs(row.testBatchAccuracy - row.testAccuracy) >= 2;
      const line = `epoch ${epoch.toFixed(1)} · training ${percent(row.trainAccuracy)} · test ${percent(row.testAccuracy)}` +
        (apart ? ` (with the batch’s own statistics ${percent(row.testBatchAccuracy)})` : '');
      status[name].replaceChildren(words ? h('strong', {}, words[0]) : line, ...(words ? [` ${words[1]}`] : []));
    }
    if (performance.now() - seen > 5000) { live.textContent = summary(); seen = performance.now(); }
    root.dataset.steps = latest.A.row.step;
  }

  function makeViews() {
    const canvases = {};
    const make = (key, alt) => canvases[key] = h('canvas', {className: 'pg-view', role: 'img', 'aria-label': alt});
    const fold = (title, text, ...content) => h('details', {open: window.innerWidth > 800}, h('summary', {}, title), h('p', {}, text), ...content);
    const pair = (key, alt) => h('div', {className: 'pg-pair'}, ...['A', 'B'].map(name =>
      h('figure', {}, h('figcaption', {}, name), make(key + name, `${alt}, network ${name}`))));
    const pick = h('input', {type: 'number', min: 0, max: 499, value: 0, onchange: e => {
      chosen = Math.min(499, Math.max(0, Math.floor(+e.target.value || 0)));
      worker.postMessage({type: 'look', image: chosen});
    }});
    return {canvases, root: h('div', {className: 'pg-views'},
      fold('Layer by layer', 'One bar per layer, from the image to the answer, on a logarithmic scale: how widely its outputs are spread, how widely the gradients that reach it are spread, and how far one step moves its weights, as a share of their size.',
        pair('layers', 'Spread of activations, spread of gradients and update of each layer')),
      fold('Running statistics against true ones', 'One dot per channel, for batch norm. On the diagonal the running mean (dot) and standard deviation (ring) are what the training images have now.',
        pair('statistics', 'Running against true statistics')),
      fold('What one image becomes', 'Each row is a layer, each square a channel of four by four numbers. Where all squares look alike for every image, the network cannot tell images apart.',
        labelled('test image', pick), pair('maps', 'Maps of one image, layer by layer')),
      fold('Test digits', 'The first hundred test digits. A frame marks a mistake, with the answer that was given.', pair('grid', 'A hundred test digits with mistakes framed')),
    )};
  }

  function drawViews() {
    if (!views || !latest) return;
    for (const name of ['A', 'B']) {
      const data = latest[name], c = views.canvases, main = color(name), ink = look().color;
      if (c[`layers${name}`].clientWidth) {
        const [pen, width, height] = canvas(c[`layers${name}`], 150);
        const rows = [['activations', 'activations', -6, 3], ['gradients', 'gradients', -10, 1], ['update', 'step / weights', -6, 1]];
        rows.forEach(([key, title, low, high], r) => {
          const x0 = r * width / 3 + 4, wide = width / 3 - 12, bar = wide / data.layers.length;
          pen.fillStyle = ink; pen.fillText(title, x0, 12);
          data.layers.forEach((layer, i) => {
            const v = layer[key], share = v > 0 && Number.isFinite(v) ? Math.min(1, Math.max(0.01, (Math.log10(v) - low) / (high - low))) : 0;
            pen.fillStyle = main;
            pen.fillRect(x0 + i * bar, 138 - 115 * share, Math.max(1, bar - 1), 115 * share);
          });
          pen.globalAlpha = 0.6; pen.fillStyle = ink;
          const lastValue = data.layers.at(-1)[key];
          pen.fillText(`last ${format(lastValue)}`, x0, 149);
          pen.globalAlpha = 1;
        });
      }
      if (c[`statistics${name}`].clientWidth) {
        const [pen, width] = canvas(c[`statistics${name}`], 180), layers = data.statistics.filter(Boolean);
        pen.fillStyle = ink; pen.strokeStyle = ink;
        if (!layers.length) pen.fillText(`${NAMES[state[name].norm][0]} keeps no running statistics`, 8, 90);
        else {
          const points = layers.flatMap(s => s.running.map((m, i) => [s.true[i], m, Math.sqrt(s.trueVar[i]), Math.sqrt(s.runningVar[i])]));
          const limit = Math.max(1e-6, ...points.flat().map(Math.abs).filter(Number.isFinite)), side = Math.min(width, 180) - 30;
          const at = v => 15 + side * (v + limit) / (2 * limit);
          pen.globalAlpha = 0.4; pen.beginPath(); pen.moveTo(15, 15 + side); pen.lineTo(15 + side, 15); pen.stroke(); pen.globalAlpha = 1;
          pen.strokeStyle = pen.fillStyle = main;
          for (const [t, r, tv, rv] of points) {
            pen.beginPath(); pen.arc(at(t), 30 + side - at(r), 2, 0, 7); pen.fill();
            pen.beginPath(); pen.arc(at(tv), 30 + side - at(rv), 3, 0, 7); pen.stroke();
          }
          pen.fillStyle = ink; pen.fillText('true →', 15 + side - 30, 178); pen.fillText('↑ running', 16, 12);
        }
      }
      if (c[`maps${name}`].clientWidth) {
        const count = data.maps.length, tile = Math.max(3, Math.floor(c[`maps${name}`].clientWidth / (WIDTH * 4.6))), gap = 4 * tile + 3;
        const [pen] = canvas(c[`maps${name}`], count * gap);
        data.maps.forEach((map, layer) => {
          const top = Math.max(...map.map(v => Number.isFinite(v) ? v : 0), 1e-9), shown = pixels(4, map.length / 4, i => map[i] / top);
          // below one another in one picture, next to one another on the page
          for (let channel = 0; channel < map.length / 16; channel++)
            pen.drawImage(shown, 0, 4 * channel, 4, 4, channel * gap, layer * gap, 4 * tile, 4 * tile);
        });
      }
      if (c[`grid${name}`].clientWidth && digits) {
        const cell = Math.floor(c[`grid${name}`].clientWidth / 10), pixel = Math.max(1, Math.floor((cell - 4) / 8));
        const [pen] = canvas(c[`grid${name}`], cell * 10);
        for (let i = 0; i < 100; i++) {
          const x = (i % 10) * cell, y = Math.floor(i / 10) * cell, image = digits.TRAIN + i;
          pen.drawImage(digits.shown, 0, 8 * i, 8, 8, x + 2, y + 2, 8 * pixel, 8 * pixel);
          if (data.predicted[i] !== +digits.LABELS[image]) {
            pen.strokeStyle = '#D55E00'; pen.lineWidth = 2; pen.strokeRect(x + 1, y + 1, 8 * pixel + 2, 8 * pixel + 2);
            pen.fillStyle = '#F0E442'; pen.fillText(`${data.predicted[i] < 0 ? '?' : data.predicted[i]}`, x + 4, y + 8 * pixel);
          }
        }
      }
    }
  }
  let digits = null;
  if (!small) import('./digits.js').then(({LABELS, PIXELS, TRAIN}) => {
    digits = {LABELS, TRAIN, shown: pixels(8, 800, i => (PIXELS.charCodeAt(TRAIN * 64 + i) - 97) / 16)};
    drawViews();
  });

  // The worker, and what it says

  worker = new Worker(new URL('./worker.js', import.meta.url), {type: 'module'});
  worker.onmessage = ({data}) => {
    if (data.type === 'error') trouble.textContent = data.message;
    if (data.type === 'measured') waiting[data.id]?.(data);
    if (data.type !== 'state') return;
    latest = data;
    if (waits) return;  // one picture of the newest state, not one for each message
    waits = requestAnimationFrame(() => { waits = 0; draw(); drawViews(); tell(); });
  };
  worker.onerror = () => { trouble.textContent = 'This page needs a browser that can run modules in a worker.'; };
  const waiting = {};
  let asked = 0;
  const measure = (runs, each) => {  // short runs, one after the other; `each(i, result)` as they end
    const id = asked++;
    return new Promise(done => {
      waiting[id] = data => {
        each(data.i, data.result);
        if (data.i === data.of - 1) { delete waiting[id]; done(); }
      };
      worker.postMessage({type: 'measure', id, runs});
    });
  };

  fill();
  build();
  window.addEventListener('resize', () => { draw(); drawViews(); });
  new MutationObserver(() => { draw(); drawViews(); }).observe(document.body, {attributes: true, attributeFilter: ['class']});
  if (!small) window.addEventListener('hashchange', () => { state = parse(location.hash); fill(); build(); });
  document.addEventListener('visibilitychange', () => { if (document.hidden && playing) play(false); });
  return {measure, play, get state() { return state; }, SIDE};
}

// ---- Guided experiments: predict, then run

export function guide(root, toy) {
  const epoch = batch => Math.ceil(1297 / batch);
  const experiments = [
    {
      title: 'How high can the learning rate go?',
      text: 'Four layers, one epoch, with nine rates from 0.001 to 10. What is the highest rate at which the network still gets more than half of the test digits right, without a norm (He’s first weights) and with batch norm?',
      guesses: ['without a norm', 'with batch norm'],
      values: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10],
      sides: [{norm: 'none', init: 'he'}, {norm: 'bn'}],
      options: (side, rate) => ({...side, rate}), axis: 'rate',
      conclude: table => table.map(row => row.filter(r => r.result.test > 50).at(-1)?.value ?? 'none of them'),
    },
    {
      title: 'How deep can a plain stack be?',
      text: 'Two to twenty-four layers with batch norm, three epochs, at a rate of 0.05. What is the test accuracy with 24 layers, as a plain stack and with residual connections?',
      guesses: ['24 layers, plain (%)', '24 layers, residual (%)'],
      values: [2, 4, 8, 16, 24],
      sides: [{norm: 'bn'}, {norm: 'bn', residual: true}],
      options: (side, depth) => ({...side, depth}), axis: 'layers', epochs: 3,
      conclude: table => table.map(row => percent(row.at(-1).result.test)),
    },
    {
      title: 'Does evaluation mode agree with training mode?',
      text: 'Batch norm, one epoch, at a rate of 0.05, in batches of 1 to 128 images. How many of the test digits are right in evaluation mode after training with batches of one, and with batches of 32?',
      guesses: ['batches of 1 (%)', 'batches of 32 (%)'],
      values: [1, 2, 4, 8, 32, 128],
      sides: [{norm: 'bn'}],
      options: (side, batch) => ({...side, batch}), axis: 'images in a batch', both: true,
      conclude: table => [percent(table[0][0].result.test), percent(table[0][4].result.test)],
    },
  ];
  experiments.forEach((e, number) => {
    const inputs = e.guesses.map((g, i) => h('input', {type: 'text', inputmode: 'decimal', id: `guess-${number}-${i}`, size: 6}));
    const run = h('button', {type: 'button', disabled: true}, 'Run it');
    const skip = h('button', {type: 'button', className: 'pg-skip'}, 'I would rather just look');
    const out = h('div', {className: 'pg-result', role: 'status'});
    const ready = () => { run.disabled = !inputs.every(input => input.value.trim()); };
    inputs.forEach(input => input.addEventListener('input', ready));
    skip.addEventListener('click', () => { run.disabled = false; run.focus(); });
    run.addEventListener('click', async () => {
      run.disabled = true;
      out.textContent = 'Training …';
      const runs = e.sides.flatMap(side => e.values.map(value => ({side, value, options: {...toy.SIDE, seed: toy.state.seed, ...e.options(side, value)}})));
      const results = [];
      await toy.measure(runs.map(r => ({options: r.options, steps: (e.epochs ?? 1) * epoch(r.options.batch)})), (i, result) => {
        results[i] = result;
        out.textContent = `Training … ${i + 1} of ${runs.length}`;
      });
      const table = e.sides.map((_, s) => e.values.map((value, v) => ({value, result: results[s * e.values.length + v]})));
      const heads = e.both ? ['evaluation mode', 'training mode'] : e.guesses.map(g => g.replace(/^24 layers, | \(%\)$/g, ''));
      const cells = v => e.both ? [table[0][v].result.test, table[0][v].result.train] : table.map(row => row[v].result.test);
      const found = e.conclude(table);
      out.replaceChildren(
        h('table', {}, h('thead', {}, h('tr', {}, ...[e.axis, ...heads].map(head => h('th', {scope: 'col'}, head)))),
          h('tbody', {}, ...e.values.map((value, v) => h('tr', {}, h('th', {scope: 'row'}, `${value}`),
            ...cells(v).map(x => h('td', {}, x === null ? 'diverged' : percent(x))))))),
        h('ul', {}, ...e.guesses.map((g, i) => h('li', {}, `${g}: measured ${found[i]}` + (inputs[i].value.trim() ? `, your guess ${inputs[i].value.trim()}` : '')))),
      );
      ready();
      run.disabled = false;
    });
    root.append(h('section', {className: 'pg-experiment'}, h('h4', {}, e.title), h('p', {}, e.text),
      h('div', {className: 'pg-guesses'}, ...e.guesses.map((g, i) => h('span', {}, h('label', {for: inputs[i].id}, g), inputs[i])), run, skip), out));
  });
}

if (typeof document === 'object') {
  const toys = [...document.querySelectorAll('[data-playground]')].map(mount);
  const place = document.getElementById('experiments');
  if (place && toys.length) guide(place, toys[0]);
}
