// What the interactive pages draw with: elements, fields, the grid of a batch, a line of numbers, motion.
import {PIXELS, counting, place} from './sets.js';

export function h(tag, attributes = {}, ...children) {  // an element; `on...` attributes are listeners
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (key in made && typeof value !== 'string') made[key] = value;
    else made.setAttribute(key === 'className' ? 'class' : key, value);
  }
  made.append(...children);
  return made;
}

// A hex colour with part of black in it on a light page, and part of white on a dark one: lines and words must stand out
export const shade = (color, share, dark) => `rgb(${[1, 3, 5].map(i =>
  Math.round((1 - share) * parseInt(color.slice(i, i + 2), 16) + share * (dark ? 255 : 0)))})`;

export const show = (v, digits = 2) =>  // no zeros at the end, none lost in a small number, a minus that can be seen
  String(+(v && Math.abs(v) < 0.01 ? (Math.abs(v) < 1e-9 ? 0 : v.toPrecision(1)) : v.toFixed(digits))).replace('-', '−');
export const term = v => v < 0 ? `(${show(v)})` : show(v);
export const equals = v => (Math.abs(+show(v).replace('−', '-') - v) < 1e-9 ? '= ' : '≈ ') + show(v);

// ---- Motion: numbers go from what they were to what they are; at once where the reader wants no motion

export const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

export function mover(draw, time = 350) {  // mover(draw)(values) calls draw with the values in between
  let now = null, frame = 0;
  return to => {
    cancelAnimationFrame(frame);
    const from = now;
    if (still() || !from || from.length !== to.length) return draw(now = to);
    const began = performance.now();
    const step = time_ => {
      const t = Math.min(1, Math.max(0, (time_ - began) / time)), ease = t * t * (3 - 2 * t);
      draw(now = t < 1 ? to.map((v, i) => from[i] + ease * (v - from[i])) : to);
      if (t < 1) frame = requestAnimationFrame(step);
    };
    frame = requestAnimationFrame(step);
  };
}

// ---- Fields

let fields = 0;

export function slider(title, {min, max, step = 1, value, say = v => show(v)}, change) {
  const id = `n-field-${fields++}`, output = h('output', {for: id}, say(value));
  const input = h('input', {type: 'range', id, min: `${min}`, max: `${max}`, step: `${step}`, value: `${value}`});
  const tell = () => { output.textContent = say(+input.value); input.setAttribute('aria-valuetext', say(+input.value)); };
  input.addEventListener('input', () => { tell(); change(+input.value); });
  tell();
  const root = h('div', {className: 'n-slider'}, h('label', {for: id}, title), output, input);
  return Object.assign(root, {input, set: v => { input.value = v; tell(); }});
}

export function choices(title, options, value, change) {  // `options`: value to words
  const name = `n-field-${fields++}`;
  const root = h('fieldset', {className: 'n-choices'}, h('legend', {}, title), ...Object.entries(options).map(([key, words]) =>
    h('label', {}, h('input', {type: 'radio', name, value: key, checked: key === String(value), onchange: () => change(key)}),
      h('span', {}, words))));
  return Object.assign(root, {set: v => root.querySelectorAll('input').forEach(i => { i.checked = i.value === String(v); })});
}

export const button = (words, click, attributes = {}) => h('button', {type: 'button', onclick: click, ...attributes}, words);
export const voice = () => h('p', {className: 'n-said', 'aria-live': 'polite'});

// A number that is dragged: 12 px to the side is one step. `change` gets the steps from where it was taken.
export function draggable(element, {pick, take, change}) {
  element.addEventListener('pointerdown', event => {
    const what = event.button ? null : pick(event);
    if (what === null) return;
    const began = event.clientX, start = take(what);
    let steps = 0, moved = false;
    const move = e => {
      const now = Math.round((e.clientX - began) / 12);
      moved ||= Math.abs(e.clientX - began) > 6;
      if (now !== steps) { steps = now; change(what, start, steps); }
    };
    const end = () => {
      removeEventListener('pointermove', move);
      removeEventListener('pointerup', end);
      removeEventListener('pointercancel', end);
      if (!moved) return;
      const swallow = e => e.stopPropagation();  // the click that ends a drag, if there is one
      addEventListener('click', swallow, {capture: true});
      setTimeout(() => removeEventListener('click', swallow, {capture: true}));
    };
    addEventListener('pointermove', move);
    addEventListener('pointerup', end);
    addEventListener('pointercancel', end);
  });
}

