"""Serves one collection of one object over HTTPS, as an API server does: list, watch, chunks, bookmarks, 410.

The object is a JSON file that tests replace; this program runs in the namespace that plays the switch.
Usage: api_server.py ADDRESS PORT FOLDER (with `object.json`, `tls.crt`, `tls.key`; `expire` makes every watch Gone).
"""

import asyncio
import json
import ssl
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class Server:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self) -> tuple[dict | None, str]:
        path = self._folder / "object.json"
        if not path.exists():
            return None, "0"
        return json.loads(path.read_text()), str(path.stat().st_mtime_ns)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        with (self._folder / "requests").open("a") as log:
            log.write(head.splitlines()[0] + "\n")
        query = parse_qs(urlsplit(head.split(" ", 2)[1]).query)
        try:
            if "Bearer token-1" not in head:
                writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            elif "watch" in query:
                await self.watch(writer, query["resourceVersion"][0])
            else:
                obj, version = self.read()
                body = json.dumps({"metadata": {"resourceVersion": version}, "items": [obj] if obj else []}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        except ConnectionError:
            print("client went away", flush=True)
        finally:
            writer.close()

    async def watch(self, writer: asyncio.StreamWriter, version: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
        await self.send(writer, bookmark)
        known = self.read()[0] if version == self.read()[1] else None
        while not (self._folder / "cut").exists():
            if (self._folder / "expire").exists():
                (self._folder / "expire").unlink()
                gone = {"code": 410, "reason": "Expired", "message": "too old resource version"}
                await self.send(writer, {"type": "ERROR", "object": gone})
                break
            obj, now = self.read()
            if now != version:
                kind = "DELETED" if obj is None else "MODIFIED" if known else "ADDED"
                await self.send(writer, {"type": kind, "object": obj or known})
                known, version = obj, now
            await asyncio.sleep(0.02)
        writer.write(b"0\r\n\r\n")

    @staticmethod
    async def send(writer: asyncio.StreamWriter, event: dict) -> None:
        line = json.dumps(event).encode() + b"\n"
        half = len(line) // 2  # a line need not end where a chunk does
        for part in (line[:half], line[half:]):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()


async def main() -> None:
    address, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    server = await asyncio.start_server(Server(folder).answer, address, port, ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
