// The tour: a toy for each scene. The arithmetic is that of sets.js, the drawing that of draw.js.
import {EPS, NORMS, backward, fourImages, normalize, place, random, runningStats, setStats, sharing, statSets, where} from './sets.js';
import {button, choices, equals, grid, h, manyGrids, mover, numberLines, pointing, predict, show, slider, still, voice} from './draw.js';
import {FILM} from './film.js';

const SHAPE = [4, 4, 2, 2], X = fourImages(), GROUPS = {groups: 2};
const title = kind => `${NORMS[kind][0]} norm`, color = kind => NORMS[kind][1];
const CHANNEL = X.filter((_, i) => place(i)[1] === 0);  // the sixteen numbers that share a mean with the 10, under batch norm
const HERE = 0;  // the 10 among them
const stats = values => { const {mean, variance} = setStats(values, values.map(() => 0)); return [mean[0], Math.sqrt(variance[0] + EPS)]; };

// 0. Break it: the toy is the playground
function rate(root) {
  root.append(predict('Both get a learning rate of 1, ten times the rate they start with. Which one still learns?', ['A', 'B', 'both', 'neither'], 1,
    'Try it: move both sliders to 1, and press Play. With these first weights A is soon dead, and B only needs a little longer.'));
}

// 1. Is 10 bright?
function bright(root) {
  const kinds = ['bn', 'ln', 'gn', 'in'], big = grid('The four images', {role: 'grid'}), said = voice();
  const many = manyGrids(kinds, title, color), sets = Object.fromEntries(kinds.map(k => [k, statSets(k, SHAPE, 2)]));
  const outputs = Object.fromEntries(kinds.map(k => [k, normalize(X, SHAPE, k, GROUPS)]));
  let held = 0;
  const draw = (i, aloud) => {
    big.fill({values: X, here: i, lit: k => k === i, low: 0, high: 12});
    many.parts.forEach(({kind, fill, facts}) => {
      const {mean} = setStats(X, sets[kind]), mine = k => sets[kind][k] === sets[kind][i];
      fill({values: X, here: i, lit: mine, low: 0, high: 12});
      facts.textContent = `mean ${show(mean[sets[kind][i]])}: ${show(X[i])} becomes ${show(outputs[kind][i])}`;
    });
    if (aloud) said.textContent = `${where(i)}, ${X[i]}. ${many.parts.map(p => `${title(p.kind)}, ${sharing(p.kind, i, 4, 2)}: ${p.facts.textContent}`).join('. ')}`;
  };
  pointing(big, () => 4, i => { held = i; draw(i, true); }, i => draw(i ?? held));
  for (const part of many.parts) {
    const at = event => event.target.closest?.('[data-i]');
    part.root.addEventListener('pointerover', e => { if (e.pointerType === 'mouse' && at(e)) draw(+at(e).dataset.i); });
    part.root.addEventListener('pointerleave', () => draw(held));
    part.root.addEventListener('click', e => { if (at(e)) big.cells[at(e).dataset.i].focus(); });
  }
  root.append(predict('The number in the top left corner is 10. Is it bright or dark?', ['bright', 'dark', 'that depends'], 2,
    'It is brighter than most numbers beside it, but in channel 1 there are 12s as well. “Bright” needs something to compare with.'),
  h('div', {className: 't-bright n-pictures n-both'}, h('div', {}, big.root), many.root), said);
  draw(0);
}

