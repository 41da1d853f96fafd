// The explorer of normnotes: pick a norm, touch a number, see which numbers share its mean, and what follows.
// One state, kept in the address after '#'; `look`, what follows from it; `draw`, which shows it.
import {
  EPS, MOMENTUM, NORMS, centred, counting, divisors, fourImages, join, normalize, backward, place, random, runningStats, setStats,
  sharing, statSets, where,
} from './sets.js';
import {button, choices, draggable, equals, grid, h, manyGrids, numberLines, pointing, show, slider, term, voice} from './draw.js';

const BATCHES = {
  book: ['the book’s four images', fourImages],
  random: ['random whole numbers', seed => { const next = random(seed); return fourImages().map(() => Math.floor(13 * next())); }],
  constant: ['channel 2 is 7 everywhere', () => fourImages().map((v, i) => place(i)[1] === 1 ? 7 : v)],
  bright: ['image 1 three times as bright', () => fourImages().map((v, i) => place(i)[0] === 0 ? 3 * v : v)],
};

// ---- The state, and the address that holds it

const START = {view: 'one', way: 'forward', norm: 'bn', groups: 2, mode: 'train', steps: 10, batch: 'book', seed: 1, images: 4,
  as: 'numbers', gamma: '1,1,1,1', beta: '0,0,0,0', at: 0, edits: {}};
const oneOf = list => text => list.map(String).includes(text);
const whole = high => text => /^\d+$/.test(text) && +text <= high;
const four = (low, high) => text => /^(-?[\d.]+,){3}-?[\d.]+$/.test(text) && text.split(',').every(v => +v >= low && +v <= high);
const ALLOWED = {view: oneOf(['one', 'all']), way: oneOf(['forward', 'backward']), norm: oneOf(Object.keys(NORMS)),
  groups: oneOf(divisors(4)), mode: oneOf(['train', 'eval']), steps: whole(100), batch: oneOf(Object.keys(BATCHES)), seed: whole(9999),
  images: oneOf(counting(4)), as: oneOf(['numbers', 'pictures']), gamma: four(-3, 3), beta: four(-5, 5)};
const parse = text => {  // what a reader types, to one decimal, or NaN
  const value = /\d/.test(text) ? Math.round(10 * text.replace('−', '-').replace(',', '.')) / 10 : NaN;
  return Math.abs(value) <= 99 ? value : NaN;
};
const spell = i => place(i).map(part => part + 1).join('.');  // '3.1.2': image, channel, pixel
const find = text => Array.from({length: 64}, (_, i) => spell(i)).indexOf(text);

