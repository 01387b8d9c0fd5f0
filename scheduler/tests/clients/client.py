"""Two people in one room, with Python's websockets: python3 client.py ws://HOST/rooms/NAME"""

import asyncio
import json
import sys
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


class Guest:
    def __init__(self, name, socket):
        self.name, self.socket = name, socket

    async def hear(self, field):
        """The next thing heard that has this field; what comes before it is passed over."""
        while True:
            heard = json.loads(await asyncio.wait_for(self.socket.recv(), 30))
            if field in heard:
                return heard

    async def enter(self):
        await self.say({"name": self.name})
        assert (await self.hear("ready"))["ready"] == self.name

    async def say(self, what):
        await self.socket.send(json.dumps(what))


async def closed(socket):
    try:
        while True:
            await asyncio.wait_for(socket.recv(), 30)
    except ConnectionClosed:
        return socket.close_code, socket.close_reason


async def main(url):
    # It offers compression, which the server does not take.
    async with connect(url) as first, connect(url) as second:
        ann, ben = Guest("ann", first), Guest("ben", second)
        await ann.enter()
        await ben.enter()
        assert (await ann.hear("joined"))["joined"] == "ben"
        await ann.say({"message": "höre, 🐭"})
        said = await ben.hear("message")
        assert said["message"] == "höre, 🐭"
        # In parts, cut within a character, with a ping between.
        text = json.dumps({"message": "in parts: é"}, ensure_ascii=False)

        async def parts():
            for part in (text[:5], text[5:20], text[20:]):
                await (await second.ping())
                yield part

        await second.send(parts())
        await ann.hear("message")
        whole = await ann.hear("message")
        assert whole["message"] == "in parts: é", whole
        assert whole["timestamp"] > said["timestamp"]

        # Asked without waking it, until it is past its time; then it is woken.
        while True:
            await asyncio.sleep(0.2)
            await first.send("ping")
            if time.time() * 1000 > (await ann.hear("pong"))["pong"] + 500:
                break
        await ben.say({"message": "awake?"})
        assert (await ann.hear("woke"))["woke"] > 0, "it slept"
        assert (await ann.hear("message"))["message"] == "awake?"

        await second.close(4001, "good night")
        assert (second.close_code, second.close_reason) == (4001, "good night")
        assert (await ann.hear("left"))["left"] == "ben"
        # More than the server takes in one message: told why, and nobody else is harmed.
        await first.send("x" * (2**20 + 1))
        code, reason = await closed(first)
        assert code == 1009, (code, reason)
    print("all is well")


asyncio.run(main(sys.argv[1]))