// 2. Slide and stretch
function slide(root) {
  const [mean, std] = stats(CHANNEL), picture = h('div'), said = voice();
  const state = {stage: 0, gamma: 1, beta: 0};
  const formula = h('p', {className: 't-formula', 'aria-label': 'y equals gamma times x minus mu, divided by sigma, plus beta'});
  formula.innerHTML = 'y = <b data-s="gamma">γ</b> · (x − <b data-s="mean">μ</b>) / <b data-s="std">σ</b> + <b data-s="beta">β</b>';
  const values = () => CHANNEL.map(v => {
    const a = state.stage > 0 ? v - mean : v, b = state.stage > 1 ? a / std : a;
    return b * state.gamma + state.beta;
  });
  const paint = mover(now => {
    const [m, s] = stats(now);
    picture.innerHTML = numberLines([{title: '', values: now, mean: m, std: s, here: HERE}],
      {low: -8, high: 14, wide: 420, tall: 90, radius: 5, names: [`sixteen numbers with mean ${show(m)} and spread ${show(s)}`]});
  }, 700);
  function draw(what, words) {
    paint(values());
    formula.querySelectorAll('b').forEach(b => b.classList.toggle('t-now', b.dataset.s === what));
    formula.hidden = state.stage < 2;
    subtract.disabled = state.stage > 0;
    divide.disabled = state.stage !== 1;
    for (const knob of [gamma, beta]) knob.input.disabled = state.stage < 2;
    const [m, s] = stats(values());
    said.textContent = `${words} The mean is ${show(m)}, the spread is ${show(s)}, and the 10 is now at ${show(values()[HERE])}.`;
  }
  const subtract = button('1. Subtract the mean', () => { state.stage = 1; draw('mean', `Everything slides left by the mean, ${show(mean)}.`); divide.focus(); });
  const divide = button('2. Divide by the spread', () => { state.stage = 2; draw('std', `Everything is divided by the spread, ${show(std)}.`); gamma.input.focus(); });
  const again = button('Start again', () => {
    Object.assign(state, {stage: 0, gamma: 1, beta: 0});
    gamma.set(1);
    beta.set(0);
    draw('', 'The sixteen numbers of channel 1.');
    subtract.focus();
  });
  const gamma = slider('γ, stretch', {min: -3, max: 3, step: 0.25, value: 1}, v => { state.gamma = v; draw('gamma', `Gamma is ${show(v)}.`); });
  const beta = slider('β, slide', {min: -6, max: 10, step: 0.5, value: 0}, v => { state.beta = v; draw('beta', `Beta is ${show(v)}.`); });
  said.className = 't-words';
  root.append(predict('The sixteen numbers have mean 8 and spread 3. Where will the 10 be after both steps?', ['at 2', 'at 0.67', 'at 3.33'], 1,
    'First 10 − 8 = 2, then 2 / 3 = 0.67: two thirds of a spread above the mean.'),
  picture, h('div', {className: 'n-bar'}, subtract, divide, gamma, beta, again), formula, said);
  draw('', 'The sixteen numbers of channel 1.');
}

// 3. Who else is in the batch?
function brightness(root) {
  const kinds = ['bn', 'ln', 'gn', 'in'], said = voice();
  const before = kinds.map(k => normalize(X, SHAPE, k, GROUPS));
  const lines = kinds.map(kind => h('div', {className: 't-row', style: `--norm: ${color(kind)}`, 'data-kind': kind}, h('div', {}), h('p')));
  const paint = kinds.map((kind, k) => mover(values => {
    lines[k].firstChild.innerHTML = numberLines([{title: title(kind), values, here: 0}],
      {low: -2.5, high: 2.5, tall: 44, wide: 300, names: [`outputs of image 1 under ${title(kind)}`]});
  }));
  function draw(factor) {
    const x = X.map((v, i) => place(i)[0] === 3 ? v * factor : v);
    const words = kinds.map((kind, k) => {
      const y = normalize(x, SHAPE, kind, GROUPS), far = Math.max(...y.slice(0, 16).map((v, i) => Math.abs(v - before[k][i])));
      paint[k](y.slice(0, 16));
      return lines[k].lastChild.textContent = far < 1e-9 ? 'stands still' : `moved by up to ${show(far)}`;
    });
    said.textContent = `Image 4 at ${show(factor)} times its brightness. The outputs of image 1: ${kinds.map((kind, k) => `${title(kind)} ${words[k]}`).join(', ')}.`;
  }
  root.append(predict('You make image 4 brighter. Under which norm do the outputs of image 1 change?', ['batch norm', 'layer norm', 'all of them'], 0,
    'Only batch norm puts numbers of different images into one set.'),
  slider('Brightness of image 4', {min: 0, max: 5, step: 0.1, value: 1, say: v => `× ${show(v, 1)}`}, draw), h('div', {className: 't-rows'}, ...lines), said);
  draw(1);
}

