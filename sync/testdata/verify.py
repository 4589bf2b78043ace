#!/usr/bin/env python3
"""Verifies a head, its index and its chunks from docs/PROTOCOL.md alone.

usage: verify.py DIR

DIR holds head.bin, policy.pub (the raw Ed25519 key, hexadecimal) and
chunks/<name> (uncompressed). Where keys are hashed it also holds secret
(hexadecimal) and keys.txt: keys to look for, one a line.
Needs nothing but Python 3 and openssl.
Prints what the head says as JSON; exits with 1 when anything is wrong.
"""
import hashlib
import hmac
import json
import os
import struct
import subprocess
import sys
import tempfile

MAGIC = b"understudy-head\n"
KINDS = ["settings", "set", "hash", "cidr", "static", "regexp", "pcre", "union", "pipe", "hashed_set", "hashed_hash"]
KEYED = ("set", "hash", "hashed_set", "hashed_hash")


class Reader:
    def __init__(self, b):
        self.b, self.at = b, 0

    def take(self, n):
        if self.at + n > len(self.b):
            sys.exit("cut short")
        self.at += n
        return self.b[self.at - n:self.at]

    def num(self, fmt):
        return struct.unpack(">" + fmt, self.take(struct.calcsize(fmt)))[0]

    def end(self):
        return self.at == len(self.b)


