// The explorer of normnotes: pick a norm, touch a number, see which numbers share its mean.
// First the arithmetic, pure functions on flat lists, checked against normnotes.sets in tests/test_explorer.py.
// Then the page: one state, kept in the address after '#', and `draw`, which shows it.
(() => {
  'use strict';

  // ---- Arithmetic. A batch is a flat list of numbers and its shape [N, C, H, W].

  const EPS = 1e-5, MOMENTUM = 0.1;
  const counting = n => Array.from({length: n}, (_, i) => i + 1);
  const join = (items, word) => items.join(', ').replace(/, (\d+)$/, ` ${word} $1`);  // 1, 2 or 4
  const divisors = n => counting(n).filter(d => n % d === 0);

  // The set of every number, 0..K-1.
  function statSets(kind, [N, C, ...space], groups) {
    const P = space.reduce((product, side) => product * side, 1);
    if (kind === 'gn' && !divisors(C).includes(groups))
      throw new RangeError(`groups=${groups} does not divide ${C} channels; use ${join(divisors(C), 'or')}`);
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

  // Count, mean and biased variance of every set; zeros and mean squares where no mean is subtracted.
  const centred = kind => NORMS[kind][2] ?? true;
  function setStats(x, sets, mid = true) {
    const count = [], mean = [], variance = [];
    sets.forEach((s, i) => { count[s] = (count[s] ?? 0) + 1; mean[s] = (mean[s] ?? 0) + x[i]; });
    count.forEach((n, s) => { mean[s] = mid ? mean[s] / n : 0; variance[s] = 0; });
    sets.forEach((s, i) => { variance[s] += (x[i] - mean[s]) ** 2 / count[s]; });
    return {count, mean, variance};
  }

  // What batch norm keeps for eval, per channel, after one more training step on x. The variance is the unbiased one.
  function runningStep(old, x, shape) {
    const {count, mean, variance} = setStats(x, statSets('bn', shape));
    const update = (before, batch) => (1 - MOMENTUM) * before + MOMENTUM * batch;
    return {
      mean: mean.map((m, c) => update(old.mean[c], m)),
      variance: variance.map((v, c) => update(old.variance[c], v * count[c] / (count[c] - 1))),
    };
  }

  function runningStats(x, shape, steps) {
    let kept = {mean: Array(shape[1]).fill(0), variance: Array(shape[1]).fill(1)};
    for (let step = 0; step < steps; step++) kept = runningStep(kept, x, shape);
    return kept;
  }

  // Every norm of the book; with `running` (a mean and a variance per channel) it is batch norm in eval.
  function normalize(x, shape, kind, groups, running) {
    const sets = statSets(running ? 'bn' : kind, shape, groups), {mean, variance} = running ?? setStats(x, sets, centred(kind));
    return x.map((value, i) => (value - mean[sets[i]]) / Math.sqrt(variance[sets[i]] + EPS));
  }

  // ---- Batches

  const BRIGHT_DARK = [  // a row per image, and in it a pair (bright, dark) per channel
    [[10, 4], [4, 2], [10, 0], [12, 6]], [[12, 4], [9, 7], [10, 8], [11, 3]],
    [[12, 8], [6, 2], [4, 0], [8, 0]], [[8, 6], [9, 1], [10, 6], [11, 5]],
  ];
  const SHAPES = [[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]];
  const fourImages = () => BRIGHT_DARK.flatMap((pairs, n) =>
    pairs.flatMap(([bright, dark]) => SHAPES[n].map(on => on ? bright : dark)));

  function randomNumbers(seed) {  // 64 whole numbers from 0 to 12, the same for a seed everywhere (mulberry32)
    return fourImages().map(() => {
      seed = (seed + 0x6D2B79F5) | 0;
      let t = Math.imul(seed ^ (seed >>> 15), seed | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) % 13;
    });
  }

  const NORMS = {  // names, colours and whether the mean is subtracted, of normnotes.sets
    bn: ['batch', '#0072B2'], ln: ['layer', '#D55E00'], gn: ['group', '#009E73'],
    in: ['instance', '#CC79A7'], rms: ['RMS', '#56B4E9', false], lnc: ['channel layer', '#E69F00'],
  };
  const BATCHES = {
    book: ['the book’s four images', fourImages],
    random: ['random whole numbers', randomNumbers],
    constant: ['channel 2 is 7 everywhere', () => fourImages().map((v, i) => place(i)[1] === 1 ? 7 : v)],
    bright: ['image 1 three times as bright', () => fourImages().map((v, i) => place(i)[0] === 0 ? 3 * v : v)],
  };
  const C = 4, PIXELS = ['top left', 'top right', 'bottom left', 'bottom right'];
  const place = i => [i >> 4, (i >> 2) % C, i % 4];  // image, channel, pixel

  const api = {divisors, statSets, setStats, runningStats, normalize, fourImages, randomNumbers, NORMS};
  if (typeof module === 'object') module.exports = api;
  const root = typeof document === 'object' && document.getElementById('explorer');
  if (!root) return;
  window.normnotesExplorer = api;

  // ---- The state, and the address that holds it

  const START = {norm: 'bn', groups: 2, mode: 'train', steps: 10, batch: 'book', seed: 1, images: 4, at: 0, edits: {}};
  const oneOf = list => text => list.map(String).includes(text);
  const whole = high => text => /^\d+$/.test(text) && +text <= high;
  const ALLOWED = {norm: oneOf(Object.keys(NORMS)), groups: oneOf(divisors(C)), mode: oneOf(['train', 'eval']),
    steps: whole(100), batch: oneOf(Object.keys(BATCHES)), seed: whole(9999), images: oneOf(counting(4))};
  let state, pointed = null;  // `pointed` is the number under the mouse, `state.at` the one held

  const take = (key, text) => { if (ALLOWED[key](text)) state[key] = typeof START[key] === 'number' ? +text : text; };
  const parse = text => {  // what a reader types, to one decimal, or NaN
    const value = /\d/.test(text) ? Math.round(10 * text.replace('−', '-').replace(',', '.')) / 10 : NaN;
    return Math.abs(value) <= 99 ? value : NaN;
  };
  const spell = i => place(i).map(part => part + 1).join('.');  // '3.1.2': image, channel, pixel
  const find = text => Array.from({length: 64}, (_, i) => spell(i)).indexOf(text);

  function read() {  // false if the address is not one of ours, but leads to a heading
    const given = new URLSearchParams(location.hash.slice(1));
    const ours = [...given.keys()].some(key => key in START);
    if (state && location.hash && !ours) return false;
    state = {...START, edits: {}};
    Object.keys(ALLOWED).forEach(key => take(key, given.get(key) ?? ''));
    for (const edit of (given.get('edits') ?? '').split(',')) {
      const [i, value] = [find(edit.split(':')[0]), parse(edit.split(':')[1] ?? '')];
      if (i >= 0 && !isNaN(value)) state.edits[i] = value;
    }
    state.at = Math.max(0, find(given.get('at'))) % (16 * state.images);
    return true;
  }

  function write() {
    const edits = Object.entries(state.edits).map(([i, v]) => `${spell(i)}:${v}`);
    const words = {...state, at: spell(state.at), edits};
    const start = {...START, at: spell(0), edits: ''};
    const parts = Object.keys(START).filter(key => String(words[key]) !== String(start[key]));
    const hash = parts.map(key => `${key}=${words[key]}`).join('&');
    try {
      history.replaceState(null, '', hash ? '#' + hash : location.pathname + location.search);
    } catch { /* browsers refuse many changes in a short time; the next one will do */ }
  }

  // ---- The page, built once

  const each = (items, draw) => items.map(draw).join('');
  const radios = (name, title, options, rest = '') => `<fieldset ${rest}><legend>${title}</legend>
    ${each(options, option => `<label><input type="radio" name="${name}" value="${option}">
      <span>${NORMS[option]?.[0] ?? option}</span></label>`)}</fieldset>`;
  const table = (side, role, title) => `<table class="x-${side}" ${role}><caption>${title}</caption>
    <thead><tr><td></td>${each(counting(C), c => `<th scope="col" colspan="2">channel ${c}</th>`)}</tr></thead>
    ${each([0, 1, 2, 3], n => `<tbody>${each([0, 2], row => `<tr>
      ${row ? '' : `<th scope="row" rowspan="2"><span>image ${n + 1}</span></th>`}
      ${each([0, 1, 4, 5, 8, 9, 12, 13], k => `<td data-i="${16 * n + row + k}"><b></b></td>`)}</tr>`)}</tbody>`)}</table>`;

  root.innerHTML = `
    <div class="x-controls">
      ${radios('norm', 'Norm', Object.keys(NORMS))}
      ${radios('groups', 'Groups', divisors(C), 'data-for="gn"')}
      ${radios('mode', 'Mode', ['train', 'eval'], 'data-for="bn"')}
      <label data-for="bn"><span>Training steps so far: <strong></strong></span>
        <input type="range" name="steps" max="100"></label>
      <label><span>Batch</span><select name="batch">${each(Object.entries(BATCHES), ([key, [title]]) =>
        `<option value="${key}">${title}</option>`)}</select></label>
      <label data-for="random"><span>Seed</span><input type="number" name="seed" min="0" max="9999"></label>
      ${radios('images', 'Images', counting(4))}
    </div>
    <div class="x-board">
      <div>${table('in', 'role="grid" aria-multiselectable="true" aria-describedby="x-hint"', 'What comes in')}
        <div class="x-bar"><button type="button" data-by="-1">−</button><span></span>
          <button type="button" data-by="1">+</button>
          <button type="button" class="x-undo">Undo edits</button></div>
        <p id="x-hint">Point at a number, or tap it; click or tap again to change it.
          Keys: arrows move, Enter changes, + and − step, Escape gives up.</p></div>
      <div class="x-work"></div>
      <div>${table('out', '', '')}<p class="x-note"></p></div>
    </div>
    <p class="x-said" aria-live="polite"></p>`;
  const one = selector => root.querySelector(selector), all = selector => [...root.querySelectorAll(selector)];
  const cells = ['.x-in', '.x-out'].map(side => all(`${side} [data-i]`).sort((a, b) => a.dataset.i - b.dataset.i));
  let dealt, numbers, refused = '';  // the batch as it came, the same with the edits, why the last one was refused
  const HINT = one('#x-hint').textContent;

  // ---- What is shown

  const show = (v, digits = 2) =>  // no zeros at the end, none lost in a small number, a minus that can be seen
    String(+(v && Math.abs(v) < 0.01 ? v.toPrecision(1) : v.toFixed(digits))).replace('-', '−');
  const term = v => v < 0 ? `(${show(v)})` : show(v);
  const is = v => (Math.abs(show(v).replace('−', '-') - v) < 1e-9 ? '= ' : '≈ ') + show(v);
  const where = i => `image ${place(i)[0] + 1}, channel ${place(i)[1] + 1}, ${PIXELS[i % 4]}`;

  // What follows from the state: the batch before and after the edits, both normalized, and the set to be lit.
  function look() {
    const {norm, groups, images, steps} = state, shape = [images, C, 2, 2], size = 16 * images;
    const dealt = BATCHES[state.batch][1](state.seed).slice(0, size), x = dealt.map((v, i) => state.edits[i] ?? v);
    const inEval = norm === 'bn' && state.mode === 'eval';
    const running = inEval ? runningStats(dealt, shape, steps) : undefined;
    const [before, y] = [dealt, x].map(batch => normalize(batch, shape, norm, groups, running));
    const sets = statSets(norm, shape, groups), here = pointed ?? state.at, channel = place(here)[1];
    const {mean, variance} = running ?? setStats(x, sets, centred(norm)), at = running ? channel : sets[here];
    return {
      shape, dealt, x, y, sets, here, channel, inEval,
      mean: mean[at], variance: variance[at], std: Math.sqrt(variance[at] + EPS),
      members: [...x.keys()].filter(i => sets[i] === sets[here]),
      edited: x.some((v, i) => v !== dealt[i]),
      moves: y.map((v, i) => Math.abs(v - before[i]) > 1e-9 ? Math.sign(v - before[i]) : 0),
    };
  }

  function fillTables({dealt, x, y, sets, here, inEval, edited, moves}) {
    const {norm, groups} = state;
    cells.forEach((side, out) => side.forEach((td, i) => {
      const there = td.closest('tbody').hidden = i >= x.length;
      if (there) return;
      const [n, c, p] = place(i), values = out ? y : x;
      const mine = sets[i] === sets[here], lit = mine && (!inEval || i === here);
      const stripe = {bn: c, ln: n, rms: n, gn: n + Math.floor(c * groups / C), in: n + c, lnc: n + p + (p >> 1)}[norm] % 2;
      const [mark, told] = !edited ? ['', ''] : !out ? x[i] === dealt[i] ? ['', ''] : ['*', `, was ${show(dealt[i])}`]
        : [['▼', ', moved down'], ['=', ', stays'], ['▲', ', moved up']][moves[i] + 1];
      const low = Math.min(out ? -2 : 0, ...values), high = Math.max(out ? 2 : 12, ...values);  // of the little bars
      td.style.setProperty('--from', `${100 * (Math.min(values[i], 0) - low) / (high - low)}%`);
      td.style.setProperty('--wide', `${100 * Math.abs(values[i]) / (high - low)}%`);
      const classes = {'x-lit': lit, 'x-kept': mine && !lit, 'x-here': i === here, 'x-stripe': stripe,
        'x-long': show(values[i]).length > 2};
      td.className = Object.keys(classes).filter(name => classes[name]).join(' ');
      td.dataset.mark = mark;
      td.firstChild.textContent = show(values[i], Math.abs(values[i]) < 10 ? 2 : 1);
      td.setAttribute('aria-label', `${PIXELS[p]} ${show(values[i])}${told}`);
      if (out) return;
      td.tabIndex = i === state.at ? 0 : -1;
      td.setAttribute('aria-selected', lit);
    }));
  }

  function company(i) {  // which numbers share a mean with number i
    const [n, c, p] = place(i), image = `image ${n + 1}`, each = C / state.groups, first = c - c % each;
    return {
      bn: `channel ${c + 1} of ${state.images > 1 ? `all ${state.images} images` : 'the only image'}`,
      ln: `all channels of ${image}`,
      rms: `all channels of ${image}`,
      gn: `channel${each > 1 ? 's' : ''} ${join(counting(each).map(k => first + k), 'and')} of ${image}`,
      in: `channel ${c + 1} of ${image}`,
      lnc: `the ${PIXELS[p]} pixels of ${image}, one per channel`,
    }[state.norm];
  }

  // The sum worked out: rows of a word and its numbers.
  function sum({shape, dealt, x, sets, here, channel, inEval, mean, variance, std, members}) {
    const count = members.length, total = variance * count, K = Math.max(...sets) + 1;
    const add = spelled => members.map(i => i === here ? `<b>${spelled(x[i])}</b>` : spelled(x[i])).join(' + ');
    const mid = centred(state.norm), top = mid ? `(${show(x[here])} − ${term(mean)})` : show(x[here]);
    const rows = [['Normalized', `${top} / √(${show(variance)} + ${EPS.toFixed(5)}) ≈ ${
      show(x[here] - mean)} / ${show(std)} ${is((x[here] - mean) / std)}`]];
    if (!inEval) rows.unshift(
      ['Shares with', `${company(here)}: ${count} numbers, one of ${K} set${K > 1 ? 's' : ''}`],
      ...mid ? [['Mean', `(${add(term)}) / ${count} = ${show(mean * count)} / ${count} ${is(mean)}`]] : [],
      [mid ? 'Biased variance' : 'Mean square', `(${add(v => `${show(Math.abs(v - mean))}²`)}) / ${count} ${
        is(mean)[0] === '=' ? is(total) : `≈ ${show(total)}`} / ${count} ${is(variance)}`]);
    if (state.norm === 'bn') {
      const step = state.steps + !inEval, old = runningStats(dealt, shape, step - 1);
      const batch = setStats(inEval ? dealt : x, statSets('bn', shape)), n = batch.count[channel];
      const unbiased = batch.variance[channel] * n / (n - 1);
      const update = (before, now) => !step ? `${before}, as in a new layer` : `step ${step}: ${1 - MOMENTUM} × ${
        term(before)} + ${MOMENTUM} × ${term(now)} ${is((1 - MOMENTUM) * before + MOMENTUM * now)}`;
      rows.splice(inEval ? 0 : 4, 0,
        ['Running mean', update(old.mean[channel], batch.mean[channel])],
        ['Running variance', `${update(old.variance[channel], unbiased)}${
          step ? `, where ${show(unbiased)} = ${show(unbiased * (n - 1))} / ${n - 1} is the unbiased variance` : ''}`]);
    }
    if (inEval) rows.unshift(['Shares with',
      `no other number: eval uses what training has kept, ${state.steps} steps on the batch as it came`]);
    return rows;
  }

  // Two number lines: the numbers of the set, and below them the same numbers normalized.
  function lines({x, here, mean, std, members}) {
    const numbers = members.map(i => x[i]), normal = numbers.map(v => (v - mean) / std);
    const ends = [...numbers, ...normal, mean - std, mean + std, -2, 2];
    const low = Math.floor(Math.min(...ends)), high = Math.ceil(Math.max(...ends));
    const at = v => (8 + 304 * (v - low) / (high - low)).toFixed(1);
    const step = [1, 2, 5, 10, 20, 50].find(k => (high - low) / k <= 10);
    const line = (title, values, m, s, base) => {
      const below = values.map((v, k) => values.slice(0, k).filter(w => Math.abs(w - v) < 0.005).length);  // a stack
      const apart = Math.min(9, 48 / Math.max(...below, 1));
      const dots = values.map((v, k) => `<circle cx="${at(v)}" cy="${base - 6 - apart * below[k]}" r="4"/>`);
      dots.push(dots[members.indexOf(here)].replace('/>', ' class="x-on"/>'));
      return `<text x="4" y="${base - 62}">${title}</text>
        <rect x="${at(m - s)}" width="${at(m + s) - at(m - s)}" y="${base - 58}" height="58"/>
        <path d="M${at(m)} ${base - 58}V${base}M4 ${base}H316"/>${dots.join('')}`;
    };
    const ticks = counting(high - low + 1).map(k => low + k - 1).filter(v => v % step === 0);
    return `<svg viewBox="0 0 320 172" aria-hidden="true">${line('the numbers', numbers, mean, std, 76)}${
      line('normalized', normal, 0, 1, 154)}${
      ticks.map(v => `<text class="x-tick" x="${at(v)}" y="168">${show(v)}</text>`).join('')}</svg>`;
  }

  function note({edited, moves}) {
    if (!edited) return 'Change a number that comes in, and marks here show which of these move.';
    const moved = moves.filter(Boolean).length;
    const touched = counting(state.images).filter(n => moves.some((move, i) => move && place(i)[0] === n - 1));
    return `${moved} of ${moves.length} move${moved === 1 ? 's' : ''} (▲ up, ▼ down)${
      moved ? `, in image${touched.length > 1 ? 's' : ''} ${join(touched, 'and')}` : ''}. ${moves.length - moved} stay (=).`;
  }

  function draw(silent) {
    const view = look(), rows = sum(view), {x, here, mean, std} = view, norm = NORMS[state.norm];
    ({dealt, x: numbers} = view);
    root.style.setProperty('--norm', norm[1]);
    fillTables(view);
    one('.x-work').innerHTML = `<div><h3>${where(here)}: ${show(x[here])}</h3><dl>${rows.map(([word, text]) =>
      `<div><dt>${word}</dt><dd>${text}</dd></div>`).join('')}</dl></div>${lines(view)}`;
    one('.x-note').textContent = note(view);
    one('.x-out caption').textContent = `What comes out of ${norm[0]} norm${
      state.norm === 'bn' ? `, ${state.mode}` : ''}`;
    one('.x-bar span').textContent = show(x[state.at]);
    all('.x-bar [data-by]').forEach((b, i) => b.setAttribute('aria-label', `one ${['less', 'more'][i]}, ${where(state.at)}`));
    one('.x-undo').disabled = !view.edited;
    one('#x-hint').textContent = refused || HINT;
    one('.x-controls strong').textContent = state.steps;
    for (const field of all('[name]'))
      if (field.type === 'radio') field.checked = field.value === String(state[field.name]);
      else if (field !== document.activeElement) field.value = state[field.name];
    for (const field of all('[data-for]')) field.hidden = ![state.norm, state.batch].includes(field.dataset.for);
    if (!silent) one('.x-said').textContent = refused || `${where(here)}. ${rows[0].join(' ')}. ${
      centred(state.norm) ? `Mean ${show(mean)}, variance` : 'Mean square'} ${show(view.variance)}. ${show(x[here])}${
      centred(state.norm) ? ` minus ${show(mean)}` : ''}, divided by ${show(std)}, is ${
      show((x[here] - mean) / std)}.${view.edited ? ' ' + note(view) : ''}`;
  }

  // ---- What the reader does

  function act(change) {
    refused = '';
    change();
    state.at %= 16 * state.images;
    draw();
    write();
  }

  const put = (i, text) => act(() => {
    const value = parse(text);
    if (isNaN(value)) refused = `“${text}” is no number from −99 to 99; the ${show(numbers[i])} stays.`;
    else if (value === dealt[i]) delete state.edits[i];
    else state.edits[i] = value;
  });

  function edit(i, typed) {  // a field over the number: Enter or leaving keeps what is typed, Escape does not
    const field = document.createElement('input');
    Object.assign(field, {value: typed ?? numbers[i], inputMode: 'decimal', autocomplete: 'off'});
    field.setAttribute('aria-label', `new number, ${where(i)}`);
    const close = (keep, stay) => {
      field.onblur = null;
      field.remove();
      if (stay) cells[0][i].focus();
      if (keep) put(i, field.value);
    };
    field.onblur = () => close(true);
    field.onkeydown = event => {
      event.stopPropagation();
      if (event.key === 'Enter' || event.key === 'Escape') close(event.key === 'Enter', true);
    };
    cells[0][i].append(field);
    field.focus();
    if (typed === undefined) field.select();
  }

  const cell = event => event.target.closest('[data-i]');
  let again = false;  // the number was held already when it was pressed
  root.addEventListener('pointerdown', event => { again = cell(event) === document.activeElement; });
  root.addEventListener('focusin', event => {
    if (cell(event)) act(() => { state.at = +cell(event).dataset.i; pointed = null; });
  });
  const point = i => { if (i !== pointed) { pointed = i; draw(true); } };
  root.addEventListener('pointerover', event => {
    if (event.pointerType === 'mouse') point(cell(event) ? +cell(event).dataset.i : null);
  });
  root.addEventListener('pointerleave', () => point(null));
  root.addEventListener('click', event => {
    const td = cell(event), by = event.target.dataset.by;
    if (td && event.target.tagName !== 'INPUT') {
      if (td.closest('.x-out')) act(() => { state.at = +td.dataset.i; });
      else if (again) edit(+td.dataset.i);
    }
    if (by) put(state.at, `${numbers[state.at] + +by}`);
    if (event.target.matches('.x-undo')) act(() => { state.edits = {}; });
  });
  root.addEventListener('input', ({target}) => {
    if (!target.name) return;
    act(() => {
      if (target.name === 'batch' || target.name === 'seed') state.edits = {};
      take(target.name, target.value);
    });
  });
  root.addEventListener('keydown', event => {
    const td = cell(event), {key} = event;
    if (!td || event.altKey || event.metaKey) return;
    const i = state.at, [n, c, p] = place(i), row = 2 * n + (p >> 1), column = 2 * c + p % 2;
    const last = 2 * state.images - 1;
    const to = {
      ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
      Home: [event.ctrlKey ? 0 : row, 0], End: [event.ctrlKey ? last : row, 7],
    }[key];
    if (to) {
      const [r, k] = [Math.min(Math.max(to[0], 0), last), Math.min(Math.max(to[1], 0), 7)];
      cells[0][16 * (r >> 1) + 4 * (k >> 1) + 2 * (r % 2) + k % 2].focus();
    } else if (event.ctrlKey) return;
    else if (key === 'Enter' || key === 'F2') edit(i);
    else if (/^\d$/.test(key)) edit(i, '');
    else if ('+=-'.includes(key)) put(i, `${numbers[i] + (key === '-' ? -1 : 1)}`);
    else return;
    if (!/^\d$/.test(key)) event.preventDefault();
  });
  document.addEventListener('click', event => {  // a link of the text that shows a view
    const view = event.target.closest('[data-view]')?.dataset.view;
    if (view === undefined) return;
    event.preventDefault();
    location.hash = view;
    root.scrollIntoView();
  });
  addEventListener('hashchange', () => { if (read()) draw(); });
  read();
  draw(true);
})();