function pair(root) {
  const ROW = [5, 3, 9, 12, 1, 7, 4, 11], picture = h('div'), words = h('p', {className: 't-words', 'aria-live': 'polite'}), state = {count: 8, mine: 5};
  const paint = mover(now => {
    const [numbers, normal] = [now.slice(0, now.length / 2), now.slice(now.length / 2)], [m, s] = stats(numbers);
    picture.innerHTML = numberLines([{title: 'one number of each image', values: numbers, mean: m, std: s, here: 0},
      {title: 'after batch norm', values: normal, mean: 0, std: 1, here: 0}], {low: -3, high: 13, wide: 400, tall: 46, radius: 5,
      names: ['the numbers of the batch, before and after batch norm']});
  });
  function draw() {
    const numbers = [state.mine, ...ROW.slice(1, state.count)], [m, s] = stats(numbers), normal = numbers.map(v => (v - m) / s);
    paint([...numbers, ...normal]);
    words.textContent = `${state.count} images: image 1 has ${show(state.mine)}, the mean is ${show(m)}, so it becomes ${show(normal[0])}.`;
  }
  root.append(predict('The batch is the 5 of image 1 and the 3 of image 2, nothing else. What does the 5 become?', ['+1', '+2', '+0.5'], 0,
    'With two numbers the mean is halfway, and the spread is half the distance. So the larger is +1 and the smaller −1, however far apart they are.'),
  picture, h('div', {className: 'n-bar'},
    slider('Images in the batch', {min: 2, max: 8, value: 8}, v => { state.count = v; draw(); }),
    slider('Number of image 1', {min: 0, max: 12, step: 0.5, value: 5}, v => { state.mine = v; draw(); })), words);
  draw();
}

function running(root) {
  const picture = h('div'), words = h('p', {className: 't-words', 'aria-live': 'polite'});
  let steps = 0, mode = 'train';
  const [mean, std] = stats(CHANNEL);
  function draw() {
    const kept = s => { const r = runningStats(X, SHAPE, s); return [r.mean[0], r.variance[0]]; }, [m, v] = kept(steps);
    const at = (s, value) => `${(30 + 5 * s).toFixed(0)} ${(120 - 11 * value).toFixed(1)}`;
    const path = Array.from({length: steps + 1}, (_, s) => at(s, kept(s)[0])).join('L');
    picture.innerHTML = `<svg class="n-line" viewBox="0 0 340 140" role="img" aria-label="the running mean after ${steps} steps is ${show(m)}; the mean of the batch is 8">
      <path d="M${at(0, 8)}L${at(60, 8)}" stroke-dasharray="4 3"/><path d="M${path}" style="stroke-width: 3"/><circle cx="${30 + 5 * steps}" cy="${120 - 11 * m}" r="5"/>
      <text x="34" y="27">mean of the batch: 8</text><text x="${Math.min(230, 40 + 5 * steps)}" y="${Math.min(118, 136 - 11 * m)}">running mean: ${show(m)}</text>
      <path d="M30 120H330"/><text class="n-tick" x="30" y="135">0</text><text class="n-tick" x="312" y="135">60 steps</text></svg>`;
    const out = mode === 'train' ? (10 - mean) / std : (10 - m) / Math.sqrt(v + EPS);
    words.textContent = mode === 'train' ? `Training mode uses the batch itself, so the 10 becomes (10 − 8) / 3 ≈ ${show(out)} at every step.`
      : `Evaluation mode uses what was kept: the 10 becomes (10 − ${show(m)}) / ${show(Math.sqrt(v))} ${equals(out)}. In training it was 0.67.`;
  }
  const train = by => () => { steps = Math.min(60, steps + by); draw(); };
  root.append(predict('A new layer has running mean 0. Each training step moves it a tenth of the way to the batch’s mean, 8. Where is it after ten steps?',
    ['at 8', 'at about 5.2', 'at 0.8'], 1, 'A tenth of the remaining way each time: 8 × (1 − 0.9¹⁰) = 5.21. So evaluation mode is wrong for a while.'),
  picture, h('div', {className: 'n-bar'}, button('Train one step', train(1)), button('Train ten steps', train(10)), button('New layer', () => { steps = 0; draw(); }),
    choices('Mode', {train: 'training', eval: 'evaluation'}, mode, v => { mode = v; draw(); })), words);
  draw();
}