// ---- The grid of a batch: a row of blocks per image, a column per channel, four pixels a block

const COLUMNS = [0, 1, 4, 5, 8, 9, 12, 13];

export function grid(title, {small = false, images = 4, role = null} = {}) {
  const head = small ? [] : [h('thead', {}, h('tr', {}, h('td'), ...counting(4).map(c =>
    h('th', {scope: 'col', colSpan: 2}, `channel ${c}`))))];
  const body = n => h('tbody', {}, ...[0, 2].map(row => h('tr', {},
    ...(row || small ? [] : [h('th', {scope: 'row', rowSpan: 2}, h('span', {}, `image ${n + 1}`))]),
    ...COLUMNS.map(k => h('td', {'data-i': `${16 * n + row + k}`}, h('b'))))));
  const root = h('table', {className: `n-grid${small ? ' n-small' : ''}`, ...(role ? {role} : {})}, h('caption', {}, title), ...head,
    ...Array.from({length: images}, (_, n) => body(n)));
  const cells = [...root.querySelectorAll('[data-i]')].sort((a, b) => a.dataset.i - b.dataset.i);

  // view: values; here; lit(i), kept(i), stripe(i): whether; mark(i): a sign; told(i): words; low and high of the greys
  const write = mover(values => values.forEach((v, i) => {
    cells[i].firstChild.textContent = small ? '' : show(v, Math.abs(v) < 10 ? 2 : 1);
  }));
  function fill({values, here, lit, kept = () => false, stripe = () => false, mark = () => '', told = () => '', low, high, signed}) {
    cells.forEach((td, i) => {
      const away = td.closest('tbody').hidden = i >= values.length;
      if (away) return;
      const share = (values[i] - low) / (high - low || 1), from = Math.min(values[i], 0);
      td.style.setProperty('--grey', `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`);
      td.style.setProperty('--from', `${100 * (from - low) / (high - low || 1)}%`);
      td.style.setProperty('--wide', `${100 * Math.abs(values[i]) / (high - low || 1)}%`);
      const on = lit(i), held = kept(i) && !on;
      const classes = {'n-lit': on, 'n-kept': held, 'n-here': i === here, 'n-stripe': stripe(i), 'n-bright': share > 0.46,
        'n-long': show(values[i]).length > 2 || signed};
      td.className = Object.keys(classes).filter(name => classes[name]).join(' ');
      td.dataset.mark = mark(i);
      if (!small) td.setAttribute('aria-label', `${PIXELS[i % 4]} ${show(values[i])}${told(i)}`);
      if (role) td.setAttribute('aria-selected', on);
    });
    write(values);
  }
  return {root, cells, fill, caption: root.caption};
}

// Arrow keys in a grid: where number i leads to
export function neighbour(i, {key, ctrlKey}, images) {
  const [n, c, p] = place(i), row = 2 * n + (p >> 1), column = 2 * c + p % 2, last = 2 * images - 1;
  const to = {
    ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
    Home: [ctrlKey ? 0 : row, 0], End: [ctrlKey ? last : row, 7],
  }[key];
  if (!to) return null;
  const [r, k] = [Math.min(Math.max(to[0], 0), last), Math.min(Math.max(to[1], 0), 7)];
  return 16 * (r >> 1) + 4 * (k >> 1) + 2 * (r % 2) + k % 2;
}

