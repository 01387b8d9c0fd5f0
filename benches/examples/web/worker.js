// What objects.rs does, for the original server: the same paths, keys, values and answers.
//
// `/objects/NAME/OPERATION` goes to the object of that name. Numbers are kept as numbers and texts as texts, as
// typed values are on the other side.

// A put of what is there already may be no write at all: what is put again is never the same.
const VALUES = ["x".repeat(100), "y".repeat(100)];
// Must be what objects.rs has.
const LISTED = 1000;
const BATCH = 100;
const PUTS = 10;
const REPEATED = 100_000;

export class Subject {
  constructor(state) {
    this.state = state;
    this.storage = state.storage;
    this.turn = 0;
  }

  async fetch(request) {
    const path = new URL(request.url).pathname;
    switch (path.slice(path.lastIndexOf("/") + 1)) {
      case "get":
        return new Response((await this.storage.get("value")) ?? "none");
      case "put":
        await this.storage.put("value", VALUES[0]);
        return new Response("put");
      case "increment": {
        const count = ((await this.storage.get("count")) ?? 0) + 1;
        await this.storage.put("count", count);
        return new Response(String(count));
      }
      case "puts": {
        const value = String(++this.turn).padStart(100, "0");
        for (let key = 0; key < PUTS; key++) await this.storage.put(`key-${key}`, value);
        return new Response("put");
      }
      case "fill":
        return this.fill();
      case "list": {
        const found = await this.storage.list({ prefix: "listed-" });
        let bytes = 0;
        for (const value of found.values()) bytes += value.length;
        return new Response(`${found.size} ${bytes}`);
      }
      case "cached-get": {
        let bytes = 0;
        for (let n = 0; n < REPEATED; n++) bytes += (await this.storage.get("value")).length;
        return new Response(String(bytes));
      }
      case "cached-put":
        for (let n = 0; n < REPEATED; n++) await this.storage.put("value", VALUES[n % 2]);
        return new Response("put");
      case "echo": {
        const [client, server] = Object.values(new WebSocketPair());
        this.state.acceptWebSocket(server);
        return new Response(null, { status: 101, webSocket: client });
      }
      default:
        return new Response("no such operation", { status: 404 });
    }
  }

  async fill() {
    for (let first = 0; first < LISTED; first += BATCH) {
      const entries = {};
      for (let key = first; key < first + BATCH; key++) {
        entries[`listed-${String(key).padStart(4, "0")}`] = VALUES[0];
      }
      await this.storage.put(entries);
    }
    return new Response("put");
  }

  async webSocketMessage(socket, message) {
    socket.send(message);
  }

  async webSocketClose(socket, code, reason) {
    socket.close(code === 1005 ? 1000 : code, reason);
  }
}

export default {
  async fetch(request, env) {
    const [, , name] = new URL(request.url).pathname.split("/");
    return env.objects.get(env.objects.idFromName(name)).fetch(request);
  },
};