// 4. Going back
const [MEAN, STD] = stats(CHANNEL), ROW = [1, 1, CHANNEL.length, 1];  // one channel of sixteen pixels
const WISHES = {
  one: ['raise the 10 alone', CHANNEL.map((_, i) => +(i === HERE))], all: ['raise all by the same', CHANNEL.map(() => 1)],
  apart: ['spread them out', CHANNEL.map(v => (v - MEAN) / STD)], first: ['raise image 1', CHANNEL.map((_, i) => +(i < 4))],
};
function back(root) {
  const picture = h('div', {className: 't-back'}), words = h('p', {className: 't-words', 'aria-live': 'polite'});
  let wish = 'one', constant = false;
  const names = ['straight', 'through the mean', 'through the variance', 'together'];
  const paint = mover(now => {
    const tall = 70, wide = 360, reach = 24 / 0.4, rows = names.map((name, r) => {
      const base = 32 + tall * r + tall / 2, arrows = now.slice(16 * r, 16 * r + 16).map((v, i) => {
        const x = 12 + 22 * i, y = base - Math.max(-24, Math.min(24, reach * v)), up = Math.sign(v) * Math.min(4, Math.abs(y - base));
        return Math.abs(v) < 1e-6 ? `<circle cx="${x}" cy="${base}" r="1.5"/>`
          : `<path d="M${x} ${base}V${y.toFixed(1)}M${x - 4} ${(y + up).toFixed(1)}L${x} ${y.toFixed(1)}L${x + 4} ${(y + up).toFixed(1)}"/>`;
      });
      return `<g class="t-path-${r}"><text x="4" y="${base - 28}">${name}</text>${arrows.join('')}</g>`;
    });
    picture.innerHTML = `<svg class="n-line" viewBox="0 0 ${wide} ${26 + 4 * tall}" role="img" aria-label="the gradient at sixteen numbers, path by path">${
      CHANNEL.map((v, i) => `<text class="n-tick" x="${12 + 22 * i}" y="14">${v}</text>`).join('')}${rows.join('')}</svg>`;
  });
  function draw() {
    const parts = backward(WISHES[wish][1], CHANNEL, ROW, 'bn', {constant});
    paint([...parts.straight, ...parts.byMean, ...parts.byVariance, ...parts.total]);
    const size = Math.max(...parts.total.map(Math.abs)), gone = Math.max(...parts.straight.map(Math.abs));
    words.textContent = constant ? `Statistics as constants: the whole gradient, up to ${show(gone)}, goes straight through. That is wrong: the true one reaches ${
      show(Math.max(...backward(WISHES[wish][1], CHANNEL, ROW, 'bn').total.map(Math.abs)))}.`
      : size < 1e-3 ? 'Straight through it is large, but the other paths take all of it back. Nothing arrives.'
        : `Straight through up to ${show(gone)}. With all three paths the largest is ${show(size)}, and the sixteen add up to ${show(parts.total.reduce((a, b) => a + b))}.`;
  }
  root.append(predict('The loss wants all sixteen outputs higher by the same amount. What gradient arrives at the inputs?', ['the same for all', 'zero', 'a larger one'], 1,
    'The norm would subtract any common shift again. Raising all inputs changes no output, so the gradient is zero. Choose “raise all by the same” to see how the paths cancel.'),
  h('div', {className: 'n-bar'}, choices('What the loss wants of the outputs', Object.fromEntries(Object.entries(WISHES).map(([k, [w]]) => [k, w])), wish, v => { wish = v; draw(); }),
    choices('The statistics', {true: 'follow the numbers', constant: 'treated as constants'}, 'true', v => { constant = v === 'constant'; draw(); })), picture, words);
  draw();
}

