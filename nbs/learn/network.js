// A small convolutional network that trains in the page: forward, backward, norms, SGD. No page, no worker in here.
//
// StackNet: a 3x3 convolution with stride 2 makes 4x4 maps of the 8x8 image; every further layer is a 3x3
// convolution. Behind each convolution: the norm, then ReLU. Then the mean over each map, and one linear layer.
//
// Numbers of a layer lie channel by channel: (C, N, H*W). A convolution is then one product of two matrices.
import {checkGroups, random} from './sets.js';

export const EPS = 1e-5;
export const MOMENTUM = 0.9;  // of SGD

// Which numbers share a mean: the sets of each norm, for C channels. `across`: over all images of the batch.
const SETS = {
  bn: c => ({groups: c, across: true, centred: true}),
  ln: () => ({groups: 1, across: false, centred: true}),
  gn: (c, g) => ({groups: g, across: false, centred: true}),
  in: c => ({groups: c, across: false, centred: true}),
  rms: () => ({groups: 1, across: false, centred: false}),
};

export const NORMS = ['none', ...Object.keys(SETS)];

export function normal(uniform) {
  return Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// ---- products of matrices, in blocks of two rows by four: every pass over memory costs

// out (m, n) += a (m, k) b (k, n); with `flip`, a is stored as (k, m)
function multiply(a, b, out, m, k, n, flip = false) {
  const across = flip ? 1 : k, down = flip ? m : 1;  // steps from a number of `a` to the next row, and column
  for (let i = 0; i < m; i += 2) {
    const row = i * n, next = i + 1 < m ? row + n : row, twice = i + 1 < m;
    for (let p = 0; p < k; p += 4) {
      const at = (q, r) => p + q < k && i + r < m ? a[(i + r) * across + (p + q) * down] : 0;
      const a0 = at(0, 0), a1 = at(1, 0), a2 = at(2, 0), a3 = at(3, 0);
      const c0 = at(0, 1), c1 = at(1, 1), c2 = at(2, 1), c3 = at(3, 1);
      const b0 = p * n, b1 = p + 1 < k ? b0 + n : b0, b2 = p + 2 < k ? b0 + 2 * n : b0, b3 = p + 3 < k ? b0 + 3 * n : b0;
      if (twice) for (let j = 0; j < n; j++) {
        const x0 = b[b0 + j], x1 = b[b1 + j], x2 = b[b2 + j], x3 = b[b3 + j];
        out[row + j] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3;
        out[next + j] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3;
      } else for (let j = 0; j < n; j++) {
        out[row + j] += a0 * b[b0 + j] + a1 * b[b1 + j] + a2 * b[b2 + j] + a3 * b[b3 + j];
      }
    }
  }
}

// out (m, k) += a (m, n) times b (k, n) transposed
function multiplyByTransposed(a, b, out, m, n, k) {
  for (let i = 0; i < m; i += 2) {
    const row = i * n, next = i + 1 < m ? row + n : row;
    for (let p = 0; p < k; p += 2) {
      const b0 = p * n, b1 = p + 1 < k ? b0 + n : b0;
      let s0 = 0, s1 = 0, t0 = 0, t1 = 0;
      for (let j = 0; j < n; j++) {
        const v = a[row + j], w = a[next + j], x = b[b0 + j], y = b[b1 + j];
        s0 += v * x; s1 += v * y; t0 += w * x; t1 += w * y;
      }
      out[i * k + p] += s0;
      if (p + 1 < k) out[i * k + p + 1] += s1;
      if (i + 1 < m) out[(i + 1) * k + p] += t0;
      if (i + 1 < m && p + 1 < k) out[(i + 1) * k + p + 1] += t1;
    }
  }
}

// ---- parts of the network. Each keeps what its backward pass needs.

class Parameter {
  constructor(name, shape, Numbers) {
    const size = shape.reduce((a, b) => a * b, 1);
    Object.assign(this, {name, shape, value: new Numbers(size), grad: new Numbers(size), velocity: new Numbers(size)});
  }
}

class Convolution {  // 3x3, padding 1, no bias unless asked for
  constructor(name, from, to, side, stride, bias, Numbers) {
    Object.assign(this, {from, to, side, stride, out: Math.ceil(side / stride), Numbers});
    this.weight = new Parameter(`${name}.weight`, [to, from, 3, 3], Numbers);
    this.bias = bias ? new Parameter(`${name}.bias`, [to], Numbers) : null;
  }

  // Every 3x3 window as a column: (9 * from, N * out * out)
  unfold(x, n) {
    const {from, side, stride, out} = this, width = n * out * out, rows = this.columns;
    rows.fill(0);
    for (let c = 0; c < from; c++) for (let dy = 0; dy < 3; dy++) for (let dx = 0; dx < 3; dx++) {
      const row = ((c * 3 + dy) * 3 + dx) * width;
      for (let i = 0; i < n; i++) for (let y = 0; y < out; y++) {
        const source = y * stride + dy - 1;
        if (source < 0 || source >= side) continue;
        const from_ = (c * n + i) * side * side + source * side, to = row + (i * out + y) * out;
        for (let x_ = 0; x_ < out; x_++) {
          const column = x_ * stride + dx - 1;
          if (column >= 0 && column < side) rows[to + x_] = x[from_ + column];
        }
      }
    }
  }

  forward(x, n) {
    const {from, to, out, Numbers} = this, width = n * out * out;
    if (this.n !== n) {
      this.n = n;
      this.columns = new Numbers(9 * from * width);
      this.y = new Numbers(to * width);
      this.gradColumns = new Numbers(9 * from * width);
      this.gradX = new Numbers(from * n * this.side * this.side);
    }
    this.unfold(x, n);
    this.y.fill(0);
    if (this.bias) for (let c = 0; c < to; c++) this.y.fill(this.bias.value[c], c * width, (c + 1) * width);
    multiply(this.weight.value, this.columns, this.y, to, 9 * from, width);
    return this.y;
  }

  backward(grad, needX = true) {
    const {from, to, side, stride, out, n} = this, width = n * out * out;
    multiplyByTransposed(grad, this.columns, this.weight.grad, to, width, 9 * from);
    if (this.bias) for (let c = 0; c < to; c++) for (let j = 0; j < width; j++) this.bias.grad[c] += grad[c * width + j];
    if (!needX) return null;
    this.gradColumns.fill(0);
    multiply(this.weight.value, grad, this.gradColumns, 9 * from, to, width, true);
    const gradX = this.gradX, rows = this.gradColumns;
    gradX.fill(0);
    for (let c = 0; c < from; c++) for (let dy = 0; dy < 3; dy++) for (let dx = 0; dx < 3; dx++) {
      const row = ((c * 3 + dy) * 3 + dx) * width;
      for (let i = 0; i < n; i++) for (let y = 0; y < out; y++) {
        const source = y * stride + dy - 1;
        if (source < 0 || source >= side) continue;
        const to_ = (c * n + i) * side * side + source * side, from_ = row + (i * out + y) * out;
        for (let x = 0; x < out; x++) {
          const column = x * stride + dx - 1;
          if (column >= 0 && column < side) gradX[to_ + column] += rows[from_ + x];
        }
      }
    }
    return gradX;
  }
}

export class Norm {
  constructor(name, kind, channels, groups, momentum, Numbers) {
    Object.assign(this, {kind, channels, momentum, Numbers, ...SETS[kind](channels, groups)});
    if (kind === 'gn') checkGroups(channels, groups);
    this.weight = new Parameter(`${name}.weight`, [channels], Numbers);
    this.weight.value.fill(1);
    this.bias = this.centred ? new Parameter(`${name}.bias`, [channels], Numbers) : null;
    if (kind === 'bn') {
      this.runningMean = new Numbers(channels);
      this.runningVar = new Numbers(channels).fill(1);
    }
  }

  // The set of numbers number `s`, as runs of `length` neighbours; `visit(start of the run, its channel)`
  runs(s, n, pixels, visit) {
    if (this.across) return visit(s * n * pixels, s);
    const size = this.channels / this.groups, image = Math.floor(s / this.groups), first = (s % this.groups) * size;
    for (let c = first; c < first + size; c++) visit((c * n + image) * pixels, c);
  }

  forward(x, n, pixels, training, track = training) {
    const {channels, Numbers, across, centred} = this, size = x.length;
    const length = across ? n * pixels : pixels, sets = across ? channels : n * this.groups;
    const count = across ? length : length * channels / this.groups;
    if (!this.y || this.y.length !== size) {
      this.y = new Numbers(size);
      this.hat = new Numbers(size);
      this.gradX = new Numbers(size);
    }
    const byRunning = this.kind === 'bn' && !training;
    if (training && count === 1) throw new RangeError('Expected more than 1 value per channel when training');
    Object.assign(this, {n, pixels, length, count, training: !byRunning});
    this.rstd = new Numbers(sets);
    this.mean = new Numbers(sets);
    this.variance = new Numbers(sets);
    for (let s = 0; s < sets; s++) {
      let mean = 0, variance = 0;
      if (byRunning) {
        mean = this.runningMean[s];
        variance = this.runningVar[s];
      } else {
        if (centred) {
          this.runs(s, n, pixels, start => { for (let j = start; j < start + length; j++) mean += x[j]; });
          mean /= count;
        }
        this.runs(s, n, pixels, start => {
          for (let j = start; j < start + length; j++) { const d = x[j] - mean; variance += d * d; }
        });
        variance /= count;
      }
      const rstd = 1 / Math.sqrt(variance + EPS);
      this.rstd[s] = rstd;
      this.mean[s] = mean;
      this.variance[s] = variance;
      this.runs(s, n, pixels, (start, c) => {
        const gamma = this.weight.value[c], beta = this.bias ? this.bias.value[c] : 0;
        for (let j = start; j < start + length; j++) {
          const hat = (x[j] - mean) * rstd;
          this.hat[j] = hat;
          this.y[j] = hat * gamma + beta;
        }
      });
      if (this.kind === 'bn' && track) {
        const m = this.momentum;
        this.runningMean[s] += m * (mean - this.runningMean[s]);
        this.runningVar[s] += m * (variance * count / (count - 1) - this.runningVar[s]);
      }
    }
    return this.y;
  }

  backward(grad) {
    const {n, pixels, length, count, hat, gradX} = this, sets = this.rstd.length;
    for (let s = 0; s < sets; s++) {
      let sum = 0, sumHat = 0;
      this.runs(s, n, pixels, (start, c) => {
        let a = 0, b = 0;
        for (let j = start; j < start + length; j++) { a += grad[j]; b += grad[j] * hat[j]; }
        if (this.bias) this.bias.grad[c] += a;
        this.weight.grad[c] += b;
        sum += a * this.weight.value[c];
        sumHat += b * this.weight.value[c];
      });
      // The road through the mean, and the road through the variance; neither where the statistics stand still
      const offset = this.training && this.centred ? sum / count : 0, slope = this.training ? sumHat / count : 0;
      const rstd = this.rstd[s];
      this.runs(s, n, pixels, (start, c) => {
        const gamma = this.weight.value[c];
        for (let j = start; j < start + length; j++) gradX[j] = rstd * (grad[j] * gamma - offset - hat[j] * slope);
      });
    }
    return gradX;
  }
}

// ---- the network

export const DEFAULTS = {
  norm: 'bn', groups: 4, init: 'torch', depth: 4, residual: false, width: 12, momentum: 0.1, seed: 0, classes: 10,
  Numbers: Float32Array,
};

export class StackNet {
  constructor(options = {}) {
    Object.assign(this, DEFAULTS, options);
    const {norm, groups, depth, width, momentum, classes, Numbers} = this;
    if (!NORMS.includes(norm)) throw new RangeError(`unknown norm '${norm}'; use ${NORMS.join(', ')}`);
    this.layers = Array.from({length: depth}, (_, i) => ({
      conv: new Convolution(`layers.${i}.conv`, i ? width : 1, width, i ? 4 : 8, i ? 1 : 2, norm === 'none', Numbers),
      norm: norm === 'none' ? null : new Norm(`layers.${i}.norm`, norm, width, groups, momentum, Numbers),
    }));
    this.head = {
      weight: new Parameter('head.weight', [classes, width], Numbers),
      bias: new Parameter('head.bias', [classes], Numbers),
    };
    this.parameters = [];
    for (const {conv, norm: n} of this.layers) this.parameters.push(conv.weight, conv.bias, n?.weight, n?.bias);
    this.parameters = [...this.parameters, this.head.weight, this.head.bias].filter(Boolean);
    this.initialize();
  }

  // torch's default: uniform up to 1 / sqrt(fan in), biases too. He: normal with variance 2 / fan in, biases zero.
  initialize() {
    const uniform = random(this.seed, 'weights');
    const fill = (weight, bias, fanIn) => {
      const bound = 1 / Math.sqrt(fanIn), he = this.init === 'he';
      for (let i = 0; i < weight.value.length; i++) {
        weight.value[i] = he ? normal(uniform) * Math.sqrt(2 / fanIn) : bound * (2 * uniform() - 1);
      }
      if (bias) for (let i = 0; i < bias.value.length; i++) bias.value[i] = he ? 0 : bound * (2 * uniform() - 1);
    };
    for (const {conv} of this.layers) fill(conv.weight, conv.bias, 9 * conv.from);
    fill(this.head.weight, this.head.bias, this.width);
  }

  // The same network with memory of its own, to look at images while the first one is in the middle of a step
  twin() {
    const other = new StackNet(this);
    other.layers.forEach(({conv, norm}, i) => {
      const mine = this.layers[i];
      Object.assign(conv, {weight: mine.conv.weight, bias: mine.conv.bias});
      if (norm) Object.assign(norm, {weight: mine.norm.weight, bias: mine.norm.bias,
        runningMean: mine.norm.runningMean, runningVar: mine.norm.runningVar});
    });
    Object.assign(other, {head: this.head, parameters: this.parameters});
    return other;
  }

  // images: n * 64 numbers; gives the logits, (n, classes). `track`: whether running statistics follow the batch
  forward(images, n, training, track = training) {
    const {width, classes, Numbers, residual} = this, pixels = 16;
    let x = images;
    for (const [i, layer] of this.layers.entries()) {
      const z = layer.conv.forward(x, n);
      const y = layer.norm ? layer.norm.forward(z, n, pixels, training, track) : z;
      if (!layer.output || layer.output.length !== y.length) {
        layer.output = new Numbers(y.length);
        layer.gradOutput = new Numbers(y.length);
        layer.throughRelu = new Numbers(y.length);
      }
      const skip = residual && i > 0 ? x : null;
      for (let j = 0; j < y.length; j++) layer.output[j] = (y[j] > 0 ? y[j] : 0) + (skip ? skip[j] : 0);
      layer.before = y;
      x = layer.output;
    }
    this.means = new Numbers(n * width);
    for (let c = 0; c < width; c++) for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let p = 0; p < pixels; p++) sum += x[(c * n + i) * pixels + p];
      this.means[i * width + c] = sum / pixels;
    }
    const logits = new Numbers(n * classes);
    for (let i = 0; i < n; i++) for (let k = 0; k < classes; k++) {
      let sum = this.head.bias.value[k];
      for (let c = 0; c < width; c++) sum += this.means[i * width + c] * this.head.weight.value[k * width + c];
      logits[i * classes + k] = sum;
    }
    this.n = n;
    return logits;
  }

  // The mean cross-entropy and the right answers; `grad` (n, classes) receives the gradient of the loss
  loss(logits, labels, grad = null) {
    const {classes} = this, n = labels.length;
    let total = 0, correct = 0;
    for (let i = 0; i < n; i++) {
      const row = i * classes;
      let top = -Infinity, best = 0, sum = 0;
      for (let k = 0; k < classes; k++) if (logits[row + k] > top) { top = logits[row + k]; best = k; }
      for (let k = 0; k < classes; k++) sum += Math.exp(logits[row + k] - top);
      total += Math.log(sum) - (logits[row + labels[i]] - top);
      correct += best === labels[i];
      if (grad) for (let k = 0; k < classes; k++) {
        grad[row + k] = (Math.exp(logits[row + k] - top) / sum - (k === labels[i])) / n;
      }
    }
    return {loss: total / n, correct};
  }

  backward(gradLogits) {
    const {width, classes, n, residual, Numbers} = this, pixels = 16;
    for (const p of this.parameters) p.grad.fill(0);
    const last = this.layers.at(-1);
    const gradMeans = new Numbers(n * width);
    for (let i = 0; i < n; i++) for (let k = 0; k < classes; k++) {
      const g = gradLogits[i * classes + k];
      this.head.bias.grad[k] += g;
      for (let c = 0; c < width; c++) {
        this.head.weight.grad[k * width + c] += g * this.means[i * width + c];
        gradMeans[i * width + c] += g * this.head.weight.value[k * width + c];
      }
    }
    for (let c = 0; c < width; c++) for (let i = 0; i < n; i++) {
      last.gradOutput.fill(gradMeans[i * width + c] / pixels, (c * n + i) * pixels, (c * n + i + 1) * pixels);
    }
    for (let i = this.layers.length - 1; i >= 0; i--) {
      const layer = this.layers[i], grad = layer.gradOutput;
      for (let j = 0; j < grad.length; j++) layer.throughRelu[j] = layer.before[j] > 0 ? grad[j] : 0;
      const gradZ = layer.norm ? layer.norm.backward(layer.throughRelu) : layer.throughRelu;
      const gradX = layer.conv.backward(gradZ, i > 0);
      if (i === 0) break;
      const below = this.layers[i - 1].gradOutput;
      for (let j = 0; j < below.length; j++) below[j] = gradX[j] + (residual ? grad[j] : 0);
    }
  }

  update(rate) {
    for (const p of this.parameters) for (let i = 0; i < p.value.length; i++) {
      p.velocity[i] = MOMENTUM * p.velocity[i] + p.grad[i];
      p.value[i] -= rate * p.velocity[i];
    }
  }

  // One step of SGD on a batch
  step(images, labels, rate) {
    const logits = this.forward(images, labels.length, true);
    const grad = new this.Numbers(logits.length);
    const result = this.loss(logits, labels, grad);
    this.backward(grad);
    this.update(rate);
    return result;
  }
}