// One grid by which the reader points: mouse, touch, and arrow keys. `point(i)` hears of it, null when the mouse leaves.
export function pointing({root, cells}, images, hold, point = hold) {
  const at = event => event.target.closest?.('[data-i]');
  cells.forEach((td, i) => { td.tabIndex = i ? -1 : 0; td.setAttribute('role', 'gridcell'); });
  root.addEventListener('pointerover', event => {
    if (event.pointerType === 'mouse' && !event.buttons) point(at(event) ? +at(event).dataset.i : null);
  });
  root.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') point(null); });
  root.addEventListener('focusin', event => {
    if (!at(event)) return;
    cells.forEach(td => { td.tabIndex = td === at(event) ? 0 : -1; });
    hold(+at(event).dataset.i);
  });
  root.addEventListener('click', event => { if (at(event)) at(event).focus(); });
  root.addEventListener('keydown', event => {
    const to = at(event) === event.target && !event.altKey && !event.metaKey ? neighbour(+event.target.dataset.i, event, images()) : null;
    if (to === null) return;
    event.preventDefault();
    cells[to].focus();
  });
}

// ---- All norms at once: small grids under one input, one number held, its set lit in every one

export function manyGrids(kinds, names, color) {
  const parts = kinds.map(kind => {
    const one = grid(names(kind), {small: true}), facts = h('p');
    const root = h('div', {className: 'n-one', style: `--norm: ${color(kind)}`, 'data-kind': kind}, one.root, facts);
    return {kind, root, facts, ...one, root};
  });
  return {root: h('div', {className: 'n-many'}, ...parts.map(part => part.root)), parts};
}

// ---- Lines of numbers, as SVG. `rows`: {title, values, mean, std, here (an index)}

export const ticksOf = (low, high) => {
  const step = [0.5, 1, 2, 5, 10, 20, 50, 100, 1000].find(k => (high - low) / k <= 8) ?? 1e4;
  return counting(Math.floor(high / step) - Math.ceil(low / step) + 1).map(k => (Math.ceil(low / step) + k - 1) * step);
};

export function numberLines(rows, {low, high, wide = 320, tall = 64, radius = 4, names = []}) {
  const at = v => (10 + (wide - 20) * (v - low) / (high - low)).toFixed(1), gap = tall + 16;
  const line = ({title, values, mean, std, here}, r) => {
    const base = (r + 1) * gap;
    const below = values.map((v, k) => values.slice(0, k).filter(w => Math.abs(w - v) < (high - low) / wide * 2).length);  // a stack
    const apart = Math.min(2 * radius + 1, (tall - 16) / Math.max(...below, 1));
    const dots = values.map((v, k) => `<circle cx="${at(v)}" cy="${(base - radius - 2 - apart * below[k]).toFixed(1)}" r="${radius}"${
      k === here ? ' class="n-on"' : ''}/>`);
    dots.push(...dots.splice(here, 1));
    const band = std === undefined ? '' : `<rect x="${at(mean - std)}" width="${at(mean + std) - at(mean - std)}" y="${base - tall + 4}" height="${tall - 4}"/>`;
    const middle = mean === undefined ? '' : `M${at(mean)} ${base - tall + 4}V${base}`;
    return `<text x="4" y="${base - tall}">${title}</text>${band}<path d="${middle}M4 ${base}H${wide - 4}"/>${dots.join('')}`;
  };
  const all = rows.length * gap + 16;
  return `<svg class="n-line" viewBox="0 0 ${wide} ${all}" role="img" aria-label="${names.join('. ') || 'numbers on a line'}">${
    rows.map(line).join('')}${
    ticksOf(low, high).map(v => `<text class="n-tick" x="${at(v)}" y="${all - 3}">${show(v)}</text>`).join('')}</svg>`;
}

// ---- Predict, then see: a question, its answers, and words that appear with the first choice

export function predict(question, answers, right, words) {
  const reply = h('p', {className: 'n-reply', 'aria-live': 'polite'});
  const options = Object.fromEntries(answers.map((answer, i) => [i, answer]));
  const root = h('div', {className: 'n-predict'}, choices(question, options, null, i => {
    root.dataset.answer = +i === right ? 'right' : 'other';
    reply.textContent = `${+i === right ? 'Yes.' : `It is: ${answers[right]}.`} ${words}`;
  }), reply);
  return root;
}