// Two weights make sixteen numbers, the norm follows, and the loss pulls: what does it do to the weights?
const next = random(3);
export const PAIRS = Array.from({length: 16}, () => [next() - 0.5, next() - 0.5]), PULL = Array.from({length: 16}, () => next() - 0.5);
export function weightGradient(w) {
  const z = PAIRS.map(([a, b]) => a * w[0] + b * w[1]), {total} = backward(PULL, z, ROW, 'bn');
  return [0, 1].map(k => PAIRS.reduce((sum, pair, i) => sum + pair[k] * total[i], 0));
}
const RATE = 2;
function scale(root) {
  const picture = h('div'), words = h('p', {className: 't-words', 'aria-live': 'polite'});
  const paint = mover(([k]) => {
    const w = [0.8 * k, 0.6 * k], g = weightGradient(w), unit = 55;
    const end = [20 + unit * w[0], 180 - unit * w[1]], step = [end[0] - unit * RATE * g[0], end[1] + unit * RATE * g[1]];
    const arrow = ([x, y], [u, v], name) => {
      const a = Math.atan2(v - y, u - x), tip = s => `${(u - 9 * Math.cos(a + s)).toFixed(1)} ${(v - 9 * Math.sin(a + s)).toFixed(1)}`;
      return `<path class="${name}" d="M${x} ${y}L${u.toFixed(1)} ${v.toFixed(1)}M${tip(0.5)}L${u.toFixed(1)} ${v.toFixed(1)}L${tip(-0.5)}"/>`;
    };
    picture.innerHTML = `<svg class="n-line" viewBox="0 0 260 190" role="img" aria-label="the weights as an arrow, and one step at a right angle to it">${
      arrow([20, 180], end, 't-weights')}${arrow(end, step, 't-step')}</svg>`;
  });
  function draw(k) {
    const size = v => Math.hypot(...v), at = s => { const w = [0.8 * s, 0.6 * s], g = size(weightGradient(w)); return [g, Math.atan(RATE * g / s) * 180 / Math.PI]; };
    const [g, angle] = at(k), [one] = at(1);
    paint([k]);
    words.textContent = `Weights × ${show(k)}: the outputs stay the same. The gradient is ${show(g / one)} times as long, and one step turns the weights by ${show(angle, 1)}°.`;
  }
  root.append(predict('You double all weights in front of a norm. How long is the gradient of those weights afterwards?', ['twice as long', 'the same', 'half as long'], 2,
    'The outputs do not change at all. To change them by the same amount you now need twice the step, so each unit of weight counts half.'),
  picture, slider('Length of the weights', {min: 1, max: 4, step: 0.25, value: 1, say: v => `× ${show(v)}`}, draw), words);
  draw(1);
}

// 5. How they fail
function film(root) {
  const sides = ['ln', 'bn'], {frames} = FILM, words = h('p', {className: 't-words', 'aria-live': 'polite'}), live = voice();
  const panels = sides.map(kind => {
    const cells = [...FILM.labels].flatMap((digit, n) => [`<text x="8" y="${20 * n + 28}">${digit}</text>`,
      ...Array.from({length: 12}, (_, c) => `<rect x="${22 + 18 * c}" y="${20 * n + 14}" width="17" height="18"/>`)]).join('');
    const root = h('figure', {style: `--norm: ${color(kind)}`}, h('figcaption', {}, title(kind)), h('div'), h('p'));
    root.children[1].innerHTML = `<svg viewBox="0 0 240 138" role="img" aria-label="twelve averages for each of six images, ${title(kind)}">${cells}</svg>`;
    return {kind, root, rects: [...root.querySelectorAll('rect')], facts: root.lastChild};
  });
  let timer = null;
  function draw(at) {
    panels.forEach(({kind, rects, facts}) => {
      const {maps, accuracy, share} = FILM[kind];
      rects.forEach((rect, i) => { rect.style.fill = `color-mix(in srgb, var(--edge) ${4 * (maps.charCodeAt(72 * at + i) - 97)}%, var(--pale))`; });
      facts.textContent = `right: ${accuracy[at].toFixed(0)} % · differs between images: ${show(share[at], 1)} %`;
    });
    words.textContent = frames[at] < 121 ? `Step ${frames[at]}: rate 0.05.` : `Step ${frames[at]}: rate 0.5, since step 120.`;
    if (!timer) live.textContent = `${words.textContent} ${panels.map(p => `${title(p.kind)}: ${p.facts.textContent}`).join('. ')}`;
  }
  const scrub = slider('Step', {min: 0, max: frames.length - 1, value: 0, say: v => `${frames[v]}`}, at => { stop(); draw(at); });
  const play = button('Play', () => {
    if (timer) return stop();
    let at = +scrub.input.value === frames.length - 1 || still() ? (still() ? frames.length - 2 : -1) : +scrub.input.value;
    play.textContent = 'Pause';
    timer = setInterval(() => {
      at += 1;
      if (at >= frames.length - 1) stop();
      scrub.set(at);
      draw(at);
    }, 160);
  });
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'Play'; };
  root.append(predict('At step 120 the learning rate jumps from 0.05 to 0.5, for both networks. Which one will have learned at the end?',
    ['the one with layer norm', 'the one with batch norm', 'both'], 1, 'In this recording. Drag the step slowly from 120 to 130, and watch the six rows on the left become one row.'),
  h('div', {className: 't-film'}, ...panels.map(p => p.root)), h('div', {className: 'n-bar'}, play, scrub), words, live);
  draw(0);
}

