// Trains two networks away from the page, so that the page never freezes, and tells it how they are.
import {StackNet} from './network.js';
import {random} from './sets.js';
import {LABELS, PIXELS, TRAIN} from './digits.js';

const COUNT = LABELS.length, SIZE = 64;
const labels = Int32Array.from(LABELS, Number);
const images = (() => {  // mean 0 and variance 1 over the training images
  const raw = Float32Array.from({length: COUNT * SIZE}, (_, i) => (PIXELS.charCodeAt(i) - 97) / 16);
  const known = raw.subarray(0, TRAIN * SIZE);
  const mean = known.reduce((a, b) => a + b, 0) / known.length;
  const std = Math.sqrt(known.reduce((a, b) => a + (b - mean) ** 2, 0) / known.length);
  return raw.map(v => (v - mean) / std);
})();
const range = (from, to) => Int32Array.from({length: to - from}, (_, i) => from + i);
const TEST = range(TRAIN, COUNT), PROBE = range(0, 500);  // the probe: training images for the true statistics

function batch(indices) {
  const x = new Float32Array(indices.length * SIZE), y = new Int32Array(indices.length);
  indices.forEach((image, i) => {
    x.set(images.subarray(image * SIZE, (image + 1) * SIZE), i * SIZE);
    y[i] = labels[image];
  });
  return [x, y];
}

function order(seed, epoch) {  // of the training images in one epoch: the same for both networks
  const numbers = range(0, TRAIN), uniform = random(seed, `order ${epoch}`);
  for (let i = TRAIN - 1; i > 0; i--) {
    const j = Math.floor(uniform() * (i + 1));
    [numbers[i], numbers[j]] = [numbers[j], numbers[i]];
  }
  return numbers;
}

const rms = v => Math.sqrt(v.reduce((sum, x) => sum + x * x, 0) / v.length);
function spread(v) {
  const mean = v.reduce((a, b) => a + b, 0) / v.length;
  return Math.sqrt(v.reduce((sum, x) => sum + (x - mean) ** 2, 0) / v.length);
}

// A network in training: where it is in the epoch, and what it has been like
export class Trainer {
  constructor(options) {
    Object.assign(this, {options, net: new StackNet(options), steps: 0, epoch: 0, position: 0, history: [], moves: [], failed: null});
    this.viewer = this.net.twin();
    this.order = order(options.seed, 0);
    this.smooth = {loss: null, accuracy: null};
  }

  step() {
    if (this.failed?.final) return;
    const {options} = this;
    if (this.position >= TRAIN) {
      this.epoch += 1;
      this.position = 0;
      this.order = order(options.seed, this.epoch);
    }
    const [x, y] = batch(this.order.subarray(this.position, this.position + options.batch));
    this.position += options.batch;
    const {loss, correct} = this.net.step(x, y, options.rate);
    this.steps += 1;
    const weight = this.smooth.loss === null ? 1 : Math.max(0.02, 1 / this.steps);  // a mean that forgets
    const mix = (old, now) => (old ?? 0) + weight * (now - (old ?? 0));
    this.smooth = {loss: mix(this.smooth.loss, loss), accuracy: mix(this.smooth.accuracy, 100 * correct / y.length)};
    if (!Number.isFinite(loss)) this.failed = {kind: 'loss', final: true};
  }

  predict(indices, training) {  // in training mode by the statistics of these images; the running ones stay
    const [x, y] = batch(indices), logits = this.viewer.forward(x, y.length, training, false);
    const {loss, correct} = this.viewer.loss(logits, y);
    return {loss, accuracy: 100 * correct / y.length, logits, labels: y};
  }

