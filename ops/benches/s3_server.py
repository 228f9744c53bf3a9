"""A loopback server that answers like S3, late and with faults: for benches that read a store from afar.

    python3 ops/benches/s3_server.py --folder STORE --latency-ms 30 --refused 0.05 --cut 0.01

In: a folder, which it serves as bucket `bench`, path-style, without looking at signatures: GET with `Range`, HEAD, ListObjectsV2. Out: its
port on the first line of stdout; `GET /_counts` gives what was asked since the start as JSON. Never: a write, an answer with wrong bytes.

Every answer waits `--latency-ms`. A share `--refused` of the requests is answered with 503 SlowDown, a share `--cut` of the bodies ends in
the middle with the connection. Which requests these are follows from `--seed` and the number of the request. Bodies go from the
file to the socket by sendfile, so the server takes little of the machine. Only the standard library is used.
"""
import argparse
import asyncio
import email.utils
import hashlib
import json
import pathlib
import random
import urllib.parse
from xml.sax.saxutils import escape

BUCKET = "/bench/"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>refused on purpose</Message></Error>"


class Server:
    def __init__(self, args):
        self.args, self.root = args, args.folder.resolve()
        self.counts = dict.fromkeys(("requests", "gets", "lists", "refused", "cut", "bytes"), 0)
        self.files = {}

    def found(self, key):
        """The open file of a key with its size, time of change and ETag; None if there is none."""
        if key not in self.files:
            path = self.root / key
            if ".." in key or not path.is_file():
                return None
            stat = path.stat()
            etag = '"' + hashlib.sha256(f"{key} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:32] + '"'
            self.files[key] = (open(path, "rb"), stat.st_size, stat.st_mtime, etag)
        return self.files[key]

    def listing(self, prefix):
        entries = []
        for path in sorted(path for path in self.root.rglob("*") if path.is_file()):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix):
                stat = path.stat()
                when = email.utils.formatdate(stat.st_mtime)
                when = email.utils.parsedate_to_datetime(when).strftime("%Y-%m-%dT%H:%M:%S.000Z")
                entries.append(f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified><ETag>&quot;{len(key)}&quot;</ETag>"
                               f"<Size>{stat.st_size}</Size><StorageClass>STANDARD</StorageClass></Contents>")
        return (f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>bench</Name><Prefix>{escape(prefix)}</Prefix>'
                f"<KeyCount>{len(entries)}</KeyCount><MaxKeys>100000</MaxKeys><IsTruncated>false</IsTruncated>{''.join(entries)}"
                "</ListBucketResult>").encode()

    async def connection(self, reader, writer):
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # The client hung up.
        finally:
            writer.close()

    async def answer(self, reader, writer):
        """Answers one request; says whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        url = urllib.parse.urlsplit(target)
        path, query = urllib.parse.unquote(url.path), dict(urllib.parse.parse_qsl(url.query))
        if path == "/_counts":
            return self.whole(writer, 200, json.dumps(self.counts).encode())
        self.counts["requests"] += 1
        draw = random.Random(f"{self.args.seed}/{self.counts['requests']}").random()
        if self.args.latency_ms:
            await asyncio.sleep(self.args.latency_ms / 1e3)
        if draw < self.args.refused:
            self.counts["refused"] += 1
            return self.whole(writer, 503, SLOW_DOWN)
        if method == "GET" and "list-type" in query:
            self.counts["lists"] += 1
            return self.whole(writer, 200, self.listing(query.get("prefix", "")))
        found = self.found(path.removeprefix(BUCKET)) if path.startswith(BUCKET) else None
        if found is None or method not in ("GET", "HEAD"):
            return self.whole(writer, 404 if method in ("GET", "HEAD") else 501, b"<Error><Code>NoSuchKey</Code></Error>")
        file, size, changed, etag = found
        first, last = 0, size - 1
        if "range" in headers:
            start, _, end = headers["range"].removeprefix("bytes=").partition("-")
            first, last = (int(start), min(int(end or size - 1), size - 1)) if start else (max(0, size - int(end)), size - 1)
        n = last - first + 1
        partial = f"Content-Range: bytes {first}-{last}/{size}\r\n" if "range" in headers else ""
        status = "206 Partial Content" if partial else "200 OK"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {n}\r\n{partial}ETag: {etag}\r\nAccept-Ranges: bytes\r\n"
                     f"Last-Modified: {email.utils.formatdate(changed, usegmt=True)}\r\n\r\n".encode())
        if method == "HEAD":
            return True
        self.counts["gets"] += 1
        is_cut = self.args.refused <= draw < self.args.refused + self.args.cut
        n_sent = n // 2 if is_cut else n
        if n_sent:
            await writer.drain()
            await asyncio.get_running_loop().sendfile(writer.transport, file, first, n_sent)
        self.counts["cut"] += is_cut
        self.counts["bytes"] += n_sent
        return not is_cut

    @staticmethod
    def whole(writer, status, body):
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        return True


async def serve(args):
    server = await asyncio.start_server(Server(args).connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--latency-ms", type=float, default=30.0)
    parser.add_argument("--refused", type=float, default=0.05, help="share of requests answered with 503")
    parser.add_argument("--cut", type=float, default=0.01, help="share of requests whose body breaks off")
    parser.add_argument("--seed", type=int, default=1)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