function average(root) {
  const words = h('p', {className: 't-words', 'aria-live': 'polite'}), table = h('div');
  const mean = (values, n, c) => values.slice(16 * n + 4 * c, 16 * n + 4 * c + 4).reduce((a, b) => a + b) / 4;
  const rows = [['as it comes', X], ['after batch norm', normalize(X, SHAPE, 'bn')], ['after instance norm', normalize(X, SHAPE, 'in')]];
  function draw(n) {
    table.innerHTML = `<table class="t-table"><caption>Average of each channel of image ${n + 1}</caption><thead><tr><td></td>${
      [1, 2, 3, 4].map(c => `<th scope="col">channel ${c}</th>`).join('')}</tr></thead><tbody>${rows.map(([name, values]) =>
      `<tr><th scope="row">${name}</th>${[0, 1, 2, 3].map(c => `<td>${show(mean(values, n, c))}</td>`).join('')}</tr>`).join('')}</tbody></table>`;
    words.textContent = `Image ${n + 1}: after instance norm all four averages are 0. A classifier that sees only these averages cannot know which image it was.`;
  }
  root.append(predict('Instance norm, and then the average of each channel. How many of the four images can you still recognize?', ['all', 'the bright ones', 'none'], 2,
    'Instance norm makes the mean of every channel of every image 0. Then the average is 0 whatever the image was.'),
  choices('Image', {0: '1', 1: '2', 2: '3', 3: '4'}, 0, v => draw(+v)), table, words);
  draw(0);
}

function tiny(root) {
  const picture = h('div'), words = h('p', {className: 't-words', 'aria-live': 'polite'});
  let count = 4, seed = 1;
  const bell = next => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next());
  const paint = mover(values => {
    picture.innerHTML = numberLines([{title: 'what the same 1 became in forty batches', values, here: -1}], {low: -2.5, high: 2.5, wide: 400, tall: 70,
      names: ['forty outputs for the same input']});
  });
  function draw() {
    const next = random(seed), outputs = Array.from({length: 40}, () => {
      const numbers = [1, ...Array.from({length: count - 1}, () => bell(next))], [m, s] = stats(numbers);
      return (1 - m) / s;
    });
    const [, s] = stats(outputs);
    paint(outputs);
    words.textContent = `Batches of ${count}: from ${show(Math.min(...outputs))} to ${show(Math.max(...outputs))}, with a spread of ${show(s)}.`;
  }
  root.append(picture, h('div', {className: 'n-bar'}, slider('Images in the batch', {min: 1, max: 7, value: 2, say: v => `${2 ** v}`}, v => { count = 2 ** v; draw(); }),
    button('Draw other batches', () => { seed += 1; draw(); })), words);
  draw();
}

const SCENES = {rate, bright, slide, brightness, pair, running, back, scale, film, average, tiny};
for (const root of document.querySelectorAll('[data-scene]')) {
  root.replaceChildren();
  SCENES[root.dataset.scene](root);
}
