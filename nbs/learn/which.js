// Which norm should I use? The questions, in order, and what each answer leads to. The tour and the page of its own show it.
import {button, h, voice} from './draw.js';
import {NORMS} from './sets.js';

export const QUESTIONS = [
  {
    ask: 'Do you start from a pretrained network?', kind: 'keep', name: 'Keep its norm', line: 'bn_layer.eval()  # after each model.train()',
    why: 'The weights fit the norm they were trained with. With few images per step, keep batch norm on its running statistics.',
  },
  {
    ask: 'Is it a transformer, or does it work on tokens one by one?', kind: 'rms', name: 'RMS norm, in front of each part', line: 'nn.RMSNorm(dim)  # or nn.LayerNorm(dim)',
    why: 'One token at a time: no batch, no padding, no future token in the mean. Layer norm does the same job and also subtracts the mean.',
  },
  {
    ask: 'Should contrast and style not matter, as in style transfer?', kind: 'in', name: 'Instance norm', line: 'nn.InstanceNorm2d(channels, affine=True)',
    why: 'It removes the mean and spread of each channel of each image. Do not average over the image right behind it.',
  },
  {
    ask: 'Are there at least 16 images per step on each device, like those in use?', kind: 'bn', name: 'Batch norm', line: 'nn.BatchNorm2d(channels)',
    why: 'At evaluation it costs nothing, because it folds into the convolution. Remember model.eval().',
  },
  {
    ask: 'None of these: a convolutional network with small batches', kind: 'gn', name: 'Group norm', line: 'nn.GroupNorm(num_groups=8, num_channels=channels)',
    why: 'Each image by itself, in training as in evaluation. The groups must divide the channels.', last: true,
  },
];

export function mountTree(root) {
  const said = voice();
  const rows = QUESTIONS.map((question, i) => {
    const {ask, kind, name, line, why, last} = question;
    const yes = button('yes', () => choose(i)), no = button('no', () => choose(i, false));
    [yes, no].forEach(b => b.setAttribute('aria-label', `${b.textContent}: ${ask}`));
    return h('li', {style: `--norm: ${NORMS[kind]?.[1] ?? '#6b7280'}`},
      h('div', {className: 'w-ask'}, h('p', {}, ask), ...(last ? [] : [h('div', {className: 'w-answers'}, yes, no)])),
      h('div', {className: 'w-leaf'}, h('strong', {}, name), h('code', {}, line), h('p', {}, why)));
  });
  function choose(i, yes = true) {
    const to = yes ? i : i + 1, end = yes || QUESTIONS[to].last;
    rows.forEach((row, k) => {
      row.className = k === to && end ? 'w-end' : k < to || (yes && k < i) ? 'w-passed' : k === to ? 'w-next' : '';
      row.querySelectorAll('button').forEach((b, which) => b.setAttribute('aria-pressed', k < to ? which === 1 : k === i && yes && which === 0));
    });
    said.textContent = end ? `${QUESTIONS[to].name}. ${QUESTIONS[to].line}` : QUESTIONS[to].ask;
  }
  root.replaceChildren(h('ol', {className: 'w-tree'}, ...rows), said);
}

for (const root of document.querySelectorAll('[data-which]')) mountTree(root);
