// The same service as people build it on BullMQ: Express 5, JSON body, validation, one awaited Queue.add. Words: URL, port.
import express from 'express';
import { Queue } from 'bullmq';

const [url, port] = process.argv.slice(2);
const address = new URL(url);
const queue = new Queue('email', { connection: { host: address.hostname, port: Number(address.port) } });
const app = express();
app.use(express.json());
app.post('/jobs/enqueue', async (request, response) => {
  const { type, payload } = request.body ?? {};
  if (typeof type !== 'string' || typeof payload !== 'object') {
    response.status(400).json({ title: 'type and payload are needed' });
    return;
  }
  const job = await queue.add(type, payload);
  response.status(201).json({ id: `email:${job.id}`, state: 'waiting' });
});
await queue.waitUntilReady();
app.listen(Number(port), '127.0.0.1');