  evaluate() {  // the test images in both modes; what the layers are like; what is wrong
    const apart = this.options.norm === 'bn' && this.predict(TEST, true);  // for the other norms the modes are one
    const inUse = this.predict(TEST, false), inTraining = apart || inUse, net = this.viewer;
    const classes = net.classes, predicted = Array.from(inUse.labels, (_, i) => {
      const row = inUse.logits.subarray(i * classes, (i + 1) * classes);
      return row.indexOf(Math.max(...row));
    });
    const layers = net.layers.map((layer, i) => ({
      activations: spread(layer.output),
      gradients: this.moves[i]?.gradient ?? 0,
      update: this.moves[i]?.update ?? 0,
      dead: layer.output.every(v => v === 0),
    }));
    const constant = this.steps >= 50 && predicted.every(k => k === predicted[0]);
    const dead = layers.findIndex(layer => layer.dead);
    if (!Number.isFinite(inTraining.loss)) this.failed = {kind: 'loss', final: true};
    else if (dead >= 0) this.failed = {kind: 'dead', layer: dead + 1};
    else if (constant) this.failed = {kind: 'constant'};
    else if (!Number.isFinite(inUse.loss) || inUse.loss > 20) this.failed = {kind: 'use'};
    else this.failed = null;
    const row = {
      step: this.steps, train: this.smooth.loss, trainAccuracy: this.smooth.accuracy,
      testBatch: inTraining.loss, testBatchAccuracy: inTraining.accuracy, test: inUse.loss, testAccuracy: inUse.accuracy,
    };
    this.history.push(row);
    if (this.history.length > 600) this.history = this.history.filter((_, i) => i % 2 === 0);  // memory does not grow
    return {row, layers, predicted, failed: this.failed, epoch: this.epoch + this.position / TRAIN};
  }

  // What one test image has become behind each layer, (channels, 16) numbers; to be asked right after `evaluate`
  maps(image) {
    return this.viewer.layers.map(({output}) => {
      const numbers = [];
      for (let c = 0; c < this.net.width; c++) {
        const start = (c * TEST.length + image) * 16;
        numbers.push(...output.subarray(start, start + 16));
      }
      return numbers;
    });
  }

  statistics() {  // running against true ones, of the probe, channel by channel
    if (this.options.norm === 'bn') this.predict(PROBE, true);
    return this.viewer.layers.map(({norm}) => norm?.kind === 'bn' ? {
      running: Array.from(norm.runningMean), true: Array.from(norm.mean),
      runningVar: Array.from(norm.runningVar), trueVar: Array.from(norm.variance),
    } : null);
  }

  note() {  // of the last step: the gradients that reached each layer, and how far its weights moved
    if (!this.steps) return;
    this.moves = this.net.layers.map(({conv: {weight: {value, velocity}}, gradOutput}) => ({
      gradient: spread(gradOutput), update: this.options.rate * rms(velocity) / (rms(value) || 1),
    }));
  }
}

// ---- Experiments: short runs whose end is compared with the reader's guess

function trained(options, steps) {
  const trainer = new Trainer(options);
  while (trainer.steps < steps && !trainer.failed?.final) trainer.step();
  if (trainer.failed?.final) return {test: null, train: null};
  return {test: trainer.predict(TEST, false).accuracy, train: trainer.predict(TEST, true).accuracy};
}

// ---- Messages

if (typeof self === 'object' && typeof document === 'undefined' && typeof self.postMessage === 'function') {
  const sides = {A: null, B: null};
  let playing = false, delay = 0, looked = 0, pause = 250, chosen = 0, timer = null;

  const report = (extra = {}) => {
    const began = performance.now();
    const message = {type: 'state', playing, images: TRAIN, ...extra};
    for (const [name, trainer] of Object.entries(sides)) {
      if (!trainer) continue;
      trainer.note();
      const seen = trainer.evaluate(), maps = trainer.maps(chosen);
      message[name] = {...seen, maps, history: trainer.history, statistics: trainer.statistics()};
    }
    self.postMessage(message);
    looked = performance.now();
    pause = Math.max(250, 3 * (looked - began));  // looking must not take more time than training
  };

  const run = () => {
    timer = null;
    if (!playing) return;
    const began = performance.now();
    do {
      for (const trainer of Object.values(sides)) trainer?.step();
    } while (!delay && performance.now() - began < 60);
    if (performance.now() - looked > Math.max(pause, delay)) report();
    timer = setTimeout(run, delay);
  };

  self.onmessage = ({data}) => {
    try {
      if (data.type === 'build') {
        for (const name of ['A', 'B']) if (data[name]) sides[name] = new Trainer(data[name]);
        report({built: true});
      } else if (data.type === 'play') {
        ({playing, delay} = data);
        looked = 0;  // a first look soon
        if (playing && timer === null) run();
        if (!playing) report();
      } else if (data.type === 'step') {
        for (const trainer of Object.values(sides)) trainer?.step();
        report();
      } else if (data.type === 'look') {
        chosen = data.image;
        report();
      } else if (data.type === 'measure') {
        data.runs.forEach(({options, steps}, i) => {
          self.postMessage({type: 'measured', id: data.id, i, of: data.runs.length, result: trained(options, steps)});
        });
      }
    } catch (error) {
      self.postMessage({type: 'error', message: error.message});
    }
  };
}
