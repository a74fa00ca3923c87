"""Web archives made by hand: records as ISO 28500 has them, and pages that servers answered with."""

import gzip
import uuid

BODY = "The water of the lake was clear and cold, and we stayed until the evening came. " * 3
DATE = "2024-05-06T07:08:09Z"


def page(number, text=BODY):
    menu = '<nav><a href="/">Home</a></nav>'
    title = f"<title>Page {number}</title>"
    return f'<html lang="en"><head>{title}</head><body>{menu}<p>{number}: {text}</p></body></html>'


def record(kind, number, content, content_type, *, packed=True):
    """One record, packed by itself."""
    headers = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{uuid.UUID(int=number)}>",
        "WARC-Target-URI": f"http://e.org/{number}",
        "WARC-Date": DATE,
        "Content-Type": content_type,
        "Content-Length": str(len(content)),
    }
    lines = ["WARC/1.0", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    data = "\r\n".join(lines).encode() + content + b"\r\n\r\n"
    return gzip.compress(data, mtime=0) if packed else data


def response(number, body, *fields, status="HTTP/1.1 200 OK", packed=True):
    """The record of a page: ``body`` behind the status line, where there is one, and the fields of its head."""
    head = "".join(f"{line}\r\n" for line in ((status, *fields) if status else fields))
    http = (head + "\r\n").encode() + body if head else body
    return record("response", number, http, "application/http; msgtype=response", packed=packed)


def chunked(body, size=1 << 20):
    """A body in chunks of a size."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
