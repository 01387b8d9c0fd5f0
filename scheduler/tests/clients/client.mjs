// Two people in one room, with Node's own WebSocket: node client.mjs ws://HOST/rooms/NAME
import assert from 'node:assert/strict';

class Guest {
  constructor(name) {
    this.name = name;
    this.heard = [];
    this.socket = new WebSocket(process.argv[2]);
    this.socket.onmessage = ({ data }) => { this.heard.push(JSON.parse(data)); this.changed?.(); };
    this.open = new Promise((resolve) => { this.socket.onopen = resolve; });
    this.closed = new Promise((resolve) => { this.socket.onclose = resolve; });
    this.socket.onerror = (event) => assert.fail(`${name}: ${event.message}`);
  }

  // The next thing heard that has this field; what comes before it is passed over.
  async hear(field) {
    for (;;) {
      const next = this.heard.shift();
      if (next && field in next) return next;
      if (!next) await new Promise((resolve) => { this.changed = resolve; });
    }
  }

  async enter() {
    await this.open;
    this.say({ name: this.name });
    assert.equal((await this.hear('ready')).ready, this.name);
  }

  say(what) { this.socket.send(JSON.stringify(what)); }
}

const [ann, ben] = [new Guest('ann'), new Guest('ben')];
await ann.enter();
await ben.enter();
assert.equal((await ann.hear('joined')).joined, 'ben');
ann.say({ message: 'höre, 🐭' });
const said = await ben.hear('message');
assert.equal(said.message, 'höre, 🐭');
ben.say({ message: 'x'.repeat(500) });
await ann.hear('message');
const long = await ann.hear('message');
assert.deepEqual([long.name, long.message.length], ['ben', 500]);
assert(long.timestamp > said.timestamp);

// Asked without waking it, until it is past its time; then it is woken.
let pong;
do {
  await new Promise((resolve) => setTimeout(resolve, 200));
  ann.socket.send('ping');
  pong = (await ann.hear('pong')).pong;
} while (Date.now() < pong + 500);
ben.say({ message: 'awake?' });
assert((await ann.hear('woke')).woke > 0, 'it slept');
assert.equal((await ann.hear('message')).message, 'awake?');

ben.socket.close(4001, 'good night');
const closed = await ben.closed;
assert.deepEqual([closed.code, closed.reason, closed.wasClean], [4001, 'good night', true]);
assert.equal((await ann.hear('left')).left, 'ben');
// More than the server takes in one message: told why, and nobody else is harmed.
ann.socket.send('x'.repeat(2 ** 20 + 1));
assert.equal((await ann.closed).code, 1009);
console.log('all is well');