def signed_by(key, message, signature):
    """Ed25519 by openssl: the key as SubjectPublicKeyInfo (RFC 8410 §4)."""
    with tempfile.TemporaryDirectory() as d:
        for name, data in (("key", bytes.fromhex("302a300506032b6570032100") + key), ("msg", message), ("sig", signature)):
            with open(os.path.join(d, name), "wb") as f:
                f.write(data)
        return subprocess.run(["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key", "-rawin",
                               "-in", "msg", "-sigfile", "sig"], cwd=d, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def chunk(directory, name, size, most):
    with open(os.path.join(directory, "chunks", name.hex()), "rb") as f:
        b = f.read()
    if hashlib.sha256(b).digest() != name or len(b) != size or not 1 <= size <= most:
        sys.exit("chunk %s is not what its name says" % name.hex())
    return b


def read_head(b, key):
    message, signature = b[:-64], b[-64:]
    if not message.startswith(MAGIC) or not signed_by(key, message, signature):
        sys.exit("the signature is wrong")
    r = Reader(message)
    r.take(len(MAGIC))
    form = r.num("H")
    if form not in (1, 2):
        sys.exit("unknown format")
    h = {"stream": r.take(16).hex(), "audience": r.take(32).hex(), "epoch": r.num("Q"), "version": r.num("Q"), "prev": r.take(32).hex()}
    if form == 2:
        h |= {"source": r.take(32).hex(), "secret_id": r.take(8).hex()}
    h |= {"records": r.num("Q"), "recipients": r.num("Q"), "octets": r.num("Q"), "chunks": r.num("I"), "domains": r.num("I"),
         "per_domain": r.take(32).hex()}
    h["index"] = [(r.take(32), r.num("I")) for _ in range(r.num("H"))]
    h["identity"] = hashlib.sha256(message[:r.at]).hexdigest()
    h["created"], h["expires"] = r.num("Q"), r.num("Q")
    h["server_pins"] = [r.take(32).hex() for _ in range(r.num("B"))]
    h["policy_keys"] = [r.take(32).hex() for _ in range(r.num("B"))]
    h["notice"] = r.take(r.num("H")).decode()
    if not r.end():
        sys.exit("something follows the head")
    return h


def read_index(b):
    sections, r = [], Reader(b)
    while not r.end():
        tag = r.num("B")
        if tag == 1:
            kind, n = r.num("B"), r.num("B")
            sections.append({"kind": KINDS[kind], "name": r.take(n).decode(), "records": r.num("Q"), "chunks": []})
        elif tag == 2:
            sections[-1]["chunks"].append((r.take(32), r.num("I"), r.num("I")))
        else:
            sys.exit("unknown tag %d" % tag)
    return sections


def read_records(b):
    records, r = [], Reader(b)
    while not r.end():
        k, v = r.num("H"), r.num("H")
        records.append((r.take(k), r.take(v)))
    return records


def digest(secret, key):
    def mac(data):
        return hmac.new(secret, data, "sha256").digest()
    return mac(b"d" + key.rpartition(b"@")[2] if b"@" in key else b"d")[:6] + mac(b"k" + key)[:12]


def find(directory, h, tables, kinds):
    """Looks the keys of keys.txt up in the hashed tables."""
    with open(os.path.join(directory, "secret")) as f:
        secret = bytes.fromhex(f.read().strip())
    if hmac.new(secret, b"i", "sha256").digest()[:8].hex() != h["secret_id"]:
        sys.exit("the secret is another one")
    with open(os.path.join(directory, "keys.txt"), "rb") as f:
        keys = f.read().splitlines()
    found = {}
    for key in keys:
        d = digest(secret, key)
        found[key.decode()] = {"digest": d.hex(), "tables": sorted(
            name for name, records in tables.items() if kinds[name].startswith("hashed_") and any(k == d for k, _ in records))}
    return found


def main(directory):
    with open(os.path.join(directory, "head.bin"), "rb") as f:
        raw = f.read()
    with open(os.path.join(directory, "policy.pub")) as f:
        h = read_head(raw, bytes.fromhex(f.read().strip()))
    sections = read_index(b"".join(chunk(directory, name, size, 16384) for name, size in h["index"]))
    total = octets = chunks = 0
    tables, settings = {}, b""
    for s in sections:
        records = []
        for name, size, n in s["chunks"]:
            got = read_records(chunk(directory, name, size, 49152))
            if len(got) != n:
                sys.exit("a chunk has %d records, not %d" % (len(got), n))
            records += got
            octets, chunks = octets + size, chunks + 1
        if len(records) != s["records"]:
            sys.exit("section %s has %d records" % (s["name"], len(records)))
        total += len(records)
        if s["kind"] == "settings":
            settings = b"".join(v for _, v in records)
        else:
            tables[s["name"]] = records
            if s["kind"].startswith("hashed_") and any(len(k) != 18 for k, _ in records):
                sys.exit("a key of %s is no digest" % s["name"])
            if s["kind"] in KEYED and any(a[0] >= b[0] for a, b in zip(records, records[1:])):
                sys.exit("the keys of %s don't ascend" % s["name"])
    if (total, octets, chunks) != (h["records"], h["octets"], h["chunks"]):
        sys.exit("the totals differ")
    domains, recipients = {}, 0
    addresses = json.loads(settings)["addresses"]
    names = set(addresses.get("virtual_alias_maps", []))
    kinds = {s["name"]: s["kind"] for s in sections}
    for c in ("local", "virtual_alias", "virtual_mailbox", "relay"):
        names |= set(addresses[c].get("recipients", []))
    for name in names:
        recipients += len(tables[name])
        if kinds[name] in KEYED:
            for key, _ in tables[name]:
                d = key.rpartition(b"@")[2] if b"@" in key else b""
                if kinds[name].startswith("hashed_"):
                    d = key[:6]
                domains[d] = domains.get(d, 0) + 1
    sums = b"".join(struct.pack(">H", len(d)) + d + struct.pack(">Q", n) for d, n in sorted(domains.items()))
    if (recipients, len(domains), hashlib.sha256(sums).hexdigest()) != (h["recipients"], h["domains"], h["per_domain"]):
        sys.exit("the recipients differ")
    h["index"] = [[name.hex(), size] for name, size in h["index"]]
    if "secret_id" in h:
        h["found"] = find(directory, h, tables, kinds)
    h["tables"] = {name: len(records) for name, records in tables.items()}
    json.dump(h, sys.stdout, indent=1, sort_keys=True)
    print()


main(sys.argv[1])