function mount(root) {
  let state, pointed = null;  // `pointed` is the number under the mouse, `state.at` the one held
  let dealt, numbers, refused = '';  // the batch as it came, the same with the edits, why the last edit was refused
  const take = (key, text) => { if (ALLOWED[key](text)) state[key] = typeof START[key] === 'number' ? +text : text; };

  function read() {  // false if the address is not one of ours, but leads to a heading
    const given = new URLSearchParams(location.hash.slice(1)), ours = [...given.keys()].some(key => key in START);
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
    const words = {...state, at: spell(state.at), edits}, start = {...START, at: spell(0), edits: ''};
    const hash = Object.keys(START).filter(key => String(words[key]) !== String(start[key])).map(key => `${key}=${words[key]}`).join('&');
    try {
      history.replaceState(null, '', hash ? '#' + hash : location.pathname + location.search);
    } catch { /* browsers refuse many changes in a short time; the next one will do */ }
  }

  // ---- What follows from the state

  const knobs = name => state[name].split(',').map(Number);
  const stripes = (norm, i) => {
    const [n, c, p] = place(i);
    return {bn: c, ln: n, rms: n, gn: n + Math.floor(c * state.groups / 4), in: n + c, lnc: n + p + (p >> 1)}[norm] % 2 === 1;
  };

  function look(norm = state.norm) {
    const {groups, images, steps} = state, shape = [images, 4, 2, 2], size = 16 * images;
    const original = BATCHES[state.batch][1](state.seed).slice(0, size), x = original.map((v, i) => state.edits[i] ?? v);
    const inEval = norm === 'bn' && state.mode === 'eval', running = inEval ? runningStats(original, shape, steps) : undefined;
    const options = {groups, running, gamma: knobs('gamma'), beta: knobs('beta')};
    const [before, y] = [original, x].map(batch => normalize(batch, shape, norm, options));
    const sets = statSets(norm, shape, groups), here = pointed < size ? pointed ?? state.at : state.at, channel = place(here)[1];
    const {mean, variance} = running ?? setStats(x, sets, centred(norm)), at = running ? channel : sets[here];
    const paths = backward(x.map((_, i) => +(i === here)), x, shape, norm, options);
    return {
      norm, shape, original, x, y, sets, here, channel, inEval, paths, gamma: options.gamma[channel], beta: options.beta[channel],
      out: state.way === 'backward' ? paths.total : y,
      mean: mean[at], variance: variance[at], std: Math.sqrt(variance[at] + EPS),
      members: [...x.keys()].filter(i => sets[i] === sets[here]),
      edited: x.some((v, i) => v !== original[i]),
      moves: y.map((v, i) => Math.abs(v - before[i]) > 1e-9 ? Math.sign(v - before[i]) : 0),
    };
  }

  const greys = (values, low, high) => ({low: Math.min(low, ...values), high: Math.max(high, ...values)});
  const lit = view => i => view.sets[i] === view.sets[view.here] && (!view.inEval || i === view.here);

  function fillInput(view) {
    const {x, here, original} = view;
    const all = state.view === 'all';  // then the set of one norm says too little
    input.fill({values: x, here, lit: all ? i => i === here : lit(view), stripe: i => !all && stripes(view.norm, i),
      kept: i => !all && view.inEval && view.sets[i] === view.sets[here],
      mark: i => x[i] === original[i] ? '' : '*', told: i => x[i] === original[i] ? '' : `, was ${show(original[i])}`, ...greys(x, 0, 12)});
    input.cells.forEach((td, i) => { td.tabIndex = i === state.at ? 0 : -1; });
  }

  function fillOutput(one, view) {
    const back = state.way === 'backward', {edited, moves, out, here} = view, signs = ['▼', '=', '▲'];
    one.fill({values: out, here, lit: lit(view), stripe: i => stripes(view.norm, i), signed: true,
      kept: i => view.inEval && view.sets[i] === view.sets[here],
      mark: i => edited && !back ? signs[moves[i] + 1] : '',
      told: i => edited && !back ? [', moved down', ', stays', ', moved up'][moves[i] + 1] : '', ...greys(out, back ? -0.5 : -2, back ? 0.5 : 2)});
  }

  // The sum worked out: rows of a word and its numbers.
  function forwardSum({norm, original, x, y, sets, here, channel, inEval, mean, variance, std, members, shape, gamma, beta}) {
    const count = members.length, total = variance * count, K = Math.max(...sets) + 1, hat = (x[here] - mean) / std;
    const add = spelled => members.map(i => i === here ? `<b>${spelled(x[i])}</b>` : spelled(x[i])).join(' + ');
    const mid = centred(norm), top = mid ? `(${show(x[here])} − ${term(mean)})` : show(x[here]);
    const rows = [['Normalized', `${top} / √(${show(variance)} + ${EPS.toFixed(5)}) ≈ ${show(x[here] - mean)} / ${show(std)} ${equals(hat)}`]];
    if (gamma !== 1 || beta !== 0) rows.push(['Gamma, beta', `${show(gamma)} × ${term(hat)} + ${term(beta)} ${equals(y[here])}`]);
    if (!inEval) rows.unshift(
      ['Shares with', `${sharing(norm, here, state.images, state.groups)}: ${count} numbers, one of ${K} set${K > 1 ? 's' : ''}`],
      ...mid ? [['Mean', `(${add(term)}) / ${count} = ${show(mean * count)} / ${count} ${equals(mean)}`]] : [],
      [mid ? 'Biased variance' : 'Mean square', `(${add(v => `${show(Math.abs(v - mean))}²`)}) / ${count} ${
        equals(mean)[0] === '=' ? equals(total) : `≈ ${show(total)}`} / ${count} ${equals(variance)}`]);
    if (norm === 'bn') {
      const step = state.steps + !inEval, old = runningStats(original, shape, Math.max(0, step - 1));
      const batch = setStats(inEval ? original : x, statSets('bn', shape)), n = batch.count[channel];
      const unbiased = batch.variance[channel] * n / (n - 1);
      const update = (before, now) => !step ? `${before}, as in a new layer` : `step ${step}: ${1 - MOMENTUM} × ${
        term(before)} + ${MOMENTUM} × ${term(now)} ${equals((1 - MOMENTUM) * before + MOMENTUM * now)}`;
      rows.splice(inEval ? 0 : rows.length, 0,
        ['Running mean', update(old.mean[channel], batch.mean[channel])],
        ['Running variance', `${update(old.variance[channel], unbiased)}${step ? ', from the unbiased variance' : ''}`]);
    }
    if (inEval) rows.unshift(['Shares with',
      `no other number: evaluation mode uses what training has kept, ${state.steps} steps on the batch as it came`]);
    return rows;
  }

  function backwardSum({x, here, members, std, mean, paths, gamma, inEval, norm}) {
    const hat = (x[here] - mean) / std, n = members.length;
    if (inEval) return [['Straight', `gamma / std = ${show(gamma)} / ${show(std)} ${equals(paths.straight[here])}`],
      ['Others', 'in evaluation mode the statistics are fixed numbers, so no other input matters']];
    return [
      ['The question', `the gradient of the output at ${where(here)}: 1 arrives there, 0 everywhere else`],
      ['Straight', `gamma / std = ${show(gamma)} / ${show(std)} ${equals(paths.straight[here])}`],
      ...centred(norm) ? [['Through the mean', `−${show(gamma)} / ${n} / ${show(std)} ${equals(paths.byMean[here])}, the same for all ${n}`]] : [],
      [centred(norm) ? 'Through the variance' : 'Through the mean square',
        `−${show(gamma)} × ${term(hat)}² / ${n} / ${show(std)} ${equals(paths.byVariance[here])} here`],
      ['Together', `${equals(paths.total[here]).slice(2)} here; ${members.filter(i => i !== here && Math.abs(paths.total[i]) > 1e-9).length
      } other inputs move this output as well`],
    ];
  }

  function note({edited, moves}) {
    if (state.way === 'backward') return 'How much the held output changes for a small change of each input.';
    if (!edited) return 'Change an input: marks here will show which outputs move.';
    const moved = moves.filter(Boolean).length;
    const touched = counting(state.images).filter(n => moves.some((move, i) => move && place(i)[0] === n - 1));
    return `${moved} of ${moves.length} move${moved === 1 ? 's' : ''} (▲ up, ▼ down)${
      moved ? `, in image${touched.length > 1 ? 's' : ''} ${join(touched, 'and')}` : ''}. ${moves.length - moved} stay (=).`;
  }

  // ---- The page, built once

  const set = key => value => act(() => {
    if (key === 'batch' || key === 'seed') state.edits = {};
    take(key, value);
  });
  const names = list => Object.fromEntries(list.map(v => [v, NORMS[v]?.[0] ?? v]));
  const field = {
    view: choices('Show', {one: 'one norm', all: 'all norms'}, 'one', set('view')),
    way: choices('Way', {forward: 'forward', backward: 'backward'}, 'forward', set('way')),
    norm: choices('Norm', names(Object.keys(NORMS)), 'bn', set('norm')),
    groups: choices('Groups', names(divisors(4)), 2, set('groups')),
    mode: choices('Mode', {train: 'train', eval: 'eval'}, 'train', set('mode')),
    images: choices('Images', names(counting(4)), 4, set('images')),
    as: choices('Look', {numbers: 'numbers', pictures: 'pictures'}, 'numbers', set('as')),
    steps: slider('Training steps so far', {min: 0, max: 100, value: 10}, v => set('steps')(`${v}`)),
  };
  const batches = h('select', {'aria-label': 'Batch', onchange: e => set('batch')(e.target.value)},
    ...Object.entries(BATCHES).map(([key, [title]]) => h('option', {value: key}, title)));
  const seed = h('input', {type: 'number', min: '0', max: '9999', 'aria-label': 'Seed', oninput: e => set('seed')(e.target.value)});
  const knob = name => slider(name === 'gamma' ? 'γ' : 'β', {min: name === 'gamma' ? -3 : -5, max: name === 'gamma' ? 3 : 5, step: 0.5,
    value: +(name === 'gamma')}, v => act(() => {
    const all = knobs(name);
    all[place(state.at)[1]] = v;
    state[name] = all.join(',');
  }));
  const gamma = knob('gamma'), beta = knob('beta');
  const input = grid('What comes in', {role: 'grid'}), output = grid('', {});
  input.root.setAttribute('aria-multiselectable', 'true');
  const many = manyGrids(Object.keys(NORMS), kind => `${NORMS[kind][0]} norm`, kind => NORMS[kind][1]);
  const less = button('−', () => put(state.at, `${numbers[state.at] - 1}`)), more = button('+', () => put(state.at, `${numbers[state.at] + 1}`));
  const held = h('span'), undo = button('Undo', () => act(() => { Object.assign(state, {edits: {}, gamma: START.gamma, beta: START.beta}); }));
  const HINT = 'Drag a number sideways, or click it twice and type. Keys: arrows, Enter, +, −, Escape.';
  const hint = h('p', {className: 'n-hint'}), comment = h('p', {className: 'n-note'}), said = voice(), work = h('div', {className: 'x-work'});
  const tables = h('div', {className: 'x-board'},
    h('div', {className: 'x-left'}, input.root, h('div', {className: 'n-bar'}, less, held, more, gamma, beta, undo)),
    h('div', {className: 'x-right'}, output.root, comment), work, many.root);
  root.replaceChildren(h('div', {className: 'n-controls'}, field.view, field.norm, field.groups, field.mode, field.steps), tables,
    h('div', {className: 'n-controls'}, field.way, field.images, field.as, h('div', {className: 'n-batch'}, batches, seed)), hint, said);

  function draw(silent) {
    const view = look(), {x, here, mean, std, norm} = view, back = state.way === 'backward';
    ({original: dealt, x: numbers} = view);
    const rows = back ? backwardSum(view) : forwardSum(view), all = state.view === 'all';
    root.style.setProperty('--norm', NORMS[norm][1]);
    root.classList.toggle('n-pictures', state.as === 'pictures');
    root.classList.toggle('x-all', all);
    fillInput(view);
    if (all) for (const one of many.parts) {
      const its = look(one.kind);
      fillOutput(one, its);
      one.facts.textContent = `${centred(one.kind) ? `mean ${show(its.mean)}` : `mean square ${show(its.variance)}`}: ${show(x[here])} → ${
        back ? `gradient ${show(its.out[here])}` : show(its.out[here])}`;
    }
    else {
      fillOutput(output, view);
      const numbers = view.members.map(i => x[i]), normal = numbers.map(v => (v - mean) / std), at = view.members.indexOf(here);
      const ends = [...numbers, ...normal, mean - std, mean + std, -2, 2];
      work.innerHTML = `<div><h3>${where(here)}: ${show(x[here])}</h3><dl>${rows.map(([word, text]) =>
        `<div><dt>${word}</dt><dd>${text}</dd></div>`).join('')}</dl></div>${numberLines([
        {title: 'the numbers', values: numbers, mean, std, here: at}, {title: 'normalized', values: normal, mean: 0, std: 1, here: at}],
      {low: Math.floor(Math.min(...ends)), high: Math.ceil(Math.max(...ends))})}`;
    }
    output.caption.textContent = back ? `Back through ${NORMS[norm][0]} norm` : `Out of ${NORMS[norm][0]} norm${
      norm === 'bn' ? `, ${state.mode}` : ''}`;
    comment.textContent = note(view);
    held.textContent = show(x[state.at]);
    less.setAttribute('aria-label', `one less, ${where(state.at)}`);
    more.setAttribute('aria-label', `one more, ${where(state.at)}`);
    gamma.set(knobs('gamma')[place(state.at)[1]]);
    beta.set(knobs('beta')[place(state.at)[1]]);
    gamma.title = beta.title = `of channel ${place(state.at)[1] + 1}`;
    undo.disabled = !view.edited && state.gamma === START.gamma && state.beta === START.beta;
    hint.textContent = refused || HINT;
    for (const [name, part] of Object.entries(field)) part.set(state[name]);
    batches.value = state.batch;
    if (seed !== document.activeElement) seed.value = state.seed;
    seed.hidden = state.batch !== 'random';
    field.norm.hidden = all;
    field.groups.hidden = !all && norm !== 'gn';
    field.mode.hidden = !all && norm !== 'bn';
    field.steps.hidden = field.mode.hidden || state.mode !== 'eval';
    if (!silent) said.textContent = refused || (all ? many.parts.map(one => `${NORMS[one.kind][0]}: ${one.facts.textContent}`).join('. ')
      : `${where(here)}. ${rows[0].join(' ')}. ${centred(norm) ? `Mean ${show(mean)}, variance` : 'Mean square'} ${show(view.variance)}. ${
        show(x[here])}${centred(norm) ? ` minus ${show(mean)}` : ''}, divided by ${show(std)}, is ${show((x[here] - mean) / std)}.${
        view.edited ? ' ' + note(view) : ''}`);
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
    if (isNaN(value)) refused = `“${text}” is not a number from −99 to 99; the ${show(numbers[i])} stays.`;
    else if (value === dealt[i]) delete state.edits[i];
    else state.edits[i] = value;
  });

  function edit(i, typed) {  // a field over the number: Enter or leaving keeps what is typed, Escape does not
    const over = h('input', {inputMode: 'decimal', autocomplete: 'off', 'aria-label': `new number, ${where(i)}`});
    over.value = typed ?? numbers[i];
    const close = (keep, stay) => {
      over.onblur = null;
      over.remove();
      if (stay) input.cells[i].focus();
      if (keep) put(i, over.value);
    };
    over.onblur = () => close(true);
    over.onkeydown = event => {
      event.stopPropagation();
      if (event.key === 'Enter' || event.key === 'Escape') close(event.key === 'Enter', true);
    };
    input.cells[i].append(over);
    over.focus();
    if (typed === undefined) over.select();
  }

  const cell = event => event.target.closest?.('[data-i]');
  let again = false;  // the number was held already when it was pressed
  const point = i => { if (i !== pointed) { pointed = i; draw(true); } };
  const hold = i => act(() => { state.at = i; pointed = null; });
  input.root.addEventListener('pointerdown', event => { again = cell(event) === document.activeElement; });
  pointing(input, () => state.images, hold, point);
  input.root.addEventListener('click', event => { if (cell(event) && again && event.target.tagName !== 'INPUT') edit(+cell(event).dataset.i); });
  draggable(input.root, {
    pick: event => cell(event) && event.target.tagName !== 'INPUT' ? +cell(event).dataset.i : null,
    take: i => numbers[i],
    change: (i, start, steps) => { state.at = i; put(i, `${Math.min(99, Math.max(-99, start + steps))}`); },
  });
  for (const {root: other} of [output, ...many.parts]) {
    other.addEventListener('pointerover', event => { if (event.pointerType === 'mouse') point(cell(event) ? +cell(event).dataset.i : null); });
    other.addEventListener('pointerleave', () => point(null));
    other.addEventListener('click', event => { if (cell(event)) hold(+cell(event).dataset.i); });
  }
  input.root.addEventListener('keydown', event => {
    const {key} = event;
    if (!cell(event) || event.altKey || event.metaKey || event.ctrlKey || event.target.tagName === 'INPUT') return;
    if (key === 'Enter' || key === 'F2') edit(state.at);
    else if (/^\d$/.test(key)) edit(state.at, '');
    else if (['+', '=', '-'].includes(key)) put(state.at, `${numbers[state.at] + (key === '-' ? -1 : 1)}`);
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
}

mount(document.getElementById('explorer'));
