// BullMQ, as its documentation shows: Queue.add and addBulk, a Worker with `concurrency`. Same words as kit/kit.py.
import fs from 'node:fs';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import { Queue, Worker } from 'bullmq';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: Object.fromEntries(
    ['redis', 'jobs', 'concurrency', 'how', 'pause', 'delay', 'keep', 'settings'].map((name) => [name, { type: 'string' }]),
  ),
});
const jobs = Number(values.jobs ?? 1);
const how = values.how ?? 'one';
const pause = Number(values.pause ?? 0.005);
const PAD = 'y'.repeat(72);
const CHUNK = 1000;
const address = new URL(values.redis);
const connection = { host: address.hostname, port: Number(address.port) };
const unixSeconds = () => (performance.timeOrigin + performance.now()) / 1000;
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
async function go() {
  console.log('ready');
  await lines.next();
}

async function work() {
  const tally = process.env.BENCHMARK_TALLY;
  const file = tally ? fs.openSync(tally, 'r+') : undefined;
  const seen = Buffer.alloc(tally ? fs.fstatSync(file).size : 1);
  const late = [];
  let changed = false;
  await go();
  const worker = new Worker(
    'bench',
    async (job) => {
      if (job.name === 'noop') {
        seen[job.data.n] += 1;
        changed = true;
      } else late.push(unixSeconds() - job.data.due);
    },
    { connection, concurrency: Number(values.concurrency ?? 100) },
  );
  const flush = () => {
    if (changed) fs.writeSync(file, seen, 0, seen.length, 0);
    changed = false;
  };
  const timer = tally && setInterval(flush, 5);
  await lines.next();
  clearInterval(timer);
  await worker.close();
  flush();
  if (process.env.BENCHMARK_LATENCIES) fs.writeFileSync(process.env.BENCHMARK_LATENCIES, JSON.stringify(late));
  process.exit(0);
}

async function produce() {
  const queue = new Queue('bench', { connection });
  await queue.waitUntilReady();
  await go();
  const begun = performance.now();
  const noop = (n) => ['noop', { n, x: PAD }];
  const range = (first) => Array.from({ length: Math.min(CHUNK, jobs - first) }, (_, i) => first + i);
  if (how === 'one') {
    for (let n = 0; n < jobs; n += 1) await queue.add(...noop(n));
  } else if (how === 'gathered') {
    for (let first = 0; first < jobs; first += CHUNK) await Promise.all(range(first).map((n) => queue.add(...noop(n))));
  } else if (how === 'bulk') {
    for (let first = 0; first < jobs; first += CHUNK) {
      await queue.addBulk(range(first).map((n) => ({ name: 'noop', data: { n, x: PAD } })));
    }
  } else if (how === 'paced') {
    for (let n = 0; n < jobs; n += 1) {
      await queue.add('timed', { due: unixSeconds(), x: PAD });
      await sleep(pause);
    }
  } else {
    const first = unixSeconds() + Number(values.delay ?? 1);
    for (let n = 0; n < jobs; n += 1) {
      const due = first + n * pause;
      await queue.add('timed', { due, x: PAD }, { delay: Math.max(0, Math.round((due - unixSeconds()) * 1000)) });
    }
  }
  const seconds = (performance.now() - begun) / 1000;
  await queue.close();
  console.log(JSON.stringify({ seconds }));
  process.exit(0);
}

await (positionals[0] === 'work' ? work() : produce());
